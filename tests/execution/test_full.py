"""The scheme `full`: forwards of perturbed bf16 weights against torch, updates on disk, seeds, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from capped_runs import one_thread
from memsim.data.windows import Batches
from memsim.errors import UsageError
from memsim.execution.ops.tile import round_at_random, widen
from memsim.execution.session import Session
from memsim.execution.state_file import load_state, not_finite, save_state
from memsim.execution.storage.arrays import PlannedArena, SeparateArrays, allocate_arena
from memsim.execution.storage.trained_matrices import to_bf16
from memsim.models import tiles
from memsim.models.schemes import Full
from memsim.models.tiles import TiledMatrix, tiled_matrices
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.planner.traffic import step_traffic
from memsim.run_directory.seed_log import SeedLog, header_of, read_seed_log
from memsim.runtime.replay_seeds import place_replay
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.zeroth_order import METHODS, ZeroOrder, estimator
from memsim.weights.pack import Pack
from memsim.weights.synthetic import write_synthetic
from memsim_kernels import add_noise
from toy import SEQ_LEN, plan_method, token_file
from toy_families import family_config

pytestmark = pytest.mark.usefixtures("one_thread", "small_tiles")
assert one_thread  # a fixture, found by name

SEED, EPS = 7, 1e-2
SCHEDULES = ["mezo", "mezo-naive", "zo-sgd-sign", "zo-sgd-sign-scalar", "fzoo"]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several units in a tile, and several tiles in most matrices of a toy, the last of each smaller."""
    monkeypatch.setattr(tiles, "UNIT_ELEMENTS", 200)
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 1000)


def plan_full(pack: Pack, schedule: str = "mezo", lr: float = 1e-3, evaluate: bool = False, accumulate: int = 1, **zo):  # type: ignore[no-untyped-def]
    settings = ZeroOrder(**zo)
    setup = TrainingSetup(
        pack.config, pack.group_size, Full(), schedule, SEQ_LEN, OptimizerConfig(lr=lr), accumulate,
        evaluate=evaluate, zeroth_order=settings,
    )  # fmt: skip
    return plan_run(setup, pack.model_hash)


def session_of(pack: Pack, disk: Path, plan: RunPlan, **options: object) -> Session:
    return Session(pack, Full(), plan.train, plan.evaluate, disk, SEED, **options)  # type: ignore[arg-type]


def weights(session: Session) -> dict[tuple[str, str], np.ndarray]:
    """Return every weight: vectors as they are, matrices as bf16 bits."""
    found = {(part, name): np.array(tensor) for part, name, tensor in session.trainables()}
    rows: dict[tuple[str, str], list[np.ndarray]] = {}
    for part, name, bits in session.matrices.tiles():
        rows.setdefault((part, name), []).append(np.array(bits))
    return found | {key: np.concatenate(pieces) for key, pieces in rows.items()}


