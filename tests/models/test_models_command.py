import json

import pytest
from click.testing import CliRunner

from memsim.cli.listing.models import command
from memsim.models.family import FAMILIES
from memsim.models.lora import LoraConfig, n_trainable
from memsim.models.presets import PRESETS
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.schedules.choices import SCHEDULES
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.pack_writer import pack_bytes


def test_lists_every_preset_with_its_sizes(tmp_path):
    result = CliRunner().invoke(command, ["--json", str(tmp_path / "models.json")])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    header = [name.strip() for name in lines[0].split("  ") if name]
    assert header == [
        "preset",
        "family",
        "layers",
        "hidden",
        "parameters",
        "INT4",
        "LoRA rank 8",
        "tiled peak, 256 tokens",
    ]
    assert lines[1].split()[:8] == ["qwen2.5-0.5b", "qwen2", "24", "896", "494,032,768", "265.7", "MiB", "4,399,104"]
    assert len(lines) == len(PRESETS) + 3
    assert lines[-2].startswith("smollm2-135m  SmolLM2-135M-Instruct")
    assert len({len(line) for line in lines[: len(PRESETS) + 1]}) == 1  # columns line up
    assert json.loads((tmp_path / "models.json").read_text())["families"] == list(FAMILIES)


def test_json_on_stdout_is_nothing_but_json():
    result = CliRunner().invoke(command, ["--json", "-"])
    presets = json.loads(result.stdout)["presets"]
    assert [
        (item["name"], item["parameters"], item["int4_bytes"], item["trainable_parameters"]) for item in presets
    ] == [
        (name, config.n_parameters(), pack_bytes(config, 32), n_trainable(config, LoraConfig()))
        for name, config in PRESETS.items()
    ]


@pytest.mark.parametrize(
    ("arguments", "words", "parameters"),
    [
        (["--scheme", "prefix", "--virtual-tokens", "5"], "prefix of 5", 5 * 24 * 2 * 128),
        (["--scheme", "prompt"], "prompt of 20", 20 * 896),
        (["--scheme", "head"], "classifier head", 2 * 896),
        (["--lora-rank", "4"], "LoRA rank 4", 2_199_552),
    ],
)
def test_lists_what_a_scheme_trains(arguments, words, parameters):
    result = CliRunner().invoke(command, [*arguments, "--json", "-"])
    record = json.loads(result.stdout)
    assert (record["scheme"], record["presets"][0]["trainable_parameters"]) == (words, parameters)


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "gemma3-1b"])
def test_the_peak_is_that_of_the_whole_model_and_of_the_smallest_schedule(name):
    result = CliRunner().invoke(command, ["--json", "-"])
    record = json.loads(result.stdout)
    peaks = {
        schedule: plan_run(
            TrainingSetup(PRESETS[name], 32, LoraConfig(), schedule, record["seq_len"], OptimizerConfig()), ""
        ).memory.peak_bytes
        for schedule in SCHEDULES
    }
    listed = {item["name"]: item["planned_peak_bytes"] for item in record["presets"]}
    assert min(peaks, key=peaks.__getitem__) == record["schedule"]
    assert listed[name] == peaks[record["schedule"]]
