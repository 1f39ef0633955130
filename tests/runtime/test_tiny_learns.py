"""The model that memsim ships learns from text that it has not seen: what every comparison of methods rests on."""

from pathlib import Path

import pytest

from capped_runs import cache, run_toy
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.shipped import shipped_text

pytestmark = pytest.mark.usefixtures("cache")
assert cache  # a fixture, found by name


def test_first_order_steps_improve_loss_and_accuracy_on_held_out_text(disk: Path) -> None:
    result = run_toy(
        Path("tiny"),
        disk / "tiny-learns",
        schedule="mebp",
        seq_len=128,
        steps=40,  # a hundred give twice the gain
        data=shipped_text("train"),
        eval_data=shipped_text("test"),
        eval_first=True,
        eval_sequences=24,
        optimizer=OptimizerConfig("adamw", 1e-3),
        compute="f32",
        events=False,
    ).result
    before, after = result.evals
    assert (before.step, after.step) == (0, 40)
    assert before.loss is not None and after.loss is not None
    assert before.accuracy is not None and after.accuracy is not None
    # A trained model: ln 256 = 5.5 is what one that knows nothing has.
    assert before.loss < 2
    assert after.loss < before.loss - 0.01
    assert after.accuracy > before.accuracy + 0.005
