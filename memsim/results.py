"""The one record of planned, measured and simulated results: a field is described once, by its annotation.

Over 250 lines: every field of every record stands here, with what it means.

`memsim.result_file` writes it as JSON and reads it back.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

SCHEMA: Final = "memsim.result/1"

Source = Literal["planned", "measured", "simulated"]
Weights = Literal["synthetic", "packed"]
PageCache = Literal["warm", "cold"]
Enforcement = Literal["cgroup2", "systemd", "cgroup1", "rlimit+watchdog", "watchdog"]
Verdict = Literal["fits", "warned", "at risk", "killed"]
SettingValue = bool | int | float | str | tuple[str, ...] | None
ExitReason = Literal["done", "refused", "killed_at_cap", "thrashing", "killed", "interrupted", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One training step; None is what was not measured (or, for a loss, not finite).

    Attributes:
        loss: Mean cross-entropy per token, in nats.
        accuracy: Share of next tokens predicted right, 0 to 1.
    """

    loss: float | None = None
    accuracy: float | None = None
    step_s: float | None = None
    peak_footprint_bytes: int | None = None
    bytes_paged_in: int | None = None
    bytes_unpacked: int | None = None
    bytes_spilled: int | None = None
    bytes_written: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerResult:
    """What made tokens of the text, and which special tokens it added.

    Attributes:
        name: What it was read from: ``tokenizer.json``, a file's metadata, ..., or ``bytes``.
        sha256: Of the tokenizer.json; None for bytes.
        begins: What every document begins with.
        begin_ids: Their ids.
        every_window: Whether every window of a long text begins with them, too.
        between: What stands between two documents; None for a newline.
        ends: What every window stands between, where the model guesses hidden tokens.
    """

    name: str
    sha256: str | None = None
    begins: tuple[str, ...] = ()
    begin_ids: tuple[int, ...] = ()
    every_window: bool = False
    between: str | None = None
    ends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Loss (nats per token) and next-token accuracy (0 to 1) on the evaluation text, after ``step`` steps.

    Of a task: the loss of the right answers' tokens, and the share of examples whose right option was chosen.
    """

    step: int
    loss: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Band:
    """A simulated figure: with every number of the device at its nominal, and with all of them at one end."""

    low: float
    nominal: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitResult:
    """What one memory limit of a device does to a run.

    Attributes:
        limit_bytes: The device's limit, or a lower budget.
        margin_bytes: Limit minus peak footprint, by the nominals; None when the peak is above.
        over_bytes: Peak footprint minus limit; None when it is not above.
        killed_at_node: The first node above the limit.
        warned_at_node: The first node above the share of the limit at which the device warns.
    """

    verdict: Verdict
    limit_bytes: Band
    margin_bytes: int | None
    over_bytes: int | None
    killed_at_node: int | None
    warned_at_node: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedResult:
    """A run on a device that is not here.

    Attributes:
        mode: How the app runs, which decides the limit.
        peak_node: Where the footprint first reaches its peak.
        limits: By mode.
        figures: Everything that is one number, by its name with unit.
    """

    device: str
    mode: str
    peak_node: int
    limits: dict[str, LimitResult]
    figures: dict[str, Band]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksRecord:
    """What becomes of the residuals of ``count`` blocks in a row; what is in neither list is recomputed."""

    count: int
    keep: tuple[str, ...]
    spill: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoicesRecord:
    """A schedule as data: the fields of ``schedules.choices.Choices``, equal blocks in a row put together."""

    blocks: tuple[BlocksRecord, ...]
    unpack: Literal["block", "tile"]
    head: Literal["logits", "one_pass"]
    adapters: Literal["pinned", "paged"]
    update: Literal["end", "block"]
    mlp_tile: int | None
    prefetch: bool
    state: Literal["pinned", "paged"]
    groups: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPoint:
    """A schedule and what it is predicted to need and to take.

    Attributes:
        schedule: Its name; ``auto`` for one that was searched for.
        need_bytes: The smallest budget for it.
        peak_bytes: Working set at the peak.
        step_s: Nominal seconds of a step that finds the weights in memory.
    """

    schedule: str
    need_bytes: int
    peak_bytes: int
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatCost:
    """What a model's matrices cost more than they would in symmetric INT4, groups of 32; less than 0 if it is less.

    Attributes:
        stored: The formats that they have.
        disk_bytes: Of the pack.
        paged_in_bytes: Of a step.
        file_floor_bytes: Of the budget.
    """

    stored: str
    disk_bytes: int
    paged_in_bytes: int
    file_floor_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedResult:
    """What ``memsim plan`` found for a budget; None where nothing fits.

    Attributes:
        device: Whose rates the seconds are from.
        chosen: The fastest schedule that fits.
        choices: What it is.
        bound: By what share of its time another schedule of the space that fits could be faster, at most.
        step_s: Its seconds, and with all numbers of the device at their worst and best.
        footprint_bytes: The same of its peak footprint; on this machine exact but for what a reading may differ by.
        named: The named schedules.
        front: The fastest schedule for each of some budgets, smallest first.
        smallest_budget_bytes: With which a step is possible at all.
        longest_seq_len: With which it is possible under the budget; 0 if there is none.
        format_cost: Of the chosen schedule; None where all is symmetric INT4.
    """

    device: str
    chosen: PlanPoint | None
    choices: ChoicesRecord | None
    bound: float | None
    step_s: Band | None
    footprint_bytes: Band | None
    named: tuple[PlanPoint, ...]
    front: tuple[PlanPoint, ...]
    smallest_budget_bytes: int
    longest_seq_len: int
    format_cost: FormatCost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingResult:
    """What recording a run cost.

    Attributes:
        steps: How many steps were recorded, from the first.
        capture_bytes: Size of the capture.
        tracker_bytes: Memory that memray, and the frames that it records, took inside the cap.
        recorded_step_s: Median of the recorded steps but the first, which meets cold caches.
        unrecorded_step_s: Median of the steps that the same process made after the tracker was gone, in the same way.
    """

    steps: int
    capture_bytes: int
    tracker_bytes: int
    recorded_step_s: float | None = None
    unrecorded_step_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a run was asked for: unlike the rest of its record, this names paths of its machine.

    Attributes:
        settings: Every setting that means something to the run, by its place in ``RunConfig`` (``optimizer.lr``).
        files: SHA-256 of each file that it read: ``data``, ``eval_data``, ``task``, and the files of token ids.
        started: When its first command began: ISO 8601, UTC.
        commands: Its command lines, those that went on with it last; a call from Python leaves none.
    """

    settings: dict[str, SettingValue]
    files: dict[str, str]
    started: str
    commands: tuple[str, ...] = ()

    def rows(self) -> dict[str, str]:
        """Return all of it for people: what it is, and its value."""
        rows = {name: _told(value) for name, value in sorted(self.settings.items())}
        rows |= {f"sha256 of {name}": digest for name, digest in sorted(self.files.items())}
        return rows | {"started": self.started, "command": "; ".join(self.commands) or "a call from Python"}


