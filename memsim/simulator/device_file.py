"""Device files: TOML, untrusted, the same format for those that come with memsim and for a user's own.

::

    schema = "memsim.device/1"
    title = "iPhone 15 Pro Max (A17 Pro, 8 GB)"
    rule = "ios"

    [numbers]
    op_launch_s = { low = 2e-6, nominal = 5e-6, high = 2e-5, unit = "s", source = "assumed", confidence = "L" }

    [sources.assumed]
    what = "..."
    date = "2026-11"
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from memsim.errors import InputError
from memsim.files import cache_dir, write_text
from memsim.json_decode import decode
from memsim.json_file import shown
from memsim.simulator.device import UNITS, Device, Quantity, Rule, Source
from memsim.toml_file import read_toml

SCHEMA: Final = "memsim.device/1"
HOST: Final = "host"
"""The device that ``memsim devices calibrate`` measures; its file is in the user's cache."""

_MAX_BYTES = 1 << 20
_DIRECTORY = Path(__file__).parent.parent / "devices"
_DATE = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SMALLEST_PAGE_BYTES = 4096
_FRACTIONS = ("warning_fraction", "flash_hot_multiplier", "thermal_floor")
_MAY_BE_ZERO = ("op_launch_s", "fault_s", "flash_latency_s", "system_bytes", "thermal_hold_s", "thermal_ramp_s")


@dataclass(frozen=True, slots=True)
class _Head:
    """What is neither a number nor a source."""

    title: str
    rule: Rule


def built_in() -> list[str]:
    """Return the names of the devices that come with memsim."""
    return sorted(path.stem for path in _DIRECTORY.glob("*.toml"))


def host_file() -> Path:
    """Return where the measured ``host`` is kept.

    Raises:
        InputError: There can be no cache directory.
    """
    return cache_dir(writable=False) / "devices" / f"{HOST}.toml"


def added() -> list[str]:
    """Return the names of the devices in the user's cache: those added, and ``host`` once it is measured."""
    try:
        return sorted(path.stem for path in host_file().parent.glob("*.toml"))
    except InputError:  # a user without a cache has added nothing
        return []


def add_device(path: Path) -> Device:
    """Check a device file and keep a copy in the user's cache, where its name finds it.

    Raises:
        InputError: The file breaks a rule of the format, or its name is taken by a device that comes with memsim.
    """
    device = read_device(path)
    if device.name in built_in() or device.name == HOST or not _NAME.fullmatch(device.name):
        raise InputError(
            f"{path}: a device cannot be called {shown(device.name)}; rename the file, such as my-phone.toml"
        )
    (cache_dir() / "devices").mkdir(exist_ok=True)
    write_text(host_file().parent / f"{device.name}.toml", format_device(device))
    return device


def find_device(name: str) -> Device:
    """Return the device that ``--device name`` means: one that comes with memsim, ``host``, an added one, or a file.

    Raises:
        InputError: No such device or file, or a file that breaks a rule of the format; the message says which.
    """
    if name in built_in():
        return read_device(_DIRECTORY / f"{name}.toml")
    if name == HOST:
        if not host_file().is_file():
            raise InputError("the host was not measured yet; run `memsim devices calibrate`, which takes two minutes")
        return read_device(host_file())
    if name.endswith(".toml"):
        return read_device(Path(name))
    if name in added():
        return read_device(host_file().parent / f"{name}.toml")
    known = ", ".join(dict.fromkeys([*built_in(), HOST, *added()]))
    raise InputError(f"no device called {shown(name)}; devices: {known}; or the path of a .toml file")


def read_device(path: Path) -> Device:
    """Read and check a device file.

    Raises:
        InputError: It cannot be read, is no TOML, or breaks a rule of the format.
    """
    return parse_device(read_toml(path, _MAX_BYTES, "a device file"), path.stem, str(path))


