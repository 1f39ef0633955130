"""One capped fine-tuning run, seen from the parent: plan, refuse or launch, watch, record."""

import json
import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

import psutil

from memsim.errors import InputError, MemsimError, UsageError
from memsim.files import require_disk, write_text
from memsim.ir.serialize import save_program
from memsim.models.lora import LoraConfig, n_trainable, with_our_names
from memsim.models.presets import PRESETS
from memsim.models.scheme import Scheme
from memsim.models.schemes import make_scheme, scheme_to_dict
from memsim.planner.plan import check_budget
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.planner.separate import in_separate_arrays, mapped_from_bytes
from memsim.results import (
    Enforcement,
    ExitReason,
    Result,
    host_info,
    versions,
    write_result,
)
from memsim.runtime.cap import Cap, open_cap
from memsim.runtime.checkpoints import Checkpoints
from memsim.runtime.directories import RUNS, RunDirectory, new_directory
from memsim.runtime.follow import NodeDone, NotCompiled, Outcome, StepDone
from memsim.runtime.history import History, highest
from memsim.runtime.job import TaskJob, WorkerJob
from memsim.runtime.masking import mask_token_id
from memsim.runtime.prepare import (
    Prepared,
    forget_kernels,
    kernels_digest,
    prepare_kernels,
    recorder_bytes,
    session_bytes,
    worker_baseline,
    worker_needs,
)
from memsim.runtime.recording_cost import recorded_steps, with_recording
from memsim.runtime.run_file import Identity, file_digest, write_run_file
from memsim.runtime.seed_log import SeedLog, header_of
from memsim.runtime.supervise import supervise
from memsim.runtime.tokenize import prepare_tokens
from memsim.runtime.tokenize_task import prepare_examples
from memsim.schedules.catalog import updates_by
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.record import record_choices
from memsim.schedules.zeroth_order import METHODS, ZeroOrder, estimator
from memsim.search.plan_file import PlanFile, plan_for
from memsim.search.rates import rates_of
from memsim.search.refusal import nothing_fits
from memsim.search.search import AUTO, PACKED, Found, search
from memsim.simulator.device_file import HOST
from memsim.tasks.task import Task
from memsim.tasks.task_file import find_task
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
CAPTURE_FILE = "memray.bin"
EVAL_PROGRAM_FILE = "eval-program.jsonl"
ADAPTER = "adapter"
LOGS = (EVENTS_FILE, SEEDS_FILE)
"""Files of a run directory that grow with the run; a resumed run cuts them back to its checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What ``memsim run`` was asked for.

    Attributes:
        budget_bytes: The cap, interpreter included.
        decimal: Whether the user wrote decimal units (1GB), so that messages do too.
        scheme: What is trained; ``lora`` and ``virtual_tokens`` are settings of some schemes.
        compute: ``f32``, ``bf16`` or ``auto``, which is the faster of the two where the schedule has packed products.
        data: Training text; None is CPython's own documentation. Of a task, its examples in JSONL.
        task: What the data's examples mean: the name of a task, or its file; None for plain text.
        template: Whether an example of the task reads as its template or as its plain text.
        eval_sequences: Sequences, or examples of a task, that an evaluation takes at most.
        eval_first: Evaluate before the first step too.
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
        diverged: Whether that is a loss that is no number any more.
    """

    result: Result
    directory: Path
    message: str
    diverged: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """A run that may start: everything that was decided before its directory is touched.

    Attributes:
        baseline_bytes: What the worker is expected to hold before any weight.
    """

    config: RunConfig
    task: Task | None
    setup: TrainingSetup
    pack: Pack
    model: str
    plan: RunPlan
    compute: str
    baseline_bytes: int

    @property
    def working_set_bytes(self) -> int:
        """What the worker is expected to hold more at its peak."""
        return self.plan.memory.peak_bytes + session_bytes(self.plan.n_nodes)

    @property
    def texts(self) -> dict[str, Path | None]:
        """Files of token ids, and the texts that they are made of."""
        evaluated = {"eval.bin": self.config.eval_data} if self.config.eval_data else {}
        return {"tokens.bin": self.config.data} | evaluated


