"""Noise: the generator against published vectors, its values against float64, and that they depend on nothing else."""

import numpy as np
import pytest

from memsim_kernels import add_noise, keep_some
from memsim_kernels.noise import SPAN, philox

SIZES = [1, 7, SPAN, 3 * SPAN + 17]

# Counter, key and result of Random123's known-answer tests for philox4x32, 10 rounds.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def drawn(size: int, seed: int = 3, stream: int = 4, direction: int = 0, parameter: int = 7, rademacher: bool = False):
    z = np.zeros(size, np.float32)
    add_noise(z, 1.0, seed, stream, direction, parameter, rademacher)
    return z


def words(size: int, seed: int, stream: int, direction: int, parameter: int) -> np.ndarray:
    """Return the words [4, groups] of the first ``size`` elements, by plain integers."""
    groups = SPAN // 4 * -(-size // SPAN)
    rows = [
        philox(*(np.uint64(c) for c in (group, parameter, direction, 0)), np.uint64(seed), np.uint64(stream))
        for group in range(groups)
    ]
    return np.array(rows, np.uint64).T


@pytest.mark.parametrize(("counter", "key", "want"), VECTORS)
def test_the_generator_gives_the_published_words(counter, key, want):
    assert tuple(map(int, philox(*map(np.uint64, counter), *map(np.uint64, key)))) == want


def test_gaussians_are_box_and_mullers():
    size = 2 * SPAN
    w = words(size, 3, 4, 5, 7).astype(np.float64)
    spans = []
    for start in range(0, w.shape[1], SPAN // 4):
        for radius_words, angle_words in ((w[0], w[1]), (w[2], w[3])):
            piece = slice(start, start + SPAN // 4)
            radius_word = radius_words[piece].astype(np.uint64) | np.uint64(1)
            radius = np.sqrt(-2 * np.log(radius_word / 2**32))
            angle = 2 * np.pi * angle_words[piece] / 2**32
            spans += [radius * np.cos(angle), radius * np.sin(angle)]
    want = np.concatenate(spans)
    got = drawn(size, direction=5)
    # Float32 words near 2^32 are 2^-24 apart in u, which a small radius feels as 2^-24 / radius.
    np.testing.assert_allclose(got, want, atol=2e-6, rtol=1e-3)
    assert np.abs(got - want).mean() < 2e-7


@pytest.mark.parametrize("rademacher", [False, True])
def test_moments(rademacher):
    z = drawn(200_000, rademacher=rademacher).astype(np.float64)
    n = len(z)
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs((z**2).mean() - 1) < 4 * np.sqrt(2 / n)
    fourth, variance = (1.0, 1e-12) if rademacher else (3.0, 96.0)
    assert abs((z**4).mean() - fourth) < 4 * np.sqrt(variance / n) + 1e-9
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 4 / np.sqrt(n)
    assert set(np.unique(z)) == {-1.0, 1.0} or not rademacher


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rademacher", [False, True])
def test_an_element_depends_on_its_offset_alone(kit, size, rademacher):
    (z,) = kit.same_on_all_thread_counts(lambda: (drawn(size, rademacher=rademacher),))
    kit.same_bits(z, drawn(5 * SPAN, rademacher=rademacher)[:size])


def test_every_part_of_the_key_matters():
    base = drawn(64)
    for change in ({"seed": 4}, {"stream": 5}, {"direction": 1}, {"parameter": 8}):
        assert np.count_nonzero(drawn(64, **change) == base) == 0


def test_noise_is_added_times_a_factor(kit):
    start = kit.normal(2500)
    out = start.copy()
    add_noise(out, -0.25, 3, 4, 0, 7, False)
    np.testing.assert_allclose(out, start - 0.25 * drawn(2500), atol=1e-6)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("unit", [1, 24])
def test_a_mask_keeps_the_share_that_it_is_told(kit, density, unit):
    units = 40_000

    def call():
        out = np.ones(units * unit, np.float32)
        keep_some(out, unit, density, 3, 4, 7)
        return (out,)

    (kept,) = kit.same_on_all_thread_counts(call)
    rows = kept.reshape(units, unit)
    assert np.all(rows == rows[:, :1])  # whole units
    assert abs(rows[:, 0].mean() - density) < 3 * np.sqrt(density * (1 - density) / units)


def test_a_mask_is_drawn_apart_from_the_noise_and_by_its_key():
    masks = []
    for stream in (4, 4, 5):
        out = np.ones(4000, np.float32)
        keep_some(out, 1, 0.5, 3, stream, 7)
        masks.append(out)
    assert np.array_equal(masks[0], masks[1])
    assert 0.4 < (masks[0] == masks[2]).mean() < 0.6
    assert abs(np.corrcoef(masks[0], drawn(4000, rademacher=True))[0, 1]) < 4 / np.sqrt(4000)
