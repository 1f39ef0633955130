"""Seed logs: the same adapters to the bit, and what is refused."""

from pathlib import Path

import pytest

from capped_runs import one_thread
from memsim.data.windows import Batches
from memsim.errors import InputError
from memsim.execution.session import Session
from memsim.run_directory.seed_log import SeedLog, header_of, read_seed_log
from memsim.runtime.replay_seeds import _replay, place_replay
from memsim.schedules.zeroth_order import METHODS, ZeroOrder, estimator
from memsim.weights.pack import Pack
from toy import METHOD_LORA as LORA
from toy import flat_adapters, plan_method

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread  # a fixture, found by name


@pytest.mark.parametrize("schedule", [name for name, method in METHODS.items() if method.replays])
def test_a_seed_log_gives_the_same_adapters_to_the_bit(
    tmp_path: Path, disk: Path, toy_pack: Pack, batches: Batches, schedule: str
) -> None:
    settings = {"sparsity": 0.3, "resample": 2} if schedule == "mezo" else {}
    plan = plan_method(toy_pack, schedule, lr=1e-2, **settings)
    decided = estimator(schedule, ZeroOrder(**settings), 1e-2)
    session = Session(toy_pack, LORA, plan.train, None, disk, seed=11)
    log = SeedLog(tmp_path / "seeds.jsonl", header_of(decided, "toy", toy_pack.model_hash, 11, LORA))
    for step in range(4):
        session.train_step(step, batches, 1)
        log.write(step, 1e-2, session.rho)
    log.close()
    header, steps = read_seed_log(tmp_path / "seeds.jsonl")
    again = Session(toy_pack, header.trains, place_replay(header, 1e-2, toy_pack), None, disk, header.seed)
    start = flat_adapters(again)
    for number, step in enumerate(steps):
        again.replay_step(number, step.rho)
    assert flat_adapters(again).tobytes() == flat_adapters(session).tobytes()
    assert flat_adapters(again).tobytes() != start.tobytes()


def test_a_damaged_seed_log_is_refused(tmp_path: Path, toy_pack: Pack) -> None:
    decided = estimator("mezo", ZeroOrder(), 1e-2)
    path = tmp_path / "seeds.jsonl"
    log = SeedLog(path, header_of(decided, "toy", toy_pack.model_hash, 0, LORA))
    for step in range(2):
        log.write(step, 1e-2, (0.5,))
    log.close()
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines[1]) < 60
    damaged = (
        ("", "is empty"),
        ("".join(lines)[:-1], "line 3 is cut short"),
        (lines[0] + "[]\n", "line 2 must be an object"),
        (lines[0].replace("seeds/1", "seeds/9"), "schema"),
        (lines[0] + lines[2], "line 2: seed 1 is not that of step 1; the log has lost or mixed lines"),
        (lines[0] + lines[1].replace("0.5", "0.5,1"), "line 2: 2 projected gradients, not 1"),
        (lines[0] + lines[1] + lines[2].replace("0.01", "0.1"), "line 3: the learning rate changes from 0.01 to 0.1"),
    )
    for text, words in damaged:
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            _replay(path, toy_pack, tmp_path / "out", "toy")
        assert not (tmp_path / "out").exists()