@dataclass(frozen=True, slots=True)
class LaidOut:
    """The files of a run in its work directory, before they count.

    Attributes:
        identity: What the bits of the run depend on.
        files: Those that move to the directory of checkpoints.
    """

    identity: Identity
    files: tuple[Path, ...]


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
    _check_new(config)
    check(config, config.out or RUNS)
    ready = make_ready(config, progress)
    with new_directory(config.out, f"{ready.model}-{config.schedule}") as directory:
        laid = lay_out(ready, directory, progress, {})
        accept(ready, directory, laid)
        directory.settle()
        return carry_out(ready, directory, History(directory.path, None, LOGS), progress)


def carry_out(ready: Ready, directory: RunDirectory, history: History, progress: RunProgress) -> RunOutcome:
    """Run the steps that are not in ``history`` in a capped worker, and write the record.

    Raises:
        InputError: A file or this machine cannot serve.
        LimitError: The worker's own baseline is so high that the plan does not fit the budget.
        WorkerError: The worker failed before there was a checkpoint.
    """
    config, out = ready.config, directory.path
    try:
        with open_cap(config.budget_bytes, config.enforcement) as cap:
            if cap.needs_watchdog:
                progress.note(
                    f"no cgroup here ({cap.refusals[-1] if cap.refusals else 'not asked for'}): {cap.enforcement}"
                )
            job = _job(ready, directory, history)
            outcome = _launch(ready, job, cap, directory, history, progress)
            enforcement, kernel_peak = cast(Enforcement, cap.enforcement), cap.kernel_peak_bytes()
    except MemsimError as error:
        raise type(error)(_with_hint(str(error), out, history.saved_step)) from error
    finally:
        directory.keep = directory.keep or history.saved_step > 0
        with suppress(InputError):  # what ended the run is what counts
            Checkpoints(out).prune(history.saved_step)
    if job.capture and Path(job.capture).exists():
        Path(job.capture).replace(out / CAPTURE_FILE)
    result = _record(ready, enforcement, kernel_peak, outcome, history)
    result = with_recording(result, job, out / CAPTURE_FILE, outcome)
    if outcome.reason == "done":
        for file in (directory.work / ADAPTER).iterdir():
            file.replace(out / file.name)
        for name in ready.texts:
            (directory.checkpoints / name).unlink(missing_ok=True)
    write_result(out / RESULT_FILE, result)
    directory.keep = True
    if outcome.reason == "interrupted":
        outcome.message = f"interrupted after {len(outcome.steps)} steps"
    hinted = outcome.message and _with_hint(outcome.message, out, history.saved_step)
    finished = RunOutcome(result, out, hinted, outcome.diverged)
    for listener in FINISHED:
        listener(config, finished)
    return finished


def _with_hint(message: str, out: Path, saved_step: int) -> str:
    """Return what ended a run, and how it can go on."""
    command = f"`memsim run --resume {shlex.quote(str(out))}`"
    return f"{message}; {command} goes on after step {saved_step}" if saved_step else message


def make_ready(config: RunConfig, progress: RunProgress) -> Ready:
    """Find the model, plan the run and know the kernels, before anything is written but caches.

    Raises:
        UsageError: A value that does not fit the model or this machine.
        InputError: The model cannot be read.
        LimitError: The plan does not fit the budget.
    """
    task = find_task(config.task) if config.task else None
    if config.scheme == "head" and task is not None and task.kind != "classification":
        raise UsageError("--scheme head needs classes, but every example of this task brings its own options")
    pack, name = find_model(config.model, progress.packing)
    config = replace(config, lora=with_our_names(config.lora, pack.config))
    setup = _setup(config, scheme_of(config, task), pack)
    kernels = prepare_kernels(setup.threads, progress.stage)
    if config.schedule == AUTO and setup.choices is None:
        found = _search(config, setup, pack.model_hash, kernels, progress)
        setup, plan = replace(setup, choices=found.choices), found.plan
        # Kept with the run's settings: a run that goes on does so with the same schedule.
        config = replace(config, plan=plan_for(config.model, setup, found, HOST, config.budget_bytes))
    else:
        plan = plan_run(setup, pack.model_hash)
    if config.record:
        plan = replace(plan, memory=in_separate_arrays(plan.program, plan.memory))
    compute = _choose_compute(config, plan, kernels)
    baseline_bytes = worker_baseline(kernels.footprint_bytes[compute], plan.n_nodes)
    if config.record:
        baseline_bytes += recorder_bytes(plan.n_nodes)
    ready = Ready(config, task, setup, pack, name, plan, compute, baseline_bytes)
    _admit(ready, ready.baseline_bytes)
    progress.planned(ready.baseline_bytes + ready.working_set_bytes, pack.source)
    return ready


