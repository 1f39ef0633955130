"""Block-wise and hybrid steps: estimates of parts of a model, beside each other or beside backpropagation."""

from pathlib import Path

import numpy as np
import pytest

from capped_runs import one_thread
from memsim.data.windows import Batches
from memsim.execution.session import Session
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.pack import Pack
from toy import (
    METHOD_LORA as LORA,
)
from toy import (
    flat_adapters,
    plan_method,
    plan_toy,
    session_of,
    step_noise,
)

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread  # a fixture, found by name


def _by_block(session: Session, values: np.ndarray) -> list[np.ndarray]:
    blocks = [block for block, _, tensor in session.adapters() for _ in range(tensor.size)]
    return [values[np.array(blocks) == block] for block in range(max(blocks) + 1)]


def test_block_wise_estimates_are_those_of_each_block_alone(
    disk: Path, toy_pack: Pack, one_batch: Batches, gradient: np.ndarray
) -> None:
    rhos = []
    for schedule in ("zo-jacobi", "zo-gauss-seidel"):
        session = session_of(toy_pack, disk, plan_method(toy_pack, schedule, lr=0.0, eps=5e-3))
        session.train_step(0, one_batch, 1)
        rhos.append(session.rho)
    # Without a step between, both perturb the same model: and a block's z is what it is in any other method.
    assert rhos[0] == rhos[1]
    pairs = zip(_by_block(session, gradient), _by_block(session, step_noise(session, 0, 0)), strict=True)
    want = [g @ z for g, z in pairs]
    np.testing.assert_allclose(rhos[0], want, rtol=0.03, atol=2e-4)


@pytest.mark.parametrize("schedule", ["zo-jacobi", "zo-gauss-seidel"])
def test_block_wise_updates_move_each_block_along_its_own_noise(
    disk: Path, toy_pack: Pack, batches: Batches, schedule: str
) -> None:
    lr = 0.1
    session = session_of(toy_pack, disk, plan_method(toy_pack, schedule, lr=lr))
    before = flat_adapters(session)
    session.train_step(0, batches, 1)
    z = _by_block(session, step_noise(session, 0, 0))
    want = np.concatenate([-lr * rho * own for rho, own in zip(session.rho, z, strict=True)])
    np.testing.assert_allclose(flat_adapters(session) - before, want, atol=1e-5)


def test_gauss_seidel_perturbs_a_block_above_those_it_has_moved(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    lr = 0.5
    session = session_of(toy_pack, disk, plan_method(toy_pack, "zo-gauss-seidel", lr=lr))
    other = session_of(toy_pack, disk, plan_method(toy_pack, "zo-jacobi", lr=0.0))
    before = flat_adapters(session)
    session.train_step(0, batches, 1)
    moved = _by_block(session, flat_adapters(session))[0]
    other.train_step(0, batches, 1)
    assert other.rho[0] == session.rho[0]
    assert other.rho[1] != session.rho[1]
    _put(other, np.concatenate([moved, before[len(moved) :]]))  # as after the first block's update
    other.train_step(0, batches, 1)
    assert other.rho[1] == session.rho[1]


def test_a_hybrid_trains_its_top_as_tiled_does_and_the_rest_by_estimates(
    disk: Path, toy_pack: Pack, batches: Batches
) -> None:
    lr = 0.01
    hybrid = session_of(toy_pack, disk, plan_method(toy_pack, "hybrid", lr=lr, hybrid_k=1, eps=1e-2))
    tiled = session_of(toy_pack, disk, plan_toy(toy_pack, "tiled", lora=LORA, optimizer=OptimizerConfig(lr=lr)))
    before = _by_block(hybrid, flat_adapters(hybrid))
    assert hybrid.train_step(0, batches, 1) == tiled.train_step(0, batches, 1)
    after = _by_block(hybrid, flat_adapters(hybrid))
    assert after[1].tobytes() == _by_block(tiled, flat_adapters(tiled))[1].tobytes()
    assert not np.array_equal(after[1], before[1])
    z = _by_block(hybrid, step_noise(hybrid, 0, 0))[0]
    np.testing.assert_allclose(after[0] - before[0], -lr * hybrid.rho[0] * z, atol=1e-6)


def test_a_hybrid_estimates_the_derivative_of_its_lower_blocks(
    disk: Path, toy_pack: Pack, one_batch: Batches, gradient: np.ndarray
) -> None:
    session = session_of(toy_pack, disk, plan_method(toy_pack, "hybrid", lr=0.0, hybrid_k=1, eps=1e-3))
    session.train_step(0, one_batch, 1)
    want = _by_block(session, gradient)[0] @ _by_block(session, step_noise(session, 0, 0))[0]
    # One-sided: an error of first order in eps beside the losses' rounding.
    np.testing.assert_allclose(session.rho[0], want, rtol=0.1)


def _put(session: Session, values: np.ndarray) -> None:
    start = 0
    for _, _, tensor in session.adapters():
        tensor[...] = values[start : start + tensor.size].reshape(tensor.shape)
        start += tensor.size
