import json
import math
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim import result_file
from memsim.errors import InputError
from memsim.host import host_info
from memsim.result_file import emit_json, from_json, read_result, to_json
from memsim.results import Evaluation, Host, Result, StepResult

HOST = Host(cpu="a cpu", cores=2, ram_bytes=2**34, kernel="6.1")
RECORD = Result(command="run", source="measured", model="toy", host=HOST, versions={"memsim": "0.1.0"})

# The fields of schema 1, in the order of the file. A change here is a new schema number.
FIELDS = [
    *("schema", "command", "source", "model", "schedule", "seq_len"),
    *("task", "tokenizer", "scheme", "lora_rank", "trainable_parameters", "optimizer"),
    *("compute", "threads", "weights", "page_cache", "budget_bytes", "enforcement", "fits", "exit_reason"),
    *("baseline_footprint_bytes", "peak_footprint_bytes", "peak_working_set_bytes"),
    *("planned_peak_bytes", "planned_mapped_bytes", "planned_working_set_bytes", "planned_footprint_bytes"),
    "file_floor_bytes",
    *("peak_rss_bytes", "kernel_peak_bytes", "step_s", "steps", "evals", "time_by_op_s", "peak_by_value"),
    *(
        "planned_step_s",
        "choices",
        "simulated",
        "planned",
        "recording",
        "message",
        "unheard",
        "request",
        "host",
        "versions",
    ),
]
STEP_FIELDS = [
    *("loss", "accuracy", "step_s", "peak_footprint_bytes"),
    *("bytes_paged_in", "bytes_unpacked", "bytes_spilled", "bytes_written"),
]

_SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(min_value=0, max_value=2**63 - 1),
    float: st.floats(min_value=0, allow_infinity=False),  # some are times
    str: st.text(max_size=20),
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for every value that the annotation ``hint`` allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kind = next(argument for argument in arguments if argument is not NoneType)
        return st.none() | values_of(kind)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=10), values_of(arguments[1]), max_size=3)
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return st.builds(hint, **{spec.name: values_of(hints[spec.name]) for spec in fields(hint) if spec.init})
    return _SCALARS[hint]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def test_schema_one_has_these_fields() -> None:
    data = json.loads(to_json(replace(RECORD, steps=(StepResult(),))))
    assert list(data) == FIELDS
    assert list(data["steps"][0]) == STEP_FIELDS
    assert data["schema"] == "memsim.result/1"


@settings(max_examples=60, deadline=None)
@given(values_of(Result))
def test_round_trip(record: Result) -> None:
    assert from_json(to_json(record)) == record


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FIELDS), JSON_VALUES)
def test_any_value_in_any_field_is_read_or_refused_in_one_line(name: str, value: object) -> None:
    data = json.loads(to_json(RECORD)) | {name: value}
    try:
        record = from_json(json.dumps(data))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert from_json(to_json(record)) == record


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(InputError, match=r"\Arecord [^\n]+\Z"):
        from_json(data)


