"""Plan files: what is written is read back, and nothing else is."""

import json
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.models.graph import ModelGraph
from memsim.models.lora import LoraConfig
from memsim.schedules.choices import SCHEDULES, Choices, choices_for
from memsim.schedules.record import describe, record_choices, recorded_choices
from memsim.search.plan_file import PlanFile, dimensions, read_plan, write_plan
from toy_families import toy_config

CONFIG = toy_config()
RESIDUALS = ModelGraph(CONFIG, LoraConfig(rank=2), 16, 32).residuals


def _plan(choices: Choices) -> PlanFile:
    return PlanFile(
        model="toy", dimensions=dimensions(CONFIG, 32), seq_len=16, lora_rank=2, target_modules=("q_proj",),
        optimizer="adamw", accumulate=1, threads=1, budget_bytes=10**9, need_bytes=10**8, device="host", step_s=1.5,
        choices=record_choices(choices),
    )  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_comes_back(tmp_path: Path, schedule: str) -> None:
    choices = choices_for(schedule, 2, RESIDUALS)
    write_plan(tmp_path / "plan.json", _plan(choices))
    plan = read_plan(tmp_path / "plan.json")
    assert plan == _plan(choices)
    assert plan.choices_for(CONFIG, 32, RESIDUALS, "plan") == choices


def test_another_model_is_refused() -> None:
    plan = _plan(choices_for("tiled", 2, RESIDUALS))
    for config, group in ((toy_config(hidden_size=96), 32), (CONFIG, 64)):
        with pytest.raises(InputError, match="plan was made for 'toy', a model of other dimensions"):
            plan.choices_for(config, group, RESIDUALS, "plan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "memsim.plan/9"}, "has schema 'memsim.plan/9'; this memsim reads"),
        ({"seq_len": -1}, "seq_len must be an integer from 0"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"model": "x" * 5000}, "model must be a string"),
        ({"choices": []}, "choices must be an object"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict, words: str) -> None:
    path = tmp_path / "plan.json"
    write_plan(path, _plan(choices_for("tiled", 2, RESIDUALS)))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=words):
        read_plan(path)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(" " * (2 << 20))
    with pytest.raises(InputError, match="larger than"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("block", "more", "words"),
    [
        ({"count": 3}, {}, "is for 3 blocks, the model has 2"),
        ({"count": 1 << 60}, {}, "the model has 2"),
        ({"keep": ["x", "made_up"]}, {}, "'made_up' is no residual"),
        ({"keep": ["x"]}, {}, "x is both kept and spilled"),
        ({"spill": []}, {}, "nothing to recompute x from"),
        ({}, {"mlp_tile": 0}, "mlp_tile is 0 tokens"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(block: dict, more: dict, words: str) -> None:
    record = record_choices(choices_for("tiled", 2, RESIDUALS))
    values = {"count": 2, "keep": (), "spill": ("x",)} | {
        k: tuple(v) if isinstance(v, list) else v for k, v in block.items()
    }
    blocks = (type(record.blocks[0])(**values),)
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__} | {"blocks": blocks} | more
    with pytest.raises(InputError, match=words):
        recorded_choices(type(record)(**fields), 2, RESIDUALS, "plan")


def test_a_schedule_is_described_in_words() -> None:
    assert describe(choices_for("tiled", 2, RESIDUALS)) == [
        "head one pass, the MLP in tiles of 128 tokens, adapters paged, optimizer state paged",
        "blocks 0 to 1: spill x",
    ]
