"""What the kernel tests share: seeded data, poisoned outputs, and bits that may not depend on the thread count."""

from collections.abc import Callable

import numba
import numpy as np
import pytest

import reference

EPS = 2.0**-24  # half a unit in the last place of a float32 in [1, 2): the rounding of one operation


class Kit:
    """Random inputs and the comparisons that every kernel test makes."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(20240607)

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def frozen(self, *shape: int) -> np.ndarray:
        array = self.normal(*shape)
        array.flags.writeable = False
        return array

    def nans(self, *shape: int) -> np.ndarray:
        """Return an output that shows every element a kernel forgets to write."""
        return np.full(shape, np.nan, np.float32)

    def packed(
        self, n_rows: int, n_columns: int, group_size: int, form: str = "symmetric"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (q, scales, float64 matrix), the first two read-only as they are when mapped.

        The matrix is what float32 makes of levels, scales and offsets.
        """
        low, high = {"symmetric": (-8, 8), "affine": (0, 16), "symmetric8": (-128, 128)}[form]
        values = self.rng.integers(low, high, (n_rows, n_columns))
        groups = (n_rows, -(-n_columns // group_size))
        finest = 16 if form == "symmetric8" else 1  # weights of one size in every format: logits grow with them
        scales = (self.rng.uniform(0.01, 0.1, groups) / finest).astype(np.float16)
        offsets = self.rng.uniform(-0.8, 0.0, groups).astype(np.float16) if form == "affine" else None
        q, stored = reference.pack_q4(values, scales, group_size, 8 if form == "symmetric8" else 4, offsets)
        q.flags.writeable = stored.flags.writeable = False
        matrix = values * np.repeat(scales.astype(np.float64), group_size, axis=1)[:, :n_columns]
        if offsets is not None:
            matrix += np.repeat(offsets.astype(np.float64), group_size, axis=1)[:, :n_columns]
        return q, stored, matrix.astype(np.float32).astype(np.float64)

    def same_on_all_thread_counts(self, call: Callable[[], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """Return the outputs of ``call``, after checking that one thread and two give the same bits."""
        default = numba.get_num_threads()
        try:
            results = []
            for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
                numba.set_num_threads(threads)
                results.append(call())
        finally:
            numba.set_num_threads(default)
        for one, two in zip(*results, strict=True):
            self.same_bits(one, two)
        return results[0]

    def same_bits(self, a: np.ndarray, b: np.ndarray) -> None:
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()

    def close(self, got: np.ndarray, want: np.ndarray, bound: np.ndarray | float) -> None:
        """Check that every element is within its own error bound."""
        assert got.shape == want.shape
        excess = np.abs(got.astype(np.float64) - want) - bound
        assert np.all(excess <= 0.0), f"off by {np.nanmax(excess)} more than the bound"  # NaN fails too

    def product_bound(self, a: np.ndarray, b: np.ndarray, extra: float = 2.0) -> np.ndarray:
        """Bound the error of the float32 product a @ b: one rounding per step of the chain, and ``extra`` ones."""
        return (a.shape[1] + extra) * EPS * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))


@pytest.fixture
def kit() -> Kit:
    return Kit()
