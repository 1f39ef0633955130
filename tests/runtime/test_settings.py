"""One checked way to the settings of a run: what every door refuses, and what a record says of a run."""

import json
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest

from memsim.cli.running.run import command as run_command
from memsim.cli.running.run_settings import asked_run
from memsim.errors import InputError, UsageError
from memsim.models.lora import LoraConfig
from memsim.regression.baseline import read_baseline
from memsim.runtime.config import RunConfig
from memsim.runtime.settings import BY_OPTION, LARGEST, MOST_STEPS, SETTINGS, recorded_settings
from memsim.schedules.names import AUTO, SCHEDULE_NAMES
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.zeroth_order import ZeroOrder

LOWER = {"budget_bytes": 10**9}

IGNORED = [
    ({"lcsb_groups": 2}, "--lcsb-groups is for the schedule lcsb, not mebp"),
    ({"schedule": "mezo", "zeroth_order": ZeroOrder(lr=1.0)}, "--zo-lr is for the schedule hybrid, not mezo"),
    ({"schedule": "mezo", "zeroth_order": ZeroOrder(hybrid_k=2)}, "--hybrid-k is for the schedule hybrid, not mezo"),
    ({"zeroth_order": ZeroOrder(eps=1e-2)}, "--zo-eps is for zeroth-order schedules"),
    ({"zeroth_order": ZeroOrder(sparsity=0.5)}, "--zo-sparsity is for zeroth-order schedules"),
    ({"schedule": "mezo", "zeroth_order": ZeroOrder(mask="rows")}, "--zo-mask needs --zo-sparsity"),
    ({"schedule": "mezo", "optimizer": OptimizerConfig("momentum")}, "--optimizer: mezo updates by sgd"),
    ({"schedule": "mezo", "optimizer": OptimizerConfig(weight_decay=0.1)}, "optimizer.weight_decay: mezo updates by"),
    ({"schedule": "zo-sgd-mmt", "optimizer": OptimizerConfig(momentum=0.5)}, "optimizer.momentum: zo-sgd-mmt updates"),
    ({"optimizer": OptimizerConfig(momentum=0.5)}, "optimizer.momentum is for the optimizer momentum, not adamw"),
    ({"optimizer": OptimizerConfig("sgd", beta1=0.5)}, "optimizer.beta1 is for the optimizer adamw, not sgd"),
    ({"scheme": "norms", "lora": LoraConfig(4)}, "--lora-rank belongs to --scheme lora, not to norms"),
    ({"virtual_tokens": 3}, "--virtual-tokens belongs to --scheme prefix or prompt, not to lora"),
    ({"eval_sequences": 3}, "--eval-sequences needs --eval-data"),
    ({"eval_first": True}, "--eval-first needs --eval-data"),
    ({"classifier": True}, "--classifier/--label-words needs --task"),
    ({"template": False}, "--template/--no-template needs --task"),
]

IMPOSSIBLE = [
    ({"seed": 1 << 63}, f"--seed {1 << 63} is above {LARGEST}"),
    ({"seed": -1}, "--seed -1 is below 0"),
    ({"steps": 10**20 - 1}, f"--steps {10**20 - 1} is above {MOST_STEPS}"),
    ({"steps": True}, "--steps must be an integer, not True"),
    ({"steps": 2.0}, "--steps must be an integer, not 2.0"),
    ({"seq_len": "64"}, "--seq-len must be an integer, not '64'"),
    ({"seq_len": np.int64(64)}, "--seq-len must be an integer, not "),
    ({"data": "text.txt"}, "--data must be a path, not 'text.txt'"),
    ({"model": Path("tiny")}, "--model must be a text, not "),
    ({"schedule": "mebP"}, "--schedule 'mebP' is none of mebp, tiled"),
    ({"compute": "f16"}, "--compute 'f16' is none of auto, f32, bf16"),
    ({"enforcement": "hope"}, "--enforcement 'hope' is none of cgroup2"),
    ({"accumulate": 1025}, "--accumulate 1025 is above 1024"),
    ({"budget_bytes": 0}, "--budget 0 cannot hold a process"),
    ({"schedule": "mezo", "zeroth_order": ZeroOrder(eps=float("nan"))}, "--zo-eps nan must be a positive number"),
    ({"zeroth_order": ZeroOrder(eps="1")}, "--zo-eps must be a number, not '1'"),  # type: ignore[arg-type]
    ({"task": "sst2"}, "--task needs --data"),
]


