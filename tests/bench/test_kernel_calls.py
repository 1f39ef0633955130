"""What is checked before anything is timed: every kernel against float64, and that a wrong one is noticed."""

from collections.abc import Iterator

import numba
import numpy as np
import pytest

from memsim.bench.cases import HEAD, PRODUCTS, KernelCase, head_case, other_cases, product_cases
from memsim.bench.contestant import CaseError
from memsim.bench.kernel_calls import KernelCalls
from memsim.execution.kernels import compute_paths
from memsim_kernels import cpu
from toy import toy_config

TOKENS = 37  # neither a tile nor a vector long
COMPUTES = compute_paths()


@pytest.fixture
def calls() -> Iterator[KernelCalls]:
    threads = numba.get_num_threads()
    yield KernelCalls(min(2, threads))
    numba.set_num_threads(threads)


def all_cases(compute: str) -> list[KernelCase]:
    config = toy_config()
    cases = [*product_cases("toy", config, TOKENS, compute), head_case("toy", config, TOKENS, compute, 2)]
    return [*cases, *other_cases("toy", config, TOKENS)] if compute == "f32" else cases


CASES = [case for compute in COMPUTES for case in all_cases(compute)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.compute}-{case.op}-{case.label}".replace(" ", ""))
def test_every_case_is_right_and_can_be_called(case: KernelCase, calls: KernelCalls) -> None:
    prepared = calls.prepare(case.to_dict())
    ablated = {"without_unpacking", "unpacking"} if case.op in PRODUCTS else set()
    assert set(prepared) == {"whole"} | ablated
    for call in prepared.values():
        call.run()
    assert case.work().moved_bytes > 0
    assert (case.work().flops > 0) == (case.label not in ("norm", "RoPE of q", "SwiGLU", "all adapters"))


@pytest.mark.parametrize("compute", COMPUTES)
def test_leaving_out_the_unpacking_changes_the_product(compute: str, calls: KernelCalls) -> None:
    """It did leave something out: the same inputs give another result, and unpacking alone gives none."""
    case = next(case for case in CASES if case.op == PRODUCTS[0] and case.compute == compute)
    outputs: list[np.ndarray] = []
    calls.prepare(case.to_dict())  # loads the op table
    whole = calls.kernels[compute][case.op]

    def remember(o: list[np.ndarray], i: object, a: object) -> None:
        outputs[:] = o
        whole(o, i, a)

    calls.kernels[compute] = dict(calls.kernels[compute]) | {case.op: remember}
    prepared = calls.prepare(case.to_dict())
    right = outputs[0].copy()
    prepared["without_unpacking"].run()
    assert not np.allclose(outputs[0], right, rtol=1e-2, equal_nan=True)
    prepared["whole"].run()
    assert np.array_equal(outputs[0], right)
    outputs[0][:] = 7.0
    prepared["unpacking"].run()
    assert np.all(outputs[0] == 7.0)


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("op", [*PRODUCTS, HEAD])
@pytest.mark.parametrize("how", ["one element off", "one element unwritten"])
def test_a_wrong_kernel_is_noticed(compute: str, op: str, how: str, calls: KernelCalls) -> None:
    case = next(case for case in CASES if case.op == op and case.compute == compute)
    calls.prepare(case.to_dict())
    right = calls.kernels[compute][op]

    def wrong(o: list[np.ndarray], i: object, a: object) -> None:
        right(o, i, a)
        last = o[-1].reshape(-1)
        last[-1] = last[-1] + 0.1 * np.abs(last).max() if how == "one element off" else np.nan

    calls.kernels[compute] = dict(calls.kernels[compute]) | {op: wrong}
    with pytest.raises(CaseError, match=rf"^{op} in {compute} is wrong: output \d of shape .* nothing was timed$"):
        calls.prepare(case.to_dict())


def test_every_engine_has_a_roof(calls: KernelCalls) -> None:
    roofs = calls.prepare({"op": "roofs"})
    assert tuple(roofs) == cpu.engines()
    for roof in roofs.values():
        assert roof.flops >= 10**9
        assert roof.run() == roof.flops
