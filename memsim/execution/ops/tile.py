"""The ops of matrices in bf16 that are trained as a whole: widened and perturbed a tile at a time, updated on disk.

A step of lr rho z is often less than bf16 can tell apart: 2^-8 of a weight. So what an update leaves is rounded at
random, up or down with chances that keep its mean: many small steps add up, as they would in float32. The random bits
come from a counter-based generator, keyed by run, step and unit, so that a replay rounds alike.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import memsim_kernels as k
from memsim.data.windows import IGNORED
from memsim.execution.ops.zeroth_order import draw, draw_gradient, gradient_factors
from memsim.execution.storage.mapped_weights import Array

Attrs = Mapping[str, Any]

_NO_BIAS = np.zeros(0, np.float32)
_ROUNDING = 1 << 32
"""Marks the keys of rounding among those of a step."""

_EXPONENT = np.uint32(0x7F800000)


def widen(out: Array, bits: Array) -> None:
    """Write bf16 ``bits`` to ``out`` as float32."""
    np.left_shift(bits, np.uint32(16), out=out.view(np.uint32))


def round_at_random(out: Array, values: Array, run: int, step: int, number: int) -> None:
    """Round float32 ``values`` to bf16 bits, each up or down with the chance of its nearness; what fits stays.

    Args:
        out: [n] uint16, written.
        values: [n] float32; changed.
        run: The run's word of the key.
        step: The step's.
        number: Of the unit.
    """
    bits = values.view(np.uint32)
    generator = np.random.Philox(key=np.array([run << 32 | step, _ROUNDING | number], np.uint64))
    chances = generator.random_raw(-(-values.size // 4)).view(np.uint16)[: values.size]
    np.add(bits, chances, out=bits, where=(bits & _EXPONENT) != _EXPONENT)  # infinity and NaN stay what they are
    np.right_shift(bits, 16, out=bits)
    np.copyto(out, bits, casting="same_kind")


def _units(array: Array, a: Attrs) -> Iterator[tuple[int, Array]]:
    """Yield (number, rows) of each unit of a tile."""
    for index, start in enumerate(range(0, len(array), a["unit_rows"])):
        yield a["noise"] + index, array[start : start + a["unit_rows"]]


def _add_noise(lanes: Sequence[Array], z: Array, signs: Sequence[str]) -> None:
    """Add eps z to what holds each lane, or subtract it, as its sign says."""
    for lane, sign in zip(lanes, signs, strict=True):
        (np.add if sign[0] == "+" else np.subtract)(lane, z, out=lane)


def _unpack_bf16(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    signs = a["signs"].split(",")
    for w in o:
        widen(w, i[0])
    if signs == ["."]:
        return
    work, columns = np.empty(a["unit_rows"] * o[0].shape[1], np.float32), o[0].shape[1]
    for (number, rows), *others in zip(*(_units(w, a) for w in o), strict=True):
        z = work[: rows.size]
        draw(z, i[1], {int(signs[0][1:]): a["eps"]}, number, columns, a)
        _add_noise([rows, *(other for _, other in others)], z.reshape(rows.shape), signs)


def _embedding_bf16(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    ids, signs, columns = i[0], a["signs"].split(","), o[0].shape[1]
    for x in o:
        widen(x, i[1])
    if signs != ["."]:
        z = np.empty((a["unit_rows"], columns), np.float32)
        units = ids // a["unit_rows"]
        for unit in np.unique(units):
            draw(z.reshape(-1), i[2], {int(signs[0][1:]): a["eps"]}, a["noise"] + int(unit), columns, a)
            for token in np.flatnonzero(units == unit):
                _add_noise([x[token] for x in o], z[ids[token] % a["unit_rows"]], signs)
    for x in o:
        x *= np.float32(a["scale"])


def _linear_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    y, x, w, start = o[0], i[0], i[1], a["start"]
    if start and i[2] is not y:
        np.copyto(y, i[2])
    bias = i[-1][start : start + len(w)] if a["bias"] else _NO_BIAS
    part = o[1] if len(o) > 1 else y
    k.linear_forward(part, x, w, bias)
    if part is not y:
        np.copyto(y[:, start : start + len(w)], part)


def _cross_entropy_rows(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    known, logits = o
    x, w, labels, start = i[0], i[1], i[2], a["start"]
    if not start:
        known[0], known[1:] = -np.inf, 0
    elif i[3] is not known:
        np.copyto(known, i[3])
    largest, total, of_label, row = known
    k.linear_forward(logits, x, w, _NO_BIAS)
    here = np.flatnonzero((labels >= start) & (labels < start + len(w)))
    of_label[here] = logits[here, labels[here] - start]
    best = logits.argmax(axis=1)
    top = logits[np.arange(len(logits)), best].astype(np.float64)
    row[:] = np.where(top > largest, start + best, row)
    new = np.maximum(top, largest)
    total *= np.exp(largest - new)
    logits -= new[:, None].astype(np.float32)
    np.exp(logits, out=logits)
    total += logits.sum(axis=1, dtype=np.float64)
    largest[:] = new


def _cross_entropy_stats(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    labels = i[0]
    valid = labels != IGNORED
    for stats, (largest, total, of_label, row) in zip(o[0].reshape(-1, 3), i[1:], strict=True):
        losses = largest + np.log(total) - of_label
        stats[:] = losses[valid].sum(), np.count_nonzero(row[valid] == labels[valid]), np.count_nonzero(valid)


def _zo_update_bf16(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    seed, tile = i[0], i[2]
    run, step, factors, columns = int(seed[0]), int(seed[1]), gradient_factors(i[1], a), tile.shape[1]
    w, gradient = (np.empty(a["unit_rows"] * columns, np.float32) for _ in range(2))
    for number, rows in _units(tile, a):
        bits = rows.reshape(-1)
        widen(w[: bits.size], bits)
        draw_gradient(gradient[: bits.size], seed, factors, number, columns, a)
        k.sgd_update(w[: bits.size], gradient[: bits.size], a["lr"], 0.0)
        round_at_random(bits, w[: bits.size], run, step, number)


TILE_KERNELS: dict[str, Callable[[Sequence[Array], Sequence[Array], Attrs], None]] = {
    "unpack_bf16": _unpack_bf16,
    "embedding_bf16": _embedding_bf16,
    "linear_rows": _linear_rows,
    "cross_entropy_rows": _cross_entropy_rows,
    "cross_entropy_stats": _cross_entropy_stats,
    "zo_update_bf16": _zo_update_bf16,
}