def parse_device(plain: Mapping[str, Any], name: str, where: str) -> Device:
    """Check what a device file holds.

    Args:
        plain: The parsed TOML.
        name: What the device is called.
        where: What error messages call its file.

    Raises:
        InputError: Another schema, a field that is missing, unknown or of the wrong type, a number outside its range
            or in another unit, or a source that is not there.
    """
    if plain.get("schema") != SCHEMA:
        raise InputError(f"{where} has schema {shown(plain.get('schema'))}; this memsim reads {SCHEMA!r}")
    tables = {key: plain.get(key, {}) for key in ("numbers", "sources")}
    for key, table in tables.items():
        if not isinstance(table, dict):
            raise InputError(f"{where}: {key} must be a table, not {shown(table)}")
    sources = {key: decode(Source, item, f"{where}: sources.{key}") for key, item in tables["sources"].items()}
    numbers = {key: decode(Quantity, item, f"{where}: {key}") for key, item in tables["numbers"].items()}
    unknown, missing = sorted(set(numbers) - set(UNITS)), sorted(set(UNITS) - set(numbers))
    if unknown or missing:
        problem = f"an unknown number {unknown[0]!r}" if unknown else f"no number {missing[0]!r} ({UNITS[missing[0]]})"
        raise InputError(f"{where} has {problem}; see `memsim devices show` for the format")
    for key, source in sources.items():
        if not source.what or not _DATE.fullmatch(source.date):
            raise InputError(
                f"{where}: sources.{key} needs `what` and a `date` such as 2026-11, not {shown(source.date)}"
            )
    for key, quantity in numbers.items():
        _check(key, quantity, sources, f"{where}: {key}")
    sizes = [
        _SMALLEST_PAGE_BYTES,
        *(numbers[f"{name}_bytes"].nominal for name in ("page", "cluster_min", "cluster_max")),
    ]
    if sizes != sorted(sizes):
        raise InputError(
            f"{where} must have {_SMALLEST_PAGE_BYTES} <= page_bytes <= cluster_min_bytes <= cluster_max_bytes"
        )
    rest = {key: value for key, value in plain.items() if key not in ("schema", "numbers", "sources")}
    head = decode(_Head, rest, where)
    return Device(name, head.title, head.rule, {key: numbers[key] for key in UNITS}, sources)


def _check(key: str, quantity: Quantity, sources: Mapping[str, Source], where: str) -> None:
    if quantity.unit != UNITS[key]:
        raise InputError(f"{where} must be in {UNITS[key]}, not {shown(quantity.unit)}")
    if not quantity.low <= quantity.nominal <= quantity.high:
        raise InputError(f"{where} must have low <= nominal <= high")
    lowest_ok = quantity.low >= 0 if key in _MAY_BE_ZERO else quantity.low > 0
    if not lowest_ok or quantity.high > 1e18 or (key in _FRACTIONS and quantity.high > 1):
        limit = "at most 1" if key in _FRACTIONS else "at most 1e18"
        raise InputError(f"{where} must be {'0 or more' if key in _MAY_BE_ZERO else 'above 0'} and {limit}")
    if quantity.source not in sources:
        raise InputError(f"{where} names the source {shown(quantity.source)}, which is not under [sources]")


def format_device(device: Device) -> str:
    """Return a device file's text: what ``read_device`` reads back as the same device."""
    lines = [f'schema = "{SCHEMA}"', f"title = {_text(device.title)}", f"rule = {_text(device.rule)}", "", "[numbers]"]
    for name, quantity in device.numbers.items():
        triple = ", ".join(f"{end} = {_shortest(getattr(quantity, end))}" for end in ("low", "nominal", "high"))
        origin = f'unit = "{quantity.unit}", source = {_text(quantity.source)}, confidence = "{quantity.confidence}"'
        lines.append(f"{name} = {{ {triple}, {origin} }}")
    for key, source in device.sources.items():
        lines += ["", f"[sources.{_text(key)}]", f"what = {_text(source.what)}", f"date = {_text(source.date)}"]
        lines += [f"url = {_text(source.url)}"] if source.url else []
    return "\n".join(lines) + "\n"


def _shortest(number: float) -> str:
    """Return the shortest TOML number that reads back as ``number``."""
    mantissa, exponent = f"{number:.15e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    forms = [repr(number), f"{mantissa}e{int(exponent)}"]
    forms += [str(int(number))] if number == int(number) else []
    return min((form for form in forms if float(form) == number), key=len)


def _text(text: str) -> str:
    """Return a TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
