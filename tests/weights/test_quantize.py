import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from memsim.errors import InputError
from memsim.ir.matrix_format import KINDS, MatrixFormat
from memsim.weights.quantize import Grid, dequantize, quantize
from toy_checkpoints import naive_dequantized

group_sizes = st.sampled_from([32, 64])
shapes = st.tuples(st.integers(1, 40), st.integers(1, 100))
# Wide enough to meet scales that are float16 subnormals, or round to zero, and close to the largest.
weights = st.one_of(
    st.floats(-4, 4, width=32), st.floats(-(2.0**-17), 2.0**-17, width=32), st.floats(-4e5, 4e5, width=32)
)


FORMATS = [MatrixFormat(kind.name, size) for kind in KINDS.values() for size in kind.group_sizes]


@settings(max_examples=60, deadline=None)
@given(shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=weights)), st.sampled_from(FORMATS))
def test_round_trip_stays_within_half_a_step(rows, form):
    rows = rows / 8 if form.kind.affine else rows  # whose offsets are float16 weights
    q, scales = quantize(rows, form, "w")
    stored = dequantize(q, scales, *rows.shape, form)
    rows_a_group = form.kind.rows_a_group
    steps = np.repeat(np.abs(scales[::rows_a_group].T.astype(np.float64)), form.group_size, axis=1)
    steps = steps[: rows.shape[0], : rows.shape[1]]
    # Half a step. A weight as large as the largest, of the other sign, would be level 8, one more than there is.
    reach = {"symmetric": 1.0, "affine": 0.5, "symmetric8": 0.5}[form.name]
    # And what rounding cuts off at the last level: of a scale to float16 (2^-11 of it, 2^-25 of a subnormal one), and
    # of the sum of a large offset to float32.
    cut = form.kind.levels[1] + 1
    magnitudes = np.abs(rows.astype(np.float64)).max(initial=0)
    rounding = cut * (steps * 2.0**-11 + 2.0**-25) + magnitudes * 2.0**-10 * form.kind.affine
    assert (np.abs(stored - rows.astype(np.float64)) <= reach * steps * (1 + 1e-5) + rounding).all()


def test_the_largest_weight_of_a_group_is_exact():
    rows = np.random.default_rng(7).integers(-2000, 2000, (16, 64)).astype(np.float32)
    stored = dequantize(*quantize(rows, 32, "w"), 16, 64)
    at = np.abs(rows.reshape(16, 2, 32)).argmax(axis=2)[:, :, None]
    largest, kept = (np.take_along_axis(values.reshape(16, 2, 32), at, axis=2) for values in (rows, stored))
    np.testing.assert_array_equal(kept, largest)  # of 11 bits: a float16 scale has them all


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("shape", [(1, 1), (8, 40), (77, 40), (16, 64), (33, 100)])
def test_equals_the_obvious_quantiser(shape, group_size):
    rows = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    stored = dequantize(*quantize(rows, group_size, "w"), *shape)
    # The product q * scale is exact in float32 (3 + 11 bits).
    np.testing.assert_array_equal(stored, naive_dequantized(rows, group_size))


