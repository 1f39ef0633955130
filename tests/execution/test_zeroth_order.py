"""Zeroth-order steps: what they estimate, what lanes share, what their seeds say, and each method's update."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from capped_runs import one_thread
from memsim.data.windows import Batches
from memsim.execution.kernels import compute_paths, load_kernels
from memsim.execution.ops.zeroth_order import ZEROTH_ORDER_KERNELS
from memsim.execution.session import Session
from memsim.planner.traffic import step_traffic
from memsim.schedules.zeroth_order import METHODS
from memsim.weights.pack import Pack
from toy import METHOD_LORA as LORA
from toy import (
    flat_adapters,
    plan_method,
    plan_toy,
    session_of,
    step_noise,
)

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread  # a fixture, found by name


def test_rho_tends_to_the_directional_derivative(
    disk: Path, toy_pack: Pack, one_batch: Batches, gradient: np.ndarray
) -> None:
    errors = []
    for eps in (0.04, 0.02, 0.01, 0.005, 0.0025):
        session = session_of(toy_pack, disk, plan_method(toy_pack, "mezo", lr=0.0, eps=eps))
        want = gradient @ step_noise(session, 0, 0)
        session.train_step(0, one_batch, 1)
        errors.append(abs(session.rho[0] - want) / abs(want))
    # The error is of second order in eps, until the rounding of losses (1e-7 of 5, over 2 eps) is left.
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[4] < 3e-3


def test_an_estimate_points_along_the_gradient_as_far_as_geometry_lets_it(
    disk: Path, toy_pack: Pack, one_batch: Batches, gradient: np.ndarray
) -> None:
    session = session_of(toy_pack, disk, plan_method(toy_pack, "mezo", lr=0.0, eps=1e-2))
    cosines, steps = [], 250
    for step in range(steps):
        session.train_step(step, one_batch, 1)
        estimate = session.rho[0] * step_noise(session, 0, step).astype(np.float64)
        cosines.append(estimate @ gradient / np.linalg.norm(estimate) / np.linalg.norm(gradient))
    d = len(gradient)
    # For z isotropic, |cos| is |normal| / sqrt(d) in the limit; rho gives it the right sign.
    deviation = np.sqrt((1 - 2 / np.pi) / d / steps)
    assert abs(np.mean(cosines) - np.sqrt(2 / np.pi / d)) < 3 * deviation
    assert np.mean(np.array(cosines) > 0) > 0.97


@pytest.mark.parametrize("compute", compute_paths())
@pytest.mark.parametrize("settings", [{}, {"directions": 3}, {"noise": "rademacher", "sparsity": 0.5}])
def test_lanes_are_sequential_forwards_to_the_bit(
    disk: Path, toy_pack: Pack, batches: Batches, compute: str, settings: dict
) -> None:
    results = []
    for schedule in ("mezo", "mezo-naive"):
        kernels = load_kernels(compute, 1, 64)
        session = session_of(toy_pack, disk, plan_method(toy_pack, schedule, **settings), kernels=kernels)
        losses = [(session.train_step(step, batches, 1), session.rho) for step in range(3)]
        results.append((losses, flat_adapters(session).tobytes()))
    assert results[0] == results[1]
    assert any(score.loss != results[0][0][0][0].loss for score, _ in results[0][0])


def test_one_stream_of_the_weights_is_half_of_two(toy_pack: Pack) -> None:
    shared, naive = (step_traffic(plan_method(toy_pack, name).train.program) for name in ("mezo", "mezo-naive"))
    one = step_traffic(plan_toy(toy_pack, "tiled", lora=LORA, evaluate=True).evaluate.program)
    assert shared.paged_in_bytes == one.paged_in_bytes == naive.paged_in_bytes / 2
    assert shared.unpacked_bytes == one.unpacked_bytes == naive.unpacked_bytes / 2
    assert shared.spilled_bytes == 0


@pytest.mark.parametrize("schedule", METHODS)
def test_a_step_of_length_zero_changes_no_bit(disk: Path, toy_pack: Pack, batches: Batches, schedule: str) -> None:
    session = session_of(toy_pack, disk, plan_method(toy_pack, schedule, lr=0.0))
    before = flat_adapters(session).tobytes()
    for step in range(2):
        session.train_step(step, batches, 1)
    assert any(session.rho) or METHODS[schedule].accepts  # no candidate is better than w itself
    assert flat_adapters(session).tobytes() == before


def test_another_seed_draws_other_noise(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    rhos = []
    for seed in (0, 0, 1):
        session = session_of(toy_pack, disk, plan_method(toy_pack, "mezo"), seed)
        session.train_step(0, batches, 1)
        rhos.append(session.rho)
    assert rhos[0] == rhos[1] != rhos[2]


def test_losses_of_micro_batches_are_summed_before_the_estimate(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    whole = session_of(toy_pack, disk, plan_method(toy_pack, "mezo", lr=0.0, accumulate=3))
    score = whole.train_step(0, batches, 3)
    plan = plan_method(toy_pack, "mezo", lr=0.0)
    each = []
    for micro in range(3):
        session = session_of(toy_pack, disk, plan)
        windows = [batches.batch(micro)]
        each.append((session.train_step(0, _Fixed(windows), 1).loss, session.rho[0]))  # type: ignore[arg-type]
    assert score.loss == pytest.approx(np.mean([loss for loss, _ in each]), rel=1e-12)
    assert whole.rho[0] == pytest.approx(np.mean([rho for _, rho in each]), rel=1e-9)


class _Fixed:
    """Batches that are these windows."""

    def __init__(self, windows: list) -> None:
        self._windows = windows

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        return self._windows[step]


# One step of each method in numpy: (w, rho, z [q, d], lr, state, step) -> new w. States start at zero.
def _sgd(w, rho, z, lr, state, step):  # type: ignore[no-untyped-def]
    return w - lr * (np.array(rho) @ z / len(rho))


def _momentum(w, rho, z, lr, state, step):  # type: ignore[no-untyped-def]
    state["m"] = 0.9 * state.get("m", 0.0) + np.array(rho) @ z / len(rho)
    return w - lr * state["m"]


def _adam(w, rho, z, lr, state, step):  # type: ignore[no-untyped-def]
    g = np.array(rho) @ z / len(rho)
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g * g
    m, v = state["m"] / (1 - 0.9**step), state["v"] / (1 - 0.999**step)
    return w - lr * m / (np.sqrt(v) + 1e-8)


UPDATES: dict[str, Callable] = {
    "mezo": _sgd,
    "mezo-naive": _sgd,
    "zo-sgd-sign": lambda w, rho, z, lr, state, step: w - lr * np.sign(rho[0] * z[0]),
    "zo-sgd-sign-scalar": lambda w, rho, z, lr, state, step: w - lr * np.sign(rho[0]) * z[0],
    "zo-sgd-mmt": _momentum,
    "zo-sgd-cons": _sgd,
    "zo-adam": _adam,
    "fzoo": _sgd,
}


@pytest.mark.parametrize("schedule", UPDATES)
def test_updates_are_those_of_ten_lines_of_numpy(disk: Path, toy_pack: Pack, batches: Batches, schedule: str) -> None:
    lr = 0.05
    session = session_of(toy_pack, disk, plan_method(toy_pack, schedule, lr=lr, eps=1e-2), seed=9)
    want, state = flat_adapters(session).astype(np.float64), {}
    for step in range(4):
        session.train_step(step, batches, 1)
        rademacher = schedule == "fzoo"
        z = np.stack([step_noise(session, 9, step, n, rademacher) for n in range(len(session.rho))]).astype(np.float64)
        want = UPDATES[schedule](want, session.rho, z, lr, state, step + 1)
        np.testing.assert_allclose(flat_adapters(session), want, rtol=1e-4, atol=2e-5)  # float32 sums of some steps


def test_masked_elements_never_move_and_the_others_do(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    for mask in ("random", "rows"):
        settings = {"sparsity": 0.75, "mask": mask, "resample": 1000}
        session = session_of(toy_pack, disk, plan_method(toy_pack, "mezo", lr=1.0, **settings))
        start = [np.array(tensor) for _, _, tensor in session.adapters()]
        for step in range(2):
            session.train_step(step, batches, 1)
        moved = [np.array(tensor) != old for (_, _, tensor), old in zip(session.adapters(), start, strict=True)]
        if mask == "rows":
            assert all(np.all(rows.all(axis=1) | ~rows.any(axis=1)) for rows in moved)
        units = np.concatenate([rows[:, 0] if mask == "rows" else rows.ravel() for rows in moved])
        assert abs(units.mean() - 0.25) < 3 * np.sqrt(0.25 * 0.75 / len(units))


def test_a_mask_is_drawn_anew_when_it_is_told_to(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    session = session_of(toy_pack, disk, plan_method(toy_pack, "mezo", lr=1.0, sparsity=0.5, resample=2))
    masks = []
    for step in range(3):
        before = flat_adapters(session)
        session.train_step(step, batches, 1)
        masks.append(flat_adapters(session) != before)
    assert np.array_equal(masks[0], masks[1])
    assert 0.4 < (masks[1] == masks[2]).mean() < 0.6


def test_the_conservative_step_never_takes_the_worse_candidate(disk: Path, toy_pack: Pack, one_batch: Batches) -> None:
    lr = 0.3
    session = session_of(toy_pack, disk, plan_method(toy_pack, "zo-sgd-cons", lr=lr, eps=1e-2))
    still = session_of(toy_pack, disk, plan_method(toy_pack, "zo-sgd-cons", lr=0.0, eps=1e-2))
    taken = []
    for step in range(12):
        before = flat_adapters(session)
        loss = session.train_step(step, one_batch, 1).loss
        _put(still, flat_adapters(session))
        after = still.train_step(step, one_batch, 1).loss
        assert after <= loss + 1e-6  # rounding of two forwards
        taken.append(float(np.abs(flat_adapters(session) - before).max()) > 0)
    assert any(taken)


def _put(session: Session, values: np.ndarray) -> None:
    start = 0
    for _, _, tensor in session.adapters():
        tensor[...] = values[start : start + tensor.size].reshape(tensor.shape)
        start += tensor.size


def test_what_has_no_loss_is_never_the_lowest() -> None:
    def choice(now: float, *tried: float) -> float:
        def stats(*losses: float) -> np.ndarray:
            return np.array([[loss, 0.0, 1.0] for loss in losses]).ravel()

        chosen = np.empty(1)
        ZEROTH_ORDER_KERNELS["accept"]([chosen], [stats(now), stats(*tried), np.array([2.0])], {})
        return float(chosen[0])

    nan, inf = float("nan"), float("inf")
    assert choice(3.0, 1.0, 2.0) == 2.0  # forwards along rho
    assert choice(3.0, nan, 2.0) == -2.0
    assert choice(3.0, nan, 4.0) == choice(3.0, nan, inf) == choice(3.0, inf, nan) == 0.0


def test_a_spread_that_is_no_number_is_no_step_of_nothing() -> None:
    rho = np.empty(2)
    losses = [np.array([[loss, 0.0, 1.0]]).ravel() for loss in (1.0, float("nan"), 2.0)]
    with np.errstate(invalid="ignore"):
        ZEROTH_ORDER_KERNELS["estimate"]([rho], losses, {"kind": "normalized", "eps": 1e-4})
    assert not np.isfinite(rho).any()  # emit_estimate ends the run
    equal = [np.array([1.0, 0.0, 1.0])] * 3
    ZEROTH_ORDER_KERNELS["estimate"]([rho], equal, {"kind": "normalized", "eps": 1e-4})
    assert rho.tolist() == [0.0, 0.0]
