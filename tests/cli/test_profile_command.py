import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from capped_runs import cache, write_model
from memsim.cli.measuring.profile import command
from memsim.errors import InputError, MemsimError, UsageError
from memsim.models.presets import preset
from memsim.reports.shares_file import read_shares
from recorded import BASELINE, toy_run_plan, write_run

assert cache  # a fixture, found by name


def profile(*arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A directory with the config of a small model, for what needs no weights."""
    directory = tmp_path / "small"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(preset("qwen2.5-0.5b").to_dict() | {"num_hidden_layers": 2}))
    return directory


def test_layers_of_a_recorded_run(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    plain = json.loads(profile("layers", directory, "--json", "-"))
    text = profile("layers", directory, "--plot", tmp_path / "layers.svg")
    lines = {line.split()[0]: line for line in text.splitlines()}
    for part in plain["parts"]:
        assert f"{1e3 * part['seconds']['backward']:.2f}" in lines[part["part"]]
        assert f"{part['peak_footprint_bytes'] / 1e6:,.1f} MB" in lines[part["part"]]
    total = sum(sum(part["seconds"].values()) for part in plain["parts"])
    assert f"all parts: {total:.3f} s" in text
    assert ElementTree.parse(tmp_path / "layers.svg").getroot().tag.endswith("svg")


@pytest.mark.usefixtures("cache")
def test_layers_of_a_run_that_is_made_now(disk: Path) -> None:
    pack = write_model(disk / "profile-model")
    arguments = ("--model", pack.directory, "--seq-len", 32, "--threads", 1, "--budget", "400MB", "--steps", 2)
    plain = json.loads(profile("layers", *arguments, "--json", "-"))
    assert [part["part"] for part in plain["parts"]][:5] == ["embed", *(f"block_00{n}" for n in range(4))]
    assert all(part["seconds"]["forward"] > 0 and part["peak_footprint_bytes"] > 0 for part in plain["parts"])


def test_memory_of_a_plan_is_of_what_was_asked_for(small: Path) -> None:
    def peak(*arguments: object) -> int:
        plain = json.loads(profile("memory", "--model", small, "--seq-len", 16, "--json", "-", *arguments))
        return int(plain["planned_peak"]["planned_bytes"])

    default = peak()
    assert peak("--optimizer", "sgd") < default < peak("--lora-rank", 64)
    assert peak("--scheme", "norms") != default != peak("--accumulate", 2)


def test_a_run_has_settings_of_its_own(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    for name, option in (("memory", "--lora-rank"), ("layers", "--steps"), ("memory", "--model")):
        with pytest.raises(UsageError, match=f"{option} would be ignored: .* has settings of its own; leave it out"):
            profile(name, directory, option, 3)


def test_a_sequence_beyond_the_positions_of_roberta_is_refused() -> None:
    with pytest.raises(UsageError, match="--seq-len 513 is above the model's max_position_embeddings, 512"):
        profile("memory", "--model", "roberta-base", "--seq-len", 513)


def test_memory_of_a_plan_needs_no_run(small: Path, tmp_path: Path) -> None:
    arguments = ("memory", "--model", small, "--seq-len", 32, "--threads", 2)
    plain = json.loads(profile(*arguments, "--json", "-"))
    live = [row["planned_bytes"] for row in plain["timeline"]]
    assert plain["planned_peak"]["planned_bytes"] == max(live)
    # Live storage is rounded up to cache lines in the plan, and not in the list.
    assert max(live) - 64 * len(plain["held"]) <= sum(plain["held"].values()) <= max(live)
    assert all(row["footprint_bytes"] is None for row in plain["timeline"])
    text = profile(*arguments, "--plot", tmp_path / "memory.svg")
    assert f"planned peak {max(live) / 1e6:,.1f} MB at node {plain['planned_peak']['node']} " in text
    assert next(iter(plain["held"])) in text.splitlines()[25:][1]
    assert (tmp_path / "memory.svg").is_file()


def test_memory_of_a_run_has_both(tmp_path: Path) -> None:
    plan = toy_run_plan()
    plain = json.loads(profile("memory", write_run(tmp_path / "run", plan), "--json", "-"))
    assert plain["planned_peak"]["planned_bytes"] == BASELINE + int(plan.memory.live_bytes.max())
    assert plain["held"] == dict(plan.memory.held)
    assert all(row["footprint_bytes"] for row in plain["timeline"])


def test_decompression_simulated(small: Path, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "d.json", "--plot", tmp_path / "d.svg")
    text = profile("decompression", "--no-measure", "--model", small, "--seq-len", "64,16", *files)
    shares = read_shares(tmp_path / "d.json")
    assert [(share.seq_len, share.way) for share in shares] == [
        (16, "fused"), (16, "naive"), (64, "fused"), (64, "naive"),
    ]  # fmt: skip
    for way in ("fused", "naive"):
        short, long = (share for share in shares if share.way == way)
        assert long.share["step"].nominal < short.share["step"].nominal
        assert f"{short.share['forward'].nominal:.1%} (" in text
    assert "unpack everything, iphone-15-pro-max (mebp)" in text
    assert (tmp_path / "d.svg").is_file()


@pytest.mark.usefixtures("cache")
def test_decompression_measured(disk: Path, tmp_path: Path) -> None:
    pack = write_model(disk / "unpacking-model")
    arguments = ("--model", pack.directory, "--seq-len", 32, "--threads", 1, "--budget", "400MB", "--steps", 1)
    plain = json.loads(profile("decompression", *arguments, "--compute", "f32", "--json", "-"))
    assert {share["where"] for share in plain["shares"]} == {"here", "iphone-15-pro-max"}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["layers", "no-such-run"], InputError, "no-such-run is not a run"),
        (["memory", "no-such-run"], InputError, "no-such-run is not a run"),
        (["memory", "--model", "gpt-9"], InputError, "no model called 'gpt-9'"),
        (["memory", "--seq-len", "40000"], UsageError, "--seq-len 40000 is above"),
        (["layers", "--budget", "1"], UsageError, "has no unit"),
        (["decompression", "--seq-len", "16,x"], UsageError, "is not a list of numbers"),
        (["decompression", "--seq-len", "0,16"], UsageError, "--seq-len 0 is below 1"),
        (["decompression", "--seq-len", "40000"], UsageError, "--seq-len 40000 is above"),
        (["decompression", "--device", "nokia"], InputError, "no device called 'nokia'"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: list[str], kind: type[MemsimError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message) as refused:
        profile(*arguments)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
