"""Whole steps and runs: agreement with the planner, memory limits, heat, bands."""

from dataclasses import replace

import pytest

from memsim.ir.work import Kind
from memsim.models.lora import LoraConfig
from memsim.models.presets import PRESETS
from memsim.planner.run_plan import TrainingSetup, plan_run
from memsim.planner.traffic import step_traffic
from memsim.planner.work import Work
from memsim.schedules.optimizers import OptimizerConfig
from memsim.simulator.device import Device
from memsim.simulator.pagecache import PageCache
from memsim.simulator.simulate import Simulation, simulate
from memsim.simulator.trace import FileRead, StepTrace, trace_program
from memsim.simulator.walk import StepTime, file_cache, footprint, walk
from phones import node, numbers, phone, toy_plan

MB = 10**6


def _trace(schedule: str = "mebp", **options: int) -> StepTrace:
    plan = toy_plan(schedule, **options)[1]
    return trace_program(plan.train.program, plan.memory)


def _walk(trace: StepTrace, cache: PageCache | None = None, **changes: float) -> StepTime:
    return walk(trace, numbers(**changes), "ios", cache or PageCache(10**9))


def _holding(*held_bytes: int) -> StepTrace:
    nodes = tuple(node(index, anonymous_bytes=held) for index, held in enumerate(held_bytes))
    return StepTrace(nodes, max(held_bytes))


