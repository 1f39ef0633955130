"""Noise that any part of a step draws again, in any order: every element comes from its own place in a counter.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) maps a counter of four words under a
key of two to four random words. The key is (seed, stream); the counter is (group, parameter, direction, use). Element
``offset`` of a tensor belongs to the span offset // SPAN, whose SPAN // 4 groups fill it in order: the first words of
all groups first, and so on. So its bits depend on nothing else: not on threads, nor on which tensors were drawn before.

Gaussians are Box and Muller's, in float32 throughout.
"""

import numpy as np
from numba import prange

from memsim_kernels.jit import BOOL, F32, FLOAT, INT, U32, WRITE_1D, helper, kernel

SPAN = 1024
_GROUPS = SPAN // 4

# Which numbers of one key: noise, or what a mask is drawn from.
NOISE, MASK = 0, 1

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_WORD, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

# ln(1 + t) = t - t^2 / 2 + t^3 p(t) for sqrt(1/2) - 1 <= t < sqrt(2) - 1, from the highest power down (Cephes logf).
_LOG = tuple(
    np.float32(c)
    for c in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip
_SQRT_HALF_BITS = 0x3F3504F3
_LN_2, _ONE, _TWO, _HALF_F = np.float32(0.6931471805599453), np.float32(1.0), np.float32(2.0), np.float32(0.5)
_BITS_OF_WORD = np.float32(32.0)
# sin(2 pi w) = w s(w^2) for |w| <= 1/4: Taylor's, whose next term is below 6e-8.
_SINE = tuple(
    np.float32(c)
    for c in (-15.094642576822984, 42.05869394489765, -76.70585975306136, 81.60524927607504, -41.341702240399755,
              6.283185307179586)
)  # fmt: skip
_QUARTER, _PER_TURN = np.float32(0.25), np.float32(2.0**-32)


@helper
def philox(
    c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64, k0: np.uint64, k1: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Return four random words, each below 2^32, of a counter under a key."""
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _WORD, (p0 >> _HALF) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _W0) & _WORD, (k1 + _W1) & _WORD
    return c0, c1, c2, c3


@helper
def _draw(words: U32, span: int, use: int, parameter: int, direction: int, seed: int, stream: int) -> None:
    """Fill ``words`` [4, SPAN / 4] with those of a span."""
    first, second, third, fourth = words[0], words[1], words[2], words[3]
    k0, k1 = np.uint64(seed) & _WORD, np.uint64(stream) & _WORD
    c1, c2, c3 = np.uint64(parameter) & _WORD, np.uint64(direction) & _WORD, np.uint64(use)
    start = np.uint64(span) * np.uint64(_GROUPS)
    for i in range(_GROUPS):
        w0, w1, w2, w3 = philox((start + np.uint64(i)) & _WORD, c1, c2, c3, k0, k1)
        first[i], second[i], third[i], fourth[i] = w0, w1, w2, w3


@helper
def _sine(w: np.float32) -> np.float32:
    square = w * w
    value = _SINE[0]
    for i in range(1, 6):
        value = value * square + _SINE[i]
    return value * w


@helper
def _gaussians(cosines: F32, sines: F32, radius_words: U32, angle_words: U32, scratch: F32) -> None:
    """Write two standard normal values for each pair of words: -2 ln(u) is a squared radius, the other an angle."""
    bits = scratch.view(np.int32)
    for i in range(_GROUPS):
        scratch[i] = np.float32(radius_words[i] | np.uint32(1))  # 1 ... 2^32: u = this / 2^32
    for i in range(_GROUPS):
        exponent = (bits[i] - _SQRT_HALF_BITS) >> 23
        bits[i] -= exponent << 23
        sines[i] = _BITS_OF_WORD - np.float32(exponent)  # parked here until the next loop
    for i in range(_GROUPS):
        t = scratch[i] - _ONE
        value = _LOG[0]
        for j in range(1, 9):
            value = value * t + _LOG[j]
        square = t * t
        log = value * t * square - _HALF_F * square + t
        radius = np.sqrt(max(_TWO * (sines[i] * _LN_2 - log), np.float32(0.0)))
        turn = np.float32(np.int32(angle_words[i])) * _PER_TURN  # -1/2 ... 1/2
        size = abs(turn)
        folded = turn if size <= _QUARTER else (_HALF_F - turn if turn > np.float32(0.0) else -_HALF_F - turn)
        cosines[i] = radius * _sine(_QUARTER - size)
        sines[i] = radius * _sine(folded)


@kernel(WRITE_1D, FLOAT, INT, INT, INT, INT, BOOL)
def add_noise(
    out: F32, factor: float, seed: int, stream: int, direction: int, parameter: int, rademacher: bool
) -> None:
    """Add factor * z to ``out``, with z standard normal, or +-1 with equal chances.

    Args:
        out: [n], added to.
        factor: What z is multiplied with.
        seed: First word of the key: the run's.
        stream: Second word of the key: the step's.
        direction: Which of the directions of a step.
        parameter: Which tensor of the model.
        rademacher: +-1 instead of normal values.
    """
    scale = np.float32(factor)
    for span in prange((out.size + SPAN - 1) // SPAN):
        values = out[span * SPAN : (span + 1) * SPAN]
        words, noise, scratch = (
            np.empty((4, _GROUPS), np.uint32),
            np.empty(SPAN, np.float32),
            np.empty(_GROUPS, np.float32),
        )
        _draw(words, span, NOISE, parameter, direction, seed, stream)
        if rademacher:
            flat = words.reshape(-1)
            for i in range(SPAN):
                noise[i] = _ONE if flat[i] < np.uint32(0x80000000) else -_ONE
        else:
            _gaussians(noise[:_GROUPS], noise[_GROUPS : 2 * _GROUPS], words[0], words[1], scratch)
            _gaussians(noise[2 * _GROUPS : 3 * _GROUPS], noise[3 * _GROUPS :], words[2], words[3], scratch)
        for i in range(values.size):
            values[i] += scale * noise[i]


@kernel(WRITE_1D, INT, FLOAT, INT, INT, INT)
def keep_some(out: F32, unit: int, density: float, seed: int, stream: int, parameter: int) -> None:
    """Set to zero all of ``out`` but a random share: each unit stays with a chance of ``density``.

    Args:
        out: [n], changed.
        unit: Elements that stay or go together: 1, or the length of a row.
        density: Between 0 and 1.
        seed: First word of the key.
        stream: Second word of the key; the same one keeps the same units.
        parameter: Which tensor of the model.
    """
    limit = np.float64(density) * 4294967296.0
    units = (out.size + unit - 1) // unit
    for span in prange((units + SPAN - 1) // SPAN):
        words = np.empty((4, _GROUPS), np.uint32)
        _draw(words, span, MASK, parameter, 0, seed, stream)
        flat = words.reshape(-1)
        for i in range(min(SPAN, units - span * SPAN)):
            if np.float64(flat[i]) >= limit:
                start = (span * SPAN + i) * unit
                for j in range(start, min(start + unit, out.size)):
                    out[j] = np.float32(0.0)
