"""Captures of programs that are none of ours, against sums made here over memray's own records."""

import re
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from memsim.api.replaying import replay
from memsim.errors import InputError, UsageError
from memsim.simulator.forked import read_captures
from memsim.simulator.holders import OUTSIDE, largest_holders, own_frame
from memsim.simulator.recordings.capture import read_any_capture

STACKS = """
keep = []
def hold():
    keep.append(bytearray(102_600))
for number in range(800):
    exec(compile(f"def via_{number}():\\n    hold()\\nvia_{number}()", f"made_{number}.py", "exec"))
big = bytearray(2_000_000)
"""
ARRAYS = """
import json
import numpy as np
def table():
    return np.ones((1000, 500))
def text():
    return json.dumps(list(range(50_000)))
t, s = table(), text()
"""
FORKS = """
import os, time
base = bytearray(20_000_000)
children = []
for size in (10_000_000, 15_000_000):
    pid = os.fork()
    if not pid:
        mine = bytearray(size)
        time.sleep(0.3)
        raise SystemExit
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
"""
SUITE = """
held = []
def test_holds():
    held.append(bytearray(30_000_000))
def test_holds_more():
    held.append(bytearray(40_000_000))
"""


def memray(path: Path, *arguments: str) -> Path:
    command = [sys.executable, "-m", "memray", "run", "-q", "-f", "-o", str(path), *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=path.parent)
    return path


def script(directory: Path, name: str, text: str) -> str:
    (directory / f"{name}.py").write_text(text)
    return f"{name}.py"


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stacks")
    return memray(directory / "stacks.bin", script(directory, "stacks", STACKS))


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("forks")
    parent = memray(directory / "forks.bin", "--follow-fork", script(directory, "forks", FORKS))
    return [parent, *sorted(directory.glob("forks.bin.*"))]


