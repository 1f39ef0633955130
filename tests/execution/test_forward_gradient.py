"""The forward gradient: its directional derivative is backprop's, in every family, and the limit of zeroth order."""

from pathlib import Path

import numpy as np
import pytest

from capped_runs import one_thread
from memsim.data.windows import Batches
from memsim.execution.kernels import KERNELS, compute_paths, load_kernels
from memsim.execution.session import Session
from memsim.execution.storage.arrays import SeparateArrays
from memsim.ir.ops import OPS
from memsim.models.graph import ModelGraph
from memsim.models.lora import LoraConfig
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.zeroth_order import ZeroOrder
from memsim.weights.pack import Pack
from memsim.weights.synthetic import write_synthetic
from toy import flat_adapters, gradient_names, plan_toy, randomize_adapters, step_noise, token_file, toy_config
from toy_families import FAMILY_CHANGES, family_config

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread  # a fixture, found by name

LORA = LoraConfig(rank=4, alpha=8)
SEQ_LEN = 40  # beyond every window of the toy families


def backprops(pack: Pack, disk: Path, batches: Batches) -> tuple[np.ndarray, float]:
    """Return backprop's gradient as one vector, and the loss."""
    plan = plan_toy(pack, "mebp", SEQ_LEN, LORA)
    session = Session(pack, LORA, plan.train, None, disk, 0, arena=SeparateArrays(plan.train.program, keep_all=True))
    randomize_adapters(session)
    names = gradient_names(plan.train)
    order = [names[f"block_{block:03d}/{name}"] for block, name, _ in session.adapters()]
    loss = session.train_step(0, batches, 1).loss
    return np.concatenate([session.array(name).ravel() for name in order]).astype(np.float64), loss


def make(
    pack: Pack, disk: Path, lr: float = 0.0, schedule: str = "forward-grad", eps: float | None = None,
    kernels: object = KERNELS,
) -> Session:  # fmt: skip
    setup = TrainingSetup(
        pack.config, pack.group_size, LORA, schedule, SEQ_LEN, OptimizerConfig(lr=lr), zeroth_order=ZeroOrder(eps)
    )
    plan = plan_run(setup, pack.model_hash)
    session = Session(pack, LORA, plan.train, None, disk, 3, kernels=kernels)  # type: ignore[arg-type]
    randomize_adapters(session)
    return session


@pytest.fixture
def batches(tmp_path: Path, toy_pack: Pack) -> Batches:
    return Batches(token_file(tmp_path / "t.bin", toy_pack.config.vocab_size), SEQ_LEN, seed=1)


@pytest.mark.parametrize("name", ["toy", *FAMILY_CHANGES])
def test_the_derivative_is_backprops_along_the_direction(tmp_path: Path, disk: Path, name: str) -> None:
    config = toy_config() if name == "toy" else family_config(name)
    pack = write_synthetic(tmp_path / "pack", config, 32, 0, lambda *_: None)
    tokens = token_file(tmp_path / "t.bin", config.vocab_size, n_tokens=SEQ_LEN + 1)  # one window, at every step
    batches = Batches(tokens, SEQ_LEN, seed=1)
    gradient, loss = backprops(pack, disk, batches)
    session = make(pack, disk)
    for step in range(3):  # three directions
        score = session.train_step(step, batches, 1)
        z = step_noise(session, 3, step).astype(np.float64)
        assert score.loss == pytest.approx(loss, rel=1e-6)
        # <gradient, z> is a normal number times |gradient|; f32 sums in other orders differ by 1e-5 of that.
        assert abs(session.rho[0] - gradient @ z) < 1e-4 * np.linalg.norm(gradient)


def test_rho_of_two_forwards_tends_to_it(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    exact = make(toy_pack, disk)
    exact.train_step(0, batches, 1)
    errors = []
    for eps in (0.02, 0.01, 0.005):
        session = make(toy_pack, disk, schedule="mezo", eps=eps)
        session.train_step(0, batches, 1)
        errors.append(abs(session.rho[0] - exact.rho[0]) / abs(exact.rho[0]))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 1e-2


def test_the_update_is_along_the_direction(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    lr = 0.05
    session = make(toy_pack, disk, lr)
    before = flat_adapters(session)
    session.train_step(0, batches, 1)
    moved = flat_adapters(session) - before
    np.testing.assert_allclose(moved, -lr * session.rho[0] * step_noise(session, 3, 0), atol=1e-6)


@pytest.mark.skipif("bf16" not in compute_paths(), reason="this processor cannot multiply in bf16")
def test_bf16_is_close(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    gradient, _ = backprops(toy_pack, disk, batches)
    session = make(toy_pack, disk, kernels=load_kernels("bf16", 1, 64))
    session.train_step(0, batches, 1)
    error = session.rho[0] - gradient @ step_noise(session, 3, 0).astype(np.float64)
    # 8 bits of mantissa through some twenty products, as for backprop's own bf16 gradients.
    assert 0 < abs(error) < 0.06 * np.linalg.norm(gradient)


def test_every_op_of_a_forward_has_a_tangent() -> None:
    for config in (toy_config(), *map(family_config, FAMILY_CHANGES)):
        graph = ModelGraph(config, LORA, 8, 32)
        programs = (graph.attention(0).forward, graph.mlp().forward, graph.head("one_pass", train=True))
        ops = {node.op for program in programs for node in program.nodes}
        for op in ops - {"rope", "add", "swiglu", "geglu", "relu", "gelu"}:  # by themselves, or by an op for several
            assert f"{op}_tangent" in OPS, op
        assert all(OPS[op].tangent for op in ops)
