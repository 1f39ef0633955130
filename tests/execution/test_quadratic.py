"""Every optimizer on a quadratic, through whole step programs: each against ten lines of numpy from its equation.

The programs are those of real runs. Only the head's loss and the adapters' gradients are replaced: by those of a
quadratic in the adapters, as the step's own ``perturb`` nodes leave them. Equations: the zeroth-order benchmark (arXiv
2402.11592), MeZO (2305.17333), FZOO (2506.09034); heavy ball without (1 - beta), as torch's SGD; Adam (1412.6980) and
AdamW (1711.05101). No zeroth-order method has an optimizer of the user's behind it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capped_runs import one_thread
from memsim.data.windows import Batches
from memsim.execution.kernels import KERNELS
from memsim.execution.session import Session
from memsim.schedules.optimizers import STATE_PER_PARAMETER, OptimizerConfig
from memsim.schedules.zeroth_order import METHODS
from memsim.weights.pack import Pack
from toy import METHOD_LORA as LORA
from toy import flat_adapters, plan_method, plan_toy, session_of, step_noise

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread  # a fixture, found by name

SEED, STEPS, EPS = 9, 4, 1e-2
F64 = np.ndarray


def curvature(size: int) -> F64:
    return 0.5 + 0.25 * (np.arange(size) % 5)


def optimum(size: int) -> F64:
    return 0.3 * np.cos(np.arange(size))


def loss_of(tensor: F64) -> float:
    """The quadratic of one tensor: sum of h (w - c)^2 / 2, with h and c by the offset in it."""
    w = np.asarray(tensor, np.float64).ravel()
    return float(np.sum(curvature(w.size) * (w - optimum(w.size)) ** 2) / 2)


def gradient_of(tensor: F64) -> F64:
    w = np.asarray(tensor, np.float64).ravel()
    return (curvature(w.size) * (w - optimum(w.size))).reshape(np.shape(tensor))


class QuadraticModel:
    """Kernels of a model whose loss is the quadratic of its adapters."""

    def __init__(self, schedule: str) -> None:
        self.method = METHODS.get(schedule)
        self.pending: list[F64] = []  # by perturbed part: the loss of each lane
        self.slopes = 0.0
        own = {name: getattr(self, name) for name in ("perturb", "lora_backward", "linear_cross_entropy_q4")}
        self.kernels = KERNELS | own | {"linear_cross_entropy_q4_tangent": self.tangent_head}

    def perturb(self, o: Sequence[F64], i: Sequence[F64], a: Mapping[str, Any]) -> None:
        KERNELS["perturb"](o, i, a)
        lanes, axes = a["signs"].split(","), a["axes"]
        losses = np.zeros(len(lanes))
        for w, out, axis in zip(i[-len(axes) :], o, map(int, axes), strict=False):
            for n in range(len(lanes)):
                start = n * (out.shape[axis] // len(lanes))
                lane = np.take(out, range(start, start + w.shape[axis]), axis)
                if lanes[n][0] == "=":
                    self.slopes += float(np.sum(gradient_of(w) * lane))
                else:
                    losses[n] += loss_of(lane)
        self.pending.append(losses)

    def linear_cross_entropy_q4(self, o: Sequence[F64], i: Sequence[F64], a: Mapping[str, Any]) -> None:
        KERNELS["linear_cross_entropy_q4"](o, i, a)
        assert self.method is not None
        if self.method.blocks:  # a pair of lanes for each block; the plain lane comes last, by itself
            losses = self.pending.pop(0) if a.get("lanes", 1) == 2 else np.zeros(1)
        else:
            losses = np.sum(self.pending, axis=0)
            if self.method.hybrid:  # the perturbed lane, and then the one that is differentiated
                losses = losses[:1] if a["gradient"] else losses[1:]
            if not self.method.hybrid or a["gradient"]:
                self.pending.clear()
        o[0].reshape(-1, 3)[:] = [(loss, 0.0, 1.0) for loss in losses]

    def tangent_head(self, o: Sequence[F64], i: Sequence[F64], a: Mapping[str, Any]) -> None:
        KERNELS["linear_cross_entropy_q4_tangent"](o, i, a)
        o[3][0], self.slopes = self.slopes, 0.0

    def lora_backward(self, o: Sequence[F64], i: Sequence[F64], a: Mapping[str, Any]) -> None:
        for out, w in zip(o[:2], i[2:4], strict=True):
            out[...] = gradient_of(w)


class Problem:
    """The same quadratic for the reference, over all adapters as one vector."""

    def __init__(self, session: Session) -> None:
        tensors = [(block, tensor.size) for block, _, tensor in session.adapters()]
        self.h = np.concatenate([curvature(size) for _, size in tensors])
        self.c = np.concatenate([optimum(size) for _, size in tensors])
        self.block = np.concatenate([np.full(size, block) for block, size in tensors])

    def loss(self, w: F64) -> float:
        return float(np.sum(self.h * (w - self.c) ** 2) / 2)

    def gradient(self, w: F64) -> F64:
        return self.h * (w - self.c)


def central(p: Problem, w: F64, z: F64) -> float:
    return (p.loss(w + EPS * z) - p.loss(w - EPS * z)) / (2 * EPS)


# One step in numpy: (problem, w, z [q, d], lr, state, step from 1) -> new w. States start at zero.
def mezo(p, w, z, lr, state, step):  # type: ignore[no-untyped-def]
    return w - lr * np.mean([central(p, w, own) * own for own in z], axis=0)


def sign_of_elements(p, w, z, lr, state, step):  # type: ignore[no-untyped-def]
    return w - lr * np.sign(central(p, w, z[0]) * z[0])


def sign_of_rho(p, w, z, lr, state, step):  # type: ignore[no-untyped-def]
    return w - lr * np.sign(central(p, w, z[0])) * z[0]


def heavy_ball(w, g, lr, state):  # type: ignore[no-untyped-def]
    state["m"] = 0.9 * state.get("m", 0.0) + g
    return w - lr * state["m"]


def adam(w, g, lr, state, step, decay=0.0):  # type: ignore[no-untyped-def]
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g * g
    m, v = state["m"] / (1 - 0.9**step), state["v"] / (1 - 0.999**step)
    return w - lr * decay * w - lr * m / (np.sqrt(v) + 1e-8)


def conservative(p, w, z, lr, state, step):  # type: ignore[no-untyped-def]
    move = lr * (p.loss(w + EPS * z[0]) - p.loss(w)) / EPS * z[0]
    factor = min((0, -1, 1), key=lambda factor: p.loss(w + factor * move))
    state.setdefault("taken", []).append(factor)
    return w + factor * move


def fzoo(p, w, z, lr, state, step):  # type: ignore[no-untyped-def]
    losses = np.array([p.loss(w + EPS * own) for own in z])
    return w - lr * ((losses - p.loss(w)) / np.std(losses)) @ z / len(z)


def forward_gradient(p, w, z, lr, state, step):  # type: ignore[no-untyped-def]
    return w - lr * (p.gradient(w) @ z[0]) * z[0]


def block_wise(p, w, z, lr, state, step):  # type: ignore[no-untyped-def]
    # The quadratic has no terms between blocks: whether a block moves before the next is perturbed makes no difference.
    parts = [np.where(p.block == block, z[0], 0.0) for block in np.unique(p.block)]
    return w - lr * sum(central(p, w, part) * part for part in parts)


def hybrid(p, w, z, lr, state, step):  # type: ignore[no-untyped-def]
    below = np.where(p.block == 0, z[0], 0.0)
    rho = (p.loss(w + EPS * below) - p.loss(w)) / EPS
    top = adam(w, p.gradient(w), lr, state, step, decay=0.01)
    return np.where(p.block == 0, w - lr * rho * below, top)


# Method -> learning rate (moves of some hundredths a step), reference.
ZEROTH_ORDER: dict[str, tuple[float, Callable]] = {
    "mezo": (2e-4, mezo),
    "mezo-naive": (2e-4, mezo),
    "zo-sgd-sign": (1e-2, sign_of_elements),
    "zo-sgd-sign-scalar": (1e-2, sign_of_rho),
    "zo-sgd-mmt": (2e-4, lambda p, w, z, lr, state, step: heavy_ball(w, central(p, w, z[0]) * z[0], lr, state)),
    "zo-sgd-cons": (2e-4, conservative),
    "zo-adam": (1e-2, lambda p, w, z, lr, state, step: adam(w, central(p, w, z[0]) * z[0], lr, state, step)),
    "fzoo": (1e-2, fzoo),
    "forward-grad": (2e-4, forward_gradient),
    "zo-jacobi": (2e-4, block_wise),
    "zo-gauss-seidel": (2e-4, block_wise),
    "hybrid": (2e-4, hybrid),
}
FIRST_ORDER: dict[str, Callable] = {
    "sgd": lambda w, g, lr, state, step: w - lr * g,
    "momentum": lambda w, g, lr, state, step: heavy_ball(w, g, lr, state),
    "adamw": lambda w, g, lr, state, step: adam(w, g, lr, state, step, decay=0.01),
}


def test_every_method_and_optimizer_has_its_lines() -> None:
    assert ZEROTH_ORDER.keys() == METHODS.keys()
    assert FIRST_ORDER.keys() == STATE_PER_PARAMETER.keys()


@pytest.mark.parametrize(
    ("schedule", "directions"),
    [*((name, METHODS[name].directions) for name in ZEROTH_ORDER), ("mezo", 3), ("mezo-naive", 3)],
)
def test_a_zeroth_order_method_is_its_ten_lines_of_numpy(
    disk: Path, toy_pack: Pack, batches: Batches, schedule: str, directions: int
) -> None:
    lr, reference = ZEROTH_ORDER[schedule]
    settings: dict[str, object] = {"directions": directions}
    if schedule != "forward-grad":
        settings["eps"] = EPS
    plan = plan_method(toy_pack, schedule, lr, **settings)
    session = session_of(toy_pack, disk, plan, SEED, QuadraticModel(schedule).kernels)
    problem, state = Problem(session), {}
    want = start = flat_adapters(session).astype(np.float64)
    for step in range(STEPS):
        session.train_step(step, batches, 1)
        rademacher = METHODS[schedule].noise == "rademacher"
        z = np.stack([step_noise(session, SEED, step, n, rademacher) for n in range(directions)]).astype(np.float64)
        want = reference(problem, want, z, lr, state, step + 1)
        # Weights are rounded to 2^-24 in w + eps z; of a loss's sum over some thousands that is 1e-6 of rho.
        np.testing.assert_allclose(flat_adapters(session), want, rtol=0, atol=1e-5)
    assert np.abs(want - start).max() > 1e-2


def test_the_conservative_method_goes_forth_back_or_nowhere(disk: Path, toy_pack: Pack, batches: Batches) -> None:
    lr = 4e-4  # large enough to step over the valley at times
    session = session_of(
        toy_pack, disk, plan_method(toy_pack, "zo-sgd-cons", lr, eps=EPS), SEED, QuadraticModel("zo-sgd-cons").kernels
    )
    problem, state = Problem(session), {}
    want = flat_adapters(session).astype(np.float64)
    for step in range(16):
        session.train_step(step, batches, 1)
        want = conservative(problem, want, step_noise(session, SEED, step)[None].astype(np.float64), lr, state, step)
        np.testing.assert_allclose(flat_adapters(session), want, rtol=0, atol=1e-4)  # as above, over more steps
    assert set(state["taken"]) == {0, -1, 1}


@pytest.mark.parametrize("schedule", ["mebp", "tiled"])
@pytest.mark.parametrize("optimizer", FIRST_ORDER)
def test_a_first_order_optimizer_is_its_ten_lines_of_numpy(
    disk: Path, toy_pack: Pack, batches: Batches, schedule: str, optimizer: str
) -> None:
    lr = 0.05
    plan = plan_toy(toy_pack, schedule, lora=LORA, optimizer=OptimizerConfig(optimizer, lr))
    kernels = KERNELS | {"lora_backward": QuadraticModel(schedule).lora_backward}
    session = session_of(toy_pack, disk, plan, SEED, kernels)
    problem, state = Problem(session), {}
    want = flat_adapters(session).astype(np.float64)
    losses = [problem.loss(want)]
    for step in range(STEPS):
        session.train_step(step, batches, 1)
        want = FIRST_ORDER[optimizer](want, problem.gradient(want), lr, state, step + 1)
        np.testing.assert_allclose(flat_adapters(session), want, rtol=0, atol=1e-5)  # float32, some steps
        losses.append(problem.loss(flat_adapters(session)))
    assert losses == sorted(losses, reverse=True)
