"""Every setting of a run, described once: its option, type, range and unit, and which runs it means something to.

Over 250 lines: the table of all settings is in one place, with the rules that it is read by.

``check_settings`` is called whenever a ``RunConfig`` is made, so that no door has rules of its own: the command line,
Python, a sweep's points, comparisons, baselines and resumed runs. A setting that would be ignored is refused by name.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from memsim.errors import UsageError
from memsim.models.schemes import MAX_VIRTUAL_TOKENS, SCHEMES
from memsim.results import Enforcement, SettingValue
from memsim.schedules.choices import SCHEDULES
from memsim.schedules.names import AUTO
from memsim.schedules.optimizers import STATE_PER_PARAMETER
from memsim.schedules.zeroth_order import MASKS, METHODS, NOISES, estimator

if TYPE_CHECKING:
    from memsim.runtime.config import RunConfig

MOST_STEPS: Final = 99_999_999
"""What the names of checkpoints have digits for; no other count of a run is above it."""

LARGEST: Final = (1 << 63) - 1
"""What every file of a run can hold."""

KEEP_BITS = (
    *("steps", "budget_bytes", "decimal", "cold", "verify", "scratch", "enforcement", "plan_check", "checkpoint_every"),
)
"""Settings that may change from one command to the next without a change of any bit of the adapter."""

CHANGE_BITS = ("lr", "threads", "compute")
"""Those that may change if the bits may."""

KINDS: Mapping[type, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    tuple: "names",
}

_MAX_TEXT = 4096

Unused = Callable[["RunConfig"], str]
"""Says why a run has no use for a setting; an empty text if it has."""


def _always(config: "RunConfig") -> str:
    return ""


SCHEMES_WITH: Mapping[str, tuple[str, ...]] = {
    "--lora-rank": ("lora",),
    "--lora-alpha": ("lora",),
    "--target-modules": ("lora",),
    "--virtual-tokens": ("prefix", "prompt"),
}
"""Option -> the schemes that it is a setting of."""


def belongs(owners: Collection[str], scheme: str) -> str:
    """Say which schemes a setting is for, if ``scheme`` is none of them."""
    return "" if scheme in owners else f"belongs to --scheme {' or '.join(owners)}, not to {scheme}"


def _scheme_with(option: str) -> Unused:
    return lambda config: belongs(SCHEMES_WITH[option], config.scheme)


def _schedule(name: str) -> Unused:
    return lambda config: "" if config.schedule == name else f"is for the schedule {name}, not {config.schedule}"


def _zeroth_order(config: "RunConfig") -> str:
    known = config.schedule in METHODS
    return "" if known else f"is for zeroth-order schedules ({', '.join(METHODS)}), not {config.schedule}"


def _masked(config: "RunConfig") -> str:
    return _zeroth_order(config) or ("" if config.zeroth_order.sparsity else "needs --zo-sparsity")


def _brings_its_own(config: "RunConfig") -> str:
    """Say whose update the schedule has, if it is its own."""
    method = METHODS.get(config.schedule)
    own = method is not None and not method.hybrid
    return f": {config.schedule} updates by {method.optimizer}, as its definition says" if method and own else ""


def _optimizers(*owners: str) -> Unused:
    def unused(config: "RunConfig") -> str:
        name = config.optimizer.name
        return _brings_its_own(config) or ("" if name in owners else f"is for the optimizer {owners[0]}, not {name}")

    return unused


def _with_task(config: "RunConfig") -> str:
    return "" if config.task is not None else "needs --task"


def _with_evaluation(config: "RunConfig") -> str:
    return "" if config.eval_data is not None else "needs --eval-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of a run.

    Attributes:
        name: Where it is in a ``RunConfig``: ``optimizer.lr``.
        option: What the command line, and every message, calls it.
        kind: Its type, a key of ``KINDS``.
        low: The least that it may be.
        high: The most.
        choices: All that it may be, if that is a list.
        unit: What a number counts.
        own_range: Whether the range of a number is checked where its scheme or method is.
        optional: Whether it may be None: what suits the model, the schedule or this machine.
        unused: See ``Unused``.
    """

    name: str
    option: str
    kind: type = int
    low: int | None = None
    high: int | None = None
    choices: Collection[str] = ()
    unit: str = ""
    own_range: bool = False
    optional: bool = False
    unused: Unused = _always

    def of(self, config: "RunConfig") -> Any:
        """Return its value."""
        value: Any = config
        for part in self.name.split("."):
            value = getattr(value, part)
        return value

    def check(self, value: Any) -> None:
        """Check a value by itself.

        Raises:
            UsageError: It is of another type, or out of range.
        """
        if value is None and self.optional:
            return
        kinds: Any = (int, float) if self.kind is float else self.kind
        if (isinstance(value, bool) and self.kind is not bool) or not isinstance(value, kinds):
            raise UsageError(f"{self.option} must be {KINDS[self.kind]}, not {value!r:.80}")
        if self.low is not None and value < self.low:
            raise UsageError(f"{self.option} {value} is below {self.low}")
        if self.high is not None and not value <= self.high:
            raise UsageError(f"{self.option} {value!s:.40} is above {self.high}")
        if self.kind is float and not self.own_range and not math.isfinite(value):
            raise UsageError(f"{self.option} {value} must be a finite number")
        if self.choices and value not in self.choices:
            raise UsageError(f"{self.option} {value!r:.80} is none of {', '.join(self.choices)}")
        if self.kind in (str, Path) and not 0 < len(str(value)) <= _MAX_TEXT:
            raise UsageError(f"{self.option} must have 1 to {_MAX_TEXT} characters")


