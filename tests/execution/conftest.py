"""What the tests of zeroth-order steps share: batches, and backprop's gradient to compare with."""

from pathlib import Path

import numpy as np
import pytest

from memsim.data.windows import Batches
from memsim.execution.session import Session
from memsim.execution.storage.arrays import SeparateArrays
from memsim.weights.pack import Pack
from toy import METHOD_LORA as LORA
from toy import SEQ_LEN, gradient_names, plan_toy, randomize_adapters, token_file


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
