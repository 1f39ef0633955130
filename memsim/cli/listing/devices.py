"""``memsim devices``: what the simulator knows of each device, and from where."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from memsim.cap.processors import available_threads
from memsim.cli import complete
from memsim.cli.json_option import json_option
from memsim.cli.options import compute_option, number_option
from memsim.cli.progress import stage
from memsim.cli.say import say
from memsim.errors import UsageError
from memsim.result_file import emit_json
from memsim.simulator.device import Device, Quantity
from memsim.simulator.device_file import HOST, add_device, added, built_in, find_device, format_device, host_file


@click.group(name="devices", invoke_without_command=True)
@json_option("the list")
@click.pass_context
def command(context: click.Context, json_path: str | None) -> None:
    """List the devices of `memsim simulate`, show one with its sources, or measure this machine."""
    if context.invoked_subcommand is not None:
        return
    names = [*built_in(), *added()]
    devices = [find_device(name) for name in names]
    if json_path is not None:
        rows = [{"name": item.name, "title": item.title, "rule": item.rule} for item in devices]
        emit_json({"command": "devices", "devices": rows}, json_path)
    if json_path != "-":
        width = max(len(item.name) for item in devices)
        for item in devices:
            say(f"{item.name:<{width}}  {item.title}")
        if HOST not in names:
            say(f"{HOST:<{width}}  this machine, not measured yet: `memsim devices calibrate`")


@command.command(name="show")
@click.argument("name", metavar="NAME|FILE", shell_complete=complete.devices)
@click.option("--toml", "as_toml", is_flag=True, help="Print the device's file, to start one of your own from.")
@json_option("the device")
def show(name: str, as_toml: bool, json_path: str | None) -> None:
    """Show every number of a device: low, nominal, high, unit, confidence and source."""
    device = find_device(name)
    if as_toml:
        click.echo(format_device(device), nl=False)
        return
    if json_path is not None:
        emit_json({"command": "devices show", **_plain(device)}, json_path)
    if json_path != "-":
        say(*_table(device))


@command.command(name="add")
@click.argument("path", type=click.Path(path_type=Path), metavar="FILE.toml")
@json_option("the device")
def add(path: Path, json_path: str | None) -> None:
    """Check a device file and keep it under its name, for --device NAME."""
    device = add_device(path)
    if json_path is not None:
        emit_json({"command": "devices add", **_plain(device)}, json_path)
    if json_path != "-":
        say(f"{device.name}: {device.title}")


def _plain(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "title": device.title,
        "rule": device.rule,
        "numbers": {key: dataclasses.asdict(quantity) for key, quantity in device.numbers.items()},
        "sources": {key: dataclasses.asdict(source) for key, source in device.sources.items()},
    }


def _table(device: Device) -> list[str]:
    def row(name: str, quantity: Quantity) -> str:
        values = "".join(f"{value:>12.6g}" for value in (quantity.low, quantity.nominal, quantity.high))
        return f"{name:<28}{values}  {quantity.unit:<9} {quantity.confidence}  {quantity.source}"

    lines = [f"{device.title}; footprint counted as on {device.rule}", ""]
    lines.append(f"{'':<28}{'low':>12}{'nominal':>12}{'high':>12}  {'unit':<9} confidence and source")
    lines += [row(name, quantity) for name, quantity in device.numbers.items()]
    lines.append("")
    for key, source in device.sources.items():
        lines.append(f"{key} ({source.date}): {source.what}" + (f" <{source.url}>" if source.url else ""))
    return lines


@command.command(name="calibrate", context_settings={"show_default": True})
@number_option("--threads", 0, "Kernel threads; 0 takes every processor.")
@compute_option("Products with packed weights in f32 or bf16; auto takes the faster.")
@json_option("the device")
def calibrate(threads: int, compute: str, json_path: str | None) -> None:
    """Measure this machine as the device `host`, in under two minutes; leave it idle meanwhile."""
    from memsim.calibration.calibrate import calibrate as measure

    available = available_threads()
    if not 0 <= threads <= available:
        raise UsageError(f"--threads {threads} must be from 0 to the {available} processors of this machine")
    device = measure(threads or available, compute, stage)
    if json_path is not None:
        emit_json({"command": "devices calibrate", **_plain(device)}, json_path)
    if json_path != "-":
        say(*_table(device))
        say(f"kept as {HOST}: {host_file()}")
