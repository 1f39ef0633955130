"""The baseline file: a run's settings, its record, and what each op held at most."""

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from memsim.errors import InputError
from memsim.file_names import EVENTS_FILE, PROGRAM_FILE
from memsim.files import write_text
from memsim.ir.serialize import load_program
from memsim.json_decode import decode
from memsim.json_file import read_object, shown
from memsim.models.presets import PRESETS
from memsim.planner.liveness import arena_ranges
from memsim.result_file import MAX_RECORD_BYTES
from memsim.results import Result
from memsim.run_directory.events import read_events
from memsim.runtime.config import RunConfig

SCHEMA: Final = "memsim.baseline/1"
_OF_ONE_RUN = ("out", "scratch", "enforcement", "plan_check", "decimal")
"""Settings that say where and how a run was made, not what it was."""
_FILES = {"model", "data", "eval_data", "task"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A run to be compared with.

    Attributes:
        settings: Of ``memsim run``; paths are relative to the file's directory where they can be.
        result: Its record.
        peak_by_op_bytes: The highest footprint after a node of each op, less the interpreter's.
        held_until: The last node that touches each value of the arena that lived at the planned peak.
        roof_share: Floating-point operations of its median step a second, as a share of the measured roof; None when
            no roof was measured.
    """

    schema: Literal["memsim.baseline/1"] = field(default=SCHEMA, init=False)
    settings: RunConfig
    result: Result
    peak_by_op_bytes: dict[str, int]
    held_until: dict[str, str]
    roof_share: float | None = None


def is_baseline(plain: Mapping[str, Any]) -> bool:
    """Return whether parsed JSON says that it is a baseline."""
    return plain.get("schema") == SCHEMA


def peak_by_op(directory: Path, result: Result) -> dict[str, int]:
    """Return the highest footprint after a node of each op, less the baseline's, from a run's events.

    Raises:
        InputError: The events cannot be read.
    """
    peaks: dict[str, int] = {}
    for event in read_events(directory / EVENTS_FILE):
        if event.footprint_bytes is not None:
            held = max(0, event.footprint_bytes - (result.baseline_footprint_bytes or 0))
            peaks[event.op] = max(peaks.get(event.op, 0), held)
    return peaks


def held_until(directory: Path, result: Result) -> dict[str, str]:
    """Return the last node that touches each arena value of the planned peak, from a run's step program.

    Raises:
        InputError: The program cannot be read.
    """
    program = load_program(directory / PROGRAM_FILE).program
    ranges = {item.name: item.last for item in arena_ranges(program)}
    return {name: str(program.nodes[ranges[name]]) for name in sorted(result.peak_by_value.keys() & ranges.keys())}


def from_run(directory: Path, config: RunConfig, result: Result, roof_share: float | None = None) -> Baseline:
    """Return a finished run, its files still there, as a baseline.

    Raises:
        InputError: Its events or its program cannot be read.
    """
    return Baseline(
        settings=config,
        result=replace(result, request=None),  # it names paths, and ``settings`` says the same
        peak_by_op_bytes=peak_by_op(directory, result),
        held_until=held_until(directory, result),
        roof_share=roof_share,
    )


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write ``baseline`` atomically, without the settings that are defaults.

    Raises:
        InputError: The file cannot be written.
    """
    plain = asdict(baseline)
    kept = _changed(baseline.settings)
    for name in _FILES & kept.keys():
        # Relative to the baseline, so that both can move together; a preset's name stays what it is.
        if Path(kept[name]).exists() and str(kept[name]).lower() not in PRESETS:
            kept[name] = os.path.relpath(kept[name], path.absolute().parent)
    plain["settings"] = kept
    write_text(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")


def read_baseline(path: Path) -> Baseline:
    """Read a baseline, untrusted; relative paths in its settings become those beside the file.

    Raises:
        InputError: It cannot be read, or is not a baseline of schema 1.
    """
    plain = read_object(path, MAX_RECORD_BYTES)
    if not is_baseline(plain):
        raise InputError(
            f"{path} has schema {shown(plain.get('schema'))}; a baseline has {SCHEMA!r}: "
            f"make one with `memsim run --save-baseline`"
        )
    found = decode(Baseline, plain, str(path))
    settings = {}
    for name in _FILES:
        value = getattr(found.settings, name)
        if value is not None and str(value).lower() not in PRESETS:
            beside = path.absolute().parent / value
            settings[name] = type(value)(beside) if beside.exists() else value
    return replace(found, settings=replace(found.settings, **settings))


def _changed(config: RunConfig) -> dict[str, Any]:
    """Return the settings that are not the defaults and belong to what was run, as plain data."""
    plain, kept = asdict(config), {}
    for spec in fields(config):
        default = spec.default_factory() if spec.default_factory is not MISSING else spec.default
        if spec.name not in _OF_ONE_RUN and getattr(config, spec.name) != default:
            value = plain[spec.name]
            kept[spec.name] = str(value) if isinstance(value, Path) else value
    return kept
