import json
from pathlib import Path
from typing import Any

import pytest

from memsim.errors import InputError
from memsim.reports.shares_file import read_shares, shares_record
from memsim.results import Band
from memsim.simulator.unpack_share import PARTS, UnpackShare

SHARE = UnpackShare(
    seq_len=64,
    way="naive",
    schedule="mebp",
    compute="f32",
    where="here",
    share={part: Band(0.1, 0.2, 0.3) for part in PARTS},
    step_s=Band(1.0, 2.0, 3.0),
)


def write(path: Path, **changes: Any) -> Path:
    plain = json.loads(json.dumps(shares_record("toy", [SHARE])))
    plain["shares"][0] |= changes
    path.write_text(json.dumps(plain))
    return path


def test_a_record_reads_back_as_it_was(tmp_path: Path) -> None:
    assert read_shares(write(tmp_path / "d.json")) == (SHARE,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": {"forward": {"low": 0.1, "nominal": 0.2, "high": 0.3}}}, "is missing"),
        ({"share": {part: {"low": 0.1, "nominal": 0.2, "high": 1.3} for part in PARTS}}, "not from 0 to 1"),
        ({"share": {part: {"low": 0.3, "nominal": 0.2, "high": 0.4} for part in PARTS}}, "not from 0 to 1"),
        ({"seq_len": 0}, "seq_len 0 is not from 1"),
        ({"way": "other"}, "way must be one of fused, naive"),
        ({"surprise": 1}, "unknown field 'surprise'"),
    ],
)
def test_what_no_profile_wrote_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        read_shares(write(tmp_path / "d.json", **changes))
    assert "\n" not in str(refused.value)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"schema": "memsim.result/1"}')
    with pytest.raises(InputError):
        read_shares(tmp_path / "x.json")
