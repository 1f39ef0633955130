"""Make the picture and the table of README.md from stored measurements: ``python tools/make_figures.py [--measure]``.

Over 250 lines: one figure after the other, none of which another file needs.

``traces/step-memory.json`` holds what runs took and what was planned for them; ``docs/step-memory.svg`` and the table
between two marks of README.md show it, and tests hold that they do. ``--measure`` runs anew: leave the machine idle for
a few minutes, look at the difference, and commit all of them.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from memsim.files import write_text
from memsim.json_decode import decode
from memsim.json_file import read_object
from memsim.reports.charts import text, ticks
from memsim.reports.run_files import open_run
from memsim.runtime.capped_run import run
from memsim.runtime.config import RunConfig
from memsim.runtime.run_progress import RunProgress

ROOT = Path(__file__).parent.parent
DATA = ROOT / "traces" / "step-memory.json"
PICTURE = ROOT / "docs" / "step-memory.svg"
README = ROOT / "README.md"
MARKS = ("<!-- table: python tools/make_figures.py -->", "<!-- end of the table -->")

RUNS = (("tiled", "auto"), ("tiled", "f32"), ("mebp", "auto"), ("backprop", "auto"))
DOES = {
    "tiled": "MeBP with token-tiled MLP, one-pass head without logits, adapters paged and updated block by block",
    "mebp": "as published: block inputs on disk, weights unpacked to f32, all logits",
    "backprop": "keeps every activation",
}
STEPS = 4
BUDGET_BYTES = 10**9
COLUMNS = 240
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """Memory over the median step of one run, and what the whole run took.

    Attributes:
        seq_len: Tokens.
        baseline_bytes: Interpreter, libraries and kernels, measured before any weight.
        planned_footprint_bytes: Of the whole process at its peak, said before the run.
        peak_footprint_bytes: The highest that the kernel counted.
        step_s: The median step.
        planned_bytes: Baseline and what is live: the most in each of as many equal stretches of that step.
        footprint_bytes: The most that was counted in each stretch.
    """

    model: str
    schedule: str
    compute: str
    seq_len: int
    budget_bytes: int
    baseline_bytes: int
    planned_footprint_bytes: int
    peak_footprint_bytes: int
    peak_working_set_bytes: int
    step_s: float
    planned_bytes: tuple[int, ...]
    footprint_bytes: tuple[int, ...]

    @property
    def error(self) -> float:
        """How far the plan was off, as a share of the measured peak."""
        return self.planned_footprint_bytes / self.peak_footprint_bytes - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What ``traces/step-memory.json`` holds.

    Attributes:
        cpu: Of the machine that measured.
        versions: Of what ran.
    """

    cpu: str
    versions: dict[str, str]
    runs: tuple[StepMemory, ...]


def read_measured(path: Path = DATA) -> Measured:
    """Read what was measured.

    Raises:
        InputError: The file cannot be read or is damaged.
    """
    return decode(Measured, read_object(path, _MAX_BYTES), str(path))


def step_memory(directory: Path) -> StepMemory:
    """Return the memory of a finished run, from its files."""
    files = open_run(directory)
    result, live = files.result, files.plan.live_bytes
    baseline = result.baseline_footprint_bytes or 0
    events = list(files.events(files.timed_step))
    first_s, last = events[0].start_s, events[-1]
    seconds = last.start_s + last.seconds - first_s
    planned, footprint = [0] * COLUMNS, [0] * COLUMNS
    for event in events:
        ends_s = event.start_s + event.seconds - first_s
        first, stop = (min(int(at / seconds * COLUMNS), COLUMNS - 1) for at in (event.start_s - first_s, ends_s))
        for column in range(first, stop + 1):
            planned[column] = max(planned[column], baseline + int(live[event.node]))
        footprint[stop] = max(footprint[stop], event.footprint_bytes or 0)
    for before, column in pairwise(range(COLUMNS)):
        footprint[column] = footprint[column] or footprint[before]
    return StepMemory(
        model=result.model,
        schedule=result.schedule or "",
        compute=result.compute or "",
        seq_len=result.seq_len or 0,
        budget_bytes=result.budget_bytes or 0,
        baseline_bytes=baseline,
        planned_footprint_bytes=result.planned_footprint_bytes or 0,
        peak_footprint_bytes=result.peak_footprint_bytes or 0,
        peak_working_set_bytes=result.peak_working_set_bytes or 0,
        step_s=round(result.step_s or 0.0, 3),
        planned_bytes=tuple(planned),
        footprint_bytes=tuple(footprint),
    )


