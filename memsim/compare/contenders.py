"""What is compared: ``--schedules mebp,tiled:200`` and ``--lr-grid`` as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite

from memsim.compare.rates import LR_GRIDS, Grid
from memsim.errors import UsageError
from memsim.models.lora import LoraConfig
from memsim.runtime.config import RunConfig
from memsim.runtime.settings import SETTING, default_of
from memsim.schedules.names import SCHEDULE_NAMES
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.zeroth_order import METHODS, ZeroOrder

VIRTUAL_TOKENS: int = default_of(RunConfig, "virtual_tokens")
"""Learning rates to choose from where the user names none, for AdamW and for estimates of the gradient, which random
walks limit to smaller steps. Adam, signs and FZOO take steps whose length does not depend on the gradient's. Rates of a
scheme that is not here are those of LoRA. Found by trials on validation texts of the model that memsim ships."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Settings that are meant for every contender that has them.

    Attributes:
        lora: Of the scheme ``lora``.
        virtual_tokens: Of ``prefix`` and ``prompt``.
        optimizer: Of schedules that bring none of their own; its learning rate is a contender's.
        zeroth_order: Of zeroth-order methods.
    """

    lora: LoraConfig = field(default_factory=LoraConfig)
    virtual_tokens: int = VIRTUAL_TOKENS
    optimizer: str = "adamw"
    zeroth_order: ZeroOrder = field(default_factory=ZeroOrder)


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of a comparison.

    Attributes:
        steps: Optimizer steps.
        lrs: Learning rates to choose from.
        scheme: What is trained.
    """

    schedule: str
    steps: int
    lrs: tuple[float, ...]
    scheme: str = "lora"

    @property
    def label(self) -> str:
        """What tables, plots and directories call it: ``mebp``, or ``mebp-prefix`` if it trains no adapters."""
        return self.schedule if self.scheme == "lora" else f"{self.schedule}-{self.scheme}"


def parse_contenders(
    schedules: str, steps: int, grids: Sequence[str], schemes: Sequence[str] = ("lora",)
) -> tuple[Contender, ...]:
    """Read ``--schedules``, a list of NAME or NAME:STEPS, and the ``--lr-grid`` options; pair them with ``schemes``.

    Raises:
        UsageError: An unknown, repeated or empty name, a number that cannot be, or a grid for what is not compared.
    """
    counts = dict(_steps_of(item, steps) for item in _listed(schedules, "--schedules"))
    if len(counts) < len(_listed(schedules, "--schedules")):
        raise UsageError(f"--schedules {schedules} names one schedule twice")
    if len(set(schemes)) < len(schemes):
        raise UsageError(f"--scheme names one scheme twice: {', '.join(schemes)}")
    common, own = _grids(grids)
    contenders = [Contender(name, count, (), scheme) for scheme in schemes for name, count in counts.items()]
    known = {*counts, *(contender.label for contender in contenders)}
    if unknown := sorted(own.keys() - known):
        raise UsageError(f"--lr-grid {unknown[0]}:... is for none of what is compared: {', '.join(sorted(known))}")

    def grid(item: Contender) -> tuple[float, ...]:
        return own.get(item.label) or own.get(item.schedule) or common or default_grid(item.schedule, item.scheme)

    return tuple(replace(contender, lrs=grid(contender)) for contender in contenders)


def default_grid(schedule: str, scheme: str) -> Grid:
    """Return the learning rates to choose from where the user names none."""
    grids = LR_GRIDS[_kind(schedule)]
    return grids.get(scheme, grids["lora"])


def _kind(schedule: str) -> str:
    method = METHODS.get(schedule)
    if method is None or method.hybrid:  # the rate of a hybrid is that of the blocks that it differentiates
        return "first-order"
    normalized = method.optimizer == "adamw" or method.sign or method.estimate == "normalized"
    return "zeroth-order, by Adam or signs" if normalized else "zeroth-order"


def with_contender(base: RunConfig, contender: Contender, lr: float, shared: Shared) -> RunConfig:
    """Return what a run of ``contender`` is asked for, its text and its steps aside.

    Raises:
        UsageError: A value that can never work, or that the contender cannot have.
    """
    method = METHODS.get(contender.schedule)
    updates_itself = method is not None and not method.hybrid
    virtual = contender.scheme in ("prefix", "prompt")
    return replace(
        base,
        schedule=contender.schedule,
        scheme=contender.scheme,
        lora=shared.lora if contender.scheme == "lora" else LoraConfig(),
        virtual_tokens=shared.virtual_tokens if virtual else VIRTUAL_TOKENS,
        optimizer=OptimizerConfig(lr=lr) if updates_itself else OptimizerConfig(shared.optimizer, lr),
        zeroth_order=own_settings(contender.schedule, shared.zeroth_order),
    )


def own_settings(schedule: str, asked: ZeroOrder) -> ZeroOrder:
    """Return what ``schedule`` takes of zeroth-order settings that are meant for every schedule that has them."""
    method = METHODS.get(schedule)
    if method is None:
        return ZeroOrder()
    exact = method.estimate == "jvp"
    one_direction = exact or method.accepts or method.blocks
    return replace(
        asked,
        eps=None if exact else asked.eps,
        directions=None if one_direction else asked.directions,
        noise=None if method.noise else asked.noise,
        lr=asked.lr if method.hybrid else None,
        hybrid_k=asked.hybrid_k if method.hybrid else ZeroOrder().hybrid_k,
    )


def _listed(text: str, option: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UsageError(f"{option} {text!r} has an empty item; write a list such as mebp,tiled")
    return items


def _steps_of(item: str, default: int) -> tuple[str, int]:
    name, colon, count = item.partition(":")
    if name not in SCHEDULE_NAMES:
        raise UsageError(f"--schedules: no schedule called {name!r}; schedules: {', '.join(SCHEDULE_NAMES)}")
    steps = _integer(count, f"--schedules {item}") if colon else default
    SETTING["steps"].check(steps)
    return name, steps


def _integer(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{where}: {text!r} is not a number of steps; write NAME or NAME:STEPS") from None


def _grids(options: Sequence[str]) -> tuple[tuple[float, ...], Mapping[str, tuple[float, ...]]]:
    """Return the grid of all schedules, empty if none was given, and those of single ones."""
    common: tuple[float, ...] = ()
    own: dict[str, tuple[float, ...]] = {}
    for option in options:
        name, colon, rates = option.rpartition(":")
        grid = tuple(sorted({_rate(rate, option) for rate in _listed(rates, "--lr-grid")}))
        if colon:
            own[name] = grid
        else:
            common = grid
    return common, own


def _rate(text: str, option: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not (isfinite(rate) and rate > 0):
        raise UsageError(f"--lr-grid {option}: {text!r} is not a positive learning rate")
    return rate