@pytest.mark.parametrize("schedule", ["mebp", "tiled", "backprop"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_trace_is_the_plan(schedule: str, accumulate: int) -> None:
    plan = toy_plan(schedule, accumulate=accumulate)[1]
    program, memory = plan.train.program, plan.memory
    trace = trace_program(program, memory)
    assert [item.index for item in trace.nodes] == list(program.order())
    assert trace.resident_bytes == memory.peak_bytes
    assert sum(item.written_bytes for item in trace.nodes) == step_traffic(program).written_bytes
    reads = sum(item.page_in.n_bytes for item in trace.nodes if item.page_in)
    assert reads == step_traffic(program).paged_in_bytes
    held = [item.anonymous_bytes for item in trace.nodes]
    assert held == sorted(held)
    for item in trace.nodes[: len(program.nodes)]:
        # Values are aligned to 64 bytes, pages touched are counted whole.
        assert item.anonymous_bytes >= memory.live_bytes[item.index] - 64 * len(program.values)


def test_every_second_has_a_place() -> None:
    step = _walk(_trace("tiled"))
    assert step.split.total_s == pytest.approx(sum(step.by_op_s.values()))
    assert step.split.total_s == pytest.approx(sum(item.split.total_s for item in step.timeline))
    assert min(step.split.compute_s, step.split.unpack_s, step.split.page_in_s, step.split.spill_s) > 0
    ends = [item.start_s + item.split.total_s for item in step.timeline]
    assert [item.start_s for item in step.timeline[1:]] == pytest.approx(ends[:-1])


def test_each_rate_moves_its_own_share() -> None:
    base = _walk(_trace()).split
    for change, share in (
        ({"unpack_weights_per_s": 5e7}, "unpack_s"),
        ({"flash_write_bytes_per_s": 5e7}, "spill_s"),
        ({"fault_s": 1e-4}, "page_in_s"),
        ({"attention_flops_per_s": 5e7}, "compute_s"),
        ({"dense_flops_per_s": 2e8}, "compute_s"),
        ({"op_launch_s": 1e-3}, "compute_s"),
    ):
        slower = _walk(_trace(), **change).split
        assert getattr(slower, share) > getattr(base, share)
        others = {"compute_s", "unpack_s", "page_in_s", "spill_s"} - {share}
        if share != "compute_s":  # a launch is compute, whatever the op
            assert all(getattr(slower, name) == pytest.approx(getattr(base, name)) for name in others - {"spill_s"})


def test_prefetching_hides_reads_behind_compute() -> None:
    reads = [FileRead(f"block_{index:03d}", 10**7, 10**7) for index in range(3)]
    product = Work(10**8)  # 100 ms, in which 10^7 bytes (10 ms) arrive

    def trace(ahead: bool) -> StepTrace:
        nodes = []
        for index, read in enumerate(reads):
            nodes.append(node(3 * index, "page_in", Kind.STORAGE, page_in=read))
            following = reads[index + 1] if ahead and index + 1 < len(reads) else None
            nodes.append(node(3 * index + 1, "prefetch", Kind.STORAGE, prefetch=following))
            nodes.append(node(3 * index + 2, "linear_q4", Kind.MATMUL, product))
        return StepTrace(tuple(nodes), 0)

    one_read_s = 1e-4 + 1e-2
    faults_s = 3 * 611 * 1e-6
    assert _walk(trace(ahead=False)).split.page_in_s == pytest.approx(3 * one_read_s + faults_s)
    assert _walk(trace(ahead=True)).split.page_in_s == pytest.approx(one_read_s + faults_s)


def test_a_model_that_does_not_fit_beside_the_app_is_read_in_every_step() -> None:
    reads = [FileRead(f"block_{index:03d}", 10**7, 10**7) for index in range(10)]
    nodes = tuple(
        node(index, "page_in", Kind.STORAGE, page_in=read, anonymous_bytes=700 * MB) for index, read in enumerate(reads)
    )
    trace = StepTrace(nodes, 700 * MB)
    # 1 GB of RAM: 200 MB are the system's, 1 MB the app's; 99 MB are left for 100 MB of files.
    tight, roomy = simulate(trace, phone(), 1), simulate(trace, phone(system_bytes=1e8), 1)
    assert tight.nominal.warm.read_bytes == tight.nominal.cold.read_bytes == 10**8
    assert (roomy.nominal.warm.read_bytes, roomy.nominal.cold.read_bytes) == (0, 10**8)


def test_devices_count_differently() -> None:
    assert footprint(numbers(), "ios", 16_384_000) == 10**6 + 16_384_000 + 1000 * 8
    assert footprint(numbers(), "linux", 16_384_000) == 10**6 + 16_384_000
    assert file_cache(numbers(), 3 * 10**8) == 5 * 10**8
    assert file_cache(numbers(), 10**9) == 0


def _verdicts(trace: StepTrace, device: Device, budget: int | None = None) -> dict[str, str]:
    return {mode: item.verdict for mode, item in simulate(trace, device, 1, budget).survival.items()}


def test_verdicts_by_the_nominal_and_the_band() -> None:
    # Baseline 1 MB; warned above 80 % of 50, 100 and 200 MB.
    linux = phone("linux")
    assert _verdicts(_holding(10 * MB), linux) == {"foreground": "fits", "entitled": "fits", "background": "fits"}
    assert _verdicts(_holding(45 * MB), linux) == {"foreground": "fits", "entitled": "fits", "background": "warned"}
    assert _verdicts(_holding(90 * MB), linux) == {"foreground": "warned", "entitled": "fits", "background": "killed"}
    assert _verdicts(_holding(90 * MB), linux, 80 * MB)["foreground"] == "killed"
    unsure = phone("linux", spread=0.2, warning_fraction=0.8)
    # 75 MB and a limit between 80 and 120 MB; 85 MB is above the lowest limit.
    assert _verdicts(_holding(75 * MB), unsure)["foreground"] == "fits"
    assert _verdicts(_holding(85 * MB), unsure)["foreground"] == "at risk"


def test_the_first_node_over_the_limit_is_where_it_ends() -> None:
    trace = _holding(10 * MB, 60 * MB, 99 * MB, 100 * MB)
    survival = simulate(trace, phone("linux"), 1).survival["foreground"]
    assert (survival.verdict, survival.margin_bytes) == ("killed", -1 * MB)
    assert survival.killed_at is not None and survival.killed_at.index == 3
    assert survival.warned_at is not None and survival.warned_at.index == 2
    exact = simulate(trace, phone("linux"), 1, 101 * MB).survival["entitled"]
    assert (exact.verdict, exact.margin_bytes) == ("warned", 0)


def test_later_steps_start_with_everything_touched() -> None:
    trace = StepTrace((node(0, anonymous_bytes=10 * MB), node(1, anonymous_bytes=97 * MB)), 97 * MB)
    steps = [walk(trace, numbers(), "linux", PageCache(10**9), first=first) for first in (True, False)]
    assert [[item.footprint_bytes for item in step.timeline] for step in steps] == [[11 * MB, 98 * MB], [98 * MB] * 2]


@pytest.mark.parametrize("schedule", ["mebp", "tiled"])
def test_one_percent_above_the_peak_survives_and_below_is_killed_at_the_planner_s_node(schedule: str) -> None:
    setup = TrainingSetup(PRESETS["qwen2.5-0.5b"], 32, LoraConfig(), schedule, 256, OptimizerConfig(), threads=2)
    plan = plan_run(setup, "")
    trace = trace_program(plan.train.program, plan.memory)
    device = phone(app_baseline_bytes=40e6, foreground_limit_bytes=3e9)
    peak = simulate(trace, device, 1).nominal.peak_bytes
    planned = 40 * MB + plan.memory.peak_bytes
    # Page tables: 8 bytes for each page of 16 KiB.
    assert planned < peak < planned * 1.001
    assert simulate(trace, device, 1, int(peak * 1.01)).survival["foreground"].killed_at is None
    killed = simulate(trace, device, 1, peak - 1).survival["foreground"].killed_at
    assert killed is not None
    if schedule == "mebp":
        assert killed.index == plan.memory.peak_node
        assert killed.op == "linear_q4" and killed.part == "head"


def _figure(simulation: Simulation, name: str) -> tuple[float, float, float]:
    band = simulation.figures[name]
    return band.low, band.nominal, band.high


def test_bands_hold_the_nominal_and_grow_with_doubt() -> None:
    trace = _trace("tiled")
    sure, unsure = simulate(trace, phone(), 3), simulate(trace, phone(spread=0.1), 3)
    for name in sure.figures:
        low, nominal, high = _figure(sure, name)
        assert low == nominal == high
        low, nominal, high = _figure(unsure, name)
        assert low <= nominal <= high
        assert nominal == _figure(sure, name)[1]
    for name in ("step_s", "energy_j", "peak_footprint_bytes", "hot_step_s"):
        assert _figure(unsure, name)[0] < _figure(unsure, name)[2]


def test_a_hot_step_pays_for_each_share() -> None:
    simulation = simulate(_trace("mebp"), phone(), 1)
    warm, hot = simulation.nominal.warm.split, simulation.nominal.hot.split
    assert hot.compute_s == pytest.approx(2 * warm.compute_s)
    assert hot.unpack_s == pytest.approx(2 * warm.unpack_s)
    assert hot.spill_s == pytest.approx(2 * warm.spill_s)
    assert hot.page_in_s == pytest.approx(warm.page_in_s)  # faults of pages that are in memory


def test_a_long_run_is_hot_and_its_energy_is_power_times_time() -> None:
    slow = replace(_holding(MB), nodes=(node(work=Work(moved_bytes=2 * 10**9), anonymous_bytes=MB),))
    simulation = simulate(slow, phone(op_launch_s=0), 100)
    steps = simulation.nominal.steps_s
    assert steps[0] == pytest.approx(2.0)
    assert steps[-1] == pytest.approx(4.0)
    assert simulation.figures["energy_j"].nominal == pytest.approx(4.0 * sum(steps) / 100)
    assert simulation.figures["steps_per_day_by_time"].nominal == pytest.approx(86_400 / 4.0)


def test_writes_have_a_budget_a_day() -> None:
    trace = StepTrace((node(op="spill", kind=Kind.STORAGE, written_bytes=10**7),), 0)
    figures = simulate(trace, phone(), 1).figures
    assert figures["steps_per_day_by_writes"].nominal == pytest.approx(100)
    assert figures["written_bytes"].nominal == 10**7


def test_a_step_that_drops_what_it_evicts_reads_its_weights_every_time() -> None:
    trace, sizes = _trace("mezo-naive"), {}
    for item in trace.nodes:
        if item.page_in:
            sizes[item.page_in.file] = item.page_in.file_bytes
    cached, dropping = (simulate(trace, phone(), 2, dropping=drop).nominal for drop in (False, True))
    restored = sum(item.restored_bytes for item in trace.nodes)  # adapters, which are never in the cache
    weights = sum(size for file, size in sizes.items() if file.startswith("block_"))
    # The second forward finds the blocks of the first, and the second step all of them, unless they were dropped.
    assert cached.warm.read_bytes == restored
    assert cached.cold.read_bytes + weights <= dropping.cold.read_bytes
    assert dropping.warm.read_bytes >= restored + 2 * weights
    assert dropping.warm.split.total_s > cached.warm.split.total_s