def measure() -> Measured:
    """Run every schedule of the table, really capped."""
    runs = []
    # Not /tmp, which is often in memory: memsim refuses to spill there.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        for number, (schedule, compute) in enumerate(RUNS):
            out = Path(directory) / str(number)
            config = RunConfig(budget_bytes=BUDGET_BYTES, schedule=schedule, compute=compute, steps=STEPS, out=out)
            done = run(config, RunProgress())
            runs.append(step_memory(out))
            print(f"{schedule} {runs[-1].compute}: {done.result.peak_footprint_bytes} bytes, {done.result.step_s} s")
    host = done.result.host
    return Measured(cpu=host.cpu if host else "", versions=dict(done.result.versions), runs=tuple(runs))


def table(measured: Measured) -> str:
    """Return the table of README.md."""
    lines = [
        "| schedule | what a step does | peak footprint | planned | off by | working set | step |",
        "|---|---|---|---|---|---|---|",
    ]
    best = {run.schedule: run.compute for run in reversed(measured.runs)}
    for one in measured.runs:
        main = one.compute == best[one.schedule]
        name = f"`{one.schedule}`" if main else f"`{one.schedule} --compute {one.compute}`"
        does = DOES[one.schedule] if main else f"the same in {one.compute}"
        peak, planned, working = (
            f"{n / 1e6:.1f} MB"
            for n in (one.peak_footprint_bytes, one.planned_footprint_bytes, one.peak_working_set_bytes)
        )
        lines.append(
            f"| {name} | {does} | {peak} | {planned} | {one.error:+.1%} | {working} "
            f"| {one.step_s:.2f} s ({one.compute}) |"
        )
    return "\n".join(lines)


_STYLE = (
    ":root{--ground:#fcfcfb;--ink:#1d2126;--soft:#5d6670;--rule:#dfe3e6;--c0:#2563b8;--c1:#d1781e;--c2:#2e8b62;--c3:#b8403a}"
    "@media(prefers-color-scheme:dark){:root{--ground:#15181c;--ink:#e6e8ea;--soft:#a0a9b2;--rule:#333a41;"
    "--c0:#6ea8f5;--c1:#f0a04b;--c2:#5cc596;--c3:#f0766f}}"
    "text{font:13px system-ui,sans-serif;fill:var(--soft)}.title{font-size:15px;fill:var(--ink)}.bold{font-weight:600;"
    "paint-order:stroke;stroke:var(--ground);stroke-width:4px;stroke-linejoin:round}"
    "path{fill:none;stroke-width:2}.grid{stroke:var(--rule);stroke-width:1}"
    ".cap{stroke:var(--c3)}.measured{stroke-dasharray:2 3}"
    + "".join(
        f".c{n}{{stroke:var(--c{n})}}.f{n}{{fill:var(--c{n});opacity:.16}}.t{n}{{fill:var(--c{n})}}" for n in range(4)
    )
)
_WIDTH, _HEIGHT = 860, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 82, 14, 60, 38
_TOP_BYTES = 1.08e9