@settings(max_examples=40, deadline=None)
@given(shapes, group_sizes, st.integers(0, 2**32 - 1))
def test_stored_weights_quantise_to_themselves(shape, group_size, seed):
    rng = np.random.default_rng(seed)
    q = rng.integers(-7, 8, shape)
    q[:, ::group_size] = 7  # every group reaches the largest q, so its scale is found again exactly
    steps = np.repeat(2.0 ** rng.integers(-10, 3, (shape[0], -(-shape[1] // group_size))), group_size, axis=1)
    rows = (q * steps[:, : shape[1]]).astype(np.float32)
    np.testing.assert_array_equal(dequantize(*quantize(rows, group_size, "w"), *shape), rows)


@pytest.mark.parametrize("group_size", [32, 64])
def test_layout_is_as_described_by_parts(group_size):
    n_rows, n_columns = 21, 75
    rng = np.random.default_rng(2)
    rows = rng.integers(-7, 8, (n_rows, n_columns)).astype(np.float32)
    rows[:, ::group_size] = 7  # scale 1: the stored nibbles are the weights
    q, scales = quantize(rows, group_size, "w")
    n_groups = -(-n_columns // group_size)
    assert (q.shape, q.dtype) == ((2, n_groups * group_size // 8, 16), np.uint32)
    assert (scales.shape, scales.dtype) == ((n_groups, 32), np.float16)
    for row in range(32):
        for column in range(n_groups * group_size):
            nibble = int(q[row // 16, column // 8, row % 16]) >> (4 * (column % 8)) & 0xF
            expected = int(rows[row, column]) if row < n_rows and column < n_columns else 0
            assert (nibble ^ 8) - 8 == expected
    assert (scales[:, n_rows:] == 0).all()


def test_dequantize_reads_every_nibble_as_twos_complement():
    q = np.random.default_rng(3).integers(0, 2**32, (2, 8, 16), dtype=np.uint32)
    scales = np.random.default_rng(4).uniform(0.1, 2, (2, 32)).astype(np.float16)
    stored = dequantize(q, scales, 30, 63)
    for row, column in [(0, 0), (15, 7), (16, 8), (29, 62), (5, 31), (5, 32)]:
        nibble = int(q[row // 16, column // 8, row % 16]) >> (4 * (column % 8)) & 0xF
        assert stored[row, column] == ((nibble ^ 8) - 8) * np.float32(scales[column // 32, row])


def test_chunks_of_whole_panels_are_independent():
    rows = np.random.default_rng(5).standard_normal((77, 72)).astype(np.float32)
    q, scales = quantize(rows, 32, "w")
    pieces = [quantize(rows[first : first + 32], 32, "w") for first in (0, 32, 64)]
    np.testing.assert_array_equal(q, np.concatenate([piece[0] for piece in pieces]))
    np.testing.assert_array_equal(scales, np.concatenate([piece[1] for piece in pieces], axis=1))


def stored_levels():
    """Return levels and scales (of both signs, in groups of 64) as MLX and llama.cpp might store them, and values."""
    rng = np.random.default_rng(6)
    levels = rng.integers(-8, 8, (20, 128)).astype(np.int16)
    scales = (rng.choice([-1, 1], (20, 2)) * rng.uniform(0.01, 0.1, (20, 2))).astype(np.float16).astype(np.float32)
    return levels, scales, (levels.reshape(20, 2, 64) * scales[:, :, None]).reshape(20, 128)


@pytest.mark.parametrize("group_size", [32, 64])
def test_levels_that_fit_are_taken_over_bit_for_bit(group_size):
    levels, scales, rows = stored_levels()
    q, stored_scales = quantize(rows, group_size, "w", Grid(levels, scales, 64))
    np.testing.assert_array_equal(dequantize(q, np.ones_like(stored_scales), 20, 128), levels)
    np.testing.assert_array_equal(stored_scales[:, :20].T, np.repeat(scales, 64 // group_size, axis=1))
    rows[:, 0] = 8 * scales[:, 0]  # no level of a signed scale: what it would be without
    assert np.abs(dequantize(*quantize(rows, group_size, "w"), 20, 128) - rows).max() > 0


def test_levels_that_do_not_fit_are_made_anew_and_never_clipped():
    levels, scales, _ = stored_levels()
    levels[::2, ::64] = -9  # in every other row
    rows = (levels.reshape(20, 2, 64) * scales[:, :, None]).reshape(20, 128)
    kept = dequantize(*quantize(rows, 32, "w", Grid(levels, scales, 64)), 20, 128)
    anew = dequantize(*quantize(rows, 32, "w"), 20, 128)
    outside = (levels.reshape(20, 4, 32) < -8).any(axis=2)
    kept, anew, rows = (values.reshape(20, 4, 32) for values in (kept, anew, rows))
    np.testing.assert_array_equal(kept[outside], anew[outside])
    np.testing.assert_array_equal(kept[~outside], rows[~outside])


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_affine_levels_are_taken_over_bit_for_bit(group_size):
    rng = np.random.default_rng(8)
    levels = rng.integers(0, 16, (20, 256)).astype(np.int16)
    scales, offsets = (rng.standard_normal((20, 2)).astype(np.float16).astype(np.float32) for _ in range(2))
    rows = (levels.reshape(20, 2, 128) * scales[:, :, None] + offsets[:, :, None]).reshape(20, 256)
    form = MatrixFormat("affine", group_size)
    q, stored = quantize(rows, form, "w", Grid(levels, scales, 128, offsets))
    np.testing.assert_array_equal(dequantize(q, stored, 20, 256, form), rows)


def test_symmetric_levels_fit_every_format():
    levels, scales, rows = stored_levels()
    for form in (MatrixFormat("affine", 64), MatrixFormat("symmetric8", 32), MatrixFormat("symmetric", 64)):
        q, stored = quantize(rows, form, "w", Grid(levels, scales, 64))
        np.testing.assert_array_equal(dequantize(q, stored, 20, 128, form), rows)


def test_an_offset_in_whole_steps_is_no_obstacle_for_symmetric_levels():
    levels, scales, rows = stored_levels()
    grid = Grid(levels + 8, scales, 64, -8 * scales)
    np.testing.assert_array_equal(dequantize(*quantize(rows, 32, "w", grid), 20, 128), rows)


@pytest.mark.parametrize("bad", [0.0, np.inf, 1e6])
def test_a_grid_that_says_something_else_is_not_used(bad):
    levels, scales, rows = stored_levels()
    q, stored = quantize(rows, 32, "w", Grid(levels, np.full_like(scales, bad), 64))
    expected_q, expected = quantize(rows, 32, "w")
    np.testing.assert_array_equal(q, expected_q)
    np.testing.assert_array_equal(stored, expected)


def test_a_finer_grid_than_the_groups_is_not_used():
    rows = np.random.default_rng(6).standard_normal((20, 128)).astype(np.float32)
    grid = Grid(np.zeros((20, 128), np.int16), np.ones((20, 4), np.float32), 32)
    np.testing.assert_array_equal(quantize(rows, 64, "w", grid)[0], quantize(rows, 64, "w")[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_name(bad):
    rows = np.ones((20, 40), np.float32)
    rows[17, 39] = bad
    with pytest.raises(InputError, match="model.norm holds NaN or infinite"):
        quantize(rows, 32, "model.norm")


def test_weights_beyond_float16_scales_are_refused():
    rows = np.ones((3, 40), np.float32)
    rows[1, 2] = -8 * 65504
    assert quantize(rows, 32, "w")[1].max() == 65504
    rows[1, 2] = -8.01 * 65504
    with pytest.raises(InputError, match="w holds a weight of magnitude 5.25e\\+05; symmetric levels"):
        quantize(rows, 32, "w")