def same(one: dict[tuple[str, str], np.ndarray], other: dict[tuple[str, str], np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(one[key].tobytes() == other[key].tobytes() for key in one)


def wide(values: np.ndarray) -> np.ndarray:
    """Return a weight in float32."""
    return (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == np.uint16 else values


def noise_of(matrix: TiledMatrix, step: int, direction: int, rademacher: bool = False) -> np.ndarray:
    """Return z of a matrix, unit by unit."""
    units = []
    for number, start in enumerate(range(0, matrix.n_rows, matrix.unit_rows)):
        z = np.zeros((min(matrix.unit_rows, matrix.n_rows - start), matrix.n_columns), np.float32)
        add_noise(z.reshape(-1), 1.0, SEED, step, direction, matrix.first_noise + number, rademacher)
        units.append(z)
    return np.concatenate(units)


def step_noise(
    session: Session, pack: Pack, step: int, direction: int, rademacher: bool
) -> dict[tuple[str, str], np.ndarray]:
    found = {}
    for parameter, (part, name, tensor) in enumerate(session.trainables()):
        z = np.zeros(tensor.size, np.float32)
        add_noise(z, 1.0, SEED, step, direction, parameter, rademacher)
        found[part, name] = z.reshape(tensor.shape)
    return found | {key: noise_of(m, step, direction, rademacher) for key, m in tiled_matrices(pack.config).items()}


def torch_loss(pack: Pack, values: dict[tuple[str, str], np.ndarray], ids: np.ndarray, labels: np.ndarray) -> float:
    """Return the loss of transformers' model with these weights, in float64."""
    import torch

    from memsim.weights.readers.hugging_face import hugging_face_name
    from oracle import loss_of, reference_model

    family, state = pack.config.family, {}
    for (part, name), value in values.items():
        is_matrix = (part, name) in tiled_matrices(pack.config)
        offset = family.norm_offset if name.endswith("norm.weight") else 0.0
        key = hugging_face_name(part, f"{name}.weight" if is_matrix else name, family)
        state[key] = torch.from_numpy(value.astype(np.float64) - offset)
    model = reference_model(pack).double()
    _, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    model.tie_weights()
    with torch.no_grad():
        return float(loss_of(model, ids, labels))


@pytest.mark.parametrize("name", ["toy", "llama", "opt", "gemma3_text"])
def test_losses_are_those_of_torch_with_perturbed_weights(
    tmp_path: Path, disk: Path, toy_pack: Pack, name: str
) -> None:
    pytest.importorskip("torch")
    pack = toy_pack if name == "toy" else write_synthetic(tmp_path / "p", family_config(name), 32, 0, lambda *_: None)
    batches = Batches(token_file(tmp_path / "t.bin", pack.config.vocab_size, n_tokens=SEQ_LEN + 1), SEQ_LEN, seed=1)
    session = session_of(pack, disk, plan_full(pack, lr=0.0, eps=EPS, evaluate=True))
    values = {key: wide(value).astype(np.float64) for key, value in weights(session).items()}
    z = step_noise(session, pack, 0, 0, rademacher=False)
    ids, labels = batches.batch(0)
    plain, above, below = (
        torch_loss(pack, {key: value + sign * EPS * z[key] for key, value in values.items()}, ids, labels)
        for sign in (0, 1, -1)
    )
    score = session.train_step(0, batches, 1)
    # f32 products of some thousand terms against float64; of two losses near 6, over 2 eps.
    assert score.loss == pytest.approx((above + below) / 2, rel=2e-6)
    assert session.rho[0] == pytest.approx((above - below) / (2 * EPS), abs=2e-3)
    assert abs(above - below) > 1e-3
    tokens = token_file(tmp_path / "e.bin", pack.config.vocab_size, n_tokens=SEQ_LEN + 1)
    assert session.evaluate(tokens, SEQ_LEN, 1).loss == pytest.approx(plain, rel=2e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_update_is_the_methods_own_rounded_without_bias(
    disk: Path, toy_pack: Pack, batches: Batches, schedule: str
) -> None:
    lr, method = 1e-5 if schedule.startswith("mezo") else 1e-4, METHODS[schedule]
    session = session_of(toy_pack, disk, plan_full(toy_pack, schedule, lr, eps=EPS))
    before = weights(session)
    session.train_step(0, batches, 1)
    rademacher = method.noise == "rademacher"
    noises = [step_noise(session, toy_pack, 0, n, rademacher) for n in range(len(session.rho))]
    after, errors, sizes = weights(session), [], []
    for key, old in before.items():
        rho = np.sign(session.rho) if method.sign == "estimate" else session.rho
        gradient = np.mean([r * z[key].astype(np.float64) for r, z in zip(rho, noises, strict=True)], axis=0)
        gradient = np.sign(gradient) if method.sign == "element" else gradient
        want = wide(old).astype(np.float64) - lr * gradient
        if old.dtype != np.uint16:
            np.testing.assert_allclose(after[key], want, rtol=1e-6, atol=1e-9)
            continue
        got = wide(after[key]).astype(np.float64)
        step = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(want), 1e-30))) - 7)  # between neighbours in bf16
        assert np.all(np.abs(got - want) <= step * 1.001)
        errors.append(((got - want) / step).ravel())
        sizes.append(np.abs((want - wide(old)) / step).ravel())
    error, size = np.concatenate(errors), np.concatenate(sizes)
    # Rounded to nearest, most would not move at all; at random, the mean error of n is 0 within 1 / (2 sqrt(n)) each.
    assert np.median(size) < 0.5
    assert 0.05 < error.std() < 0.5
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(error.size)