def _search(
    config: RunConfig, setup: TrainingSetup, model_hash: str, kernels: Prepared, progress: RunProgress
) -> Found:
    """Return the fastest schedule that fits the budget, by the rates of this machine."""
    progress.stage("looking for the fastest schedule that fits")
    device, remark = rates_of(HOST)
    if remark:
        progress.note(remark)
    compute = kernels.fastest if config.compute == "auto" else config.compute
    if compute not in kernels.footprint_bytes:
        raise no_such_compute(compute)
    needs = worker_needs(kernels.footprint_bytes[compute])
    searched = search(setup, device.at("nominal"), device.rule, needs, PACKED, model_hash=model_hash)
    found = searched.fastest(config.budget_bytes)
    if found is None:
        raise nothing_fits(searched, config.budget_bytes, config.decimal)
    return found


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
        raise no_such_compute(compute)
    return compute


def no_such_compute(compute: str) -> UsageError:
    """Return the error of a compute path that this processor does not have."""
    return UsageError(f"--compute {compute} needs a processor with avx512_bf16; use --compute f32")


def _check_new(config: RunConfig) -> None:
    if config.out is not None and config.out.exists():
        raise InputError(f"--out {config.out} exists; choose a directory that does not")
    for path in (config.data, config.eval_data):
        if path is not None and not path.is_file():
            raise InputError(f"no text file at {path}")


def check(config: RunConfig, out: Path) -> None:
    """Check settings by themselves and against this machine.

    Raises:
        UsageError: A value that can never work.
        InputError: The scratch directory, or ``out`` in its place, cannot serve.
    """
    ram = psutil.virtual_memory().total
    if config.budget_bytes <= 0:
        raise UsageError("--budget 0 cannot hold a process; write a size such as 1GB")
    if config.budget_bytes > ram:
        raise UsageError(
            f"--budget {format_bytes(config.budget_bytes, config.decimal)} is above this machine's "
            f"{format_bytes(ram, config.decimal)} of RAM"
        )
    limits = {"--seq-len": config.seq_len, "--steps": config.steps, "--accumulate": config.accumulate}
    limits |= {"--eval-sequences": config.eval_sequences, "--checkpoint-every": config.checkpoint_every}
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
    if config.record and config.eval_data is not None:
        raise UsageError("--record records training steps alone; leave out --eval-data")
    if config.record and config.schedule == "lcsb":
        raise UsageError("--record needs steps that are all alike, but in those of lcsb other blocks have their turn")
    if config.task is None and not config.template:
        raise UsageError("--no-template needs --task")
    if config.task is not None and config.data is None:
        raise UsageError("--task needs --data: a JSONL file of its examples")
    for option, asked in {"--eval-every": config.eval_every, "--eval-first": config.eval_first}.items():
        if asked and config.eval_data is None:
            raise UsageError(f"{option} needs --eval-data")
    if config.scratch is not None and not config.scratch.is_dir():
        raise InputError(f"the scratch directory {config.scratch} does not exist; create it or choose another")
    require_disk(config.scratch or out, "the scratch")


def _admit(ready: Ready, baseline_bytes: int) -> None:
    """Refuse a plan that does not fit the budget, measurement errors aside."""
    config, memory = ready.config, ready.plan.memory
    excess = baseline_bytes + ready.working_set_bytes + memory.file_floor_bytes - config.budget_bytes
    if config.plan_check and excess > READING_ERROR_BYTES:
        process_bytes = baseline_bytes + session_bytes(ready.plan.n_nodes)
        check_budget(ready.plan.program, memory, config.schedule, process_bytes, config.budget_bytes, config.decimal)


