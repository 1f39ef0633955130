"""Before the first run: who compiles, what is told of it, and a cache that is damaged, full, or read-only."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capped_runs import cache
from memsim.errors import InputError, WorkerError
from memsim.execution.cache_entries import discard_torn, torn_entries
from memsim.runtime import prepare
from memsim.runtime.kernels import compiling
from memsim.runtime.kernels.compiling import _Count
from memsim.runtime.kernels.marker import kernels_directory, marker_path, read_marker

assert cache  # a fixture, found by name

ANSWER = {"fastest": "f32", "paths": ["f32"]}
FOOTPRINT = 64_000_000


class FakeChild:
    """In the place of the process that compiles: writes one file, and counts how often it is asked."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.compiling: Callable[[], None] = lambda: None

    def __call__(self, threads: int, task: str, on_count: Callable[[int, int], None] = lambda *_: None) -> Any:
        self.tasks.append(task)
        if task != "compile":
            return {"footprint_bytes": FOOTPRINT}
        self.compiling()
        on_count(0, 2)
        directory = kernels_directory() / "digest" / "package"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "kernel.nbi").write_bytes(b"entry")
        return ANSWER | {"directory": str(directory)}


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeChild:
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path / "cache"))
    fake = FakeChild()
    monkeypatch.setattr(compiling, "kernel_child", fake)
    monkeypatch.setattr(prepare, "kernel_child", fake)
    return fake


def silent(text: str) -> None:
    """Say nothing."""


def test_the_second_run_measures_nothing(child: FakeChild) -> None:
    first = prepare.prepare_kernels(2, silent)
    assert child.tasks == ["compile", "f32"]
    assert prepare.prepare_kernels(2, silent) == first
    assert child.tasks == ["compile", "f32"]
    assert first.footprint_bytes == {"f32": FOOTPRINT}
    assert [path.name for path in kernels_directory().glob(".*")] == []


def test_of_two_first_runs_one_compiles_and_the_other_waits_and_says_so(child: FakeChild) -> None:
    waiting = threading.Event()
    said: list[str] = []

    def hear(text: str) -> None:
        said.append(text)
        waiting.set()

    results = []
    second = threading.Thread(target=lambda: results.append(prepare.prepare_kernels(2, hear)))

    def start_another() -> None:
        second.start()
        assert waiting.wait(30)

    child.compiling = start_another
    results.append(prepare.prepare_kernels(2, silent))
    second.join(30)
    assert said == ["waiting for another memsim that compiles the kernels"]
    assert child.tasks == ["compile", "f32"]
    assert results[0] == results[1]


def _marker(**changes: object) -> Callable[[dict[str, Any]], str]:
    return lambda marker: json.dumps(marker | changes)


@pytest.mark.parametrize(
    "damage",
    [
        _marker(footprint_bytes={"f32": -1_000_000_000}),
        _marker(footprint_bytes={"f32": 1 << 40}),
        _marker(footprint_bytes={"f32": True}),
        _marker(footprint_bytes={"f32": 6.4e7}),
        _marker(footprint_bytes={"f32": FOOTPRINT, "f64": FOOTPRINT}),
        _marker(footprint_bytes={}),
        _marker(footprint_bytes=[]),
        _marker(fastest="evil"),
        _marker(fastest="bf16"),
        _marker(fastest=None),
        _marker(entries={}),
        _marker(entries={"\0": 1}),
        _marker(entries={"digest/package/gone.nbi": 1}),
        lambda marker: json.dumps(marker).replace(str(FOOTPRINT), "1e999"),
        lambda marker: json.dumps(marker)[:-9],
        lambda marker: "",
        lambda marker: "[" * 5000,
        lambda marker: "[]",
    ],
)
def test_a_marker_that_cannot_be_true_is_measured_again(
    child: FakeChild, damage: Callable[[dict[str, Any]], str]
) -> None:
    right = prepare.prepare_kernels(2, silent)
    marker = marker_path(2)
    marker.write_text(damage(json.loads(marker.read_text())))
    assert read_marker(2) is None
    assert prepare.prepare_kernels(2, silent) == right
    assert child.tasks == ["compile", "f32"] * 2


def test_a_kernel_that_was_cut_short_is_looked_for_again(child: FakeChild) -> None:
    prepare.prepare_kernels(2, silent)
    entry = next(kernels_directory().rglob("*.nbi"))
    entry.write_bytes(entry.read_bytes()[:-1])
    prepare.prepare_kernels(2, silent)
    assert child.tasks == ["compile", "f32"] * 2
    entry.write_bytes(entry.read_bytes() + b"another processor's")  # Numba adds entries to an index
    prepare.prepare_kernels(2, silent)
    assert child.tasks == ["compile", "f32"] * 2


@pytest.mark.parametrize("variable", ["NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_NUM_THREADS"])
def test_what_changes_the_code_has_a_marker_of_its_own(
    child: FakeChild, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    before = marker_path(1)
    monkeypatch.setenv(variable, "1")
    assert marker_path(1) != before


def test_a_full_disk_is_found_before_compiling(child: FakeChild, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels_directory().mkdir(parents=True)
    usage = shutil.disk_usage(kernels_directory())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(InputError, match=r"compiling the kernels needs 8\.0 MiB in .*, which has 1\.0 MiB free"):
        prepare.prepare_kernels(2, silent)
    assert child.tasks == []


def test_a_read_only_cache_is_used_as_it_is(child: FakeChild, monkeypatch: pytest.MonkeyPatch) -> None:
    right = prepare.prepare_kernels(2, silent)
    marker_path(2).unlink()
    # Root may write everywhere, so the mode of a directory proves nothing here.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)

    def refuse(*_: object) -> None:
        raise InputError("read-only")

    monkeypatch.setattr(prepare, "write_marker", refuse)
    assert prepare.prepare_kernels(2, silent) == right


def test_torn_files_are_known_and_thrown_away(tmp_path: Path) -> None:
    import pickle

    index = pickle.dumps("0.68") + pickle.dumps(("stamp", {"key": "kernel.1.nbc"}))
    code = pickle.dumps(("name", b"machine code" * 1000))
    whole = {"kernel.nbi": index, "kernel.1.nbc": code}
    cuts = {f"cut{n}.nbc": code[:-n] for n in (1, 100, len(code))}
    cuts |= {f"cut{n}.nbi": index[:-n] for n in (1, 20, len(index) - len(pickle.dumps("0.68")))}
    (tmp_path / "inside").mkdir()
    for name, data in (whole | cuts | {"long.nbc": code + b"x", "other.txt": b""}).items():
        (tmp_path / "inside" / name).write_bytes(data)
    assert {path.name for path in torn_entries(tmp_path)} == {*cuts, "long.nbc"}
    discard_torn(tmp_path)
    assert {path.name for path in (tmp_path / "inside").iterdir()} == {*whole, "other.txt"}


def test_the_count_tells_what_is_left() -> None:
    now_s, said = [0.0], []
    count = _Count(said.append, lambda: now_s[0])
    for done in range(12, 18):
        count(done, 57)
        now_s[0] += 1.0
    assert said == ["compiling kernels 12/57", "compiling kernels 14/57, about 43 s left"] + [
        "compiling kernels 16/57, about 41 s left"
    ]


@pytest.mark.usefixtures("cache")
def test_a_threading_layer_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_THREADING_LAYER", "tbb")
    with pytest.raises(WorkerError, match="NUMBA_THREADING_LAYER=tbb is not installed here; unset it") as refused:
        compiling.kernel_child(1, "f32")
    assert "\n" not in str(refused.value)