def test_rounding_keeps_what_fits_and_the_mean_of_what_does_not() -> None:
    value, n = np.float32(1.0 + 0.3 * 2**-7), 40_000
    bits = np.empty(n, np.uint16)
    round_at_random(bits, np.full(n, value, np.float32), 1, 2, 3)
    got = np.empty(n, np.float32)
    widen(got, bits)
    assert set(np.unique(got)) == {np.float32(1.0), np.float32(1.0 + 2**-7)}
    assert abs((got > 1).mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / n)
    special = np.array([0.0, -0.0, 1.5, -3.0, np.inf, -np.inf, np.nan], np.float32)
    bits = np.empty(len(special), np.uint16)
    round_at_random(bits, special.copy(), 1, 2, 3)
    assert np.array_equal(wide(bits), special, equal_nan=True)
    other = np.empty(n, np.uint16)
    round_at_random(other, np.full(n, value, np.float32), 1, 2, 4)  # another unit
    assert 0.5 < (other == to_bf16(got)).mean() < 0.65  # 0.3^2 + 0.7^2 by chance


def test_first_values_are_rounded_to_nearest() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 1.01 * 2**-8, -(1 + 1.01 * 2**-8)], np.float32)
    assert wide(to_bf16(values)).tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -(1 + 2**-7)]


