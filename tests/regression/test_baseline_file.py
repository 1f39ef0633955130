import json
from dataclasses import replace
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.file_names import EVENTS_FILE
from memsim.models.lora import LoraConfig
from memsim.regression.baseline import Baseline, peak_by_op, read_baseline, write_baseline
from memsim.result_file import to_json
from memsim.results import Host, Result
from memsim.run_directory.events import Event, EventWriter
from memsim.runtime.config import RunConfig

RESULT = Result(
    command="run",
    source="measured",
    model="toy",
    baseline_footprint_bytes=100,
    host=Host(cpu="c", cores=1, ram_bytes=1, kernel="k"),
    versions={},
)
SETTINGS = RunConfig(budget_bytes=10**9, model="qwen2.5-0.5b", lora=LoraConfig(4, 8.0, ("self_attn.q_proj",)))


def baseline(settings: RunConfig = SETTINGS) -> Baseline:
    return Baseline(
        settings=settings,
        result=RESULT,
        peak_by_op_bytes={"add": 7},
        held_until={"x": "add, step forward"},
        roof_share=0.25,
    )


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_baseline(tmp_path / "b.json", baseline())
    assert read_baseline(tmp_path / "b.json") == baseline()


def test_only_settings_that_are_not_defaults_are_written(tmp_path: Path) -> None:
    write_baseline(tmp_path / "b.json", baseline(RunConfig(budget_bytes=5, seq_len=7, out=Path("o"))))
    assert json.loads((tmp_path / "b.json").read_text())["settings"] == {"budget_bytes": 5, "seq_len": 7}


def test_files_beside_a_baseline_move_with_it(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "model.json").write_text("{}")
    settings = replace(SETTINGS, model=str(tmp_path / "one" / "model.json"), data=tmp_path / "gone.txt")
    write_baseline(tmp_path / "one" / "b.json", baseline(settings))
    (tmp_path / "one").rename(tmp_path / "two")
    moved = read_baseline(tmp_path / "two" / "b.json").settings
    assert moved.model == str(tmp_path / "two" / "model.json")
    assert moved.data == tmp_path / "gone.txt"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": "memsim.result/1"}, "memsim run --save-baseline"),
        ({"roof_share": "much"}, "roof_share must be a finite number"),
        ({"settings": {"budget_bytes": 1, "data": ""}}, "data must be a path"),
        ({"settings": {"budget_bytes": 1, "data": "a\0b"}}, "data must be a path"),
        ({"settings": {}}, "has no field 'budget_bytes'"),
        ({"other": 1}, "unknown field"),
        ({"result": json.loads(to_json(RESULT)) | {"step_s": -1.0}}, "result: step_s must be a time of 0 s or more"),
    ],
)
def test_a_damaged_baseline_is_refused(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    path = tmp_path / "b.json"
    write_baseline(path, baseline())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=complaint) as caught:
        read_baseline(path)
    assert "\n" not in str(caught.value)


def test_peaks_by_op_are_of_events_with_a_reading(tmp_path: Path) -> None:
    with EventWriter(tmp_path / EVENTS_FILE) as events:
        for op, footprint in [("add", 150), ("add", 130), ("rope", None), ("evict", 90)]:
            events.write(
                Event(step=0, node=0, op=op, block=None, phase="forward", start_s=0, seconds=0, bytes=0,
                      footprint_bytes=footprint)
            )  # fmt: skip
        events.end_step()
    assert peak_by_op(tmp_path, RESULT) == {"add": 50, "evict": 0}
