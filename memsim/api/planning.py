"""``memsim.plan``: the fastest schedule that fits a budget, and what else there is."""

from dataclasses import dataclass
from pathlib import Path

from memsim.api.simulation import check_limits, training_setup
from memsim.cap.processors import available_threads
from memsim.errors import LimitError, UsageError
from memsim.models.scheme import Scheme
from memsim.progress_types import CountProgress, StageProgress
from memsim.results import Result
from memsim.runtime.prepare import prepare_kernels, worker_needs
from memsim.schedules.choices import Choices
from memsim.schedules.optimizers import OptimizerConfig
from memsim.search.needs import Needs, device_app
from memsim.search.plan_file import PlanFile, plan_for, write_plan
from memsim.search.planned import planned_result
from memsim.search.rates import rates_of
from memsim.search.refusal import nothing_fits
from memsim.search.search import PACKED, Found, Search, search
from memsim.simulator.device import Device
from memsim.simulator.device_file import HOST
from memsim.weights.dimensions import find_dimensions


@dataclass(frozen=True, slots=True)
class Planned:
    """What was found for a budget.

    Attributes:
        model: As it was asked for.
        result: The record, as ``memsim plan --json`` writes it, with the front and the named schedules.
        budget_bytes: What was planned for.
        device: Whose rates decided.
        remark: Why that is another one than asked for; empty if it is not.
        searched: All that was found, for any budget.
        found: What was chosen; None if nothing fits.
    """

    model: str
    result: Result
    budget_bytes: int
    device: Device
    remark: str
    searched: Search
    found: Found | None

    @property
    def fits(self) -> bool:
        """Whether any schedule fits."""
        return self.found is not None

    def refusal(self, decimal: bool = False) -> LimitError:
        """Return the error of a plan that nothing fits: how much is missing, and what would fit.

        Args:
            decimal: Sizes in MB instead of MiB.
        """
        return nothing_fits(self.searched, self.budget_bytes, decimal)

    def plan_file(self) -> PlanFile:
        """Return the plan, for ``RunConfig.plan``.

        Raises:
            LimitError: Nothing fits.
        """
        if self.found is None:
            raise self.refusal()
        return plan_for(self.model, self.searched.setup, self.found, self.device.name, self.budget_bytes)

    def write(self, path: Path) -> None:
        """Write the plan to a file, for ``memsim run --plan``.

        Raises:
            LimitError: Nothing fits.
            InputError: The file cannot be written.
        """
        write_plan(path, self.plan_file())


def plan(
    model: str = "qwen2.5-0.5b",
    *,
    budget_bytes: int | None = None,
    device: str = HOST,
    seq_len: int = 256,
    scheme: Scheme | None = None,
    optimizer: OptimizerConfig | None = None,
    accumulate: int = 1,
    threads: int = 0,
    progress: StageProgress | None = None,
    searching: CountProgress | None = None,
) -> Planned:
    """Find the fastest training step that fits a budget; nothing is run and no weight is read.

    Args:
        model: A preset, a pack, or a directory with a ``config.json``.
        budget_bytes: Limit on the whole process; None takes the device's.
        device: Whose rates decide, and whose rules: a name or the path of a device file. ``host`` is this machine, for
            which the kernels are compiled if they are not (two minutes, once).
        seq_len: Tokens in a sequence.
        scheme: What is trained, such as a ``LoraConfig``; None is LoRA of rank 8 on every projection.
        optimizer: What updates it; None is AdamW.
        accumulate: Sequences whose gradients are summed in a step.
        threads: Kernel threads; 0 takes every processor.
        progress: Called with what is being done.
        searching: Called with (done, total) while schedules are looked at.

    Returns:
        The plan, also when nothing fits.

    Raises:
        UsageError: A value that can never work, or does not fit the model.
        InputError: The model or the device cannot be read.
        WorkerError: The kernels cannot be compiled.
    """
    say = progress or (lambda text: None)
    here = device == HOST
    target, remark = rates_of(device)
    numbers = target.at("nominal")
    budget = int(numbers.foreground_limit_bytes) if budget_bytes is None else budget_bytes
    check_limits(budget, "foreground")
    config, packing, name = find_dimensions(model)
    n_threads = _threads(threads, target, here)
    setup = training_setup(config, packing, "auto", seq_len, scheme, optimizer, accumulate, n_threads)
    packed, unpacked = _needs_here(n_threads, say) if here else (device_app(numbers, target.rule),) * 2

    def needs_of(choices: Choices) -> Needs:
        return unpacked if choices.unpack == "block" else packed

    say("looking for the fastest schedule that fits")
    unpacks = PACKED if here else None
    searched = search(setup, numbers, target.rule, packed, unpacks, needs_of=needs_of, progress=searching or _unseen)
    found = searched.fastest(budget)
    say("looking for the longest sequence that fits")
    result = planned_result(name, searched, found, target, needs_of, budget)
    return Planned(model, result, budget, target, remark, searched, found)


def _unseen(done: int, total: int) -> None:
    pass


def _threads(asked: int, device: Device, here: bool) -> int:
    available = available_threads() if here else max(1, int(device.at("nominal").threads))
    if not 0 <= asked <= available:
        raise UsageError(f"--threads {asked} must be from 0 to {available}, the processors there are")
    return asked or available


def _needs_here(threads: int, progress: StageProgress) -> tuple[Needs, Needs]:
    """Return how budgets are counted on this machine for packed products, and for those of unpacked weights."""
    kernels = prepare_kernels(threads, progress)
    packed, unpacked = (kernels.footprint_bytes[compute] for compute in (kernels.fastest, "f32"))
    return worker_needs(packed), worker_needs(unpacked)
