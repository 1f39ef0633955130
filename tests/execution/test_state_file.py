"""The state of a session on disk: every array comes back, whatever the schedule, and nothing is in memory for it."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from capped_runs import one_thread
from memsim.data.windows import Batches
from memsim.errors import InputError, WorkerError
from memsim.execution.session import Session
from memsim.execution.state_file import load_state, not_finite, save_state
from memsim.execution.storage import uncached
from memsim.execution.storage.uncached import UncachedWriter
from memsim.models.lora import LoraConfig
from memsim.schedules.optimizers import OptimizerConfig
from memsim.weights.pack import Pack
from memsim.weights.tensor_file import map_file, read_header, view
from toy import SEQ_LEN, plan_toy, token_file

LORA = LoraConfig(rank=3, alpha=6)

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread  # a fixture, found by name


def make_session(
    pack: Pack, disk: Path, schedule: str = "mebp", optimizer: str = "adamw", accumulate: int = 1
) -> Session:
    plan = plan_toy(pack, schedule, lora=LORA, optimizer=OptimizerConfig(optimizer, lr=1e-2), accumulate=accumulate)
    return Session(pack, LORA, plan.train, None, disk, seed=0)


@pytest.fixture
def batches(tmp_path: Path, toy_pack: Pack) -> Batches:
    return Batches(token_file(tmp_path / "tokens.bin", toy_pack.config.vocab_size), SEQ_LEN, seed=1)


def adapters_of(session: Session) -> list[bytes]:
    return [tensor.tobytes() for _, _, tensor in session.adapters()]


@pytest.mark.parametrize("schedule", ["mebp", "backprop", "tiled"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_session_goes_on_from_the_file_of_another_bit_for_bit(
    tmp_path: Path, disk: Path, toy_pack: Pack, batches: Batches, schedule: str, optimizer: str, accumulate: int
) -> None:
    settings = {"schedule": schedule, "optimizer": optimizer, "accumulate": accumulate}
    first = make_session(toy_pack, disk, **settings)
    for step in range(2):
        first.train_step(step, batches, accumulate)
    save_state(tmp_path / "state", first, 1)
    expected = [first.train_step(step, batches, accumulate) for step in (2, 3)]  # saving changed nothing

    second = make_session(toy_pack, disk, **settings)
    load_state(tmp_path / "state", second)
    assert [second.train_step(step, batches, accumulate) for step in (2, 3)] == expected
    assert adapters_of(second) == adapters_of(first)
    fresh = make_session(toy_pack, disk, **settings)
    assert [fresh.train_step(step, batches, accumulate) for step in (2, 3)] != expected


def test_the_file_holds_adapters_and_optimizer_state_and_nothing_else(
    tmp_path: Path, disk: Path, toy_pack: Pack, batches: Batches
) -> None:
    session = make_session(toy_pack, disk)
    session.train_step(0, batches, 1)
    save_state(tmp_path / "state", session, 1)
    entries = {name: entry for name, entry in read_header(tmp_path / "state").items() if not name.startswith("_pad")}
    shapes = {f"block_{block:03d}/{name}": tensor.shape for block, name, tensor in session.adapters()}
    n_parameters = sum(rows * columns for rows, columns in shapes.values()) // toy_pack.config.num_hidden_layers
    states = {f"block_{block:03d}/state": (2 * n_parameters,) for block in range(toy_pack.config.num_hidden_layers)}
    assert {name: entry.shape for name, entry in entries.items()} == shapes | states
    mapped = map_file(tmp_path / "state")
    for block, name, tensor in session.adapters():
        assert view(mapped, entries[f"block_{block:03d}/{name}"]).tobytes() == tensor.tobytes()


def test_a_state_of_another_run_is_refused(tmp_path: Path, disk: Path, toy_pack: Pack) -> None:
    save_state(tmp_path / "state", make_session(toy_pack, disk, optimizer="momentum"), 1)
    with pytest.raises(
        InputError, match=r"state: block_000/state must be f32\[\d+\], but there is f32 \[\d+\]; it is of"
    ):
        load_state(tmp_path / "state", make_session(toy_pack, disk))
    with pytest.raises(InputError, match=r"block_000/adapters must be f32\[\d+\], but there is no such array"):
        load_state(tmp_path / "state", make_session(toy_pack, disk, "tiled"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_leaves_the_file_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disk: Path, toy_pack: Pack, number: int
) -> None:
    session = make_session(toy_pack, disk)
    save_state(tmp_path / "state", session, 1)
    before = (tmp_path / "state").read_bytes()

    def fail(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(InputError, match=f"^cannot write .*state: {os.strerror(number)}$"):
            save_state(tmp_path / "state", session, 1)
    assert (tmp_path / "state").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"state"}


def test_a_bad_step_leaves_the_state_before_it(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    session = make_session(toy_pack, disk, "tiled")
    session.train_step(0, batches, 1)
    assert session.keeps_state_of_bad_step and not_finite(session) is None
    before = {name: values.copy() for name, values in session.state()}
    for name, values in session.state(replacing=True):
        if name.endswith("/adapters"):
            values[:] = 1e30  # finite, and its products are not
            before[name] = values.copy()
    with np.errstate(all="ignore"), pytest.raises(WorkerError, match=r"the loss is (nan|inf) at step 2; lower --lr"):
        session.train_step(1, batches, 1)
    assert not_finite(session) is None
    for name, values in session.state(replacing=True):
        assert values.tobytes() == before[name].tobytes()
        values[0] = np.nan
    assert not_finite(session) is not None


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("n_bytes", [0, 1, 4096, 3 * 4096 + 5, 5 * 4096])
def test_an_uncached_file_holds_what_was_written(
    monkeypatch: pytest.MonkeyPatch, disk: Path, direct: bool, n_bytes: int
) -> None:
    if not direct:
        monkeypatch.setattr(uncached, "_open_direct", lambda descriptor: None)
    data = np.random.default_rng(0).integers(0, 256, n_bytes, np.uint8).data
    path = disk / f"uncached-{direct}-{n_bytes}"
    import mmap

    with path.open("wb") as file:
        writer = UncachedWriter(file.fileno(), memoryview(mmap.mmap(-1, 2 * 4096 + 100)))
        for start in range(0, n_bytes, 1000):
            writer.write(data[start : start + 1000])
        writer.flush()
    assert path.read_bytes() == bytes(data)
