"""The runtime: the capped worker that really executes step programs, and the parent that watches it.

Everything in ``__all__`` is imported on first use: the worker, which is in here too, needs none of it.
"""

from memsim.lazy import lazily as _lazily

_PLACES = {
    "RunConfig": "memsim.runtime.config",
    "RunOutcome": "memsim.runtime.outcome",
    "RunProgress": "memsim.runtime.run_progress",
    "run": "memsim.runtime.capped_run",
}

__all__ = [*_PLACES]
__getattr__ = _lazily(__name__, _PLACES)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
