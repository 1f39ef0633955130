"""One capped fine-tuning run, seen from the parent: plan, refuse or launch, watch, record."""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

import psutil

from memsim.errors import InputError, UsageError
from memsim.files import require_disk, write_text
from memsim.ir.serialize import save_program
from memsim.models.lora import LoraConfig, check_lora, n_trainable, with_our_names
from memsim.planner.plan import check_budget
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.results import Enforcement, ExitReason, Result, host_info, versions, write_result
from memsim.runtime.cap import Cap, open_cap
from memsim.runtime.directories import RUNS, out_directory, work_directory
from memsim.runtime.follow import NodeDone, NotCompiled, Outcome, StepDone
from memsim.runtime.job import WorkerJob
from memsim.runtime.masking import mask_token_id
from memsim.runtime.prepare import NODE_BYTES, Prepared, forget_kernels, prepare_kernels
from memsim.runtime.seed_log import SeedLog, header_of
from memsim.runtime.supervise import supervise
from memsim.runtime.tokenize import prepare_tokens
from memsim.schedules.catalog import updates_by
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.zeroth_order import METHODS, ZeroOrder, estimator
from memsim.units import MIB, format_bytes
from memsim.weights.cache import find_model
from memsim.weights.pack import Pack

RESULT_FILE = "result.json"
EVENTS_FILE = "events.jsonl"
SEEDS_FILE = "seeds.jsonl"
READING_ERROR_BYTES = 2 * MIB
"""Two runs' peaks may differ by as much: the second must not be refused a budget of the first's peak and file floor."""

FINISHED: list[Callable[["RunConfig", "RunOutcome"], None]] = []
"""Called with every run of this process that ended with a record: how the pytest plugin sees the runs of a test."""

