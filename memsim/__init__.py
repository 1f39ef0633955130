"""memsim: run, profile and simulate on-device LoRA fine-tuning under a memory cap.

Everything in ``__all__`` is imported on first use.
"""

from memsim.lazy import lazily as _lazily

__version__ = "0.1.0"

_PLACES = {
    "InputError": "memsim.errors",
    "LimitError": "memsim.errors",
    "LoraConfig": "memsim.models.lora",
    "MemsimError": "memsim.errors",
    "OptimizerConfig": "memsim.schedules.optimizers",
    "Planned": "memsim.api.planning",
    "ReplayedCapture": "memsim.api.replaying",
    "ReplayedRun": "memsim.api.replaying",
    "Result": "memsim.results",
    "Simulated": "memsim.api.simulation",
    "UsageError": "memsim.errors",
    "WorkerError": "memsim.errors",
    "plan": "memsim.api.planning",
    "read_result": "memsim.result_file",
    "replay": "memsim.api.replaying",
    "simulate": "memsim.api.simulation",
}

__all__ = [*_PLACES, "__version__"]
__getattr__ = _lazily(__name__, _PLACES)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
