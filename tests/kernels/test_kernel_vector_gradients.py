import numpy as np
import pytest

from memsim_kernels import linear_backward_weight, norm_backward_weight, sum_rows

SHAPES = [(1, 1), (3, 24), (70, 64), (35, 100), (2, 896)]
EPS = 2.0**-24


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_norm_weight(kit, shape, centred, accumulate):
    x, dy, before, rstd = kit.normal(*shape) + 3.0, kit.normal(*shape), kit.normal(shape[1]), kit.frozen(shape[0])
    mean = kit.frozen(shape[0]) if centred else np.empty(0, np.float32)

    def call():
        dw = before.copy() if accumulate else kit.nans(shape[1])
        norm_backward_weight(dw, dy, x, mean, rstd, accumulate)
        return (dw,)

    (dw,) = kit.same_on_all_thread_counts(call)
    middle = mean.astype(np.float64)[:, None] if centred else 0.0
    terms = dy.astype(np.float64) * (x - middle) * rstd[:, None]
    # Three roundings a term, relative to x and mean before they cancel; sums are in f64 and rounded once.
    sizes = np.abs(dy * rstd[:, None]) * (np.abs(x) + np.abs(middle))
    kit.close(dw, terms.sum(axis=0) + (before if accumulate else 0.0), 4 * EPS * (sizes.sum(axis=0) + np.abs(before)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_sum_of_rows(kit, shape, accumulate):
    x, before = kit.normal(*shape), kit.normal(shape[1])

    def call():
        total = before.copy() if accumulate else kit.nans(shape[1])
        sum_rows(total, x, accumulate)
        return (total,)

    (total,) = kit.same_on_all_thread_counts(call)
    want = x.astype(np.float64).sum(axis=0) + (before if accumulate else 0.0)
    kit.close(total, want, 2 * EPS * (np.abs(want) + np.abs(before)))


@pytest.mark.parametrize("shape", [(1, 2, 48), (1, 3, 896), (5, 40, 33), (140, 2, 20)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_dense_weight(kit, shape, accumulate):
    tokens, n, k = shape
    dy, x, before = kit.normal(tokens, n), kit.frozen(tokens, k), kit.normal(n, k)

    def call():
        dw = before.copy() if accumulate else kit.nans(n, k)
        linear_backward_weight(dw, dy, x, accumulate)
        return (dw,)

    (dw,) = kit.same_on_all_thread_counts(call)
    want = dy.astype(np.float64).T @ x + (before if accumulate else 0.0)
    kit.close(dw, want, kit.product_bound(dy.T, x) + (tokens + 2) * EPS * np.abs(before))
