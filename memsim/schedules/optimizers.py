"""Optimizer settings, as the update nodes of a step program carry them."""

from dataclasses import dataclass

from memsim.errors import UsageError
from memsim.ir.program import Attr

STATE_PER_PARAMETER = {"sgd": 0, "momentum": 1, "adamw": 2}


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """One optimizer; defaults are torch's (AdamW: weight decay 0.01; SGD: none)."""

    name: str = "adamw"
    lr: float = 1e-4
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown optimizer and a learning rate that is not a number."""
        if self.name not in STATE_PER_PARAMETER:
            raise UsageError(f"no optimizer called {self.name!r}; choose from {', '.join(STATE_PER_PARAMETER)}")
        if not isinstance(self.lr, int | float) or not 0 <= self.lr < float("inf"):
            raise UsageError(f"--lr {self.lr} must be zero or a positive number")

    def state_size(self, n_parameters: int) -> int:
        """Return the number of f32 state elements for ``n_parameters``."""
        return STATE_PER_PARAMETER[self.name] * n_parameters

    def attrs(self) -> dict[str, Attr]:
        """Return the attributes of an update node."""
        decay = self.weight_decay if self.weight_decay is not None else 0.01 if self.name == "adamw" else 0.0
        attrs: dict[str, Attr] = {"lr": self.lr, "weight_decay": decay}
        if self.name == "momentum":
            attrs["momentum"] = self.momentum
        if self.name == "adamw":
            attrs |= {"beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}
        return attrs
