"""Plan files: a schedule for one model and one setup, to be run as it is. Untrusted when read."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

from memsim.errors import InputError, UsageError
from memsim.files import write_text
from memsim.json_decode import decode
from memsim.json_file import read_object, shown
from memsim.models.config import ModelConfig
from memsim.models.matrix_formats import Packing, describe
from memsim.models.scheme import Scheme
from memsim.models.schemes import scheme_to_dict
from memsim.planner.run_plan import TrainingSetup
from memsim.results import ChoicesRecord
from memsim.schedules.choices import Choices
from memsim.schedules.record import record_choices, recorded_choices
from memsim.search.search import Found

SCHEMA: Final = "memsim.plan/1"

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """A schedule and what it is for.

    Attributes:
        model: As the user named it; what counts is ``dimensions``.
        dimensions: SHA-256 of the model's configuration and group size.
        scheme: What is trained; of rank, modules, virtual tokens and labels it has some, and the others are none.
        threads: Kernel threads: each has a workspace.
        budget_bytes: The budget that it was made for.
        need_bytes: The smallest budget for it.
        step_s: Predicted seconds of a step on ``device``.
    """

    schema: Literal["memsim.plan/1"] = field(default=SCHEMA, init=False)
    model: str
    dimensions: str
    seq_len: int
    scheme: str = "lora"
    lora_rank: int = 0
    target_modules: tuple[str, ...] = ()
    virtual_tokens: int = 0
    labels: int = 0
    optimizer: str
    accumulate: int
    threads: int
    budget_bytes: int
    need_bytes: int
    device: str
    step_s: float
    choices: ChoicesRecord

    def choices_for(self, config: ModelConfig, packing: Packing, residuals: tuple[str, ...], where: str) -> Choices:
        """Return the schedule for a model, if it is the one that the plan was made for.

        Args:
            config: Of the model at hand.
            packing: The same.
            residuals: What its blocks may keep or spill.
            where: What error messages call the plan.

        Raises:
            InputError: It was made for a model of other dimensions, or is not possible.
        """
        if self.dimensions != dimensions(config, packing):
            raise InputError(
                f"{where} was made for {shown(self.model)}, a model of other dimensions; make a plan for this one"
            )
        return recorded_choices(self.choices, config.num_hidden_layers, residuals, where)

    def check_labels(self, scheme: Scheme) -> None:
        """Check the classes of a run's classifier.

        Raises:
            UsageError: The plan was made for another number.
        """
        if scheme.labels != self.labels:
            raise UsageError(
                f"the plan was made for {self.labels} labels of a classifier, and the run trains {scheme.labels}; "
                f"make one with --labels {scheme.labels}"
            )


def plan_for(model: str, setup: TrainingSetup, found: Found, device: str, budget_bytes: int) -> PlanFile:
    """Return what was found as a plan file.

    Args:
        model: As ``memsim run --model`` takes it.
        setup: What was planned.
        found: The schedule.
        device: Whose rates were used.
        budget_bytes: For which it was chosen.
    """
    trained = scheme_to_dict(setup.scheme)
    return PlanFile(
        model=model,
        dimensions=dimensions(setup.config, setup.packing),
        seq_len=setup.n_tokens,
        scheme=setup.scheme.name,
        lora_rank=trained.get("rank", 0),
        target_modules=trained.get("target_modules", ()),
        virtual_tokens=trained.get("virtual_tokens", 0),
        labels=trained.get("labels", 0),
        optimizer=setup.optimizer.name,
        accumulate=setup.accumulate,
        threads=setup.threads,
        budget_bytes=budget_bytes,
        need_bytes=found.need_bytes,
        device=device,
        step_s=found.time_s,
        choices=record_choices(found.choices),
    )


def dimensions(config: ModelConfig, packing: Packing) -> str:
    """Return what identifies a model's configuration, whatever its weights."""
    text = json.dumps([config.to_dict(), describe(packing)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_plan(path: Path, plan: PlanFile) -> None:
    """Write a plan file.

    Raises:
        InputError: It cannot be written.
    """
    write_text(path, json.dumps(asdict(plan), indent=2) + "\n")


def read_plan(path: Path) -> PlanFile:
    """Read a plan file.

    Raises:
        InputError: Unreadable, larger than 1 MiB, or no plan of this version.
    """
    data = read_object(path, _MAX_BYTES)
    if data.get("schema") != SCHEMA:
        raise InputError(f"{path} has schema {shown(data.get('schema'))}; this memsim reads {SCHEMA!r}")
    return decode(PlanFile, data, str(path))