def _setup(config: RunConfig, scheme: Scheme, pack: Pack) -> TrainingSetup:
    scheme.check(pack.config)
    virtual = scheme.rows_before + scheme.first_position
    if config.seq_len + virtual > pack.config.longest_sequence:
        raise UsageError(
            f"--seq-len {config.seq_len}{f' and {virtual} virtual tokens' if virtual else ''} is above the model's "
            f"max_position_embeddings, {pack.config.longest_sequence}"
        )
    if pack.config.num_labels is not None:
        raise UsageError(f"{config.model} classifies sequences, and memsim run trains on text; use its masked model")
    if pack.config.family.ends is not None and config.seq_len < 3:
        raise UsageError(f"--seq-len {config.seq_len} is below 3: {pack.config.model_type} puts a token at either end")
    setup = TrainingSetup(
        config=pack.config,
        group_size=pack.group_size,
        scheme=scheme,
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
    if config.plan is None:
        return setup
    choices = config.plan.choices_for(pack.config, pack.group_size, setup.graph().residuals, "the plan")
    return replace(setup, choices=choices)


def lay_out(ready: Ready, directory: RunDirectory, progress: RunProgress, known: Mapping[str, str]) -> LaidOut:
    """Write token ids and step programs to the work directory.

    Args:
        ready: The run.
        directory: Its directory.
        progress: Told when tokenizing begins.
        known: SHA-256 of the files of token ids of an earlier command, which serve if they are still whole.

    Raises:
        InputError: A text cannot be read or is too short, or the disk is full.
    """
    pack, digests, files = ready.pack, {}, []
    for name in ready.texts:
        earlier = directory.checkpoints / name
        if name in known and earlier.is_file() and file_digest(earlier) == known[name]:
            digests[name] = known[name]
            continue
        _write_data(ready, name, directory.work / name, progress)
        digests[name] = file_digest(directory.work / name)
        files.append(directory.work / name)
    save_program(ready.plan.train, directory.work / PROGRAM_FILE)
    if ready.plan.evaluate is not None:
        save_program(ready.plan.evaluate, directory.work / EVAL_PROGRAM_FILE)
    identity = Identity(
        model_hash=pack.model_hash,
        texts=digests,
        program=file_digest(directory.work / PROGRAM_FILE),
        threads=ready.setup.threads,
        compute=ready.compute,
        cpu=host_info().cpu,
        kernels=kernels_digest(),
        versions={name: version for name, version in versions().items() if name != "python"},
    )
    return LaidOut(identity, tuple(files))


def _write_data(ready: Ready, name: str, path: Path, progress: RunProgress) -> None:
    """Make a file of token ids, or of the examples of a task."""
    config, pack, task, text = ready.config, ready.pack, ready.task, ready.texts[name]
    by_bytes = pack.source == "packed" and pack.tokenizer is None and pack.config.vocab_size > 256
    progress.stage("tokenizing by bytes, since no tokenizer.json is beside the model" if by_bytes else "tokenizing")
    vocab_size, seq_len = pack.config.vocab_size, config.seq_len
    if task is None:
        prepare_tokens(text, pack.tokenizer, path, vocab_size=vocab_size, seq_len=seq_len, eos_id=pack.eos_token_id)
        return
    assert text is not None
    done = prepare_examples(
        text,
        pack.tokenizer,
        path,
        task,
        vocab_size=vocab_size,
        seq_len=seq_len,
        with_template=config.template,
        options="none" if config.scheme == "head" else "right" if name == "tokens.bin" else "all",
    )
    progress.note(f"{done.n_truncated} of the {done.n_examples} examples of {text} are cut to {seq_len} tokens")


def accept(ready: Ready, directory: RunDirectory, laid: LaidOut) -> None:
    """Put what was laid out where a resumed run will look for it.

    Raises:
        InputError: The directory cannot be written, or the disk is full.
    """
    (directory.work / PROGRAM_FILE).replace(directory.path / PROGRAM_FILE)
    for path in laid.files:
        path.replace(directory.checkpoints / path.name)
    model, path = ready.config.model, Path(ready.config.model)
    if model.lower() not in PRESETS and path.exists():
        model = str(path.absolute())  # a resumed run may be started elsewhere
    write_run_file(directory.checkpoints, replace(ready.config, out=None, model=model), laid.identity)


def _job(ready: Ready, directory: RunDirectory, history: History) -> WorkerJob:
    """Return the worker's orders, but for what only the open cap knows."""
    config, pack, plan, out = ready.config, ready.pack, ready.plan, directory.path
    return WorkerJob(
        parent_pid=os.getpid(),
        group=None,
        data_limit_bytes=None,
        threads=ready.setup.threads,
        compute=ready.compute,
        pack=str(pack.directory.absolute()),
        program=str(out / PROGRAM_FILE),
        eval_program=str(directory.work / EVAL_PROGRAM_FILE) if plan.evaluate else None,
        task=_task_job(ready),
        tokens=str(directory.checkpoints / "tokens.bin"),
        eval_tokens=str(directory.checkpoints / "eval.bin") if plan.evaluate else None,
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
        adapter=str(directory.work / ADAPTER),
        kernel_rank=plan.widest_rank,
        scheme=scheme_to_dict(ready.setup.scheme),
        base_model=ready.model,
        checkpoints=str(directory.checkpoints),
        checkpoint_every=config.checkpoint_every,
        first_step=history.saved_step,
        capture=str(directory.work / CAPTURE_FILE) if config.record else None,
        recorded_steps=recorded_steps(config.steps),
        mapped_from_bytes=mapped_from_bytes(plan.memory),
    )


def _task_job(ready: Ready) -> TaskJob | None:
    """Return what the worker must know of the task, if there is one."""
    task = ready.task
    if task is None:
        return None
    if ready.config.scheme == "head":
        return TaskJob(n_labels=len(task.options), n_options=1, mean=True)
    vocab_size = ready.pack.config.vocab_size
    return TaskJob(n_labels=vocab_size, n_options=len(task.options), mean=task.score == "mean")


def _launch(
    ready: Ready, job: WorkerJob, cap: Cap, directory: RunDirectory, history: History, progress: RunProgress
) -> Outcome:
    config = ready.config
    group = str(cap.group_path) if cap.group_path else None
    limit = config.budget_bytes if cap.needs_data_limit else None
    orders = directory.work / "job.json"
    write_text(orders, json.dumps(asdict(job) | {"group": group, "data_limit_bytes": limit}))

    with ExitStack() as stack:
        log = _seed_log(ready, directory.path)
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
                directory.path / EVENTS_FILE if config.events else None,
                lambda baseline_bytes: _admit(ready, baseline_bytes),
                progress.node,
                on_step,
                history,
                progress.note,
                config.decimal,
            )
        except NotCompiled:
            forget_kernels(job.threads)
            raise