def _count(name: str, option: str, low: int = 1, high: int = MOST_STEPS, **more: Any) -> Setting:
    return Setting(name=name, option=option, low=low, high=high, **more)


SETTINGS: tuple[Setting, ...] = (
    _count("budget_bytes", "--budget", 0, LARGEST, unit="bytes"),
    Setting(name="model", option="--model", kind=str),
    Setting(name="schedule", option="--schedule", kind=str, choices=(*SCHEDULES, *METHODS, AUTO)),
    _count("lcsb_groups", "--lcsb-groups", optional=True, unused=_schedule("lcsb")),
    _count("seq_len", "--seq-len", high=1 << 20, unit="tokens"),
    _count("steps", "--steps"),
    Setting(name="data", option="--data", kind=Path, optional=True),
    Setting(name="task", option="--task", kind=str, optional=True),
    Setting(name="template", option="--template/--no-template", kind=bool, unused=_with_task),
    Setting(name="classifier", option="--classifier/--label-words", kind=bool, optional=True, unused=_with_task),
    Setting(name="tokenizer", option="--tokenizer", kind=str, optional=True),
    Setting(name="bos", option="--bos", kind=str, choices=("auto", "document", "never")),
    Setting(name="eval_data", option="--eval-data", kind=Path, optional=True),
    _count("eval_every", "--eval-every", 0, unit="steps", unused=_with_evaluation),
    _count("eval_sequences", "--eval-sequences", unused=_with_evaluation),
    Setting(name="eval_first", option="--eval-first", kind=bool, unused=_with_evaluation),
    Setting(name="scheme", option="--scheme", kind=str, choices=tuple(SCHEMES)),
    _count("lora.rank", "--lora-rank", unused=_scheme_with("--lora-rank")),
    Setting(name="lora.alpha", option="--lora-alpha", kind=float, own_range=True, unused=_scheme_with("--lora-alpha")),
    Setting(name="lora.target_modules", option="--target-modules", kind=tuple, unused=_scheme_with("--target-modules")),
    _count("virtual_tokens", "--virtual-tokens", high=MAX_VIRTUAL_TOKENS, unused=_scheme_with("--virtual-tokens")),
    Setting(
        name="optimizer.name",
        option="--optimizer",
        kind=str,
        choices=tuple(STATE_PER_PARAMETER),
        unused=_brings_its_own,
    ),
    Setting(name="optimizer.lr", option="--lr", kind=float),
    Setting(name="optimizer.momentum", option="optimizer.momentum", kind=float, unused=_optimizers("momentum")),
    Setting(name="optimizer.beta1", option="optimizer.beta1", kind=float, unused=_optimizers("adamw")),
    Setting(name="optimizer.beta2", option="optimizer.beta2", kind=float, unused=_optimizers("adamw")),
    Setting(name="optimizer.eps", option="optimizer.eps", kind=float, unused=_optimizers("adamw")),
    Setting(
        name="optimizer.weight_decay",
        option="optimizer.weight_decay",
        kind=float,
        optional=True,
        unused=_brings_its_own,
    ),
    _count("accumulate", "--accumulate", high=1024, unit="sequences"),
    _count("seed", "--seed", 0, LARGEST),
    _count("threads", "--threads", 0),
    Setting(name="compute", option="--compute", kind=str, choices=("auto", "f32", "bf16")),
    Setting(name="cold", option="--page-cache", kind=bool),
    Setting(name="verify", option="--verify", kind=str, choices=("first", "full")),
    Setting(name="events", option="events", kind=bool),
    Setting(name="out", option="--out", kind=Path, optional=True),
    Setting(name="scratch", option="--scratch", kind=Path, optional=True),
    Setting(name="plan_check", option="--plan-check", kind=bool),
    Setting(name="enforcement", option="--enforcement", kind=str, choices=get_args(Enforcement), optional=True),
    _count("balloon_bytes", "--test-balloon", 0, LARGEST, unit="bytes"),
    Setting(name="record", option="--record", kind=bool),
    _count("checkpoint_every", "--checkpoint-every", unit="steps"),
    Setting(
        name="zeroth_order.eps", option="--zo-eps", kind=float, own_range=True, optional=True, unused=_zeroth_order
    ),
    _count("zeroth_order.directions", "--zo-directions", 0, optional=True, unused=_zeroth_order),
    Setting(
        name="zeroth_order.noise", option="--zo-noise", kind=str, choices=NOISES, optional=True, unused=_zeroth_order
    ),
    Setting(name="zeroth_order.sparsity", option="--zo-sparsity", kind=float, own_range=True, unused=_zeroth_order),
    Setting(name="zeroth_order.mask", option="--zo-mask", kind=str, choices=MASKS, unused=_masked),
    _count("zeroth_order.resample", "--zo-resample", unit="steps", unused=_masked),
    Setting(name="zeroth_order.lr", option="--zo-lr", kind=float, low=0, optional=True, unused=_schedule("hybrid")),
    _count("zeroth_order.hybrid_k", "--hybrid-k", 0, unit="blocks", unused=_schedule("hybrid")),
)

