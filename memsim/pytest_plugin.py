"""The pytest plugin: tests that fail when they take more memory than they may, or than they took.

What a test takes is what this process holds beyond what it held when the test began, and all that the processes hold
that it starts, sampled 500 times a second: anonymous memory, as phones count it. It is measured from outside, so code
that keeps the interpreter busy is seen too. Where a test makes one ``memsim`` run, its record says more, and is used.
"""

import ctypes
import gc
import json
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from memsim.errors import MemsimError, UsageError
from memsim.files import write_text
from memsim.json_file import read_object
from memsim.units import MIB, format_bytes, parse_bytes, parse_share

if TYPE_CHECKING:
    from memsim.cap.watch import PeakWatch
    from memsim.runtime.config import RunConfig
    from memsim.runtime.outcome import RunOutcome

    Finished = tuple[RunConfig, RunOutcome]

SCHEMA: Final = "memsim.test/1"
LIMIT, GROWTH = "limit_footprint", "fail_on_growth"
_ERROR_BYTES = MIB
_MAX_BYTES = 1 << 20


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the settings of the plugin."""
    group = parser.getgroup("memsim", "peak memory")
    group.addoption("--memsim-update", action="store_true", help="Store what tests take as their new baselines.")
    parser.addini("memsim_baselines", "Directory of fail_on_growth's files.", default="traces/baselines")
    parser.addini("memsim_tolerance", "Growth that passes, relative, where a test names none.", default="2%")
    parser.addini("memsim_limit_footprint", "What every test may take (512MB); empty: no limit.", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers, and prepare the plugin."""
    config.addinivalue_line("markers", f'{LIMIT}("320MB"): fail when the test takes more memory.')
    config.addinivalue_line("markers", f'{GROWTH}("NAME", tolerance="2%"): fail when it takes more than it did.')
    config.pluginmanager.register(_Footprints(config), "memsim-footprints")


class _Footprints:
    """Measures the tests that ask for it; nothing is started or imported before the first one."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._watch: PeakWatch | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Run the test, and fail it when it took too much."""
        limit = item.get_closest_marker(LIMIT)
        growth = item.get_closest_marker(GROWTH)
        default = str(self._config.getini("memsim_limit_footprint"))
        if limit is None and growth is None and not default:
            return (yield)
        from memsim.cap.watch import PeakWatch
        from memsim.runtime.capped_run import FINISHED

        if self._watch is None:
            self._watch = PeakWatch()
        runs: list[Finished] = []
        FINISHED.append(lambda config, outcome: runs.append((config, outcome)))
        try:
            _give_back()
            self._watch.start()
            value = yield
            taken = self._watch.peak_bytes()
        finally:
            FINISHED.pop()
        try:
            size = _argument(limit) if limit else default
            problems = _over(taken, parse_bytes(size)) if size else []
            if growth is not None:
                problems += self._grown(growth, taken, runs)
        except MemsimError as error:
            pytest.fail(f"memsim: {error}", pytrace=False)
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)
        return value

    def pytest_unconfigure(self) -> None:
        """End the watching process."""
        if self._watch is not None:
            self._watch.__exit__(None, None, None)

    def _grown(self, marker: pytest.Mark, taken: int, runs: "list[Finished]") -> list[str]:
        """Compare with the baseline of that name, or store it; return what to say when it is too much."""
        name = _argument(marker)
        tolerance = parse_share(str(marker.kwargs.get("tolerance", self._config.getini("memsim_tolerance"))))
        path = Path(self._config.rootpath) / str(self._config.getini("memsim_baselines")) / f"{name}.json"
        update = bool(self._config.getoption("--memsim-update"))
        if len(runs) > 1:
            return [f"{name}: the test made {len(runs)} memsim runs; {GROWTH} compares one"]
        return _run_grown(path, runs[0], tolerance, update) if runs else _test_grown(path, taken, tolerance, update)


def _argument(marker: pytest.Mark) -> str:
    """Return what a marker names.

    Raises:
        UsageError: Nothing, more than one thing, or no text.
    """
    if len(marker.args) != 1 or not isinstance(marker.args[0], str):
        raise UsageError(f'{marker.name} takes one text, such as {marker.name}("320MB") or {marker.name}("NAME")')
    return marker.args[0]


def _over(taken: int, limit: int) -> list[str]:
    return [f"the test took {format_bytes(taken)}, over its limit of {format_bytes(limit)}"] if taken > limit else []


def _test_grown(path: Path, taken: int, tolerance: float, update: bool) -> list[str]:
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"schema": SCHEMA, "peak_bytes": taken}, indent=2) + "\n")
        return []
    plain = read_object(path, _MAX_BYTES)
    before = plain.get("peak_bytes")
    if plain.get("schema") != SCHEMA or type(before) is not int or before < 0:
        return [f"{path} is no baseline of a test; store one with --memsim-update"]
    limit = before + max(before * tolerance, _ERROR_BYTES)
    if taken <= limit:
        return []
    return [f"the test took {format_bytes(taken)}, baseline {format_bytes(before)}, limit {format_bytes(limit)}"]


def _run_grown(path: Path, run: "Finished", tolerance: float, update: bool) -> list[str]:
    from memsim.regression.baseline import from_run, read_baseline, write_baseline
    from memsim.regression.check import compare
    from memsim.regression.describe import table, what_grew

    config, outcome = run
    measured = from_run(outcome.directory, config, outcome.result)
    if update:
        write_baseline(path, measured)
        return []
    found = compare(measured, read_baseline(path), tolerance, None)
    if not found.failed:
        return []
    return [
        f"the run took more than {path.stem}:",
        *table(found.figures, only=True),
        *what_grew(found),
    ]


def _give_back() -> None:
    """Return freed memory to the system, so that a test which takes it again is seen to take it."""
    gc.collect()
    with suppress(OSError, AttributeError):  # GNU's C library only
        ctypes.CDLL(None).malloc_trim(0)
