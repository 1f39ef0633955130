"""``memsim validate --host``: what was planned and simulated for this machine, against real runs on it."""

from dataclasses import asdict
from typing import Any

from memsim.bench.host import (
    PEAK_GOAL,
    ROUNDS,
    STEP_MEAN_GOAL,
    STEP_WORST_GOAL,
    HostErrors,
    HostRow,
    HostValidation,
    parse_cases,
    validate_host,
)
from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.host import host_info, versions
from memsim.result_file import emit_json
from memsim.units import format_bytes

SCHEMA = "memsim.validate-host/1"
_TITLES = {"planned_peak": "peak, planned", "simulated_peak": "peak, simulated", "step": "step, simulated"}
_COLUMNS = (
    ("peak", 11),
    ("planned", 11),
    ("error", 8),
    ("simulated", 11),
    ("error", 8),
    ("step", 9),
    ("simulated", 11),
    ("error", 8),
)
_GOALS = {"planned_peak": (None, PEAK_GOAL), "simulated_peak": (None, PEAK_GOAL)} | {
    "step": (STEP_MEAN_GOAL, STEP_WORST_GOAL)
}


def show_host_validation(calibration: str, held_out: str, threads: int, json_path: str | None) -> None:
    """Run every configuration, print every error, and serve ``--json``.

    Raises:
        MemsimError: A list is malformed, or a calibration run failed.
    """
    validation = validate_host(parse_cases(calibration), parse_cases(held_out), threads, stage)
    if json_path is not None:
        emit_json(_plain(validation, threads), json_path)
    if json_path != "-":
        say(*_text(validation))


def _text(validation: HostValidation) -> list[str]:
    head = (
        f"{'peak':>11}{'planned':>11}{'error':>8}{'simulated':>11}{'error':>8}{'step':>9}{'simulated':>11}{'error':>8}"
    )
    lines = [f"{'held out':<32}{head}", *(_line(row) for row in validation.rows if not row.calibrates)]
    lines += ["", f"{'calibration':<32}{head}", *(_line(row) for row in validation.rows if row.calibrates), ""]
    ran = sum(not row.calibrates and not row.failure for row in validation.rows)
    failed = sum(bool(row.failure) for row in validation.rows)
    lines.append(f"{ran} held-out configurations ran, {failed} failed; step: median of {ROUNDS}, a round apart")
    lines += [_verdict(name, errors) for name, errors in validation.errors.items()]
    return lines


def _line(row: HostRow) -> str:
    name = f"{row.case} {row.compute}"
    if row.failure:
        return f"{name:<32}  failed: {row.failure}"
    errors = row.errors
    sizes = [
        format_bytes(size or 0, True) for size in (row.peak_bytes, row.planned_peak_bytes, row.simulated_peak_bytes)
    ]
    return (
        f"{name:<32}{sizes[0]:>11}{sizes[1]:>11}{errors['planned_peak']:>+8.1%}{sizes[2]:>11}"
        f"{errors['simulated_peak']:>+8.1%}{row.step_s:>7.3f} s{row.simulated_step_s:>9.3f} s{errors['step']:>+8.1%}"
    )


def _verdict(name: str, errors: HostErrors) -> str:
    mean_goal, worst_goal = _GOALS[name]
    met = errors.worst <= worst_goal and (mean_goal is None or errors.mean <= mean_goal)
    goal = f"worst at most {worst_goal:.0%}" + (f", mean at most {mean_goal:.0%}" if mean_goal else "")
    return (
        f"{_TITLES[name]}: mean error {errors.mean:.1%}, worst {errors.worst:.1%} of the held out; "
        f"goal {goal}: {'met' if met else 'MISSED'}"
    )


def _plain(validation: HostValidation, threads: int) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "command": "validate --host",
        "threads": threads,
        "rows": [asdict(row) | {"errors": row.errors} for row in validation.rows],
        "errors": {name: asdict(errors) for name, errors in validation.errors.items()},
        "host": asdict(host_info()),
        "versions": versions(),
    }
