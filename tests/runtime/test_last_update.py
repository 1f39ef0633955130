"""An update that overflows: what is saved is checked, the record says so, and the last good state stays."""

from pathlib import Path

import numpy as np
import pytest

from capped_runs import ADAPTER_FILES, RUN_FILES, cache, files_in, left_behind, one_thread, run_toy, write_model
from memsim.data.windows import Batches
from memsim.errors import DivergedError
from memsim.execution.session import Session
from memsim.execution.state_file import save_state
from memsim.result_file import read_result
from memsim.run_directory.checkpoints import Checkpoints
from memsim.runtime.resume import read_resumption, resume
from memsim.runtime.run_progress import RunProgress
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.pack import Pack
from toy import METHOD_LORA, SEQ_LEN, plan_method, plan_toy, token_file

pytestmark = pytest.mark.usefixtures("cache")
assert cache and one_thread  # fixtures, found by name

TOO_LARGE = 1e39
"""Finite for Python, and infinite for float32."""


@pytest.fixture(scope="module")
def pack(disk: Path) -> Pack:
    return write_model(disk / "overflowing-model", n_layers=2)


@pytest.mark.parametrize(
    ("schedule", "optimizer"), [("tiled", "sgd"), ("mebp", "adamw"), ("mezo", "sgd"), ("forward-grad", "sgd")]
)
def test_a_last_update_that_overflows_is_no_success(
    pack: Pack, tmp_path: Path, disk: Path, schedule: str, optimizer: str
) -> None:
    rate = OptimizerConfig(optimizer, lr=TOO_LARGE)
    outcome = run_toy(pack.directory, tmp_path / "out", schedule=schedule, optimizer=rate, seq_len=16, steps=1)
    result = read_result(tmp_path / "out/result.json")
    assert (result.exit_reason, result.fits, len(result.steps)) == ("error", None, 1)
    assert outcome.diverged
    assert result.message == outcome.message
    assert result.message is not None
    assert result.message.startswith("an update up to step 1 overflowed: ")
    assert result.message.endswith(" is not finite; lower --lr")
    assert files_in(tmp_path / "out") == RUN_FILES | (
        {"seeds.jsonl"} if schedule in ("mezo", "forward-grad") else set()
    )
    assert left_behind(tmp_path / "out") in ([], ["seeds.jsonl"])
    assert Checkpoints(tmp_path / "out").newest(lambda text: None) is None


def test_the_checkpoint_before_it_stays(pack: Pack, tmp_path: Path, disk: Path) -> None:
    good = run_toy(pack.directory, tmp_path / "out", seq_len=16, steps=2, checkpoint_every=1)
    assert good.result.exit_reason == "done"
    before = (tmp_path / "out/adapter_model.safetensors").read_bytes()
    changes = {"steps": 3, "lr": TOO_LARGE}
    worse = resume(read_resumption(tmp_path / "out", changes, True), RunProgress())
    assert (worse.result.exit_reason, worse.diverged) == ("error", True)
    assert "an update up to step 3 overflowed" in worse.message
    assert worse.message.endswith("goes on after step 2")
    newest = Checkpoints(tmp_path / "out").newest(lambda text: None)
    assert newest is not None and newest.step == 2
    assert (tmp_path / "out/adapter_model.safetensors").read_bytes() == before
    assert files_in(tmp_path / "out") == RUN_FILES | ADAPTER_FILES


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path, disk: Path, toy_pack: Pack) -> None:
    session = Session(toy_pack, METHOD_LORA, plan_toy(toy_pack, "mebp", lora=METHOD_LORA).train, None, disk, seed=0)
    save_state(tmp_path / "state", session, 1)
    before = (tmp_path / "state").read_bytes()
    name, values = next(iter(session.state(replacing=True)))
    values.reshape(-1)[-1] = np.nan
    with pytest.raises(DivergedError, match=f"an update up to step 2 overflowed: {name} is not finite; lower --lr"):
        save_state(tmp_path / "state", session, 2)
    assert (tmp_path / "state").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("schedule", "settings", "advice"),
    [
        ("mezo", {"eps": 1e30}, "before any update: lower --zo-eps, unless the model's own weights"),
        ("fzoo", {"eps": 1e30}, "before any update: lower --zo-eps, unless the model's own weights"),
    ],
)
def test_a_first_loss_that_is_no_number_is_not_the_rate_s_fault(
    tmp_path: Path, disk: Path, toy_pack: Pack, schedule: str, settings: dict, advice: str
) -> None:
    batches = Batches(token_file(tmp_path / "tokens.bin", toy_pack.config.vocab_size), SEQ_LEN, seed=1)
    plan = plan_method(toy_pack, schedule, lr=1e-3, **settings)
    session = Session(toy_pack, METHOD_LORA, plan.train, None, disk, seed=11)
    with np.errstate(all="ignore"), pytest.raises(DivergedError) as refused:
        session.train_step(0, batches, 1)
    assert advice in str(refused.value)
    assert "--lr" not in str(refused.value)
