"""The pytest plugin: tests that fail when they take more memory than they may, or than they took.

Over 250 lines: pytest finds a plugin's hooks in one module.

What a test takes is what this process and its descendants hold beyond what they held when the test began, as
``memsim.cap.watch`` measures it from outside. Where a test makes one ``memsim`` run, its record says more, and is
used. Each test stands alone: it begins and ends its own measurement, however it ends.
"""

import ctypes
import gc
import os
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from memsim.errors import MemsimError, WorkerError
from memsim.regression.marks import GROWTH, LIMIT, Asked, growth_of, limit_of
from memsim.regression.peaks import make_room, over, require, store
from memsim.units import MIB, format_bytes, parse_bytes, parse_share

if TYPE_CHECKING:
    from memsim.cap.watch import Peak, PeakWatch
    from memsim.runtime.config import RunConfig
    from memsim.runtime.outcome import RunOutcome

    Finished = tuple[RunConfig, RunOutcome]

_PEAK: Final = "memsim_peak_bytes"
_UNMARKED: Final = "memsim_only_sampled"
_NODE: Final = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and the settings of the plugin."""
    group = parser.getgroup("memsim", "peak memory")
    group.addoption("--memsim-update", action="store_true", help="Store what tests take as their new baselines.")
    group.addoption("--memsim-largest", type=int, default=5, metavar="N", help="Tests in the summary (5); 0: none.")
    parser.addini("memsim_baselines", "Directory of fail_on_growth's files.", default="traces/baselines")
    parser.addini("memsim_tolerance", "Growth that passes, relative, where a test names none.", default="2%")
    parser.addini("memsim_limit_footprint", "What every test may take (512MB); empty: no limit.", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers, and check the settings."""
    config.addinivalue_line("markers", f'{LIMIT}("320MB"): fail when the test takes more memory.')
    config.addinivalue_line("markers", f'{GROWTH}("NAME", tolerance="2%"): fail when it takes more than it did.')
    size, share = str(config.getini("memsim_limit_footprint")), str(config.getini("memsim_tolerance"))
    try:
        default = parse_bytes(size) if size else None
        parse_share(share)
    except MemsimError as error:
        raise pytest.UsageError(f"memsim: a setting: {error}") from error
    config.pluginmanager.register(_Footprints(config, default, share), "memsim-footprints")