def test_a_step_of_length_zero_changes_no_bit(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    session = session_of(toy_pack, disk, plan_full(toy_pack, lr=0.0))
    before = weights(session)
    for step in range(2):
        session.train_step(step, batches, 1)
    assert any(session.rho)
    assert same(weights(session), before)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_seed_log_gives_the_same_weights_to_the_bit(
    tmp_path: Path, disk: Path, toy_pack: Pack, batches: Batches, schedule: str
) -> None:
    lr, settings = 1e-2, {"sparsity": 0.3, "resample": 2} if schedule == "mezo" else {}
    session = session_of(toy_pack, disk, plan_full(toy_pack, schedule, lr, **settings))
    header = header_of(estimator(schedule, ZeroOrder(**settings), lr), "toy", toy_pack.model_hash, SEED, Full())
    log = SeedLog(tmp_path / "seeds.jsonl", header)
    for step in range(3):
        session.train_step(step, batches, 1)
        log.write(step, lr, session.rho)
    log.close()
    read, steps = read_seed_log(tmp_path / "seeds.jsonl")
    again = Session(toy_pack, read.trains, place_replay(read, lr, toy_pack), None, disk, read.seed)
    start = weights(again)
    for number, step in enumerate(steps):
        again.replay_step(number, step.rho)
    assert same(weights(again), weights(session))
    assert not same(weights(again), start)


@pytest.mark.parametrize("settings", [{}, {"directions": 3}, {"noise": "rademacher", "sparsity": 0.5}])
def test_lanes_are_sequential_forwards_to_the_bit_for_half_the_reads(
    disk: Path, toy_pack: Pack, batches: Batches, settings: dict
) -> None:
    results, read = [], []
    for schedule in ("mezo", "mezo-naive"):
        plan = plan_full(toy_pack, schedule, lr=1e-2, **settings)
        read.append(step_traffic(plan.train.program).paged_in_bytes)
        session = session_of(toy_pack, disk, plan)
        scores = [(session.train_step(step, batches, 1), session.rho) for step in range(2)]
        results.append((scores, weights(session)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])
    assert read[1] == 2 * settings.get("directions", 1) * read[0]


def test_masked_weights_never_move(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    session = session_of(toy_pack, disk, plan_full(toy_pack, lr=1.0, sparsity=0.75, resample=1000))
    before = weights(session)
    for step in range(2):
        session.train_step(step, batches, 1)
    after = weights(session)
    moved = np.concatenate([(after[key] != before[key]).ravel() for key in before])
    assert abs(moved.mean() - 0.25) < 3 * np.sqrt(0.25 * 0.75 / moved.size)


def test_the_state_of_a_session_holds_every_weight(
    tmp_path: Path, disk: Path, toy_pack: Pack, batches: Batches
) -> None:
    session = session_of(toy_pack, disk, plan_full(toy_pack, lr=1e-2))
    session.train_step(0, batches, 1)
    save_state(tmp_path / "state.safetensors", session, 1)
    other = session_of(toy_pack, disk, plan_full(toy_pack, lr=1e-2))
    load_state(tmp_path / "state.safetensors", other)
    assert same(weights(other), weights(session))
    assert other.train_step(1, batches, 1) == session.train_step(1, batches, 1)
    assert same(weights(other), weights(session))
    assert not_finite(session) is None
    for bad in (0x7F80, 0xFF80, 0x7FC0):
        for number, (_, _, bits) in enumerate(session.matrices.tiles()):
            bits[0, 0] = bits[0, 0] if number else bad
        assert not_finite(session) is not None


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_arena_gives_the_same_bits(disk: Path, toy_pack: Pack, batches: Batches, accumulate: int) -> None:
    plan = plan_full(toy_pack, lr=1e-2, accumulate=accumulate)
    results = []
    for arena in (
        PlannedArena(plan.train, allocate_arena(plan.train.arena_bytes), poison=True),
        SeparateArrays(plan.train.program, keep_all=True),
    ):
        session = session_of(toy_pack, disk, plan, arena=arena)
        scores = [session.train_step(step, batches, accumulate) for step in range(2)]
        results.append((scores, weights(session)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def test_memory_does_not_grow_with_the_vocabulary(monkeypatch: pytest.MonkeyPatch, toy_pack: Pack) -> None:
    peaks = []
    for vocab_size in (2_000, 8_000):
        setup = TrainingSetup(
            family_config("qwen3").__class__(**(toy_pack.config.to_dict() | {"vocab_size": vocab_size})),
            32, Full(), "mezo", SEQ_LEN, OptimizerConfig(),
        )  # fmt: skip
        plan = plan_run(setup, "")
        peaks.append(plan.memory.peak_bytes)
        matrices = 2 * sum(m.n_rows * m.n_columns for m in tiled_matrices(setup.config).values())
        table = 2 * vocab_size * setup.config.hidden_size
        rows = 2 * SEQ_LEN * setup.config.hidden_size  # gathered, where the head reads the whole table
        assert table < matrices
        assert step_traffic(plan.train.program).paged_in_bytes == matrices + rows
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize("schedule", ["mebp", "tiled", "lcsb"])
def test_first_order_schedules_are_refused(toy_pack: Pack, schedule: str) -> None:
    with pytest.raises(UsageError, match=f"--scheme full is trained by zeroth-order schedules only: {schedule} would"):
        plan_full(toy_pack, schedule)


def test_methods_that_hold_state_or_need_lanes_are_refused(toy_pack: Pack) -> None:
    for schedule in METHODS.keys() - set(SCHEDULES):
        reason = "keeps state" if schedule in ("zo-adam", "zo-sgd-mmt") else "trains LoRA adapters only"
        with pytest.raises(UsageError, match=f"--schedule {schedule} {reason}.*; with --scheme full use mezo, "):
            plan_method(toy_pack, schedule, scheme=Full())