def sums_by_own_line(capture: Path) -> Counter[tuple[str, int]]:
    """Return the bytes at the high-water mark by (file, line), the libraries' frames passed over by their prefixes."""
    import memray as memray_package
    from memray import FileReader

    paths = sysconfig.get_paths()
    libraries = tuple({paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    libraries += tuple(str(Path(directory).resolve()) for directory in libraries)
    libraries += (str(Path(memray_package.__file__).parent.parent), str(Path(subprocess.__file__).parent), "<frozen")
    found: Counter[tuple[str, int]] = Counter()
    with FileReader(str(capture)) as reader:
        for record in reader.get_high_watermark_allocation_records(merge_threads=True):
            own = [frame for frame in record.stack_trace() if not frame[1].startswith(libraries)]
            if own:
                found[Path(own[0][1]).name, own[0][2]] += record.size
    return found


def by_line(held: dict[str, int]) -> dict[tuple[str, int], int]:
    found = {}
    for place, n_bytes in held.items():
        match = re.fullmatch(r".+ \((?:.*/)?([^/]+):(\d+)\)", place)
        assert match
        found[match[1], int(match[2])] = n_bytes
    return found


def test_one_line_through_800_stacks_is_one_holder(stacks: Path) -> None:
    held = dict(read_any_capture(stacks).held)
    place, n_bytes = next(iter(held.items()))
    assert place == "hold (stacks.py:4)"
    assert n_bytes == pytest.approx(800 * 102_600, rel=1e-3)
    assert list(held.values()) == sorted(held.values(), reverse=True)
    sums = sums_by_own_line(stacks)
    assert by_line({place: n_bytes}) == {("stacks.py", 4): sums["stacks.py", 4]}


@pytest.mark.parametrize("options", [("--native", "--trace-python-allocators"), ("--aggregate",)], ids=str)
def test_libraries_hold_for_the_line_that_calls_them(tmp_path: Path, options: tuple[str, ...]) -> None:
    capture = memray(tmp_path / "arrays.bin", *options, script(tmp_path, "arrays", ARRAYS))
    held = by_line(dict(read_any_capture(capture).held))
    sums = sums_by_own_line(capture)
    for line in (5, 7):
        assert held["arrays.py", line] == sums["arrays.py", line] > 10**6
    assert next(iter(held)) == sums.most_common(1)[0][0]


def test_a_suite_s_tests_are_its_holders(tmp_path: Path) -> None:
    name = script(tmp_path, "test_suite", SUITE)
    capture = memray(tmp_path / "suite.bin", "-m", "pytest", "-q", "-p", "no:cacheprovider", name)
    held = list(read_any_capture(capture).held.items())
    assert [place for place, _ in held[:2]] == ["test_holds_more (test_suite.py:6)", "test_holds (test_suite.py:4)"]


def test_a_program_of_the_library_alone_has_a_verdict_and_no_row_of_nothing(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from memsim.cli.predicting.replay import command

    (tmp_path / "x.json").write_text('{"a": [1, 2]}')
    capture = memray(tmp_path / "tool.bin", "-m", "json.tool", "x.json")
    for budget in ("1GB", "1GiB"):
        done = CliRunner().invoke(command, [str(capture), "--budget", budget])
        assert done.exit_code == 0
        assert "verdict           fits" in done.stdout
        assert not re.search(r"held by +0\.0 M", done.stdout)


def test_processes_of_one_run_are_added_up(forks: list[Path]) -> None:
    assert len(forks) == 3
    alone = [read_any_capture(path) for path in forks]
    together = read_captures(list(reversed(forks)))
    assert together.processes == 3
    assert together.most_bytes == sum(capture.peak_bytes for capture in alone)
    # Both children sleep at the same time while the parent waits with what it holds.
    assert 45_000_000 <= together.peak_bytes <= together.most_bytes < 46_000_000
    assert together.n_records == sum(capture.n_records for capture in alone)
    assert together.unread == ()
    assert [n_bytes // 10**6 for n_bytes in list(together.held.values())[:3]] == [20, 15, 10]
    assert all(re.search(r", process \d+$", place) for place in together.held)
    assert [moment.seconds for moment in together.timeline] == sorted(moment.seconds for moment in together.timeline)
    assert together.timeline[-1].heap_bytes == 0


def test_a_parent_says_that_its_children_were_not_read(forks: list[Path], tmp_path: Path) -> None:
    assert read_any_capture(forks[0]).unread == tuple(path.name for path in forks[1:])
    assert read_captures(forks[:2]).unread == (forks[2].name,)
    alone = tmp_path / "alone.bin"  # its children's captures are elsewhere: there may have been some
    alone.write_bytes(forks[0].read_bytes())
    assert read_any_capture(alone).unread is None


def test_captures_of_two_runs_are_not_added_up(forks: list[Path], stacks: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not of the run of"):
        read_captures([forks[0], stacks])
    again = tmp_path / "again.bin"
    again.write_bytes(forks[1].read_bytes())
    with pytest.raises(InputError, match=r"are of the same process, \d+; give each capture once"):
        read_captures([forks[1], again])
    with pytest.raises(UsageError, match="is a directory"):
        replay([tmp_path, forks[0]])


@pytest.mark.parametrize(("option", "settings"), [("--steps", {"steps": 3}), ("--paging", {"advised": True})])
def test_what_a_capture_cannot_use_is_refused(stacks: Path, option: str, settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"{option} is for recorded runs"):
        replay(stacks, **settings)  # type: ignore[arg-type]


APP, LIB, STD = (
    ("f", "/app/a.py", 1),
    ("g", "/v/lib/python3.11/site-packages/p/q.py", 2),
    ("h", "/lib/python3.11/r.py", 3),
)


@pytest.mark.parametrize(
    ("stack", "own"),
    [
        ([STD, LIB, APP], APP),
        ([STD, LIB, STD], LIB),
        ([("x", "<frozen importlib._bootstrap>", 9), STD], ("x", "<frozen importlib._bootstrap>", 9)),
        ([STD, ("main", "/usr/lib64/python3.13t/dist-packages/z.py", 4), APP], APP),
        ([("run", "<string>", 1), APP], ("run", "<string>", 1)),
        ([], None),
    ],
)
def test_the_program_s_own_frame(stack: list[tuple[str, str, int]], own: tuple[str, str, int] | None) -> None:
    assert own_frame(stack) == own


def test_places_of_one_name_are_told_apart() -> None:
    one, other = ("f", "/a/x/__init__.py", 1), ("f", "/a/y/__init__.py", 1)
    far, near = ("g", "/a/b/m.py", 2), ("g", "/c/b/m.py", 2)
    held = [([one], 5), ([other], 6), ([one], 2), ([far], 4), ([near], 3), ([], 1)]
    assert largest_holders(held, 9) == [
        ("f (x/__init__.py:1)", 7),
        ("f (y/__init__.py:1)", 6),
        ("g (a/b/m.py:2)", 4),
        ("g (c/b/m.py:2)", 3),
        (OUTSIDE, 1),
    ]
    assert len(largest_holders(held, 2)) == 2
