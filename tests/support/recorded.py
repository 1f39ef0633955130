"""A run's directory without a run: a toy's real plan, and made-up times and readings in the real formats."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from memsim.ir.serialize import save_program
from memsim.models.lora import LoraConfig
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.reports.shares_file import shares_record
from memsim.result_file import write_result
from memsim.results import Band, Host, Result, StepResult
from memsim.run_directory.events import Event, EventWriter
from memsim.schedules.optimizers import OptimizerConfig
from memsim.simulator.unpack_share import PARTS, UnpackShare
from toy_families import toy_config

MB = 10**6
BASELINE = 50 * MB
STEP_S = (0.9, 0.5, 0.7)  # the last one is the median


def toy_run_plan(schedule: str = "mebp", n_tokens: int = 13) -> RunPlan:
    setup = TrainingSetup(toy_config(), 32, LoraConfig(rank=3, alpha=6), schedule, n_tokens, OptimizerConfig())
    return plan_run(setup, "hash")


def record(plan: RunPlan, **changes: Any) -> Result:
    peak = BASELINE + plan.memory.peak_bytes
    steps = tuple(StepResult(loss=5.0 - at / 7, step_s=step_s) for at, step_s in enumerate(STEP_S))
    result = Result(
        command="run",
        source="measured",
        model="toy",
        schedule="mebp",
        seq_len=13,
        lora_rank=3,
        compute="f32",
        threads=1,
        budget_bytes=80 * MB,
        enforcement="cgroup2",
        fits=True,
        exit_reason="done",
        baseline_footprint_bytes=BASELINE,
        peak_footprint_bytes=peak,
        peak_working_set_bytes=plan.memory.peak_bytes,
        planned_footprint_bytes=peak,
        file_floor_bytes=plan.memory.file_floor_bytes,
        step_s=0.7,
        steps=steps,
        time_by_op_s={"linear": 0.4, "rmsnorm": 0.012345},
        peak_by_value=dict(plan.memory.held),
        host=Host(cpu="A CPU", cores=2, ram_bytes=8 * 2**30, kernel="6.1"),
        versions={"memsim": "0.1.0"},
    )
    return replace(result, **changes)


def events(plan: RunPlan, n_steps: int = 3) -> list[Event]:
    """Return nodes of a millisecond and as many microseconds as their index; what was touched stays."""
    found, now_s, high = [], 0.0, 0
    for step in range(n_steps):
        for index in plan.train.program.order():
            node, seconds = plan.train.program.nodes[index], 1e-3 + 1e-6 * index * (step + 1)
            high = max(high, BASELINE + int(plan.memory.live_bytes[index]))
            found.append(
                Event(
                    step=step,
                    node=index,
                    op=node.op,
                    block=int(node.part[6:]) if node.part.startswith("block_") else None,
                    phase=node.phase,
                    start_s=now_s,
                    seconds=seconds,
                    bytes=0,
                    footprint_bytes=high if index % 3 == 0 else None,
                )
            )
            now_s += seconds
    return found


def write_run(directory: Path, plan: RunPlan | None = None, changed: list[Event] | None = None, **changes: Any) -> Path:
    """Write the three files of a run and return ``directory``."""
    plan = plan or toy_run_plan()
    directory.mkdir()
    save_program(plan.train, directory / "program.jsonl")
    with EventWriter(directory / "events.jsonl") as writer:
        for event in events(plan) if changed is None else changed:
            writer.write(event)
    write_result(directory / "result.json", record(plan, **changes))
    return directory


def write_shares(path: Path) -> Path:
    """Write a profile of decompression of one share and return ``path``."""
    band = Band(0.25, 0.5, 0.5)
    share = UnpackShare(
        seq_len=16,
        way="fused",
        schedule="tiled",
        compute="bf16",
        where="here",
        share=dict.fromkeys(PARTS, band),
        step_s=Band(1.0, 1.0, 1.0),
    )
    path.write_text(json.dumps(shares_record("toy", [share])))
    return path
