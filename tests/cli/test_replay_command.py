"""``memsim replay`` on the committed recording, which no machine of the tests has to make first."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from memsim.cli.predicting.replay import command
from memsim.cli.predicting.verdict import killed
from memsim.errors import InputError, MemsimError, UsageError
from memsim.ir.serialize import load_program
from memsim.planner.plan import plan_memory
from memsim.result_file import from_json
from memsim.run_directory.events import read_events
from memsim.simulator.device_file import find_device
from memsim.simulator.recordings.recording import read_recording
from memsim.simulator.simulate import simulate

RECORDED = Path(__file__).parent.parent.parent / "traces" / "recorded-toy"
CAPTURE = RECORDED / "memray.bin"


def run(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(command, [*map(str, arguments)])


def refused(*arguments: object) -> MemsimError:
    error = run(*arguments).exception
    assert isinstance(error, MemsimError)
    assert "\n" not in str(error)
    return error


def test_the_committed_recording_is_the_plan() -> None:
    recording = read_recording(RECORDED)
    plan = plan_memory(recording.program)
    assert recording.n_steps == 2
    assert [node.live_bytes for node in recording.nodes] == [plan.live_bytes[node.index] for node in recording.nodes]
    executed = [event.node for event in read_events(RECORDED / "events.jsonl") if event.step == 0]
    assert executed == [node.index for node in recording.nodes]
    moved = [event.bytes for event in read_events(RECORDED / "events.jsonl") if event.step == 0]
    assert moved == [traffic.total_bytes for traffic in recording.traffic]


def test_what_is_committed_holds_no_path_of_a_machine() -> None:
    private = re.compile(rb"/(?:root|home|Users|work|mnt|opt|var|tmp)/")
    for path in RECORDED.iterdir():
        assert not private.search(path.read_bytes()), path.name


def test_a_recorded_run_is_judged_by_a_device() -> None:
    done = run(RECORDED, "--device", "iphone-15-pro-max", "--budget", "1GB")
    assert done.exit_code == 0, done.output
    for text in (
        "toy, mebp, seq 64, LoRA rank 8",
        "verdict           fits under 1,000.0 MB, foreground",
        "backward), as recorded",
        "recorded          2 steps; peak footprint on the host",
    ):
        assert text in done.stdout
    assert "reading" in done.stderr


def test_the_same_file_as_any_capture_gives_memory_alone() -> None:
    done = run(CAPTURE, "--json", "-")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["schema"] == "memsim.capture/1"
    assert record["heap_peak_bytes"] >= read_recording(RECORDED).peak_bytes
    assert not [name for name in record if name.endswith("_s") and name not in ("killed_at_s", "warned_at_s")]
    assert len(record["timeline"]) >= 1
    text = run(CAPTURE).stdout
    assert "memory only: " in text and "heap in time" in text and " s (" not in text


def test_a_capture_that_is_killed_exits_with_3_and_says_when_and_by_what() -> None:
    done = run(CAPTURE, "--budget", "40.5MB")
    assert done.exit_code == 3
    assert re.search(r"killed \d+\.\d s after tracking began; the peak is .* over the foreground limit", done.stderr)
    assert "largest holder is " in done.stderr


def test_one_byte_decides() -> None:
    peak = from_json(run(RECORDED, "--json", "-").stdout).peak_footprint_bytes
    assert peak is not None
    assert run(RECORDED, "--budget", f"{peak}B").exit_code == 0
    assert run(RECORDED, "--budget", f"{peak - 1}B").exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--device", "nokia-3310"], InputError, "no device called 'nokia-3310'"),
        (["--steps", "0"], UsageError, "--steps 0 must be from 1 to"),
        (["--budget", "512"], UsageError, "has no unit"),
        (["--budget", "0GB"], UsageError, "--budget 0 cannot hold a process"),
    ],
)
def test_what_cannot_work_is_one_line(arguments: list[str], kind: type[MemsimError], message: str) -> None:
    error = refused(RECORDED, *arguments)
    assert isinstance(error, kind)
    assert message in str(error)


def test_a_capture_of_another_program_is_no_recording(tmp_path: Path) -> None:
    from memray import Tracker

    for name in ("program.jsonl", "result.json", "events.jsonl"):
        (tmp_path / name).write_bytes((RECORDED / name).read_bytes())
    with Tracker(tmp_path / "memray.bin"):
        bytearray(10_000)
    assert "is not of a run with --record; `memsim replay" in str(refused(tmp_path))


def test_a_path_that_holds_no_recording_is_one_line(tmp_path: Path) -> None:
    assert "has no memray.bin" in str(refused(tmp_path))
    assert "No such file" in str(refused(tmp_path / "missing.bin"))
    assert "is not a memray capture" in str(refused(RECORDED / "program.jsonl"))


def test_neither_a_compiler_nor_memray_is_loaded() -> None:
    code = (
        "import sys; sys.argv = ['memsim', 'replay', sys.argv[1], '--json', '-']\n"
        "import memsim.cli\n"
        "memsim.cli.cli.main(standalone_mode=False)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(RECORDED)], capture_output=True, text=True, check=True)
    assert not {"numba", "llvmlite", "torch", "rich", "memray", "tokenizers"} & set(done.stderr.split())


@pytest.mark.parametrize("lines", [1, 100, 353, 500])
def test_a_program_that_ends_early_is_one_line(tmp_path: Path, lines: int) -> None:
    for name in ("memray.bin", "result.json", "events.jsonl"):
        (tmp_path / name).write_bytes((RECORDED / name).read_bytes())
    text = (RECORDED / "program.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "program.jsonl").write_text("".join(text[:lines]))
    assert len(text) == 1 + 352 + 148
    what = f"{lines - 1} of 352 values" if lines < 353 else f"{lines - 353} of 148 nodes"
    assert f"is not a valid step program: it ends after {what}" in str(refused(tmp_path))


def test_a_program_without_nodes_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "program.jsonl"
    head = {"schema": "memsim.program/1", "model_hash": "", "arena_bytes": 0, "n_values": 0, "n_nodes": 0}
    path.write_text(json.dumps(head | {"inputs": [], "outputs": [], "repeat": None}) + "\n")
    with pytest.raises(InputError, match="it has no node"):
        load_program(path)


def test_advice_names_no_schedule_that_was_run() -> None:
    recorded = run(RECORDED, "--budget", "41MB")
    assert recorded.exit_code == 3
    assert "Use --schedule tiled, shorten --seq-len" in recorded.stderr
    simulation = read_recording(RECORDED)
    survival = simulate(simulation.trace(), find_device("iphone-15-pro-max"), 1, 41_000_000).survival["foreground"]
    assert "Use --schedule" not in killed(survival, (), "tiled", True)
    assert "Shorten --seq-len, or raise the limit" in killed(survival, (), "tiled", True)
