"""exp for float32 without a call, so that the loops around it become vector code."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

# exp(x) = 2^n exp(r), n = round(x / ln 2), r = x - n ln 2 in two steps, so that n LN2_HIGH is exact.
_LOG2_E = 1.44269504088896341
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the lowest bits
# exp(r) = 1 + r + r^2 p(r) for |r| <= ln 2 / 2, coefficients of p from the highest power down (Cephes expf).
_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_LOWEST, _HIGHEST = -104.0, 89.0  # beyond: 0 and infinity
# 2^x = 2^n (1 + r p(r)), n = round(x), r = x - n exactly; coefficients of p from the highest power down (Cephes exp2f).
_COEFFICIENTS_2 = (
    1.535336188319500e-4,
    1.339887440266574e-3,
    9.618437357674640e-3,
    5.550332471162809e-2,
    2.402264791363012e-1,
    6.931472028550421e-1,
    1.0,
)
_LOWEST_2 = -125.0  # below: 0, so that nothing is subnormal, which is slow

if config.DISABLE_JIT:

    def exp(x: Any) -> Any:
        """Return e^x as float32."""
        with np.errstate(over="ignore", under="ignore"):
            return np.exp(np.float32(x))

    def exp2(x: Any) -> Any:
        """Return 2^x as float32 for x <= 127, and 0 below -125."""
        return np.where(x < _LOWEST_2, np.float32(0.0), np.exp2(np.maximum(x, np.float32(_LOWEST_2))))

else:

    @intrinsic  # type: ignore[untyped-decorator]
    def exp(typing_context: Any, x: Any) -> Any:
        """Return e^x as float32, within 2 units in the last place; NaN stays NaN."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit_exp(builder, arguments[0])

        return types.float32(types.float32), codegen

    @intrinsic  # type: ignore[untyped-decorator]
    def exp2(typing_context: Any, x: Any) -> Any:
        """Return 2^x as float32 for x <= 127, within 2 units in the last place, and 0 below -125; NaN stays NaN."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit_exp2(builder, arguments[0])

        return types.float32(types.float32), codegen


class _Numbers:
    """Constants and operations of one kind of float32: a single one, or a vector of them."""

    def __init__(self, builder: Any, kind: Any) -> None:
        vector = isinstance(kind, ir.VectorType)
        self.builder, self.kind = builder, kind
        self.integer = ir.VectorType(ir.IntType(32), kind.count) if vector else ir.IntType(32)
        name = f"llvm.fma.v{kind.count}f32" if vector else "llvm.fma.f32"
        self._fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)

    def number(self, value: float) -> Any:
        return self._constant(self.kind, float(np.float32(value)))

    def whole(self, value: int) -> Any:
        return self._constant(self.integer, value)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.call(self._fma, [a, b, c])

    def polynomial(self, coefficients: tuple[float, ...], x: Any) -> Any:
        value = self.number(coefficients[0])
        for coefficient in coefficients[1:]:
            value = self.fma(value, x, self.number(coefficient))
        return value

    def power_of_two(self, exponent: Any) -> Any:
        biased = self.builder.add(exponent, self.whole(127))
        return self.builder.bitcast(self.builder.shl(biased, self.whole(23)), self.kind)

    def _constant(self, kind: Any, value: Any) -> Any:
        return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def emit_exp(builder: Any, x: Any) -> Any:
    """Emit e^x of a float32 or of a vector of them."""
    v = _Numbers(builder, x.type)
    for limit, comparison in ((_HIGHEST, ">"), (_LOWEST, "<")):
        x = builder.select(builder.fcmp_ordered(comparison, x, v.number(limit)), v.number(limit), x)
    shifted = v.fma(x, v.number(_LOG2_E), v.number(_ROUND))
    n = builder.fsub(shifted, v.number(_ROUND))
    r = v.fma(n, v.number(-_LN2_LOW), v.fma(n, v.number(-_LN2_HIGH), x))
    p = v.polynomial(_COEFFICIENTS, r)
    value = builder.fadd(v.fma(p, builder.fmul(r, r), r), v.number(1.0))
    # 2^n in two factors: n reaches -150 (results below the normal range) and 128.
    exponent = builder.sub(builder.bitcast(shifted, v.integer), builder.bitcast(v.number(_ROUND), v.integer))
    half = builder.ashr(exponent, v.whole(1))
    return builder.fmul(builder.fmul(value, v.power_of_two(half)), v.power_of_two(builder.sub(exponent, half)))


def emit_exp2(builder: Any, x: Any) -> Any:
    """Emit 2^x, x <= 127, of a float32 or of a vector of them."""
    v = _Numbers(builder, x.type)
    low = builder.fcmp_ordered("<", x, v.number(_LOWEST_2))
    x = builder.select(low, v.number(_LOWEST_2), x)
    shifted = builder.fadd(x, v.number(_ROUND))
    r = builder.fsub(x, builder.fsub(shifted, v.number(_ROUND)))
    # The shift of power_of_two drops all of _ROUND's own bits.
    value = builder.fmul(v.polynomial(_COEFFICIENTS_2, r), v.power_of_two(builder.bitcast(shifted, v.integer)))
    return builder.select(low, v.number(0.0), value)
