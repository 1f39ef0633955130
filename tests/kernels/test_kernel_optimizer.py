import numpy as np
import pytest

import reference
from memsim_kernels import adamw_update, momentum_update, sgd_update

SIZES = [1, 7, 100, 9001]
STEPS = 4
TOLERANCE = 2e-6  # a few roundings per step, on values near 1


@pytest.mark.parametrize("size", SIZES)
def test_sgd(kit, size):
    start, grads = kit.normal(size), [kit.frozen(size) for _ in range(STEPS)]

    def call():
        p = start.copy()
        for g in grads:
            sgd_update(p, g, 0.1, 0.01)
        return (p,)

    (p,) = kit.same_on_all_thread_counts(call)
    want = start.astype(np.float64)
    for g in grads:
        want = reference.sgd_update(want, g, 0.1, 0.01)
    kit.close(p, want, TOLERANCE * (1.0 + np.abs(want)))


@pytest.mark.parametrize("size", SIZES)
def test_momentum(kit, size):
    start, grads = kit.normal(size), [kit.frozen(size) for _ in range(STEPS)]

    def call():
        p, m = start.copy(), np.zeros(size, np.float32)
        for g in grads:
            momentum_update(p, m, g, 0.1, 0.9, 0.01)
        return p, m

    p, m = kit.same_on_all_thread_counts(call)
    want, moment = start.astype(np.float64), np.zeros(size)
    for g in grads:
        want, moment = reference.momentum_update(want, moment, g, 0.1, 0.9, 0.01)
    kit.close(p, want, TOLERANCE * (1.0 + np.abs(want)))
    kit.close(m, moment, TOLERANCE * (1.0 + np.abs(moment)))


@pytest.mark.parametrize("size", SIZES)
def test_adamw(kit, size):
    start, grads = kit.normal(size), [kit.frozen(size) for _ in range(STEPS)]

    def call():
        p, m, v = start.copy(), np.zeros(size, np.float32), np.zeros(size, np.float32)
        for step, g in enumerate(grads, 1):
            adamw_update(p, m, v, g, 0.01, 0.9, 0.999, 1e-8, 0.1, step)
        return p, m, v

    p, m, v = kit.same_on_all_thread_counts(call)
    want = start.astype(np.float64), np.zeros(size), np.zeros(size)
    for step, g in enumerate(grads, 1):
        want = reference.adamw_update(*want, g, 0.01, 0.9, 0.999, 1e-8, 0.1, step)
    for got, expected in zip((p, m, v), want, strict=True):
        kit.close(got, expected, TOLERANCE * (1.0 + np.abs(expected)))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_equal_to_torch(kit, name):
    torch = pytest.importorskip("torch")
    p, grads = kit.normal(50), [kit.normal(50) for _ in range(20)]
    m, v = np.zeros(50, np.float32), np.zeros(50, np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
    optimizer = {
        "sgd": lambda: torch.optim.SGD([parameter], lr=0.05, weight_decay=0.01),
        "momentum": lambda: torch.optim.SGD([parameter], lr=0.05, momentum=0.8, weight_decay=0.01),
        "adamw": lambda: torch.optim.AdamW([parameter], lr=0.05, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.01),
    }[name]()
    for step, g in enumerate(grads, 1):
        parameter.grad = torch.from_numpy(g)
        optimizer.step()
        if name == "sgd":
            sgd_update(p, g, 0.05, 0.01)
        elif name == "momentum":
            momentum_update(p, m, g, 0.05, 0.8, 0.01)
        else:
            adamw_update(p, m, v, g, 0.05, 0.8, 0.95, 1e-7, 0.01, step)
    kit.close(p, parameter.detach().numpy().astype(np.float64), 1e-5)  # twenty steps of a few roundings each
