"""Sessions in this process: what they refuse, what they keep apart, and the files that they read and write."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from capped_runs import one_thread
from memsim.data.windows import Batches, TokenFile
from memsim.errors import DivergedError, InputError, WorkerError
from memsim.execution.session import Session
from memsim.execution.storage.mapped_weights import MappedWeights
from memsim.files import file_system
from memsim.models.lora import LoraConfig
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.pack import Pack, open_pack
from toy import SEQ_LEN, plan_toy, randomize_adapters, token_file

LORA = LoraConfig(rank=3, alpha=6)

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread  # a fixture, found by name
MEMORY_DISK = Path("/dev/shm")


def make_session(pack: Pack, disk: Path, seed: int = 0, **changes: object) -> Session:
    plan = plan_toy(pack, lora=LORA, **changes)
    return Session(pack, LORA, plan.train, plan.evaluate, disk, seed)


@pytest.fixture
def tokens(tmp_path: Path, toy_pack: Pack) -> TokenFile:
    return token_file(tmp_path / "tokens.bin", toy_pack.config.vocab_size)


@pytest.fixture
def batches(tokens: TokenFile) -> Batches:
    return Batches(tokens, SEQ_LEN, seed=1)


def adapters_of(session: Session) -> dict[tuple[int, str], bytes]:
    return {(block, name): tensor.tobytes() for block, name, tensor in session.adapters()}


def test_a_session_repeats_itself_and_another_seed_differs(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    runs = []
    for seed in (0, 0, 1):
        session = make_session(toy_pack, disk, seed)
        start = adapters_of(session)
        runs.append(([session.train_step(step, batches, 1).loss for step in range(3)], start, adapters_of(session)))
    assert runs[0] == runs[1]
    assert all(runs[0][1][key] != runs[2][1][key] for key in runs[0][1] if key[1].endswith("lora_A"))
    assert runs[0][2] != runs[2][2]


def test_the_first_steps_score_is_that_of_the_model_without_adapters(
    disk: Path, toy_pack: Pack, tokens: TokenFile, batches: Batches
) -> None:
    # B is zero at first, so the adapters' values cannot matter.
    first, second = (make_session(toy_pack, disk, seed).train_step(0, batches, 1) for seed in (0, 1))
    assert first == second


def test_evaluating_between_steps_changes_no_bit(
    disk: Path, toy_pack: Pack, tokens: TokenFile, batches: Batches
) -> None:
    plain, watched = (make_session(toy_pack, disk, evaluate=True) for _ in range(2))
    scores = []
    for step in range(3):
        loss = plain.train_step(step, batches, 1).loss
        assert watched.train_step(step, batches, 1).loss == loss
        scores.append(watched.evaluate(tokens, SEQ_LEN, 4))
    assert adapters_of(watched) == adapters_of(plain)
    assert len({score.loss for score in scores}) == 3


def test_an_evaluation_is_the_mean_of_its_windows_steps(disk: Path, toy_pack: Pack, tokens: TokenFile) -> None:
    # With a learning rate of 0 a training step on a window gives its score and changes nothing.
    session = make_session(toy_pack, disk, evaluate=True, optimizer=OptimizerConfig("sgd", lr=0.0))
    randomize_adapters(session)
    score = session.evaluate(tokens, SEQ_LEN, 3)
    one = [session.evaluate(_Windows(tokens, index), SEQ_LEN, 1) for index in range(3)]
    assert score.loss == pytest.approx(np.mean([item.loss for item in one]), rel=1e-12)
    assert score.accuracy == pytest.approx(np.mean([item.accuracy for item in one]), rel=1e-12)
    batches = Batches(tokens, SEQ_LEN, seed=1)
    assert session.train_step(0, batches, 1) == session.evaluate(_Windows(tokens, batches.index(0)), SEQ_LEN, 1)


def test_micro_batches_of_later_steps_are_the_windows_that_follow(
    disk: Path, toy_pack: Pack, tokens: TokenFile
) -> None:
    still = OptimizerConfig("sgd", lr=0.0)
    session = make_session(toy_pack, disk, evaluate=True, optimizer=still, accumulate=3)
    randomize_adapters(session)
    batches = Batches(tokens, SEQ_LEN, seed=1)
    for step in range(3):
        windows = [_Windows(tokens, batches.index(3 * step + micro)) for micro in range(3)]
        losses = [session.evaluate(window, SEQ_LEN, 1).loss for window in windows]
        assert session.train_step(step, batches, 3).loss == pytest.approx(np.mean(losses), rel=1e-12)


class _Windows:
    """One window of a token file, as a file of its own."""

    def __init__(self, tokens: TokenFile, index: int) -> None:
        self._tokens, self._index = tokens, index

    def n_windows(self, seq_len: int) -> int:
        return 1

    def window(self, index: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        return self._tokens.window(self._index + index, seq_len)


def test_an_evaluation_takes_no_more_windows_than_there_are(disk: Path, toy_pack: Pack, tokens: TokenFile) -> None:
    session = make_session(toy_pack, disk, evaluate=True)
    every = tokens.n_windows(SEQ_LEN)
    assert session.evaluate(tokens, SEQ_LEN, every + 5) == session.evaluate(tokens, SEQ_LEN, every)


def test_a_program_for_other_weights_is_refused(disk: Path, tmp_path: Path, toy_pack: Pack) -> None:
    from memsim.weights.synthetic import write_synthetic

    other = write_synthetic(tmp_path / "other", toy_pack.config, toy_pack.group_size, 1, lambda *_: None)
    plan = plan_toy(other, lora=LORA)
    with pytest.raises(WorkerError, match="lowered for other weights than .*; plan the run again"):
        Session(toy_pack, LORA, plan.train, None, disk, 0)


def test_a_session_without_an_evaluation_program_says_so(disk: Path, toy_pack: Pack, tokens: TokenFile) -> None:
    with pytest.raises(WorkerError, match="no evaluation program"):
        make_session(toy_pack, disk).evaluate(tokens, SEQ_LEN, 1)


def test_a_loss_that_is_not_finite_ends_the_run(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    session = make_session(toy_pack, disk)
    _, _, tensor = next(session.adapters())
    tensor[0, 0] = np.nan
    tensor_b = [values for _, name, values in session.adapters() if name.endswith("lora_B")]
    tensor_b[0][...] = 1
    with pytest.raises(DivergedError, match=r"the loss is nan at step 1, before any update, so --lr is not the cause"):
        session.train_step(0, batches, 1)


def test_a_scratch_directory_in_memory_is_refused(toy_pack: Pack) -> None:
    if not MEMORY_DISK.is_dir() or file_system(MEMORY_DISK) != "tmpfs":
        pytest.skip(f"{MEMORY_DISK} is not on tmpfs")
    with pytest.raises(InputError, match=f"the scratch directory {MEMORY_DISK} is on tmpfs, which is memory"):
        make_session(toy_pack, MEMORY_DISK)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_scratch_disk_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_pack: Pack, number: int
) -> None:
    def full(descriptor: int, offset: int, n_bytes: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"is full: spilling needs 48\.0 KiB; free some space or choose another"):
        make_session(toy_pack, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_scratch_file_has_no_name(tmp_path: Path, toy_pack: Pack, batches: Batches) -> None:
    session = make_session(toy_pack, tmp_path)
    session.train_step(0, batches, 1)
    assert list(tmp_path.glob(".memsim-*")) == []  # unlinked: nothing to clean up, however the process ends


def test_weights_that_changed_since_they_were_packed_are_noticed(
    tmp_path: Path, disk: Path, toy_pack: Pack, batches: Batches
) -> None:
    shutil.copytree(toy_pack.directory, tmp_path / "pack")
    path = tmp_path / "pack" / "block_001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    session = make_session(open_pack(tmp_path / "pack"), disk)
    with pytest.raises(InputError, match=r"block_001\.safetensors does not match its checksum: it changed"):
        session.train_step(0, batches, 1)
    with pytest.raises(InputError, match=r"block_001\.safetensors does not match its checksum: it changed"):
        MappedWeights(open_pack(tmp_path / "pack")).verify()


def test_verified_weights_are_not_hashed_again(monkeypatch: pytest.MonkeyPatch, toy_pack: Pack) -> None:
    weights = MappedWeights(toy_pack)
    weights.verify()
    monkeypatch.setattr("memsim.execution.storage.mapped_weights.verify_part", lambda *_: pytest.fail("hashed twice"))
    for part in toy_pack.parts:
        weights.page_in(part, True)


def test_weights_are_read_only_views_of_the_files(toy_pack: Pack) -> None:
    weights = MappedWeights(toy_pack)
    weights.page_in("head", True)
    values = weights.array("head/norm.weight")
    assert not values.flags.writeable
    before = values.tobytes()
    weights.evict("head")
    assert values.tobytes() == before  # evicted pages come back by themselves, from the file


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_projected_gradient_that_is_no_number_ends_the_step_before_its_update(
    toy_pack: Pack, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    plan = plan_toy(toy_pack, "mezo", lora=LORA)
    session = Session(toy_pack, LORA, plan.train, None, disk, 0)
    before = [tensor.copy() for _, _, tensor in session.adapters()]
    host = session._losses
    emit = host.emit_estimate
    monkeypatch.setattr(host, "emit_estimate", lambda rho: emit(np.full_like(rho, bad)))
    tokens = token_file(tmp_path / "tokens.bin", toy_pack.config.vocab_size)
    with pytest.raises(DivergedError, match="at step 1"):
        session.train_step(0, Batches(tokens, SEQ_LEN, 0), 1)
    after = [tensor.copy() for _, _, tensor in session.adapters()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
