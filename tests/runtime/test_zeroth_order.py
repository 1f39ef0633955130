"""Zeroth-order steps: what they estimate, what lanes share, what their seeds say, and each method's update."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from capped_runs import one_thread
from memsim.errors import InputError
from memsim.models.lora import LoraConfig
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.planner.traffic import step_traffic
from memsim.runtime.data import Batches
from memsim.runtime.kernels import KERNELS, compute_paths, load_kernels
from memsim.runtime.replay import _replay, place_replay
from memsim.runtime.seed_log import SeedLog, header_of, read_seed_log
from memsim.runtime.session import Session
from memsim.runtime.storage import SeparateArrays
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.zeroth_order import METHODS, ZeroOrder, estimator
from memsim.weights.pack import Pack
from toy import SEQ_LEN, flat_adapters, gradient_names, plan_toy, randomize_adapters, step_noise, token_file

LORA = LoraConfig(rank=3, alpha=6)  # an odd rank, which lanes pad

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread  # a fixture, found by name


def plan_method(pack: Pack, schedule: str, lr: float = 1e-3, accumulate: int = 1, **settings: object) -> RunPlan:
    setup = TrainingSetup(
        config=pack.config,
        group_size=pack.group_size,
        lora=LORA,
        schedule=schedule,
        n_tokens=SEQ_LEN,
        optimizer=OptimizerConfig(lr=lr),
        accumulate=accumulate,
        zeroth_order=ZeroOrder(**settings),  # type: ignore[arg-type]
    )
    return plan_run(setup, pack.model_hash)


def session_of(pack: Pack, disk: Path, plan: RunPlan, seed: int = 0, kernels: object = KERNELS) -> Session:
    session = Session(pack, LORA, plan.train, None, disk, seed, kernels=kernels)  # type: ignore[arg-type]
    randomize_adapters(session)
    return session


@pytest.fixture
def batches(tmp_path: Path, toy_pack: Pack) -> Batches:
    return Batches(token_file(tmp_path / "tokens.bin", toy_pack.config.vocab_size), SEQ_LEN, seed=1)


@pytest.fixture
def one_batch(tmp_path: Path, toy_pack: Pack) -> Batches:
    """The same sequence at every step."""
    return Batches(token_file(tmp_path / "one.bin", toy_pack.config.vocab_size, n_tokens=SEQ_LEN + 1), SEQ_LEN, seed=1)


@pytest.fixture
def gradient(disk: Path, toy_pack: Pack, one_batch: Batches) -> np.ndarray:
    """Backprop's gradient of every adapter, at the values of ``randomize_adapters`` and on ``one_batch``."""
    plan = plan_toy(toy_pack, "mebp", lora=LORA)
    arena = SeparateArrays(plan.train.program, keep_all=True)
    session = Session(toy_pack, LORA, plan.train, None, disk, 0, arena=arena)
    randomize_adapters(session)
    names = gradient_names(plan.train)
    order = [f"block_{block:03d}/{name}" for block, name, _ in session.adapters()]
    session.train_step(0, one_batch, 1)
    return np.concatenate([session.array(names[source]).ravel() for source in order]).astype(np.float64)


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
    again = Session(toy_pack, header.lora, place_replay(header, 1e-2, toy_pack), None, disk, header.seed)
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
