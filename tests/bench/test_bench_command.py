"""``memsim bench`` as a user calls it: real runs of a toy model, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from capped_runs import cache, write_model
from memsim.bench import record
from memsim.cli import cli
from memsim.errors import InputError, MemsimError, UsageError
from memsim.execution.kernels import compute_paths
from memsim.weights.pack import Pack

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name


@pytest.fixture(scope="module")
def pack(disk: Path) -> Pack:
    return write_model(disk / "bench-model")


def bench(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["bench", *arguments], prog_name="memsim")
    if result.exception is not None:
        raise result.exception
    return result.stdout


def described(plain: dict[str, Any], command: str) -> None:
    """Check what every record holds."""
    assert plain["schema"] == record.SCHEMA
    assert plain["command"] == command
    assert {"cpu", "cores", "cpu_features", "caches"} <= set(plain["host"])
    assert {"memsim", "numba", "torch", "blas"} <= set(plain["versions"])


def test_footprints_grow_with_the_sequence(pack: Pack, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    text = bench("footprint", "--models", str(pack.directory), "--seq-lens", "32,512", "--json", str(file))
    plain = json.loads(file.read_text())
    described(plain, "bench footprint")
    short, long = plain["runs"]
    assert (short["seq_len"], long["seq_len"], short["schedule"]) == (32, 512, "tiled")
    assert short["peak_working_set_bytes"] < long["peak_working_set_bytes"]
    growth = (long["peak_footprint_bytes"] - short["peak_footprint_bytes"]) / 1e6
    assert text.splitlines()[-1] == f"bench-model: {growth:,.1f} MB more from seq 32 to 512"


@pytest.mark.skipif("bf16" not in compute_paths(), reason="needs a processor with avx512_bf16")
def test_losses_in_bf16_are_near_those_in_f32_and_not_the_same(pack: Pack, tmp_path: Path) -> None:
    data = tmp_path / "text.txt"
    data.write_text("Some words to train on, and some more of them, again and again. " * 80)
    arguments = ("--model", str(pack.directory), "--data", str(data), "--steps", "3", "--seq-len", "32")
    plain = json.loads(bench("loss", *arguments, "--json", "-"))
    described(plain, "bench loss")
    f32, bf16 = plain["runs"]
    assert (f32["compute"], bf16["compute"]) == ("f32", "bf16")
    differences = [abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(f32["steps"], bf16["steps"], strict=True)]
    assert plain["largest_difference"] == pytest.approx(max(differences))
    assert plain["mean_difference"] == pytest.approx(sum(differences) / 3)
    assert 0.0 < plain["largest_difference"] < 0.01
    assert plain["settings"] == {"steps": 3, "data": "text.txt"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["kernels", "--models", " "], UsageError, "--models is empty"),
        (["kernels", "--threads", "4096"], UsageError, "--threads 4096 is above"),
        (["kernels", "--json", "no/such/dir/x.json"], InputError, "its directory does not exist"),
        (["step", "--budget", "1"], UsageError, "has no unit"),
        (["footprint", "--seq-lens", "256,"], UsageError, "is not a number of tokens"),
        (["footprint", "--models", "qwen9"], InputError, "qwen9"),
        (["loss", "--data", "no-such.txt"], InputError, "no text file at no-such.txt"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    arguments: list[str], error: type[MemsimError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as refused:
        bench(*arguments)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
