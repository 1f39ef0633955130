"""``run.json``: the settings of a run, what its bits depend on besides, and where it came from."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from memsim.errors import InputError
from memsim.files import write_text
from memsim.json_decode import decode
from memsim.json_file import read_object, shown
from memsim.reading import open_regular
from memsim.results import TokenizerResult

SCHEMA: Final = "memsim.run/1"
RUN_FILE = "run.json"
_MAX_BYTES = 1 << 20

T = TypeVar("T", bound=object)
U = TypeVar("U", bound=object)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What decides the bits of a run, its settings aside.

    Attributes:
        model_hash: Of the weights.
        texts: SHA-256 of each file of token ids.
        tokenizer: What made them; None in runs of before.
        program: SHA-256 of the step program with its places.
        compute: The compute path of the products.
        cpu: The processor, which decides which kernels there are.
        kernels: Digest of the kernels' sources.
        versions: Of memsim, numpy, numba and llvmlite.
    """

    model_hash: str
    texts: dict[str, str]
    program: str
    threads: int
    compute: str
    cpu: str
    kernels: str
    versions: dict[str, str]
    tokenizer: TokenizerResult | None = None

    def differences(self, now: "Identity") -> list[str]:
        """Return one phrase for each field in which ``now`` is another."""
        phrases = []
        for spec in fields(self):
            before, after = getattr(self, spec.name), getattr(now, spec.name)
            if before == after:
                continue
            if isinstance(before, TokenizerResult) and isinstance(after, TokenizerResult):
                before, after = asdict(before), asdict(after)
            if isinstance(before, dict):
                keys = [key for key in before | after if before.get(key) != after.get(key)]
                phrases += [f"{key} {_short(before.get(key))} before, now {_short(after.get(key))}" for key in keys]
            else:
                phrases.append(f"{spec.name} {_short(before)} before, now {_short(after)}")
        return phrases


def _short(value: object) -> str:
    text = "missing" if value is None else str(value)
    return shown(text[:12] if len(text) == 64 else text).strip("'\"")


def write_run_file(directory: Path, config: Any, identity: Identity, origin: Any) -> None:
    """Write the settings ``config`` and ``origin`` (dataclasses) and ``identity`` to ``directory``.

    Raises:
        InputError: The directory cannot be written, or the disk is full.
    """
    data = {"schema": SCHEMA, "settings": asdict(config), "identity": asdict(identity), "origin": asdict(origin)}
    write_text(directory / RUN_FILE, json.dumps(data, indent=2, default=str) + "\n")


def read_run_file(directory: Path, kind: type[T], origin_kind: type[U]) -> tuple[T, Identity, U]:
    """Read settings of ``kind``, the identity and the origin, untrusted.

    Raises:
        InputError: There is none, or it is damaged or of another version.
    """
    path = directory / RUN_FILE
    if not path.is_file():
        raise InputError(f"{directory.parent} holds no run that could go on: there is no {path.name} in {directory}")
    data = read_object(path, _MAX_BYTES)
    if data.get("schema") != SCHEMA:
        raise InputError(f"{path} has schema {shown(data.get('schema'))}; this memsim reads {SCHEMA!r}")
    settings = decode(kind, data.get("settings"), f"{path}: settings")
    identity = decode(Identity, data.get("identity"), f"{path}: identity")
    return settings, identity, decode(origin_kind, data.get("origin"), f"{path}: origin")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
