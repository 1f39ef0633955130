import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memsim.errors import InputError
from memsim.run_directory.events import Event, EventWriter, read_events

EVENT = Event(
    step=0,
    node=17,
    op="attention_backward",
    block=7,
    phase="backward",
    start_s=0.25,
    seconds=0.001,
    bytes=4096,
    footprint_bytes=2**27,
)

COUNTS = st.integers(0, 2**63 - 1)
TIMES = st.floats(0, 1e9)
EVENTS = st.builds(
    Event,
    step=COUNTS,
    node=COUNTS,
    op=st.text(max_size=20),
    block=st.none() | COUNTS,
    phase=st.text(max_size=20),
    start_s=TIMES,
    seconds=TIMES,
    bytes=COUNTS,
    footprint_bytes=st.none() | COUNTS,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(EVENTS, max_size=4), max_size=4))
def test_round_trip(tmp_path: Path, steps: list[list[Event]]) -> None:
    path = tmp_path / "events.jsonl"
    path.unlink(missing_ok=True)
    with EventWriter(path) as events:
        for step in steps:
            for event in step:
                events.write(event)
            events.end_step()
    assert list(read_events(path)) == [event for step in steps for event in step]


def test_a_line_is_a_plain_json_object(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as events:
        events.write(EVENT)
    line = (tmp_path / "events.jsonl").read_bytes()
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "step": 0,
        "node": 17,
        "op": "attention_backward",
        "block": 7,
        "phase": "backward",
        "start_s": 0.25,
        "seconds": 0.001,
        "bytes": 4096,
        "footprint_bytes": 2**27,
    }


def test_events_reach_the_file_at_the_end_of_a_step(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        events.write(EVENT)
        assert path.read_bytes() == b""
        events.end_step()
        assert list(read_events(path)) == [EVENT]


def test_the_step_that_failed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with pytest.raises(RuntimeError, match="the worker died"), EventWriter(path) as events:
        events.write(EVENT)
        raise RuntimeError("the worker died")
    assert list(read_events(path)) == [EVENT]


def test_a_short_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __init__(self) -> None:
            self.data = b""

        def write(self, data: memoryview) -> int:
            self.data += bytes(data[:5])
            return min(5, len(data))

        def close(self) -> None:
            pass

    slow = Slow()
    with EventWriter(tmp_path / "events.jsonl") as events:
        events._file.close()
        monkeypatch.setattr(events, "_file", slow)
        events.write(EVENT)
    assert json.loads(slow.data)["node"] == 17


def test_a_run_never_overwrites_another_s_events(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("precious")
    with pytest.raises(InputError, match=r"cannot create .*events\.jsonl: File exists"):
        EventWriter(tmp_path / "events.jsonl")
    assert (tmp_path / "events.jsonl").read_text() == "precious"
    with pytest.raises(InputError, match=r"cannot create .*missing/events\.jsonl: No such file or directory"):
        EventWriter(tmp_path / "missing" / "events.jsonl")


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = EventWriter(tmp_path / "events.jsonl")
    events._file.close()
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(events, "_file", full)
        events.write(EVENT)
        with pytest.raises(InputError, match=r"cannot write .*events\.jsonl: " + os.strerror(errno.ENOSPC)):
            events.end_step()


def lines(*changes: dict[str, object]) -> bytes:
    base = {name: getattr(EVENT, name) for name in Event.__slots__}
    return b"".join(json.dumps(base | change).encode() + b"\n" for change in changes)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (lines({}, {"bytes": -1}), "line 2: bytes must be an integer"),
        (lines({}, {"block": "7"}), "line 2: block must be an integer"),
        (lines({}, {"extra": 1}), "line 2 has an unknown field 'extra'"),
        (lines({}, {})[:-1], "line 2 is cut short"),
        (lines({}, {})[:-40], "line 2 is cut short"),
        (lines({}) + b"{}\n", "line 2 has no field 'step'"),
        (lines({}) + b"[]\n", "line 2 must be an object, not a list"),
        (lines({}) + b"\n", "line 2 is not valid JSON"),
        (lines({}) + b"\xff\n", "line 2 is not valid JSON"),
        (lines({}) + b"x" * (1 << 16) + b"\n", "line 2 is longer than 65536 bytes"),
        (lines({}) + lines({}).replace(b"0.25", b"NaN"), "line 2 is not valid JSON: NaN is not a JSON number"),
    ],
)
def test_a_bad_line_is_named_after_the_good_ones(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(data)
    events = read_events(path)
    assert next(events) == EVENT
    with pytest.raises(InputError, match=problem) as error:
        next(events)
    assert "\n" not in str(error.value)


def test_events_without_a_block_or_a_footprint(tmp_path: Path) -> None:
    event = replace(EVENT, block=None, footprint_bytes=None)
    with EventWriter(tmp_path / "events.jsonl") as events:
        events.write(event)
    assert list(read_events(tmp_path / "events.jsonl")) == [event]


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read .*: No such file or directory"):
        next(read_events(tmp_path / "events.jsonl"))
