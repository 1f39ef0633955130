"""A contender's step on a device that is not here, and what it computes."""

from dataclasses import dataclass, replace
from itertools import accumulate

from memsim.compare.contenders import Contender, Shared, with_contender
from memsim.models.lora import with_our_names
from memsim.models.scheme import with_classifier
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.planner.work import step_work
from memsim.runtime.classifier import classifier_labels
from memsim.runtime.config import RunConfig, scheme_of
from memsim.schedules.catalog import check_scheme
from memsim.simulator.device import Device
from memsim.simulator.simulate import simulate
from memsim.simulator.trace import trace_program
from memsim.tasks.task_file import find_task
from memsim.weights.cache import find_model


@dataclass(frozen=True, slots=True)
class DeviceRun:
    """What a run would cost on a device.

    Attributes:
        forward_passes: Floating-point operations of a step over those of one forward of one sequence with its loss.
        seconds: After 0, 1, 2, ... steps in a row, by the device's nominal numbers; it gets hot.
        peak_footprint_bytes: By the device's own rule, the app's baseline included.
    """

    forward_passes: float
    seconds: tuple[float, ...]
    peak_footprint_bytes: int


def simulate_run(contender: Contender, base: RunConfig, shared: Shared, device: Device) -> DeviceRun:
    """Simulate the steps of ``contender`` in a row on ``device``.

    Raises:
        UsageError: A schedule that cannot train with this scheme, or settings that it cannot have.
        InputError: The model or the task of ``base`` cannot be used.
    """
    pack, _ = find_model(base.model, lambda label, done, total: None)
    task = find_task(base.task) if base.task else None
    config = with_contender(base, contender, contender.lrs[0], shared)
    if config.scheme == "lora":
        config = replace(config, lora=with_our_names(config.lora, pack.config))
    scheme = scheme_of(config, classifier_labels(config, task, pack.config))
    scheme.check(pack.config)
    check_scheme(contender.schedule, scheme)
    threads = max(1, int(device.at("nominal").threads))
    setup = TrainingSetup(
        with_classifier(pack.config, scheme),
        pack.formats,
        scheme,
        contender.schedule,
        base.seq_len,
        config.optimizer,
        config.accumulate,
        threads,
        zeroth_order=config.zeroth_order,
    )
    plan = plan_run(setup, "")
    forward = plan_run(replace(setup, evaluate=True), "").evaluate
    assert forward is not None
    step = plan.train.program
    nominal = simulate(trace_program(step, plan.memory), device, contender.steps).nominal
    return DeviceRun(
        forward_passes=step_work(step).flops / step_work(forward.program).flops,
        seconds=tuple(accumulate(nominal.steps_s, initial=0.0)),
        peak_footprint_bytes=nominal.peak_bytes,
    )
