import pytest

from memsim.ir.work import Kind
from memsim.planner.work import Work
from memsim.simulator.roofline import op_time
from phones import numbers


@pytest.mark.parametrize(
    ("kind", "work", "compute_s", "unpack_s"),
    [
        (Kind.MATMUL, Work(10**9), 1.0, 0.0),
        (Kind.DENSE, Work(10**9), 0.5, 0.0),
        (Kind.ATTENTION, Work(attention_flops=10**9), 2.0, 0.0),
        (Kind.UNPACK, Work(unpacked_weights=10**8), 0.0, 1.0),
        (Kind.MATMUL, Work(3 * 10**9, 0, 10**8), 3.0, 1.0),
        (Kind.ELEMENTWISE, Work(moved_bytes=10**9), 1.0, 0.0),
        (Kind.VOCABULARY, Work(moved_bytes=10**9), 2.0, 0.0),
        (Kind.STORAGE, Work(moved_bytes=10**9), 1.0, 0.0),
        # Memory is the slower side: 8 s for 1 s of arithmetic, and for 3 + 1 s shared as 3 : 1.
        (Kind.MATMUL, Work(10**9, moved_bytes=16 * 10**9), 8.0, 0.0),
        (Kind.MATMUL, Work(3 * 10**9, 0, 10**8, 16 * 10**9), 6.0, 2.0),
        (Kind.STORAGE, Work(), 0.0, 0.0),
    ],
)
def test_the_slower_side_counts(kind: Kind, work: Work, compute_s: float, unpack_s: float) -> None:
    launch_s = 1e-5
    time = op_time(kind, work, numbers())
    assert (time.compute_s, time.unpack_s) == pytest.approx((compute_s + launch_s, unpack_s))
    slow = op_time(kind, work, numbers(), speed=0.5)
    assert (slow.compute_s, slow.unpack_s) == pytest.approx((2 * (compute_s + launch_s), 2 * unpack_s))