def _told(value: SettingValue) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return (
        "not given" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The machine that measured: nothing in it names a user, a host or a path.

    Attributes:
        cores: Logical processors that this process may use.
        kernel: Release of the operating system's kernel.
    """

    cpu: str
    cores: int
    ram_bytes: int
    kernel: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One planned, measured or simulated run; None (or empty) is what does not apply or was not measured.

    Attributes:
        task: What the examples of the data mean; None for plain text.
        tokenizer: What made tokens of the text.
        scheme: What is trained: ``lora``, ``prefix``, ``prompt``, ``head`` or ``norms``.
        compute: Element type of the matrix products (``f32``, ``bf16``).
        budget_bytes: The cap, interpreter included.
        enforcement: What held the worker to the cap.
        baseline_footprint_bytes: Footprint before any weight: interpreter, libraries, compiled kernels.
        peak_footprint_bytes: Highest footprint of the worker.
        peak_working_set_bytes: Peak minus baseline, which is what a phone's figures hold.
        planned_peak_bytes: Arena, pinned and dirty mapped bytes at the worst node.
        planned_mapped_bytes: Clean mapped bytes, which the kernel may drop.
        planned_working_set_bytes: Planned peak, and what the worker's own Python objects take beside it.
        planned_footprint_bytes: Baseline plus planned working set.
        file_floor_bytes: File pages without which the worker would thrash.
        kernel_peak_bytes: The kernel's own maximum for the group, file cache included.
        step_s: Median over ``steps``.
        time_by_op_s: Seconds per op in the median step.
        peak_by_value: Bytes of each value that lived at the peak, largest first.
        planned_step_s: Seconds of a step as its plan predicted them, if it was planned by a device's rates.
        choices: The schedule as data.
        simulated: What only a simulation knows: the device, its limits, and bands.
        planned: What only a plan knows: what else there is.
        recording: What recording cost, if the run was recorded.
        message: What ended the run, in one line, if it is not done.
        unheard: Why progress could not be printed, if it was so.
        request: What the run was asked for; not in a baseline, which has settings of its own.
        versions: Distribution name to version.
    """

    schema: Literal["memsim.result/1"] = field(default=SCHEMA, init=False)
    command: str
    source: Source
    model: str
    schedule: str | None = None
    seq_len: int | None = None
    task: str | None = None
    tokenizer: TokenizerResult | None = None
    scheme: str | None = None
    lora_rank: int | None = None
    trainable_parameters: int | None = None
    optimizer: str | None = None
    compute: str | None = None
    threads: int | None = None
    weights: Weights | None = None
    page_cache: PageCache | None = None
    budget_bytes: int | None = None
    enforcement: Enforcement | None = None
    fits: bool | None = None
    exit_reason: ExitReason | None = None
    baseline_footprint_bytes: int | None = None
    peak_footprint_bytes: int | None = None
    peak_working_set_bytes: int | None = None
    planned_peak_bytes: int | None = None
    planned_mapped_bytes: int | None = None
    planned_working_set_bytes: int | None = None
    planned_footprint_bytes: int | None = None
    file_floor_bytes: int | None = None
    peak_rss_bytes: int | None = None
    kernel_peak_bytes: int | None = None
    step_s: float | None = None
    steps: tuple[StepResult, ...] = ()
    evals: tuple[Evaluation, ...] = ()
    time_by_op_s: dict[str, float] = field(default_factory=dict)
    peak_by_value: dict[str, int] = field(default_factory=dict)
    planned_step_s: float | None = None
    choices: ChoicesRecord | None = None
    simulated: SimulatedResult | None = None
    planned: PlannedResult | None = None
    recording: RecordingResult | None = None
    message: str | None = None
    unheard: str | None = None
    request: Request | None = None
    host: Host
    versions: dict[str, str]

    @property
    def trained(self) -> str:
        """What is trained, in words: ``LoRA rank 8``, or the name of another scheme."""
        return f"LoRA rank {self.lora_rank}" if self.lora_rank else str(self.scheme)
