"""How many kernels are compiled, told while Numba compiles them."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from numba.core import event
from numba.core.registry import CPUDispatcher

_PACKAGE = "memsim_kernels"
_KERNEL = re.compile(r"^@kernel\b", re.MULTILINE)


@contextmanager
def counting(tell: Callable[[int, int], None]) -> Iterator[None]:
    """Call ``tell`` with (kernels that are there, kernels in all) whenever Numba begins with one."""

    class _Compiling(event.Listener):  # type: ignore[misc]
        def on_start(self, event: event.Event) -> None:
            if event.data["dispatcher"].targetoptions.get("parallel"):
                tell(_loaded(), _in_all())

        def on_end(self, event: event.Event) -> None:
            """The next one's start, or the answer of this process, tells."""

    listener = _Compiling()
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)


def _loaded() -> int:
    """Return how many kernels exist in the modules that are imported by now, compiled or from the cache."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(f"{_PACKAGE}.")]
    return sum(
        isinstance(value, CPUDispatcher)
        and value.py_func.__module__ == module.__name__
        and bool(value.targetoptions.get("parallel"))
        for module in modules
        for value in list(vars(module).values())
    )


def _in_all() -> int:
    """Return how many kernels the sources describe that this processor can run, those of the bench left out."""
    spec = find_spec(_PACKAGE)
    places = (spec.submodule_search_locations if spec else None) or []
    sources = [path for place in places for path in Path(place).glob("*.py") if path.stem != "roof"]
    if not getattr(sys.modules.get(f"{_PACKAGE}.cpu"), "HAS_AVX512_BF16", False):
        sources = [path for path in sources if not path.stem.endswith("_bf16")]
    return sum(len(_KERNEL.findall(path.read_text(encoding="utf-8"))) for path in sources)
