"""What a run was asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memsim.models.lora import LoraConfig
from memsim.models.scheme import Scheme
from memsim.models.schemes import make_scheme
from memsim.runtime.settings import check_settings
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.zeroth_order import ZeroOrder
from memsim.search.plan_file import PlanFile


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What ``memsim run`` was asked for, checked when it is made (``runtime.settings`` describes every setting).

    Attributes:
        budget_bytes: The cap, interpreter included.
        decimal: Whether the user wrote decimal units (1GB), so that messages do too.
        scheme: What is trained; ``lora`` and ``virtual_tokens`` are settings of some schemes.
        compute: ``f32``, ``bf16`` or ``auto``, which is the faster of the two where the schedule has packed products.
        data: Training text; None is CPython's own documentation. Of a task, its examples in JSONL.
        task: What the data's examples mean: the name of a task, or its file; None for plain text.
        template: Whether an example of the task reads as its template or as its plain text.
        classifier: Whether a classifier, which is trained too, tells the task's options apart, and not the words of
            their answers; None is what suits the model: a classifier for RoBERTa and for the scheme ``head``.
        tokenizer: A file, or ``bytes``; None is the model's own.
        bos: Whether documents begin as the tokenizer begins a text (``document``), and windows too (``auto``).
        eval_sequences: Sequences, or examples of a task, that an evaluation takes at most.
        eval_first: Evaluate before the first step too.
        verify: When weights are checked against their checksums: ``first``, before the first step, or ``full``, which
            checks each part again whenever it is paged in.
        events: Write every node to ``events.jsonl``: some 150 bytes each.
        out: Directory to create; None names one under ``runs``.
        schedule: A named one, or ``auto``: the fastest that fits the budget.
        plan: Made before, to be run as it is; ``schedule`` is ``auto`` then.
        scratch: Where spilled values go; None is the output directory.
        plan_check: Refuse a plan that does not fit.
        enforcement: One way of capping; None takes the best available.
        balloon_bytes: Unplanned bytes that a node touches, to test the cap.
        zeroth_order: Settings of a zeroth-order schedule, which brings an optimizer of its own: ``optimizer`` then
            names the learning rate only.
        lcsb_groups: Into how many groups ``lcsb`` parts the blocks.
        checkpoint_every: Save the state after every so many steps; it is saved after the last one, too.
        record: Record the run with memray: one allocation a value, each node in a frame of its own.
    """

    budget_bytes: int
    decimal: bool = True
    model: str = "qwen2.5-0.5b"
    schedule: str = "mebp"
    plan: PlanFile | None = None
    seq_len: int = 256
    steps: int = 5
    data: Path | None = None
    task: str | None = None
    template: bool = True
    classifier: bool | None = None
    tokenizer: str | None = None
    bos: Literal["auto", "document", "never"] = "auto"
    eval_data: Path | None = None
    eval_every: int = 0
    eval_sequences: int = 8
    eval_first: bool = False
    scheme: str = "lora"
    lora: LoraConfig = field(default_factory=LoraConfig)
    virtual_tokens: int = 20
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    accumulate: int = 1
    seed: int = 0
    threads: int = 0
    compute: str = "auto"
    cold: bool = False
    verify: Literal["first", "full"] = "first"
    events: bool = True
    out: Path | None = None
    scratch: Path | None = None
    plan_check: bool = True
    enforcement: str | None = None
    balloon_bytes: int = 0
    record: bool = False
    checkpoint_every: int = 10
    zeroth_order: ZeroOrder = field(default_factory=ZeroOrder)
    lcsb_groups: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that can never work, and settings that would be ignored.

        Raises:
            UsageError: The message names the option.
        """
        check_settings(self)


def scheme_of(config: RunConfig, labels: int = 0) -> Scheme:
    """Return the scheme of a run, with a classifier of so many labels.

    Raises:
        UsageError: No such scheme.
    """
    return make_scheme(config.scheme, config.lora, config.virtual_tokens, labels)


def task_name(config: RunConfig) -> str | None:
    """Return what the record calls the task; None for plain text."""
    if config.task is None:
        return None
    name = Path(config.task).name.removesuffix(".toml")
    return name if config.template else f"{name}, no template"