def _seed_log(ready: Ready, out: Path) -> SeedLog | None:
    """Begin, or go on with, the log of a run that can be made again from its seeds."""
    config = ready.config
    if config.schedule not in METHODS or not METHODS[config.schedule].replays:
        return None
    decided = estimator(config.schedule, config.zeroth_order, config.optimizer.lr, config.accumulate)
    header = header_of(decided, ready.model, ready.pack.model_hash, config.seed, ready.setup.scheme)
    return SeedLog(out / SEEDS_FILE, header)


def _record(
    ready: Ready, enforcement: Enforcement, kernel_peak: int | None, outcome: Outcome, history: History
) -> Result:
    config, memory, before = ready.config, ready.plan.memory, history.start
    measured_baseline = outcome.baseline_bytes
    peak = max(outcome.peak_footprint_bytes, before.peak_footprint_bytes if before else 0)
    working_set = peak - measured_baseline if measured_baseline else None
    return Result(
        command="run",
        source="measured",
        model=ready.model,
        schedule=config.schedule,
        seq_len=config.seq_len,
        task=_task_name(config),
        scheme=config.scheme,
        lora_rank=ready.setup.scheme.adapter_rank or None,
        trainable_parameters=n_trainable(ready.setup.config, ready.setup.scheme),
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
        peak_footprint_bytes=peak,
        peak_working_set_bytes=working_set,
        planned_peak_bytes=memory.peak_bytes,
        planned_mapped_bytes=memory.mapped_bytes,
        planned_working_set_bytes=ready.working_set_bytes,
        planned_footprint_bytes=ready.baseline_bytes + ready.working_set_bytes,
        file_floor_bytes=memory.file_floor_bytes,
        peak_rss_bytes=max(outcome.peak_rss_bytes, before.peak_rss_bytes if before else 0),
        kernel_peak_bytes=highest(kernel_peak, before.kernel_peak_bytes if before else None),
        step_s=outcome.step_s,
        steps=tuple(outcome.steps),
        evals=tuple(outcome.evals),
        time_by_op_s=outcome.time_by_op_s,
        peak_by_value=dict(memory.held),
        planned_step_s=config.plan.step_s if config.plan else None,
        choices=record_choices(ready.plan.choices),
        host=host_info(),
        versions=versions(),
    )


def _task_name(config: RunConfig) -> str | None:
    """Return what the record calls the task; None for plain text."""
    if config.task is None:
        return None
    name = Path(config.task).name.removesuffix(".toml")
    return name if config.template else f"{name}, no template"


def scheme_of(config: RunConfig, task: Task | None = None) -> Scheme:
    """Return the scheme of a run; a classifier tells the options of ``task`` apart.

    Raises:
        UsageError: No such scheme.
    """
    return make_scheme(config.scheme, config.lora, config.virtual_tokens, len(task.options) if task else 0)
