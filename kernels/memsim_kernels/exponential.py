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

if config.DISABLE_JIT:

    def exp(x: Any) -> Any:
        """Return e^x as float32."""
        with np.errstate(over="ignore", under="ignore"):
            return np.exp(np.float32(x))

else:

    @intrinsic  # type: ignore[untyped-decorator]
    def exp(typing_context: Any, x: Any) -> Any:
        """Return e^x as float32, within 2 units in the last place; NaN stays NaN."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit_exp(builder, arguments[0])

        return types.float32(types.float32), codegen


def emit_exp(builder: Any, x: Any) -> Any:
    """Emit e^x of a float32 or of a vector of them."""
    single, integer = x.type, ir.IntType(32)
    if isinstance(single, ir.VectorType):
        integer = ir.VectorType(integer, single.count)
    fma_name = f"llvm.fma.v{single.count}f32" if isinstance(single, ir.VectorType) else "llvm.fma.f32"
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(single, [single] * 3), fma_name)

    def constant(kind: Any, value: Any) -> Any:
        return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)

    def number(value: float) -> Any:
        return constant(single, float(np.float32(value)))

    def power_of_two(exponent: Any) -> Any:
        biased = builder.add(exponent, constant(integer, 127))
        return builder.bitcast(builder.shl(biased, constant(integer, 23)), single)

    for limit, comparison in ((_HIGHEST, ">"), (_LOWEST, "<")):
        x = builder.select(builder.fcmp_ordered(comparison, x, number(limit)), number(limit), x)
    shifted = builder.call(fma, [x, number(_LOG2_E), number(_ROUND)])
    n = builder.fsub(shifted, number(_ROUND))
    r = builder.call(fma, [n, number(-_LN2_LOW), builder.call(fma, [n, number(-_LN2_HIGH), x])])
    p = number(_COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        p = builder.call(fma, [p, r, number(coefficient)])
    value = builder.fadd(builder.call(fma, [p, builder.fmul(r, r), r]), number(1.0))
    # 2^n in two factors: n reaches -150 (results below the normal range) and 128.
    exponent = builder.sub(builder.bitcast(shifted, integer), builder.bitcast(number(_ROUND), integer))
    half = builder.ashr(exponent, constant(integer, 1))
    return builder.fmul(builder.fmul(value, power_of_two(half)), power_of_two(builder.sub(exponent, half)))