_FITS: dict[ExitReason, bool] = {"done": True, "refused": False, "killed_at_cap": False, "thrashing": False}
PROGRAM_FILE = "program.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What ``memsim run`` was asked for.

    Attributes:
        budget_bytes: The cap, interpreter included.
        decimal: Whether the user wrote decimal units (1GB), so that messages do too.
        compute: ``f32``, ``bf16`` or ``auto``, which is the faster of the two where the schedule has packed products.
        data: Training text; None is CPython's own documentation.
        eval_first: Evaluate before the first step too.
        events: Write every node to ``events.jsonl``: some 150 bytes each.
        out: Directory to create; None names one under ``runs``.
        scratch: Where spilled values go; None is the output directory.
        plan_check: Refuse a plan that does not fit.
        enforcement: One way of capping; None takes the best available.
        balloon_bytes: Unplanned bytes that a node touches, to test the cap.
        zeroth_order: Settings of a zeroth-order schedule, which brings an optimizer of its own: ``optimizer`` then
            names the learning rate only.
        lcsb_groups: Into how many groups ``lcsb`` parts the blocks.
    """

    budget_bytes: int
    decimal: bool = True
    model: str = "qwen2.5-0.5b"
    schedule: str = "mebp"
    seq_len: int = 256
    steps: int = 5
    data: Path | None = None
    eval_data: Path | None = None
    eval_every: int = 0
    eval_sequences: int = 8
    eval_first: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    accumulate: int = 1
    seed: int = 0
    threads: int = 0
    compute: str = "auto"
    cold: bool = False
    events: bool = True
    out: Path | None = None
    scratch: Path | None = None
    plan_check: bool = True
    enforcement: str | None = None
    balloon_bytes: int = 0
    zeroth_order: ZeroOrder = field(default_factory=ZeroOrder)
    lcsb_groups: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """Callbacks that draw a run; every one may do nothing.

    Attributes:
        stage: A part of the preparation begins.
        packing: (label, bytes done, bytes in all) while weights are written.
        planned: The plan is made: (planned footprint in bytes, weights' source).
        node: A node is done; called at most ten times a second.
        step: A step is done.
        note: A line worth reading.
    """

    stage: Callable[[str], None] = lambda text: None
    packing: Callable[[str, int, int], None] = lambda label, done, total: None
    planned: Callable[[int, str], None] = lambda footprint_bytes, source: None
    node: Callable[[NodeDone], None] = lambda node: None
    step: Callable[[StepDone], None] = lambda step: None
    note: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished run.

    Attributes:
        result: Its record, as written to ``result.json``.
        directory: Its output directory.
        message: What ended it, in one line; empty when it is done.
    """

    result: Result
    directory: Path
    message: str


@dataclass(frozen=True, slots=True)
class _Ready:
    """A run that may start: everything that was decided before its directory exists.

    Attributes:
        baseline_bytes: What the worker is expected to hold before any weight.
    """

    config: RunConfig
    setup: TrainingSetup
    pack: Pack
    model: str
    plan: RunPlan
    compute: str
    baseline_bytes: int


def run(config: RunConfig, progress: RunProgress) -> RunOutcome:
    """Run one fine-tuning job in a capped child process.

    Returns:
        The record of the run, also when it ended at the cap, was thrashing, or failed; the caller turns
        ``result.exit_reason`` into an exit code.

    Raises:
        UsageError: A value that can never work.
        InputError: A file or this machine cannot serve.
        LimitError: The plan does not fit the budget.
    """
    _check(config)
    ready = _make_ready(config, progress)
    _admit(ready, ready.baseline_bytes)
    progress.planned(ready.baseline_bytes + ready.plan.memory.peak_bytes, ready.pack.source)
    with out_directory(config.out, f"{ready.model}-{config.schedule}") as out, work_directory(out) as work:
        job = _prepare_job(ready, out, work, progress)
        with open_cap(config.budget_bytes, config.enforcement) as cap:
            if cap.needs_watchdog:
                progress.note(
                    f"no cgroup here ({cap.refusals[-1] if cap.refusals else 'not asked for'}): {cap.enforcement}"
                )
            outcome = _launch(ready, job, cap, out, work, progress)
            enforcement, kernel_peak = cast(Enforcement, cap.enforcement), cap.kernel_peak_bytes()
        if outcome.reason == "done":
            for file in Path(job.adapter).iterdir():
                file.replace(out / file.name)
        result = _record(ready, enforcement, kernel_peak, outcome)
        write_result(out / RESULT_FILE, result)
    finished = RunOutcome(result, out, outcome.message)
    for listener in FINISHED:
        listener(config, finished)
    return finished


def _make_ready(config: RunConfig, progress: RunProgress) -> _Ready:
    """Find the model, plan the run and know the kernels, before anything is written but caches."""
    pack, name = find_model(config.model, progress.packing)
    config = replace(config, lora=with_our_names(config.lora, pack.config))
    setup = _setup(config, pack)
    plan = plan_run(setup, pack.model_hash)
    kernels = prepare_kernels(setup.threads, progress.stage)
    compute = _choose_compute(config, plan, kernels)
    n_nodes = sum(len(placed.program.nodes) for placed in (plan.train, plan.evaluate) if placed is not None)
    return _Ready(config, setup, pack, name, plan, compute, kernels.footprint_bytes[compute] + NODE_BYTES * n_nodes)


def _choose_compute(config: RunConfig, plan: RunPlan, kernels: Prepared) -> str:
    """Return the compute path: bf16 is for products with packed weights, which some schedules do not have."""
    unpacks = any(node.op == "unpack_q4" for node in plan.train.program.nodes)
    if config.compute == "bf16" and unpacks:
        raise UsageError(
            f"--compute bf16 needs packed products; {config.schedule} unpacks to f32, use --schedule tiled"
        )
    compute = config.compute
    if compute == "auto":
        compute = "f32" if unpacks else kernels.fastest
    if compute not in kernels.footprint_bytes:
        raise UsageError(f"--compute {compute} needs a processor with avx512_bf16; use --compute f32")
    return compute


def _check(config: RunConfig) -> None:
    ram = psutil.virtual_memory().total
    if config.budget_bytes <= 0:
        raise UsageError("--budget 0 cannot hold a process; write a size such as 1GB")
    if config.budget_bytes > ram:
        raise UsageError(
            f"--budget {format_bytes(config.budget_bytes, config.decimal)} is above this machine's "
            f"{format_bytes(ram, config.decimal)} of RAM"
        )
    limits = {"--seq-len": config.seq_len, "--steps": config.steps, "--accumulate": config.accumulate}
    limits["--eval-sequences"] = config.eval_sequences
    for option, value in limits.items():
        if value < 1:
            raise UsageError(f"{option} {value} is below 1")
    for option, value in {
        "--seed": config.seed,
        "--eval-every": config.eval_every,
        "--threads": config.threads,
    }.items():
        if value < 0:
            raise UsageError(f"{option} {value} is below 0")
    if config.threads > (available := len(os.sched_getaffinity(0))):
        raise UsageError(f"--threads {config.threads} is above the {available} processors of this machine")
    if config.schedule in METHODS:
        estimator(config.schedule, config.zeroth_order, config.optimizer.lr, config.accumulate)
    if config.out is not None and config.out.exists():
        raise InputError(f"--out {config.out} exists; choose a directory that does not")
    for path in (config.data, config.eval_data):
        if path is not None and not path.is_file():
            raise InputError(f"no text file at {path}")
    for option, asked in {"--eval-every": config.eval_every, "--eval-first": config.eval_first}.items():
        if asked and config.eval_data is None:
            raise UsageError(f"{option} needs --eval-data")
    if config.scratch is not None and not config.scratch.is_dir():
        raise InputError(f"the scratch directory {config.scratch} does not exist; create it or choose another")
    require_disk(config.scratch or config.out or RUNS, "the scratch")


def _admit(ready: _Ready, baseline_bytes: int) -> None:
    """Refuse a plan that does not fit the budget, measurement errors aside."""
    config, memory = ready.config, ready.plan.memory
    excess = baseline_bytes + memory.peak_bytes + memory.file_floor_bytes - config.budget_bytes
    if config.plan_check and excess > READING_ERROR_BYTES:
        check_budget(ready.plan.program, memory, config.schedule, baseline_bytes, config.budget_bytes, config.decimal)


def _setup(config: RunConfig, pack: Pack) -> TrainingSetup:
    check_lora(config.lora, pack.config)
    if config.seq_len > pack.config.longest_sequence:
        raise UsageError(
            f"--seq-len {config.seq_len} is above the model's max_position_embeddings, {pack.config.longest_sequence}"
        )
    if pack.config.num_labels is not None:
        raise UsageError(f"{config.model} classifies sequences, and memsim run trains on text; use its masked model")
    if pack.config.family.ends is not None and config.seq_len < 3:
        raise UsageError(f"--seq-len {config.seq_len} is below 3: {pack.config.model_type} puts a token at either end")
    return TrainingSetup(
        config=pack.config,
        group_size=pack.group_size,
        lora=config.lora,
        schedule=config.schedule,
        n_tokens=config.seq_len,
        optimizer=config.optimizer,
        accumulate=config.accumulate,
        threads=config.threads or len(os.sched_getaffinity(0)),
        evaluate=config.eval_data is not None,
        balloon_bytes=config.balloon_bytes,
        zeroth_order=config.zeroth_order,
        lcsb_groups=config.lcsb_groups,
    )


def _prepare_job(ready: _Ready, out: Path, work: Path, progress: RunProgress) -> WorkerJob:
    """Write the worker's files and return its orders, but for what only the open cap knows."""
    config, pack, plan = ready.config, ready.pack, ready.plan
    by_bytes = pack.source == "packed" and pack.tokenizer is None and pack.config.vocab_size > 256
    progress.stage("tokenizing by bytes, since no tokenizer.json is beside the model" if by_bytes else "tokenizing")
    tokens = {"tokens.bin": config.data} | ({"eval.bin": config.eval_data} if config.eval_data else {})
    for file, text in tokens.items():
        prepare_tokens(
            text,
            pack.tokenizer,
            work / file,
            vocab_size=pack.config.vocab_size,
            seq_len=config.seq_len,
            eos_id=pack.eos_token_id,
        )
    save_program(plan.train, out / PROGRAM_FILE)
    if plan.evaluate is not None:
        save_program(plan.evaluate, work / PROGRAM_FILE)
    return WorkerJob(
        parent_pid=os.getpid(),
        group=None,
        data_limit_bytes=None,
        threads=ready.setup.threads,
        compute=ready.compute,
        pack=str(pack.directory.absolute()),
        program=str(out / PROGRAM_FILE),
        eval_program=str(work / PROGRAM_FILE) if plan.evaluate else None,
        tokens=str(work / "tokens.bin"),
        eval_tokens=str(work / "eval.bin") if plan.evaluate else None,
        eval_sequences=config.eval_sequences,
        eval_every=config.eval_every,
        eval_first=config.eval_first,
        steps=config.steps,
        seq_len=config.seq_len,
        accumulate=config.accumulate,
        seed=config.seed,
        mask_id=None if pack.config.family.causal else mask_token_id(pack.tokenizer, pack.config.vocab_size),
        cold=config.cold,
        scratch=str((config.scratch or out).absolute()),
        adapter=str(work / "adapter"),
        kernel_rank=plan.widest_rank,
        lora_rank=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=config.lora.target_modules,
        base_model=ready.model,
    )


def _launch(ready: _Ready, job: WorkerJob, cap: Cap, out: Path, work: Path, progress: RunProgress) -> Outcome:
    config = ready.config
    group = str(cap.group_path) if cap.group_path else None
    limit = config.budget_bytes if cap.needs_data_limit else None
    orders = work / "job.json"
    write_text(orders, json.dumps(asdict(job) | {"group": group, "data_limit_bytes": limit}))

    with ExitStack() as stack:
        log = _seed_log(ready, out)
        if log is not None:
            stack.callback(log.close)

        def on_step(done: StepDone) -> None:
            if log is not None:
                log.write(done.step - 1, config.optimizer.lr, done.rho)
            progress.step(done)

        try:
            return supervise(
                orders,
                cap,
                ready.plan.train.program,
                out / EVENTS_FILE if config.events else None,
                lambda baseline_bytes: _admit(ready, baseline_bytes),
                progress.node,
                on_step,
                config.decimal,
            )
        except NotCompiled:
            forget_kernels(job.threads)
            raise


def _seed_log(ready: _Ready, out: Path) -> SeedLog | None:
    """Begin the log of a run that can be made again from its seeds."""
    config = ready.config
    if config.schedule not in METHODS or not METHODS[config.schedule].replays:
        return None
    decided = estimator(config.schedule, config.zeroth_order, config.optimizer.lr, config.accumulate)
    return SeedLog(out / SEEDS_FILE, header_of(decided, ready.model, ready.pack.model_hash, config.seed, config.lora))


def _record(ready: _Ready, enforcement: Enforcement, kernel_peak: int | None, outcome: Outcome) -> Result:
    config, memory = ready.config, ready.plan.memory
    measured_baseline = outcome.baseline_bytes
    working_set = outcome.peak_footprint_bytes - measured_baseline if measured_baseline else None
    return Result(
        command="run",
        source="measured",
        model=ready.model,
        schedule=config.schedule,
        seq_len=config.seq_len,
        lora_rank=config.lora.rank,
        trainable_parameters=n_trainable(ready.setup.config, config.lora),
        optimizer=updates_by(config.schedule, config.optimizer),
        compute=ready.compute,
        threads=ready.setup.threads,
        weights="synthetic" if ready.pack.source == "synthetic" else "packed",
        page_cache="cold" if config.cold else "warm",
        budget_bytes=config.budget_bytes,
        enforcement=enforcement,
        fits=_FITS.get(outcome.reason),
        exit_reason=outcome.reason,
        baseline_footprint_bytes=measured_baseline,
        peak_footprint_bytes=outcome.peak_footprint_bytes,
        peak_working_set_bytes=working_set,
        planned_peak_bytes=memory.peak_bytes,
        planned_mapped_bytes=memory.mapped_bytes,
        planned_footprint_bytes=ready.baseline_bytes + memory.peak_bytes,
        file_floor_bytes=memory.file_floor_bytes,
        peak_rss_bytes=outcome.peak_rss_bytes,
        kernel_peak_bytes=kernel_peak,
        step_s=outcome.step_s,
        steps=tuple(outcome.steps),
        evals=tuple(outcome.evals),
        time_by_op_s=outcome.time_by_op_s,
        peak_by_value=dict(memory.held),
        host=host_info(),
        versions=versions(),
    )
