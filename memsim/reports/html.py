"""``memsim report``: runs side by side as one HTML file."""

from collections.abc import Callable, Sequence

from memsim.reports.charts import COLOURS, Line, datum, line_chart, table, text, thin, ticks
from memsim.reports.device_sections import decompression, devices
from memsim.reports.page import page
from memsim.reports.run_files import RunFiles
from memsim.reports.run_sections import layers, memory, ops
from memsim.reports.verdicts import Verdict
from memsim.results import Result
from memsim.simulator.unpack_share import UnpackShare
from memsim.units import format_bytes


def report(runs: Sequence[RunFiles], found: Sequence[Verdict], shares: Sequence[UnpackShare]) -> str:
    """Return the report of at least one run as a whole HTML file.

    Args:
        runs: Side by side, in this order.
        found: Verdicts of devices, possibly none.
        shares: A profile of decompression, possibly none.

    Raises:
        InputError: A run's files are damaged.
    """
    names = ", ".join(run.name for run in runs)
    return page(
        f"memsim: {names}",
        "Measured in a capped process on the machine named below; what is planned or simulated says so.",
        [
            ("Overview", _overview(runs)),
            ("Settings", _settings(runs)),
            ("Memory over the step with the peak", _side(runs, memory)),
            ("Time by op, median step", _side(runs, ops)),
            ("Time by part of the model, median step", _side(runs, layers)),
            ("Loss", _losses(runs)),
            ("What decompression costs", decompression(shares)),
            ("On devices (simulated)", devices(found)),
        ],
        _footer(runs),
    )


def _side(runs: Sequence[RunFiles], show: Callable[[RunFiles], str]) -> str:
    cards = "".join(f"<div><h3>{text(run.name)}</h3>{show(run)}</div>" for run in runs)
    return f'<div class="side">{cards}</div>'


def _overview(runs: Sequence[RunFiles]) -> str:
    rows: list[tuple[str, Callable[[RunFiles], str]]] = [
        ("model", lambda run: text(run.result.model)),
        ("schedule", lambda run: text(run.result.schedule)),
        ("sequence", lambda run: text(f"{run.result.seq_len} tokens, {run.result.trained}")),
        ("compute", lambda run: text(f"{run.result.compute}, {run.result.threads} threads")),
        ("weights", lambda run: text(_weights(run.result))),
        ("ended", lambda run: _ended(run.result)),
        ("cap", lambda run: f"{_size(run, 'budget_bytes')} ({text(run.result.enforcement)})"),
        ("peak footprint", lambda run: _size(run, "peak_footprint_bytes")),
        ("planned", lambda run: _size(run, "planned_footprint_bytes")),
        ("baseline", lambda run: _size(run, "baseline_footprint_bytes")),
        ("working set", lambda run: _size(run, "peak_working_set_bytes")),
        ("file floor", lambda run: _size(run, "file_floor_bytes")),
        ("step, median", lambda run: _step_time(run.result)),
        ("loss", lambda run: _first_to_last(run.result)),
    ]
    head = "".join(f'<th scope="col">{text(run.name)}</th>' for run in runs)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{show(run)}</td>" for run in runs)}</tr>' for name, show in rows
    )
    return table(f"<td></td>{head}", body)


def _settings(runs: Sequence[RunFiles]) -> str:
    """Return what each run was asked for, a row a setting; nothing if no record holds it."""
    asked = [run.result.request.rows() if run.result.request else {} for run in runs]
    names = list(dict.fromkeys(name for rows in asked for name in rows))
    if not names:
        return ""
    head = "".join(f'<th scope="col">{text(run.name)}</th>' for run in runs)
    cells = {name: "".join(f"<td>{text(rows.get(name, '-'))}</td>" for rows in asked) for name in names}
    body = "".join(f'<tr><th scope="row">{text(name)}</th>{row}</tr>' for name, row in cells.items())
    return f"<details><summary>every setting, file and command</summary>{table(f'<td></td>{head}', body)}</details>"


def _size(run: RunFiles, field: str) -> str:
    n_bytes = getattr(run.result, field)
    return "unknown" if n_bytes is None else datum(field, n_bytes, format_bytes(n_bytes, run.decimal))


def _weights(result: Result) -> str:
    return "synthetic: the loss means nothing" if result.weights == "synthetic" else str(result.weights)


def _ended(result: Result) -> str:
    return f'<span class="{"good" if result.fits else "bad"}">{text(result.exit_reason)}</span>'


def _step_time(result: Result) -> str:
    if result.step_s is None:
        return "no step was finished"
    return f"{datum('step_s', result.step_s, f'{result.step_s:.2f} s')} of {len(result.steps)}"


def _first_to_last(result: Result) -> str:
    losses = [step.loss for step in result.steps if step.loss is not None]
    if not losses:
        return "unknown"
    first, last = (datum("loss", loss, f"{loss:.4f}") for loss in (losses[0], losses[-1]))
    return f"{first} to {last}" if len(losses) > 1 else first


def _losses(runs: Sequence[RunFiles]) -> str:
    lines = []
    for index, run in enumerate(runs):
        points = [(float(at), step.loss) for at, step in enumerate(run.result.steps, 1) if step.loss is not None]
        if points:
            label = run.name + (", synthetic weights" if run.result.weights == "synthetic" else "")
            lines.append(Line(label, COLOURS[index % len(COLOURS)], thin(points)))
        scores = [(float(item.step), item.loss) for item in run.result.evals if item.loss is not None]
        if scores:
            lines.append(Line(f"{run.name}, evaluation", COLOURS[(index + 3) % len(COLOURS)], thin(scores)))
    if not lines:
        return ""
    lowest = min(y for line in lines for _, y in line.points)
    highest = max(y for line in lines for _, y in line.points)
    first, last = (choose(x for line in lines for x, _ in line.points) for choose in (min, max))
    whole = [(x, x) for x in ticks(first, last) if x == int(x)]
    title = "mean loss of each step's tokens, in nats, by step"
    low = max(0.0, lowest - 0.1 * (highest - lowest)) if highest > lowest else 0.0
    return line_chart(title, lines, lambda x: f"{x:g}", lambda y: f"{y:.4g}", y_low=low, x_ticks=whole)


def _footer(runs: Sequence[RunFiles]) -> str:
    """Return the machines and versions that measured, each once."""
    seen: dict[str, None] = {}
    for run in runs:
        host, versions = run.result.host, run.result.versions
        where = f"{host.cpu}, {host.cores} cores, {format_bytes(host.ram_bytes)} of RAM, kernel {host.kernel}"
        seen[f"{where}; {', '.join(f'{name} {version}' for name, version in versions.items())}"] = None
    return "".join(f"<p>Measured on {text(line)}.</p>" for line in seen)
