import pytest

from memsim.calibration.op_costs import NodeSample, features, fit_costs
from memsim.errors import InputError
from memsim.ir.work import Kind
from memsim.planner.work import Work
from memsim.simulator.trace import FileRead, StepTrace, trace_program
from phones import node, toy_plan

# Seconds a launch, a FLOP, an unpacked weight, a byte of memory, a byte of file.
TRUE = (1e-4, 1e-11, 2e-10, 1e-10, 5e-10)


def _works(count: int) -> list[Work]:
    """Return works of products whose sizes do not all grow together."""
    return [
        Work(matmul_flops=2 * m * n * k, unpacked_weights=n * k, moved_bytes=4 * m * (n + k) + n * k // 2)
        for m in (8, 64, 256)
        for n, k in ((64, 512), (2048, 512), (512, 2048), (4096, 1024))[:count]
    ]


def _sample(work: Work, op: str = "linear_q4", compute: str = "f32", seconds: float | None = None) -> NodeSample:
    made = features(node(op=op, kind=Kind.MATMUL, work=work))
    exact = sum(a * b for a, b in zip(TRUE, made, strict=True))
    return NodeSample(op, Kind.MATMUL, compute, made, exact if seconds is None else seconds, 3)


def test_features_are_what_the_node_does() -> None:
    at = node(
        work=Work(matmul_flops=3, attention_flops=4, unpacked_weights=5, moved_bytes=6),
        page_in=FileRead("a", 100, 1000),
        prefetch=FileRead("b", 2000, 2000),
        written_bytes=10,
        restored_bytes=1,
        evicted_bytes=30_000,
    )
    assert features(at) == (1.0, 7.0, 5.0, 6.0, 32_111.0)


def test_the_fit_finds_the_constants_that_made_the_times() -> None:
    costs = fit_costs([_sample(work) for work in _works(4)], 0.0)
    # No byte of a file in these: that constant stays 0.
    assert costs.by_op["f32", "linear_q4"] == pytest.approx((*TRUE[:4], 0.0), rel=1e-6)
    unseen = Work(matmul_flops=10**9, unpacked_weights=10**6, moved_bytes=10**7)
    expected = TRUE[0] + 1e9 * TRUE[1] + 1e6 * TRUE[2] + 1e7 * TRUE[3]
    assert costs.node_s(node(op="linear_q4", kind=Kind.MATMUL, work=unseen), "f32") == pytest.approx(expected)


def test_no_constant_is_negative() -> None:
    # More work that takes less time: a plain fit would pay for it.
    samples = [_sample(work, seconds=1e-3 / (1 + index)) for index, work in enumerate(_works(4))]
    found = fit_costs(samples, 0.0).by_op["f32", "linear_q4"]
    assert min(found) >= 0.0 and max(found) > 0.0


def test_a_compute_path_has_its_own_constants_and_stands_in_for_another() -> None:
    works = _works(4)
    slow = [_sample(work, compute="f32") for work in works]
    fast = [_sample(work, compute="bf16", seconds=_sample(work).seconds / 4) for work in works]
    costs = fit_costs([*slow, *fast], 0.0)
    at = node(op="linear_q4", kind=Kind.MATMUL, work=works[-1])
    assert costs.node_s(at, "bf16") == pytest.approx(costs.node_s(at, "f32") / 4)
    assert fit_costs(slow, 0.0).node_s(at, "bf16") == pytest.approx(costs.node_s(at, "f32"))


def test_an_op_that_never_ran_costs_what_its_kind_does() -> None:
    costs = fit_costs([_sample(work) for work in _works(4)], 0.0)
    work = _works(4)[0]
    other = node(op="linear_q4_backward_input", kind=Kind.MATMUL, work=work)
    assert costs.node_s(other, "f32") == pytest.approx(_sample(work).seconds)
    with pytest.raises(InputError, match="nothing is known of attention: .* its kind, attention"):
        costs.node_s(node(op="attention", kind=Kind.ATTENTION), "f32")


def test_a_step_is_its_nodes_and_what_is_between_them() -> None:
    works = _works(4)
    costs = fit_costs([_sample(work) for work in works], 1e-3)
    trace = StepTrace(tuple(node(op="linear_q4", kind=Kind.MATMUL, work=work) for work in works), 0)
    assert costs.step_s(trace, "f32") == pytest.approx(sum(_sample(work).seconds + 1e-3 for work in works))


def test_what_a_step_gives_back_is_what_it_paged_in_whole() -> None:
    _, plan = toy_plan()
    trace = trace_program(plan.train.program, plan.memory)
    blocks = [at for at in trace.nodes if at.part.startswith("block_")]
    paged_in = sum(at.page_in.n_bytes for at in blocks if at.page_in)
    assert sum(at.evicted_bytes for at in blocks) == paged_in > 0
