"""What is decided of a run before its directory is touched: model, plan, compute path, and whether it fits."""

from dataclasses import dataclass, replace
from pathlib import Path

from memsim.cap.processors import available_threads
from memsim.data.tokenizer_choice import ChosenTokenizer, choose_tokenizer
from memsim.errors import UsageError
from memsim.ir.op import Effect
from memsim.ir.ops import effect_of
from memsim.models.lora import with_our_names
from memsim.models.scheme import Scheme, check_length, with_classifier
from memsim.planner.plan import check_budget
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.planner.separate import in_separate_arrays
from memsim.runtime.classifier import classifier_labels
from memsim.runtime.config import RunConfig, scheme_of
from memsim.runtime.kernels.marker import Prepared
from memsim.runtime.prepare import (
    prepare_kernels,
    recorder_bytes,
    session_bytes,
    worker_baseline,
    worker_needs,
)
from memsim.runtime.run_progress import RunProgress
from memsim.schedules.catalog import check_scheme
from memsim.schedules.choices import Choices
from memsim.schedules.names import AUTO
from memsim.search.needs import Needs
from memsim.search.plan_file import plan_for
from memsim.search.rates import rates_of
from memsim.search.refusal import nothing_fits
from memsim.search.search import PACKED, Found, search
from memsim.simulator.device_file import HOST
from memsim.tasks.task import Task
from memsim.tasks.task_file import find_task
from memsim.units import MIB
from memsim.weights.cache import checkpoint_of, find_model
from memsim.weights.pack import Pack

READING_ERROR_BYTES = 2 * MIB
"""Two runs' peaks may differ by as much: the second must not be refused a budget of the first's peak and file floor."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A run that may start: everything that was decided before its directory is touched.

    Attributes:
        tokenizer: What makes tokens of the text.
        baseline_bytes: What the worker is expected to hold before any weight.
        checkpoint: Where matrices are trained: what the pack was made from, if it was.
    """

    config: RunConfig
    task: Task | None
    setup: TrainingSetup
    pack: Pack
    tokenizer: ChosenTokenizer
    model: str
    plan: RunPlan
    compute: str
    baseline_bytes: int
    checkpoint: Path | None = None

    @property
    def working_set_bytes(self) -> int:
        """What the worker is expected to hold more at its peak."""
        return self.plan.memory.peak_bytes + session_bytes(self.plan.n_nodes)

    @property
    def texts(self) -> dict[str, Path | None]:
        """Files of token ids, and the texts that they are made of."""
        evaluated = {"eval.bin": self.config.eval_data} if self.config.eval_data else {}
        return {"tokens.bin": self.config.data} | evaluated


def make_ready(config: RunConfig, progress: RunProgress) -> Ready:
    """Find the model, plan the run and know the kernels, before anything is written but caches.

    Raises:
        UsageError: A value that does not fit the model or this machine.
        InputError: The model cannot be read.
        LimitError: The plan does not fit the budget.
    """
    task = find_task(config.task) if config.task else None
    pack, name = find_model(config.model, progress.packing)
    if config.scheme == "lora":
        config = replace(config, lora=with_our_names(config.lora, pack.config))
    setup = _setup(config, scheme_of(config, classifier_labels(config, task, pack.config)), pack)
    tokenizer = choose_tokenizer(config.tokenizer, pack, config.model)
    if config.bos != "auto" and pack.config.family.ends is not None:
        raise UsageError(f"--bos {config.bos}: {name} has tokens of its own at either end of every window")
    checkpoint = checkpoint_of(config.model) if setup.scheme.trains_matrices else None
    if setup.scheme.trains_matrices and checkpoint is None:
        progress.note(f"{name} is a pack of 4-bit weights: the bf16 weights to train start as they are there")
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
    ready = Ready(config, task, setup, pack, tokenizer, name, plan, compute, baseline_bytes, checkpoint)
    admit(ready, ready.baseline_bytes)
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
    needs, unpacked = (worker_needs(kernels.footprint_bytes[path]) for path in (compute, "f32"))

    def needs_of(choices: Choices) -> Needs | None:
        """Count as the run will: products of unpacked weights are in f32, which a run in bf16 does not have."""
        if choices.unpack != "block":
            return needs
        return None if config.compute == "bf16" else unpacked

    rates = device.at("nominal")
    searched = search(setup, rates, device.rule, needs, PACKED, model_hash=model_hash, needs_of=needs_of)
    found = searched.fastest(config.budget_bytes)
    if found is None:  # as `admit` takes any schedule that is a reading's error above the budget
        found = searched.smallest()
        if config.plan_check and found.need_bytes > config.budget_bytes + READING_ERROR_BYTES:
            raise nothing_fits(searched, config.budget_bytes, config.decimal)
    return found


def _choose_compute(config: RunConfig, plan: RunPlan, kernels: Prepared) -> str:
    """Return the compute path: bf16 is for products with packed weights, which some schedules do not have."""
    unpacks = any(Effect.UNPACKS in effect_of(node) for node in plan.train.program.nodes)
    if config.compute == "bf16" and unpacks:
        raise UsageError(
            f"--compute bf16 needs packed products; {config.schedule} with --scheme {config.scheme} unpacks to f32, "
            f"use {'--scheme lora' if config.scheme == 'full' else '--schedule tiled'}"
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


def _setup(config: RunConfig, scheme: Scheme, pack: Pack) -> TrainingSetup:
    scheme.check(pack.config)
    check_scheme(config.schedule, scheme)
    check_length(scheme, pack.config, config.seq_len)
    if pack.config.family.ends is not None and config.seq_len < 3:
        raise UsageError(f"--seq-len {config.seq_len} is below 3: {pack.config.model_type} puts a token at either end")
    setup = TrainingSetup(
        config=with_classifier(pack.config, scheme),
        packing=pack.formats,
        scheme=scheme,
        schedule=config.schedule,
        n_tokens=config.seq_len,
        optimizer=config.optimizer,
        accumulate=config.accumulate,
        threads=config.threads or available_threads(),
        evaluate=config.eval_data is not None,
        balloon_bytes=config.balloon_bytes,
        zeroth_order=config.zeroth_order,
        lcsb_groups=config.lcsb_groups,
    )
    if config.plan is None:
        return setup
    config.plan.check_labels(scheme)
    choices = config.plan.choices_for(setup.config, pack.formats, setup.graph().residuals, "the plan")
    return replace(setup, choices=choices)


def admit(ready: Ready, baseline_bytes: int) -> None:
    """Refuse a plan that does not fit the budget, measurement errors aside."""
    if not ready.config.plan_check:
        return
    check_budget(
        ready.plan.program,
        ready.plan.memory,
        ready.config.schedule,
        baseline_bytes + session_bytes(ready.plan.n_nodes),
        ready.config.budget_bytes,
        ready.config.decimal,
        READING_ERROR_BYTES,
    )
