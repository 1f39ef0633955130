"""float16 as Numba lacks it: read from the uint16 that has the same bits."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

if config.DISABLE_JIT:

    def half_to_float(bits: Any) -> Any:
        """Return the float32 value of a float16 given by its bits (uint16)."""
        return np.float32(np.uint16(bits).view(np.float16))

else:

    @intrinsic
    def half_to_float(typing_context: Any, bits: Any) -> Any:
        """Return the float32 value of a float16 given by its bits (uint16)."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

        return types.float32(types.uint16), codegen
