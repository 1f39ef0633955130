import numpy as np
import pytest

import reference
from memsim_kernels import cpu
from memsim_kernels.head_f32 import head_floats, head_q4
from memsim_kernels.matmul import NO_BIAS

ENGINES = ["f32"]
if cpu.HAS_AVX512_BF16:
    from memsim_kernels.head_bf16 import head_bf16_floats, head_q4_bf16

    ENGINES = list(reversed(cpu.engines()))

ENGINE = pytest.mark.parametrize("engine", ENGINES)
# Vocabularies below, at and beyond tiles of 256, odd rows, more rows than are done at once, both group sizes.
SHAPES = [
    (1, 5, 32, 32),
    (3, 40, 64, 32),
    (7, 530, 96, 32),
    (37, 1030, 200, 64),
    (270, 256, 72, 32),
    (5, 300, 1100, 64),
    (7, 530, 96, 32, "affine"),
    (5, 300, 300, 128, "affine"),
    (37, 300, 200, 32, "symmetric8"),
]


def head(kit, engine, x, labels, packed, vocabulary, group_size, scale, with_dx=True, bias=NO_BIAS):
    q, scales, _ = packed
    stats, dx = np.full(3, np.nan), kit.nans(*x.shape) if with_dx else None
    if engine == "f32":
        work = np.full(head_floats(*x.shape, 2), np.nan, np.float32)
        head_q4(stats, dx, x, labels, q, scales, vocabulary, group_size, scale, work, bias)
    else:
        work = np.full(head_bf16_floats(*x.shape, 2), np.nan, np.float32)
        head_q4_bf16(stats, dx, x, labels, q, scales, vocabulary, group_size, scale, work, engine == cpu.AMX, bias)
    return stats, dx


def inputs(kit, shape):
    tokens, vocabulary, columns, group_size, *form = shape
    packed = kit.packed(vocabulary, columns, group_size, *form)
    x = kit.frozen(tokens, columns)
    labels = kit.rng.integers(0, vocabulary, tokens).astype(np.uint32)
    labels[::3] = np.argmax(reference.linear_forward(x, packed[2]), axis=1)[::3]
    if tokens > 2:
        labels[1] = labels[-1] = reference.IGNORED
    return x, labels, packed


@ENGINE
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_head(kit, engine, shape, biased):
    tokens, vocabulary, _, group_size, *_ = shape
    x, labels, packed = inputs(kit, shape)
    bias = kit.frozen(vocabulary) if biased else NO_BIAS
    stats, dx = head(kit, engine, x, labels, packed, vocabulary, group_size, 0.5, bias=bias)
    logits = reference.linear_forward(x, packed[2]) + (bias if biased else 0.0)
    want, _ = reference.cross_entropy_forward(logits, labels)
    want_dx = reference.linear_backward_input(reference.cross_entropy_backward(logits, labels, 0.5), packed[2])
    # Relative to float64: float32 chains of up to 1100 terms; bf16 rounds every factor by up to 2^-9, so logits near
    # 10 are off by a few hundredths, and probabilities by as many percent.
    loss_error, dx_error = (1e-5, 1e-4) if engine == "f32" else (5e-3, 2e-2)
    assert abs(stats[0] - want[0]) <= loss_error * (abs(want[0]) + want[2])
    assert stats[2] == want[2]
    first, second = np.sort(logits, axis=1)[:, [-1, -2]].T
    near_ties = np.sum(first - second <= 0.01 * np.abs(logits).max())  # which the rounding of bf16 may decide
    assert abs(stats[1] - want[1]) <= (0 if engine == "f32" else near_ties)
    assert np.linalg.norm(dx - want_dx) <= dx_error * np.linalg.norm(want_dx)
    if tokens > 2:
        assert not np.any(dx[1])


@ENGINE
def test_loss_without_a_gradient_is_the_same(kit, engine):
    x, labels, packed = inputs(kit, (7, 530, 96, 32))
    with_dx, _ = head(kit, engine, x, labels, packed, 530, 32, 1.0)
    without, _ = head(kit, engine, x, labels, packed, 530, 32, 1.0, with_dx=False)
    kit.same_bits(with_dx, without)


@ENGINE
def test_the_same_call_gives_the_same_bits(kit, engine):
    x, labels, packed = inputs(kit, (37, 1030, 200, 64))
    (stats, dx), (stats_again, dx_again) = (head(kit, engine, x, labels, packed, 1030, 64, 1.0) for _ in range(2))
    kit.same_bits(stats, stats_again)
    kit.same_bits(dx, dx_again)


@ENGINE
def test_a_row_does_not_depend_on_the_other_rows(kit, engine):
    x, labels, packed = inputs(kit, (37, 1030, 200, 64))
    labels[:] = 3
    _, whole = head(kit, engine, x, labels, packed, 1030, 64, 37.0)
    for rows in (1, 5, 20):
        _, part = head(kit, engine, x[-rows:].copy(), labels[-rows:], packed, 1030, 64, float(rows))
        kit.same_bits(part, whole[-rows:])


@ENGINE
def test_all_labels_ignored(kit, engine):
    x, labels, packed = inputs(kit, (3, 40, 64, 32))
    labels[:] = reference.IGNORED
    stats, dx = head(kit, engine, x, labels, packed, 40, 32, 1.0)
    assert stats.tolist() == [0.0, 0.0, 0.0]
    assert not np.any(dx)


@ENGINE
def test_a_label_beyond_the_vocabulary_makes_the_loss_nan(kit, engine):
    x, labels, packed = inputs(kit, (3, 40, 64, 32))
    labels[0] = 40
    stats, _ = head(kit, engine, x, labels, packed, 40, 32, 1.0)
    assert np.isnan(stats[0])


@ENGINE
def test_the_first_of_equal_logits_is_the_prediction(kit, engine):
    q, scales, _ = kit.packed(600, 32, 32)
    x = np.zeros((2, 32), np.float32)
    stats, _ = head(kit, engine, x, np.array([0, 599], np.uint32), (q, scales, None), 600, 32, 1.0)
    assert stats[1] == 1.0
    assert np.isclose(stats[0], 2 * np.log(600), rtol=1e-6)


@ENGINE
def test_huge_logits_do_not_overflow(kit, engine):
    x, labels, packed = inputs(kit, (3, 300, 64, 32))
    stats, dx = head(kit, engine, (x * 1e4).astype(np.float32), labels, packed, 300, 32, 1.0)
    assert np.all(np.isfinite(stats))
    assert np.all(np.isfinite(dx))