@pytest.mark.parametrize(("changes", "words"), [*IGNORED, *IMPOSSIBLE])
def test_what_cannot_work_or_would_be_ignored_is_refused_by_name(changes: dict, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        RunConfig(**(LOWER | changes))
    assert str(refused.value).startswith(words)
    with pytest.raises(UsageError):
        replace(RunConfig(**LOWER), **changes)


@pytest.mark.parametrize(("changes", "words"), [IGNORED[0], IGNORED[1], IMPOSSIBLE[0], IMPOSSIBLE[2]])
def test_a_baseline_is_no_way_around_it(tmp_path: Path, changes: dict, words: str) -> None:
    stored = json.loads((Path(__file__).parents[2] / "traces/baselines/toy-mebp.json").read_text())
    zeroth_order = changes.get("zeroth_order")
    plain = changes | ({"zeroth_order": {"lr": zeroth_order.lr}} if zeroth_order else {})
    stored["settings"] |= plain
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match="baseline.json: settings"):
        read_baseline(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--schedule", "mebp", "--lcsb-groups", "4"], "--lcsb-groups is for the schedule lcsb, not mebp"),
        (["--schedule", "mezo", "--optimizer", "adamw"], "--optimizer: mezo updates by sgd"),  # the default, if given
        (["--eval-sequences", "8"], "--eval-sequences needs --eval-data"),
        (["--seed", str(1 << 63)], "--seed 9223372036854775808 is above 9223372036854775807"),
        (["--steps", "9" * 20], "--steps 99999999999999999999 is above 99999999"),
        (["--test-balloon", ""], "'' is not a size"),
    ],
)
def test_the_command_line_refuses_the_same(arguments: list[str], words: str) -> None:
    context = run_command.make_context("run", ["--budget", "1GB", *arguments])
    with context, pytest.raises(UsageError) as refused:
        asked_run(context)
    assert str(refused.value).startswith(words)


def test_every_option_of_a_run_is_described() -> None:
    elsewhere = {"--plan", "--resume", "--allow-different-bits", "--json", "--save-baseline"}
    own = [item for item in run_command.params if isinstance(item, click.Option)]
    options = {name for item in own for name in (*item.opts, *item.secondary_opts)}
    from_python_alone = {"events", *(f"optimizer.{name}" for name in ("momentum", "beta1", "beta2", "eps"))}
    described = BY_OPTION.keys() - from_python_alone - {"optimizer.weight_decay"}
    assert options - elsewhere - {"--no-plan-check"} == described


@pytest.mark.parametrize("schedule", [*SCHEDULE_NAMES, AUTO])
def test_a_record_holds_what_a_schedule_uses_and_nothing_else(schedule: str) -> None:
    config = RunConfig(**(LOWER | {"schedule": schedule, "seed": 7, "optimizer": OptimizerConfig(lr=0.5)}))
    found = recorded_settings(config)
    assert (found["optimizer.lr"], found["seed"], found["lora.alpha"], found["lora.rank"]) == (0.5, 7, 16.0, 8)
    assert {name for name in found if name.startswith("zeroth_order.")} == {
        setting.name for setting in SETTINGS if setting.name.startswith("zeroth_order.") and not setting.unused(config)
    }
    assert ("lcsb_groups" in found) == (schedule == "lcsb")
    if schedule == "fzoo":  # what the method decides where the user has not
        assert (found["zeroth_order.eps"], found["zeroth_order.directions"]) == (1e-4, 8)
        assert found["zeroth_order.noise"] == "rademacher"
