"""How the levels of a packed matrix become floats: the one place where its formats differ.

A format is a row of ``FORMATS``. Kernels know the format of a matrix by its shapes (``format_of``):

==============  ==================================  ===================  ============================
format          q, uint32                           scales, float16      weight
==============  ==================================  ===================  ============================
SYMMETRIC       [N16, K8, 16], 8 levels a dword     [KG, 16 N16]         scale level, -8 ... 7
AFFINE          [N16, K8, 16], 8 levels a dword     [2 KG, 16 N16]       scale level + offset, 0 ... 15
SYMMETRIC_8     [N16, 2 K8, 16], 4 levels a dword   [KG, 16 N16]         scale level, -128 ... 127
==============  ==================================  ===================  ============================

The offsets of a group are the row below its scales. The product of a level and a scale is exact in float32, so that a
weight is rounded at most once.

All arrays are flat; ``<array>_at`` is the first element, ``<array>_row`` the distance between rows, in elements.
``offset`` is a distance too, from a scale to its offset. Nothing checks bounds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from memsim_kernels.jit import F32, U16, U32, helper
from memsim_kernels.vectors import FLOATS, HALVES, INTEGERS, LANES, data_of, row_at, spread, vector_at


@dataclass(frozen=True, slots=True)
class Format:
    """Bits of a level, and whether weights have an offset beside their scale (levels are unsigned then)."""

    bits: int
    affine: bool

    @property
    def columns(self) -> int:
        """Columns whose levels share a dword."""
        return 32 // self.bits


SYMMETRIC, AFFINE, SYMMETRIC_8 = 0, 1, 2
FORMATS = (Format(4, affine=False), Format(4, affine=True), Format(8, affine=False))


@helper
def format_of(q: U32, scales: U16, group_size: int) -> int:
    """Return the format of a packed matrix in groups of ``group_size`` columns."""
    columns = scales.shape[0] * group_size
    if q.shape[1] * 8 == columns:
        return SYMMETRIC
    return AFFINE if q.shape[1] * 16 == columns else SYMMETRIC_8


def level_in_python(form: Format, dword: int, column: int) -> int:
    """Return the level of one of the columns of a dword."""
    level = (int(dword) >> (form.bits * column)) & ((1 << form.bits) - 1)
    return level if form.affine else level - ((level >> (form.bits - 1)) << form.bits)


def emit_levels(builder: Any, form: Format, dwords: Any, columns: list[int]) -> Any:
    """Return as float32 the level of one column of each dword: lane l takes column ``columns[l]``."""
    kind = dwords.type
    up = ir.Constant(kind, [32 - form.bits - form.bits * column for column in columns])
    down = ir.Constant(kind, [32 - form.bits] * len(columns))
    top = builder.shl(dwords, up)
    levels = builder.lshr(top, down) if form.affine else builder.ashr(top, down)
    return builder.sitofp(levels, ir.VectorType(ir.FloatType(), len(columns)))


def emit_weights(builder: Any, form: Format, levels: Any, scales: Any, offsets: Any) -> Any:
    """Return scales * levels, plus offsets where the format has them."""
    if not form.affine:
        return builder.fmul(levels, scales)
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fma.v{LANES}f32")
    return builder.call(fma, [levels, scales, offsets])


def _eight_in_python(form: Format) -> Callable[..., None]:
    def unpack(
        out: F32, out_at: int, out_row: int, q: U32, q_at: int, scales: U16, scales_at: int, offset: int
    ) -> None:
        halves = scales.view(np.float16)
        factors = halves[scales_at : scales_at + LANES].astype(np.float32)
        for i in range(8):
            dwords = q_at + i // form.columns * LANES
            levels = [level_in_python(form, dword, i % form.columns) for dword in q[dwords : dwords + LANES]]
            weights = np.array(levels, np.float32) * factors
            if form.affine:
                weights += halves[scales_at + offset : scales_at + offset + LANES].astype(np.float32)
            out[out_at + i * out_row : out_at + i * out_row + LANES] = weights

    return unpack


def _sixteen_in_python(form: Format) -> Callable[..., None]:
    def unpack(out: F32, out_at: int, q: U32, q_at: int, scale: Any, offset: Any) -> None:
        for i in range(LANES):
            level = level_in_python(form, q[q_at + i // form.columns * LANES], i % form.columns)
            out[out_at + i] = np.float32(level) * scale + (offset if form.affine else np.float32(0.0))

    return unpack


def _eight_columns(form: Format) -> Any:
    """Return an intrinsic that writes column 8 j + i of 16 packed rows to row i of ``out``.

    ``q_at`` names the dword of row 16 p and column 8 j, ``scales_at`` the scale of that row.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def unpack(
        typing_context: Any, out: Any, out_at: Any, out_row: Any, q: Any, q_at: Any, scales: Any, scales_at: Any,
        offset: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            to, packed, halves = (data_of(context, builder, signature, arguments, index) for index in (0, 3, 5))
            _, out_at, out_row, _, q_at, _, scales_at, offset = arguments

            def floats(at: Any) -> Any:
                return builder.fpext(builder.load(vector_at(builder, halves, at, HALVES), align=2), FLOATS)

            factors, offsets = floats(scales_at), floats(builder.add(scales_at, offset)) if form.affine else None
            for i in range(8):
                if i % form.columns == 0:
                    at = builder.add(q_at, q_at.type(i // form.columns * LANES))
                    dwords = builder.load(vector_at(builder, packed, at, INTEGERS), align=4)
                levels = emit_levels(builder, form, dwords, [i % form.columns] * LANES)
                weights = emit_weights(builder, form, levels, factors, offsets)
                builder.store(weights, vector_at(builder, to, row_at(builder, out_at, out_row, i)), align=4)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(out, integer, integer, q, integer, scales, integer, integer), codegen

    return unpack


def _sixteen_columns(form: Format) -> Any:
    """Return an intrinsic that writes columns 8 j ... 8 j + 15 of one packed row.

    ``q_at`` names the dword of column 8 j.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def unpack(typing_context: Any, out: Any, out_at: Any, q: Any, q_at: Any, scale: Any, offset: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            to, packed = (data_of(context, builder, signature, arguments, index) for index in (0, 2))
            _, out_at, _, q_at, scale, offset = arguments
            dwords = [
                spread(builder, builder.load(builder.gep(packed, [builder.add(q_at, q_at.type(at))])), INTEGERS)
                for at in range(0, LANES // form.columns * LANES, LANES)
            ]
            while len(dwords) > 1:  # lanes of half the dwords from the first one, the others from the second
                run = LANES // len(dwords)
                pick = [lane + LANES * (lane // run % 2) for lane in range(LANES)]
                dwords = [
                    builder.shuffle_vector(low, high, ir.Constant(INTEGERS, pick))
                    for low, high in zip(dwords[0::2], dwords[1::2], strict=True)
                ]
            levels = emit_levels(builder, form, dwords[0], [lane % form.columns for lane in range(LANES)])
            offsets = spread(builder, offset) if form.affine else None
            weights = emit_weights(builder, form, levels, spread(builder, scale), offsets)
            builder.store(weights, vector_at(builder, to, out_at), align=4)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(out, integer, q, integer, types.float32, types.float32), codegen

    return unpack


_eight, _sixteen = (_eight_in_python, _sixteen_in_python) if config.DISABLE_JIT else (_eight_columns, _sixteen_columns)
eight_symmetric, eight_affine, eight_symmetric_8 = map(_eight, FORMATS)
sixteen_symmetric, sixteen_affine, sixteen_symmetric_8 = map(_sixteen, FORMATS)
