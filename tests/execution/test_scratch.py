"""The scratch file: every byte comes back, whatever the file system can, and none of them stays in memory."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from memsim.errors import InputError
from memsim.execution.storage import uncached
from memsim.execution.storage.scratch import ScratchFile, scratch_sizes
from memsim.planner.staging import Staging, staging
from memsim.weights.pack import Pack
from toy import plan_toy

KIB = 1 << 10
# Smaller and larger than a slot, than a piece of the fallback, and no multiple of a page.
SIZES = {"small": 12, "page": 4 * KIB, "spilled": 301 * KIB + 4, "state": 40 * KIB + 8, "other": 40 * KIB}
STAGING = Staging(window_bytes=44 * KIB, slot_bytes=64 * KIB)


def no_direct_file(descriptor: int) -> None:
    return None


def refuse_direct(patch: pytest.MonkeyPatch) -> None:
    """Make files open for direct I/O and then refuse all of it, as some file systems do."""
    refused: set[int] = set()
    pwrite, preadv = os.pwrite, os.preadv

    def open_direct(descriptor: int) -> int:
        refused.add(copy := os.dup(descriptor))
        return copy

    def refusing(call: Callable) -> Callable:
        def checked(descriptor: int, *arguments: object) -> int:
            if descriptor in refused:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return call(descriptor, *arguments)

        return checked

    patch.setattr(uncached, "_open_direct", open_direct)
    patch.setattr(os, "pwrite", refusing(pwrite))
    patch.setattr(os, "preadv", refusing(preadv))


@pytest.fixture(params=["direct", "none", "refused"])
def scratch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, disk: Path) -> ScratchFile:
    if request.param == "none":
        monkeypatch.setattr(uncached, "_open_direct", no_direct_file)
    if request.param == "refused":
        refuse_direct(monkeypatch)
    return ScratchFile(SIZES, STAGING, disk)


def random(source: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SIZES[source] // 4).astype(np.float32)


def parts(values: np.ndarray) -> list[np.ndarray]:
    return [values[:1], values[1 : values.size // 2].reshape(1, -1), values[values.size // 2 :]]


def test_what_is_written_is_read_again(scratch: ScratchFile) -> None:
    for turn in range(3):
        written = {source: random(source, turn) for source in SIZES}
        for source, values in written.items():
            scratch.write(source, parts(values.copy()))
        for source, values in written.items():
            scratch.read_ahead(source)
            found = np.zeros_like(values)
            scratch.read(source, parts(found))
            assert found.tobytes() == values.tobytes()


def test_what_is_changed_in_the_window_is_read_again(scratch: ScratchFile) -> None:
    expected = {source: np.zeros(SIZES[source] // 4, np.float32) for source in ("state", "other")}
    for turn in range(3):
        for source in expected:
            scratch.open_window(source)
            change = random(source, turn)
            values = scratch.array(source, "f32")
            values += change
            expected[source] += change
            scratch.write_back(source)
    scratch.open_window("state")
    assert scratch.array("other", "f32").tobytes() == expected["other"].tobytes()  # opened for another in vain
    found = np.zeros_like(expected["state"])
    scratch.read("state", [found])
    assert found.tobytes() == expected["state"].tobytes()


def test_a_write_replaces_what_the_window_holds(scratch: ScratchFile) -> None:
    values = random("state", 0)
    scratch.array("state", "f32")
    scratch.write("state", [values])
    assert scratch.array("state", "f32", (2, -1)).tobytes() == values.tobytes()


def test_the_caller_may_reuse_its_array_at_once(scratch: ScratchFile) -> None:
    values = random("spilled", 0)
    given = values.copy()
    scratch.write("spilled", [given])
    given[:] = -1
    scratch.read("spilled", [given])
    assert given.tobytes() == values.tobytes()


def test_nothing_stays_in_the_page_cache(scratch: ScratchFile) -> None:
    found = random("spilled", 0)
    scratch.write("spilled", [found])
    scratch.array("state", "f32")[:] = 1
    scratch.write_back("state")
    scratch.read("spilled", [found])
    scratch.read("state", [np.empty(SIZES["state"] // 4, np.float32)])
    for source in ("spilled", "state"):
        offset, n_bytes = scratch._offsets[source]
        with pytest.raises(BlockingIOError):  # it would have to wait for the disk
            os.preadv(scratch._descriptor, [bytearray(n_bytes)], offset, os.RWF_NOWAIT)


def test_nobody_else_may_read_it(scratch: ScratchFile) -> None:
    status = os.fstat(scratch._descriptor)
    assert (status.st_mode & 0o777, status.st_nlink) == (0o600, 0)


def test_a_disk_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, scratch: ScratchFile) -> None:
    def fail(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    values = random("spilled", 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(InputError, match=r"^the scratch file failed: Input/output error$"):
            for _ in range(2):
                scratch.write("spilled", [values])
                scratch.read("spilled", [values])


def test_a_file_that_was_cut_short_is_noticed(scratch: ScratchFile) -> None:
    os.ftruncate(scratch._descriptor, 0)
    with pytest.raises(InputError, match=r"ended (at byte \d+|early): something cut it short"):
        scratch.read("spilled", [random("spilled", 0)])
    with pytest.raises(InputError, match=r"ended early: something cut it short"):
        scratch.array("state", "f32")


def test_the_planned_staging_fits_every_program(disk: Path, toy_pack: Pack) -> None:
    for schedule in ("mebp", "backprop", "tiled"):
        program = plan_toy(toy_pack, schedule).train.program
        sizes = scratch_sizes(program)
        scratch = ScratchFile(sizes, staging([program]), disk)
        for name in program.inputs:
            if (source := program.values[name].source) in sizes:
                assert scratch.array(source, "f32").nbytes == sizes[source]
