"""Zeroth-order steps on what other schemes than LoRA train: estimates, seeds, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from capped_runs import one_thread
from memsim.data.windows import IGNORED
from memsim.errors import UsageError
from memsim.execution.session import Session
from memsim.execution.storage.arrays import SeparateArrays
from memsim.models.scheme import Scheme
from memsim.models.schemes import Head, Norms, Prefix, Prompt
from memsim.run_directory.seed_log import SeedLog, header_of, read_seed_log
from memsim.runtime.replay_seeds import place_replay
from memsim.schedules.zeroth_order import ZeroOrder, estimator
from memsim.weights.pack import Pack
from memsim_kernels import add_noise
from toy import SEQ_LEN, gradient_names, plan_method, plan_toy

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread  # a fixture, found by name

SCHEMES = [Norms(), Prefix(5), Prompt(5), Head(3)]
NAMES = [scheme.name for scheme in SCHEMES]


class OneWindow:
    """The same window at every step; of a classifier, with one label."""

    def __init__(self, pack: Pack, scheme: Scheme) -> None:
        generator = np.random.default_rng(7)
        self.ids, self.labels = generator.integers(0, pack.config.vocab_size, (2, SEQ_LEN), dtype=np.uint32)
        if isinstance(scheme, Head):
            self.labels[:] = IGNORED
            self.labels[-3] = 1

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        return self.ids, self.labels


def moved(session: Session) -> Session:
    """Move what is trained away from where it starts."""
    generator = np.random.default_rng(5)
    for _, _, tensor in session.trainables():
        tensor += generator.normal(0, 0.1, tensor.shape).astype(np.float32)
    return session


def flat(session: Session) -> np.ndarray:
    return np.concatenate([np.array(tensor).ravel() for _, _, tensor in session.trainables()])


@pytest.mark.parametrize("scheme", SCHEMES, ids=NAMES)
def test_rho_is_the_directional_derivative_of_backprop(disk: Path, toy_pack: Pack, scheme: Scheme) -> None:
    plan = plan_toy(toy_pack, "mebp", SEQ_LEN, scheme)
    arena = SeparateArrays(plan.train.program, keep_all=True)
    exact = moved(Session(toy_pack, scheme, plan.train, None, disk, 0, arena=arena))
    exact.train_step(0, OneWindow(toy_pack, scheme), 1)  # type: ignore[arg-type]
    names = gradient_names(plan.train)
    want = 0.0
    for parameter, (part, name, tensor) in enumerate(exact.trainables()):
        z = np.zeros(tensor.size, np.float32)
        add_noise(z, 1.0, 0, 0, 0, parameter, False)
        want += float(exact.array(names[f"{part}/{name}"]).ravel().astype(np.float64) @ z)
    session = moved(
        Session(toy_pack, scheme, plan_method(toy_pack, "mezo", 1e-2, scheme=scheme, eps=5e-4).train, None, disk, 0)
    )
    before = flat(session)
    session.train_step(0, OneWindow(toy_pack, scheme), 1)  # type: ignore[arg-type]
    # The second order in eps, and the rounding of two losses (1e-7 of 5 each) over 2 eps = 1e-3.
    assert session.rho[0] == pytest.approx(want, rel=2e-2, abs=1e-3)
    assert abs(want) > 5e-3
    assert np.all(flat(session) != before)


@pytest.mark.parametrize("schedule", ["zo-adam", "fzoo"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=NAMES)
def test_a_seed_log_gives_the_same_tensors_to_the_bit(
    tmp_path: Path, disk: Path, toy_pack: Pack, scheme: Scheme, schedule: str
) -> None:
    window = OneWindow(toy_pack, scheme)
    plan = plan_method(toy_pack, schedule, lr=1e-3, scheme=scheme)
    session = Session(toy_pack, scheme, plan.train, None, disk, seed=11)
    header = header_of(estimator(schedule, ZeroOrder(), 1e-3), "toy", toy_pack.model_hash, 11, scheme)
    for first, last in ((0, 2), (2, 3)):  # as a run that is resumed goes on with its log
        log = SeedLog(tmp_path / "seeds.jsonl", header)
        for step in range(first, last):
            session.train_step(step, window, 1)  # type: ignore[arg-type]
            log.write(step, 1e-3, session.rho)
        log.close()
    read, steps = read_seed_log(tmp_path / "seeds.jsonl")
    again = Session(toy_pack, read.trains, place_replay(read, 1e-3, toy_pack), None, disk, read.seed)
    start = flat(again)
    for number, step in enumerate(steps):
        again.replay_step(number, step.rho)
    assert number == 2
    assert flat(again).tobytes() == flat(session).tobytes() != start.tobytes()


def test_the_loss_of_one_sided_steps_is_that_of_the_lane_that_is_not_perturbed(disk: Path, toy_pack: Pack) -> None:
    scheme = Norms()
    exact = Session(toy_pack, scheme, plan_toy(toy_pack, "mebp", SEQ_LEN, scheme).train, None, disk, 0)
    plan = plan_method(toy_pack, "fzoo", scheme=scheme, eps=0.1)
    scores = [
        session.train_step(0, OneWindow(toy_pack, scheme), 1)  # type: ignore[arg-type]
        for session in (exact, Session(toy_pack, scheme, plan.train, None, disk, 0))
    ]
    # Two f32 computations that sum in other orders.
    assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-5)


@pytest.mark.parametrize("schedule", ["hybrid", "forward-grad", "zo-jacobi", "zo-gauss-seidel", "zo-sgd-cons"])
def test_methods_that_need_lanes_in_one_stream_are_refused(toy_pack: Pack, schedule: str) -> None:
    with pytest.raises(UsageError, match=f"--schedule {schedule} trains LoRA adapters only; with --scheme norms use"):
        plan_method(toy_pack, schedule, scheme=Norms())