def test_a_truncated_record_is_refused_wherever_it_ends() -> None:
    text = to_json(RECORD).rstrip()
    for end in range(0, len(text), 7):
        with pytest.raises(InputError):
            from_json(text[:end])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "memsim.result/2"}, "has schema 'memsim.result/2'; this memsim reads 'memsim.result/1'"),
        ({"budget_bytes": True}, "budget_bytes must be an integer from 0 to 2^63 - 1, not True"),
        ({"budget_bytes": -1}, "budget_bytes must be an integer from 0 to 2^63 - 1, not -1"),
        ({"budget_bytes": 1.5}, "budget_bytes must be an integer from 0 to 2^63 - 1, not 1.5"),
        ({"budget_bytes": 2**63}, "budget_bytes must be an integer from 0 to 2^63 - 1, not 9223372036854775808"),
        ({"step_s": "fast"}, "step_s must be a finite number, not 'fast'"),
        ({"step_s": 10**400}, "step_s must be a finite number, not 1000"),
        ({"step_s": -1e-9}, "step_s must be a time of 0 s or more, not -1e-09"),
        ({"planned_step_s": -1}, "planned_step_s must be a time of 0 s or more, not -1.0"),
        ({"steps": [{"step_s": 1.0}, {"step_s": -0.5}]}, "steps[1]: step_s must be a time of 0 s or more, not -0.5"),
        ({"time_by_op_s": {"rope": -2.0}}, "time_by_op_s['rope'] must be a time of 0 s or more, not -2.0"),
        ({"fits": 1}, "fits must be true or false, not 1"),
        ({"model": None}, "model must be a string of at most 4096 characters, not None"),
        ({"model": "x" * 5000}, "model must be a string of at most 4096 characters, not 'xxx"),
        ({"source": "guessed"}, "source must be one of planned, measured, simulated, not 'guessed'"),
        ({"exit_reason": ["done"]}, "exit_reason must be one of done, refused, killed_at_cap"),
        ({"steps": {}}, "steps must be a list, not an object"),
        ({"steps": [{"loss": "low"}]}, "steps[0]: loss must be a finite number, not 'low'"),
        ({"evals": [{"step": 1, "loss": 1.0}]}, "evals[0] has no field 'accuracy'"),
        ({"time_by_op_s": []}, "time_by_op_s must be an object, not a list"),
        ({"time_by_op_s": {"rope": None}}, "time_by_op_s['rope'] must be a finite number, not None"),
        ({"host": {"cpu": "x"}}, "host has no field 'cores'"),
        ({"peak\nbytes": 1}, "has an unknown field 'peak\\nbytes'"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        from_json(json.dumps(json.loads(to_json(RECORD)) | change), "old.json")
    assert str(error.value).startswith("old.json")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_required_field_is_named() -> None:
    data = json.loads(to_json(RECORD))
    del data["model"]
    with pytest.raises(InputError, match="record has no field 'model'"):
        from_json(json.dumps(data))


def test_what_was_not_measured_may_be_left_out() -> None:
    required = ("schema", "command", "source", "model", "host", "versions")
    data = {name: value for name, value in json.loads(to_json(RECORD)).items() if name in required}
    assert from_json(json.dumps(data)) == RECORD


@pytest.mark.parametrize("text", ["[1", "NaN", '{"schema": Infinity}', "[" * 100_000, "9" * 5000, "\ud800"])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="record is not valid JSON"):
        from_json(text)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_diverged_is_null(loss: float) -> None:
    steps = (StepResult(loss=loss, accuracy=0.5),)
    evals = (Evaluation(step=1, loss=loss, accuracy=0.0),)
    record = from_json(to_json(replace(RECORD, steps=steps, evals=evals)))
    assert record.steps == (StepResult(loss=None, accuracy=0.5),)
    assert record.evals == (Evaluation(step=1, loss=None, accuracy=0.0),)


def test_write_and_read_a_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result_file.write_result(path, RECORD)
    assert read_result(path) == RECORD
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read .*result.json: No such file or directory"):
        read_result(tmp_path / "result.json")


def test_a_file_that_is_too_large_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_file, "MAX_RECORD_BYTES", 100)
    result_file.write_result(tmp_path / "result.json", RECORD)
    with pytest.raises(InputError, match=r"is larger than the 100 bytes that a result record may have"):
        read_result(tmp_path / "result.json")


def test_emit_json_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json(RECORD, "-")
    assert from_json(capsys.readouterr().out) == RECORD
    emit_json({"presets": ["toy"], "rate": math.nan}, "-")
    assert json.loads(capsys.readouterr().out) == {"presets": ["toy"], "rate": None}


def test_emit_json_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    emit_json(RECORD, str(tmp_path / "out.json"))
    assert read_result(tmp_path / "out.json") == RECORD
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="cannot write .*missing"):
        emit_json(RECORD, str(tmp_path / "missing" / "out.json"))


def test_host_describes_the_machine_and_not_its_user() -> None:
    host = host_info()
    assert host.cpu
    assert 1 <= host.cores <= (os.cpu_count() or 1)
    assert host.ram_bytes > 2**28
    assert host.kernel == os.uname().release
    assert os.uname().nodename not in (host.cpu, host.kernel)


def test_versions_are_read_without_importing_anything() -> None:
    code = (
        "import sys; from memsim.host import versions; found = versions(); "
        "print(*sorted(found)); print(*{'numpy', 'numba', 'llvmlite', 'torch'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["llvmlite memsim numba numpy python", ""]
