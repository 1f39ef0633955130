"""Round numbers for a device, so that tests can do sums by hand, and small traces."""

from dataclasses import fields
from typing import Any

from memsim.ir.work import Kind
from memsim.models.lora import LoraConfig
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.planner.work import Work
from memsim.schedules.optimizers import OptimizerConfig
from memsim.simulator.device import UNITS, Device, Numbers, Quantity, Rule, Source
from memsim.simulator.trace import TraceNode
from toy import toy_config

KIB = 1024
NUMBERS = {
    "matmul_flops_per_s": 1e9,
    "dense_flops_per_s": 2e9,
    "attention_flops_per_s": 5e8,
    "unpack_weights_per_s": 1e8,
    "elementwise_bytes_per_s": 1e9,
    "vocabulary_bytes_per_s": 5e8,
    "memory_bytes_per_s": 2e9,
    "op_launch_s": 1e-5,
    "threads": 2,
    "ram_bytes": 1e9,
    "system_bytes": 2e8,
    "page_bytes": 16 * KIB,
    "app_baseline_bytes": 1e6,
    "foreground_limit_bytes": 1e8,
    "entitled_limit_bytes": 2e8,
    "background_limit_bytes": 5e7,
    "warning_fraction": 0.8,
    "fault_s": 1e-6,
    "cluster_min_bytes": 32 * KIB,
    "cluster_max_bytes": 512 * KIB,
    "flash_latency_s": 1e-4,
    "flash_read_bytes_per_s": 1e9,
    "flash_write_bytes_per_s": 5e8,
    "flash_hot_multiplier": 0.5,
    "write_budget_bytes_per_day": 1e9,
    "thermal_hold_s": 30.0,
    "thermal_ramp_s": 60.0,
    "thermal_floor": 0.5,
    "active_power_w": 4.0,
}


def numbers(**changes: float) -> Numbers:
    assert {item.name for item in fields(Numbers)} == set(NUMBERS)
    return Numbers(**(NUMBERS | changes))


def phone(rule: Rule = "ios", spread: float = 0.0, **changes: float) -> Device:
    """Return a device whose every number is uncertain by a share ``spread``."""
    quantities = {
        key: Quantity(value * (1 - spread), value, value * (1 + spread), UNITS[key], "tests", "L")
        for key, value in (NUMBERS | changes).items()
    }
    return Device("phone", "A phone of round numbers", rule, quantities, {"tests": Source("made up", "2026")})


def node(
    index: int = 0, op: str = "add", kind: Kind = Kind.ELEMENTWISE, work: Work | None = None, **fields: Any
) -> TraceNode:
    return TraceNode(
        index, op, "block_000", "forward", kind, work or Work(), fields.pop("anonymous_bytes", 0), **fields
    )


def toy_plan(
    schedule: str = "mebp", n_tokens: int = 13, accumulate: int = 1, **config: object
) -> tuple[TrainingSetup, RunPlan]:
    setup = TrainingSetup(
        toy_config(**config), 32, LoraConfig(rank=3, alpha=6), schedule, n_tokens, OptimizerConfig(), accumulate, 2
    )
    return setup, plan_run(setup, "")
