"""The contestants that multiply dense matrices: ``python -m memsim.bench.peer_calls THREADS torch|numpy``.

They do the work of a product with a packed matrix, on the matrix unpacked beforehand.
"""

import sys
from collections.abc import Callable

import numpy as np

from memsim.bench.contestant import Call, Case, serve


def torch_products(threads: int) -> Callable[[Case], dict[str, Call]]:
    """Return what prepares torch's products, ``F.linear`` and ``dy @ W``, in the case's element type."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)

    def prepare(case: Case) -> dict[str, Call]:
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[case["compute"]]
        w = torch.randn(case["n"], case["k"]).to(dtype)
        x = torch.randn(case["rows"], case["n"] if case["backward"] else case["k"]).to(dtype)
        if case["backward"]:
            return {"whole": Call(lambda: x @ w)}
        return {"whole": Call(lambda: torch.nn.functional.linear(x, w))}

    return prepare


def numpy_products(case: Case) -> dict[str, Call]:
    """Return NumPy's f32 product, which is the BLAS it was built with (OpenBLAS in the wheels of PyPI)."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((case["n"], case["k"]), np.float32)
    x = rng.standard_normal((case["rows"], case["n"] if case["backward"] else case["k"]), np.float32)
    right = w if case["backward"] else w.T
    out = np.empty((case["rows"], right.shape[1]), np.float32)
    return {"whole": Call(lambda: np.matmul(x, right, out=out))}


if __name__ == "__main__":
    serve(torch_products(int(sys.argv[1])) if sys.argv[2] == "torch" else numpy_products)