def picture(measured: Measured) -> str:
    """Return the picture: memory over a step of each schedule, planned and measured, under the cap.

    Args:
        measured: Of each schedule the first run is drawn.
    """
    firsts = {one.schedule: one for one in reversed(measured.runs)}
    drawn = sorted(firsts.values(), key=lambda one: -one.peak_footprint_bytes)
    longest_s = max(one.step_s for one in drawn) * 1.04

    def at_x(seconds: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * seconds / longest_s

    def at_y(n_bytes: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * n_bytes / _TOP_BYTES

    parts = [_frame(drawn[0], longest_s, at_x, at_y)]
    for number, one in enumerate(drawn):
        edges = [at_x(one.step_s * column / COLUMNS) for column in range(COLUMNS + 1)]
        line = _stairs(edges, [at_y(n) for n in one.planned_bytes])
        parts.append(f'<path class="f{number}" d="{line}V{at_y(0):.1f}H{edges[0]:.1f}Z"/>')
        parts.append(f'<path class="c{number}" d="{line}"/>')
        parts.append(f'<path class="c{number} measured" d="{_stairs(edges, [at_y(n) for n in one.footprint_bytes])}"/>')
        label = (
            f"{one.schedule}: {one.peak_footprint_bytes / 1e6:.0f} MB (planned "
            f"{one.planned_footprint_bytes / 1e6:.0f}), {one.step_s:.1f} s"
        )
        y = at_y(max(one.peak_footprint_bytes, one.planned_footprint_bytes)) - 7
        parts.append(f'<text class="t{number} bold" x="{at_x(0) + 8:.1f}" y="{y:.1f}">{text(label)}</text>')
    title = f"Memory of one training step, {drawn[0].model}, {drawn[0].seq_len} tokens"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" aria-label="{text(title)}"><style>{_STYLE}</style>\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="6" style="fill:var(--ground)"/>\n'
        f'<text class="title bold" x="14" y="24">{text(title)}</text>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _stairs(edges: Sequence[float], heights: Sequence[float]) -> str:
    """Return a path that holds each height from its edge to the next one."""
    path, before = f"M{edges[0]:.1f} {heights[0]:.1f}", f"{heights[0]:.1f}"
    for left, height in zip(edges[1:-1], heights[1:], strict=True):
        if f"{height:.1f}" != before:
            before = f"{height:.1f}"
            path += f"H{left:.1f}V{before}"
    return f"{path}H{edges[-1]:.1f}"


def _frame(one: StepMemory, longest_s: float, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> str:
    """Return axes, the cap, and what the lines mean."""
    right, bottom = _WIDTH - _RIGHT, at_y(0)
    parts = [
        f'<text x="14" y="45">solid: planned before the run; dotted: counted by the kernel in a capped process, of '
        f"which {one.baseline_bytes / 1e6:.0f} MB are Python itself</text>"
    ]
    for n_bytes in ticks(0.0, _TOP_BYTES, 6):
        y = at_y(n_bytes)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{n_bytes / 1e6:,.0f} MB</text>')
    for seconds in ticks(0.0, longest_s * 0.98, 8):
        x = at_x(seconds)
        parts.append(f'<path class="grid" d="M{x:.1f} {bottom:.1f}v5"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20:.1f}" text-anchor="middle">{seconds:g} s</text>')
    cap = at_y(one.budget_bytes)
    parts.append(f'<path class="cap" stroke-dasharray="8 5" d="M{_LEFT} {cap:.1f}H{right}"/>')
    parts.append(
        f'<text class="t3 bold" x="{right}" y="{cap + 17:.1f}" text-anchor="end">the cap: memsim run --budget '
        f"{one.budget_bytes / 1e9:g}GB</text>"
    )
    return "\n".join(parts)


def with_table(readme: str, rows: str) -> str:
    """Return README.md with ``rows`` between its marks."""
    before, begin, rest = readme.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (begin and end):
        raise SystemExit(f"README.md has no lines {MARKS[0]!r} and {MARKS[1]!r}")
    return f"{before}{begin}\n{rows}\n{end}{after}"


def main() -> None:
    """Write the picture and the table; with ``--measure`` run what they show before."""
    parser = argparse.ArgumentParser(description="Make the picture and the table of README.md.")
    parser.add_argument("--measure", action="store_true", help="run every schedule anew; the machine should be idle")
    if parser.parse_args().measure:
        write_text(DATA, json.dumps(asdict(measure())) + "\n")
    measured = read_measured()
    write_text(PICTURE, picture(measured))
    write_text(README, with_table(README.read_text(), table(measured)))


if __name__ == "__main__":
    main()
