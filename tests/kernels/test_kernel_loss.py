import numpy as np
import pytest

import reference
from memsim_kernels import cross_entropy_backward, cross_entropy_forward

SHAPES = [(1, 2), (5, 50), (9, 64), (70, 130), (3, 1000)]


def _inputs(kit, shape):
    tokens, vocabulary = shape
    logits = kit.normal(*shape) * 5
    labels = kit.rng.integers(0, vocabulary, tokens).astype(np.uint32)
    if tokens > 2:
        labels[1] = labels[-1] = reference.IGNORED
        labels[0] = np.argmax(logits[0])
    return logits, labels


@pytest.mark.parametrize("shape", SHAPES)
def test_forward(kit, shape):
    logits, labels = _inputs(kit, shape)

    def call():
        stats, lse = np.full(3, np.nan), kit.nans(shape[0])
        cross_entropy_forward(stats, lse, logits, labels)
        return stats, lse

    stats, lse = kit.same_on_all_thread_counts(call)
    want, want_lse = reference.cross_entropy_forward(logits, labels)
    kit.close(lse, want_lse, 1e-6 * (1.0 + np.abs(want_lse)))  # the sum of V / 64 positive float32 per lane
    kit.close(stats, want, np.array([1e-6 * shape[0] * 20.0, 0.0, 0.0]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_backward(kit, shape, in_place):
    logits, labels = _inputs(kit, shape)
    stats, lse = np.empty(3), kit.nans(shape[0])
    cross_entropy_forward(stats, lse, logits, labels)

    def call():
        x = logits.copy()
        dlogits = x if in_place else kit.nans(*shape)
        cross_entropy_backward(dlogits, x, labels, lse, stats, 0.5)
        return (dlogits,)

    (dlogits,) = kit.same_on_all_thread_counts(call)
    # A log-sum-exp near 20 is off by 1e-6, and so is every probability, relatively; then scale / n.
    want = reference.cross_entropy_backward(logits, labels, 0.5)
    kit.close(dlogits, want, 1e-5 * 0.5 / stats[2])
    if shape[0] > 2:
        assert not np.any(dlogits[1])


def test_all_labels_ignored(kit):
    logits, labels = kit.normal(3, 20), np.full(3, reference.IGNORED, np.uint32)
    stats, lse, dlogits = np.empty(3), kit.nans(3), kit.nans(3, 20)
    cross_entropy_forward(stats, lse, logits, labels)
    cross_entropy_backward(dlogits, logits, labels, lse, stats, 1.0)
    assert stats.tolist() == [0.0, 0.0, 0.0]
    assert not np.any(dlogits)


def test_a_label_beyond_the_vocabulary_makes_the_loss_nan(kit):
    stats, lse = np.empty(3), kit.nans(2)
    cross_entropy_forward(stats, lse, kit.normal(2, 20), np.array([3, 20], np.uint32))
    assert np.isnan(stats[0])


def test_the_first_of_equal_logits_is_the_prediction(kit):
    logits = np.zeros((2, 10), np.float32)
    logits[:, [3, 6]] = 1.0
    stats, lse = np.empty(3), kit.nans(2)
    cross_entropy_forward(stats, lse, logits, np.array([3, 6], np.uint32))
    assert stats[1] == 1.0


def test_huge_logits_do_not_overflow(kit):
    logits = np.array([[1e4, -1e4, 9999.0, 0.0]], np.float32)
    stats, lse = np.empty(3), kit.nans(1)
    cross_entropy_forward(stats, lse, logits, np.array([2], np.uint32))
    assert np.allclose(stats, [np.log(1.0 + np.exp(-1.0)) + 1.0, 0.0, 1.0], atol=1e-3)  # 1e4 has steps of 1e-3


def test_a_row_does_not_depend_on_the_other_rows(kit):
    logits, labels = _inputs(kit, (70, 130))
    full, part = kit.nans(70), kit.nans(3)
    cross_entropy_forward(np.empty(3), full, logits, labels)
    cross_entropy_forward(np.empty(3), part, logits[:3], labels[:3])
    kit.same_bits(full[:3], part)