class _Footprints:
    """Measures the tests that ask for it; nothing is started or imported before the first one."""

    def __init__(self, config: pytest.Config, limit_bytes: int | None, tolerance: str) -> None:
        self._config = config
        self._limit_bytes = limit_bytes
        self._tolerance = tolerance
        self._watch: PeakWatch | None = None
        self._peaks: dict[str, int] = {}
        self._only_sampled = False

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Keep the node id: pytest-xdist adds its groups to it, which are no part of a test's name."""
        item.stash[_NODE] = item.nodeid

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Refuse markers that cannot mean anything, and two tests that would write one file."""
        writers: dict[str, str] = {}
        for item in items:
            node = item.stash.get(_NODE, item.nodeid)
            try:
                asked = self._asked(item)
            except MemsimError as error:
                raise pytest.UsageError(f"memsim: {node}: {error}") from error
            if asked and asked.file is not None and writers.setdefault(asked.file, node) != node:
                raise pytest.UsageError(
                    f"memsim: {writers[asked.file]} and {node} have the same baseline {asked.file}: "
                    f"give them two names, or {GROWTH} no name"
                )

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Run the test, and fail it when it took too much or could not be measured."""
        try:
            asked = self._asked(item)
            watch = self._begin() if asked else None
        except MemsimError as error:
            pytest.fail(f"memsim: {error}", pytrace=False)
        if asked is None or watch is None:
            return (yield)
        from memsim.runtime.run_progress import FINISHED

        runs: list[Finished] = []

        def listener(config: "RunConfig", outcome: "RunOutcome") -> None:
            runs.append((config, outcome))

        FINISHED.append(listener)
        peak: Peak | WorkerError | None = None
        try:
            value = yield
        finally:
            FINISHED.remove(listener)
            peak = self._end(watch, item)
        if isinstance(peak, WorkerError):
            pytest.fail(f"memsim: {peak}", pytrace=False)
        if peak is None:  # a fork of the test that came back out of it
            return value
        try:
            problems = _over(peak, asked.limit_bytes)
            if asked.file is not None:
                problems += self._grown(item.stash.get(_NODE, item.nodeid), asked, peak.peak_bytes, runs)
        except MemsimError as error:
            pytest.fail(f"memsim: {error}", pytrace=False)
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)
        return value

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test took, which may have run in another process (pytest-xdist)."""
        if report.when == "call":
            for name, value in report.user_properties:
                if name == _PEAK and isinstance(value, int):
                    self._peaks[report.nodeid] = value
                self._only_sampled |= name == _UNMARKED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the tests that took most."""
        largest = sorted(self._peaks.items(), key=lambda item: (-item[1], item[0]))
        shown = largest[: max(0, int(self._config.getoption("--memsim-largest")))]
        if shown:
            terminalreporter.section(f"memsim: peak memory, {len(shown)} largest of {len(largest)} measured tests")
            for node, n_bytes in shown:
                terminalreporter.write_line(f"{format_bytes(n_bytes):>12}  {node}")
        if self._only_sampled:
            terminalreporter.write_line("memsim: the kernel's marks cannot be reset here: peaks are of samples alone")

    def pytest_unconfigure(self) -> None:
        """End the watching process."""
        self._close()

    def _asked(self, item: pytest.Item) -> Asked | None:
        """Return what a test asks for, or None.

        Raises:
            UsageError: It cannot be meant.
        """
        limit, growth = item.get_closest_marker(LIMIT), item.get_closest_marker(GROWTH)
        limit_bytes = limit_of(limit) if limit else self._limit_bytes
        if growth is None:
            return None if limit_bytes is None else Asked(limit_bytes, None, 0.0)
        call = getattr(item, "callspec", None)
        node = item.stash.get(_NODE, item.nodeid)
        # A marker of one set of parameters (`pytest.param(marks=...)`) names that set's own file.
        parameters = None if call is None or growth in call.marks else str(call.id)
        file, tolerance = growth_of(growth, node, parameters, self._tolerance)
        return Asked(limit_bytes, file, tolerance)

    def _begin(self) -> "PeakWatch":
        """Return the watch of this process, which has begun.

        Raises:
            WorkerError: It cannot measure.
        """
        from memsim.cap.watch import PeakWatch

        if self._watch is None or self._watch.pid != os.getpid():  # a fork is another process to watch
            self._watch = PeakWatch()
        _give_back()
        try:
            self._watch.begin()
        except WorkerError:
            self._close()
            raise
        return self._watch

    def _end(self, watch: "PeakWatch", item: pytest.Item) -> "Peak | WorkerError | None":
        """End the measurement and note it with the test; raise nothing, since the test's own error counts first."""
        if watch.pid != os.getpid():
            return None
        try:
            peak = watch.end()
        except WorkerError as error:
            self._close()
            return error
        item.user_properties[:] = [entry for entry in item.user_properties if entry[0] not in (_PEAK, _UNMARKED)]
        item.user_properties.append((_PEAK, peak.peak_bytes))
        if not watch.marks:
            item.user_properties.append((_UNMARKED, True))
        return peak

    def _close(self) -> None:
        if self._watch is not None:
            self._watch.__exit__(None, None, None)
            self._watch = None

    def _grown(self, node: str, asked: Asked, taken: int, runs: "list[Finished]") -> list[str]:
        """Compare with the baseline of a test, or store it; return what to say when it is too much."""
        path = Path(self._config.rootpath) / str(self._config.getini("memsim_baselines")) / str(asked.file)
        update = bool(self._config.getoption("--memsim-update"))
        if len(runs) > 1:
            return [f"{path.stem}: the test made {len(runs)} memsim runs; {GROWTH} compares one"]
        if runs:
            return _run_grown(path, runs[0], asked.tolerance, update)
        if update:
            store(path, node, taken)
            return []
        problem = over(path, node, taken, asked.tolerance)
        return [problem] if problem else []


def _over(peak: "Peak", limit: int | None) -> list[str]:
    if limit is None or peak.peak_bytes <= limit:
        return []
    short = peak.peak_bytes > peak.sampled_bytes + MIB
    seen = f" (samples saw {format_bytes(peak.sampled_bytes)}; the kernel's mark is higher)" if short else ""
    return [f"the test took {format_bytes(peak.peak_bytes)}, over its limit of {format_bytes(limit)}{seen}"]


def _run_grown(path: Path, run: "Finished", tolerance: float, update: bool) -> list[str]:
    from memsim.regression.baseline import from_run, read_baseline, write_baseline
    from memsim.regression.check import compare
    from memsim.regression.describe import table, what_grew

    config, outcome = run
    measured = from_run(outcome.directory, config, outcome.result)
    if update:
        make_room(path)
        write_baseline(path, measured)
        return []
    require(path)
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