SETTING: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}
BY_OPTION: Mapping[str, Setting] = {option: setting for setting in SETTINGS for option in setting.option.split("/")}

_DECIDED = ("eps", "directions", "noise", "sparsity", "mask", "resample")
"""What a zeroth-order method decides where the user has not."""


def check_settings(config: "RunConfig") -> None:
    """Check all settings of a run, by themselves and with each other; files and this machine are not looked at.

    Raises:
        UsageError: A value that can never work, or that would be ignored.
    """
    for setting in SETTINGS:
        setting.check(setting.of(config))
    given = {setting.name for setting in SETTINGS if setting.of(config) != default_of(type(config), setting.name)}
    if _brings_its_own(config) and config.optimizer.name == METHODS[config.schedule].optimizer:
        given.discard("optimizer.name")  # it is what the schedule does
    refuse_ignored([config], given)
    if config.budget_bytes == 0:
        raise UsageError("--budget 0 cannot hold a process; write a size such as 1GB")
    if config.schedule in METHODS:
        estimator(config.schedule, config.zeroth_order, config.optimizer.lr, config.accumulate)
    if config.plan is not None and config.schedule != AUTO:
        raise UsageError(f"a plan is run by the schedule {AUTO}, not {config.schedule}; leave out --schedule")
    if config.task is not None and config.data is None:
        raise UsageError("--task needs --data: a JSONL file of its examples")
    if config.record and config.eval_data is not None:
        raise UsageError("--record records training steps alone; leave out --eval-data")
    if config.record and config.schedule == "lcsb":
        raise UsageError("--record needs steps that are all alike, but in those of lcsb other blocks have their turn")


def refuse_ignored(configs: Sequence["RunConfig"], given: Collection[str]) -> None:
    """Refuse what was given and would be ignored.

    Args:
        configs: The run, or all that the same settings were given for.
        given: Names of settings.

    Raises:
        UsageError: None of them has a use for one.
    """
    for setting in SETTINGS:
        reasons = [setting.unused(config) for config in configs] if setting.name in given else []
        if reasons and all(reasons):
            raise UsageError(f"{setting.option}{'' if reasons[0][0] == ':' else ' '}{reasons[0]}")


def default_of(kind: type, name: str) -> Any:
    """Return the default of a setting by its dotted name; ``MISSING`` if there is none."""
    first, *rest = name.split(".")
    value = _defaults(kind)[first]
    for part in rest:
        value = getattr(value, part)
    return value


@cache
def _defaults(kind: Any) -> dict[str, Any]:
    return {
        spec.name: spec.default_factory() if spec.default_factory is not MISSING else spec.default
        for spec in fields(kind)
    }


def recorded_settings(config: "RunConfig") -> dict[str, SettingValue]:
    """Return all settings that mean something to a run, as its record holds them."""
    found: dict[str, Any] = {setting.name: setting.of(config) for setting in SETTINGS if not setting.unused(config)}
    if config.schedule in METHODS:
        decided = estimator(config.schedule, config.zeroth_order, config.optimizer.lr, config.accumulate)
        own = {f"zeroth_order.{name}": getattr(decided, name) for name in _DECIDED}
        found |= {name: value for name, value in own.items() if name in found}
    return {name: _printable(value) if isinstance(value, Path) else value for name, value in found.items()}


def _printable(path: Path) -> str:
    return str(path).encode(errors="backslashreplace").decode()
