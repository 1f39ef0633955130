"""Any capture of any program: what it held, whether it survives, and what is said of one that cannot be read."""

import os
import random
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.simulator.recordings import capture_file
from memsim.simulator.recordings.capture import Capture, Moment, capture_record, read_any_capture
from memsim.simulator.simulate import simulate
from phones import phone

LARGE, SMALL = 5_000_000, 3_000_000
# The interpreter's own allocations while it runs the few lines below.
NOISE_BYTES = 200_000


def large() -> bytearray:
    return bytearray(LARGE)


def small() -> bytearray:
    return bytearray(SMALL)


def write_capture(path: Path, compressed: bool) -> Path:
    from memray import FileDestination, Tracker

    with Tracker(destination=FileDestination(path, compress_on_exit=compressed)):
        for _ in range(300):
            small()
        first = large()
        second = small()
        del first
        third = small()
        del second, third
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["compressed", "raw"])
def capture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("capture") / "capture.bin", request.param)


def test_the_peak_and_its_holders_are_those_of_the_program(capture: Path) -> None:
    read = read_any_capture(capture)
    assert LARGE + SMALL <= read.peak_bytes <= LARGE + SMALL + NOISE_BYTES
    places = [(place.partition(" (")[0], n_bytes) for place, n_bytes in read.held.items()]
    assert [name for name, _ in places[:2]] == ["large", "small"]
    assert places[0][1] == pytest.approx(LARGE, abs=64) and places[1][1] == pytest.approx(SMALL, abs=64)
    assert next(iter(read.held)).startswith("large (test_capture.py:")
    assert max(moment.heap_bytes for moment in read.timeline) == read.peak_bytes
    assert read.n_records >= 2 * 303


def test_a_device_judges_the_heap() -> None:
    """On a phone of round numbers: 1 MB of app baseline, 8 bytes of page table for 16 KiB."""
    timeline = (Moment(0.0, 0, 100), Moment(1.5, 0, 8 * 1024 * 1024), Moment(2.0, 0, 0))
    capture = Capture(10, 8 * 1024 * 1024, timeline, {"f (x.py:1)": 8})
    peak = 10**6 + 8 * 1024 * 1024 + 8 * 512
    device = phone(rule="ios")
    survives = simulate(capture.trace(), device, 1, peak)
    assert survives.figures["peak_footprint_bytes"].nominal == peak
    assert survives.survival["foreground"].killed_at is None
    record = capture_record(capture, simulate(capture.trace(), device, 1, peak - 1), "foreground", peak - 1)
    assert (record["verdict"], record["fits"], record["killed_at_s"]) == ("killed", False, 1.5)
    assert record["margin_bytes"] == -1
    assert [moment["footprint_bytes"] for moment in record["timeline"]] == [10**6 + 100, peak, 10**6]
    assert record["scope"].startswith("memory only")


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_any_capture(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_capture_is_one_line(capture: Path, tmp_path: Path, share: float) -> None:
    data = capture.read_bytes()
    if data.startswith(b"memray"):
        data = data.rstrip(b"\0")  # memray leaves the end of the last page empty
    cut = tmp_path / "cut.bin"
    cut.write_bytes(data[: int(share * len(data))])
    message = refused(cut)
    assert "cut short" in message or "is empty" in message or "not a memray capture" in message


FOREIGN = {
    "text": (b"a,b\n1,2\n" * 100, "is not a memray capture: it begins with b'a,b"),
    "zeros": (bytes(4096), "is not a memray capture"),
    "version": (b"memray\0" + b"\xff" * 100, "cannot be read as a memray capture"),
    "header": (b"memray\0\x0d\0\0\0" + bytes(4000), "cannot be read as a memray capture"),
    "lz4": (b"\x04\x22\x4d\x18\x40\x40\xc0" + (8).to_bytes(4, "little") + b"notvalid" + bytes(4), "cannot be read"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_one_line(tmp_path: Path, kind: str) -> None:
    content, message = FOREIGN[kind]
    path = tmp_path / "foreign.bin"
    path.write_bytes(content)
    assert message in refused(path)


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "missing.bin")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")


def test_a_damaged_capture_never_does_more_than_fail(tmp_path: Path) -> None:
    """memray's reader trusts its input; whatever it does with it happens in another process."""
    data = write_capture(tmp_path / "whole.bin", compressed=False).read_bytes().rstrip(b"\0")
    generator = random.Random(4)
    path = tmp_path / "damaged.bin"
    outcomes = set()
    for _ in range(8):
        damaged = bytearray(data)
        for _ in range(30):
            damaged[generator.randrange(30, len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_any_capture(path)
            outcomes.add("read")
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes


def test_a_reader_that_dies_is_one_line(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_file, "_MEMORY_BYTES", 1 << 20)
    assert "cannot be read as a memray capture" in refused(capture)


def test_a_program_that_died_leaves_a_capture(tmp_path: Path) -> None:
    """memray writes the number of records when tracking ends; without it there is nothing to compare with."""
    data = bytearray(write_capture(tmp_path / "whole.bin", compressed=False).read_bytes().rstrip(b"\0"))
    assert int.from_bytes(data[17:25], "little") >= 2 * 303
    data[17:25] = bytes(8)
    died = tmp_path / "died.bin"
    died.write_bytes(data[: (data.index(b"small\0") + len(data)) // 2])
    assert SMALL <= read_any_capture(died).peak_bytes <= SMALL + NOISE_BYTES
