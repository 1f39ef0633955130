"""The packs that memsim keeps in the user's cache, and how ``--model`` finds one.

Each is built once, under a lock, in a staging directory: two commands at once share the work, and a killed one leaves
nothing that the next does not clean up.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from memsim.errors import InputError
from memsim.files import cache_dir
from memsim.json_file import read_foreign
from memsim.models.config import ModelConfig
from memsim.models.config_file import config_from_dict
from memsim.models.matrix_formats import Packing, describe
from memsim.models.presets import PRESETS, preset
from memsim.progress_types import BytesProgress
from memsim.staged_directory import discard, locked
from memsim.weights.pack import Pack, is_pack, open_pack
from memsim.weights.packing import write_packed
from memsim.weights.readers.formats import is_source, open_source, source_files
from memsim.weights.readers.hub import fetch, is_hub_id
from memsim.weights.readers.hugging_face import MAX_CONFIG_BYTES
from memsim.weights.recipe import Recipe
from memsim.weights.registry_models import MODELS, is_registry_model, registry_model
from memsim.weights.shipped import PACKS
from memsim.weights.synthetic import GENERATOR_VERSION, write_synthetic
from memsim.weights.what_it_is import what_it_is

DEFAULT_GROUP_SIZE = 32

_PACKER_VERSION = 5  # raise it when the same checkpoint packs to other bytes


def cached_synthetic(name: str, config: ModelConfig, packing: Packing, seed: int, progress: BytesProgress) -> Pack:
    """Return the synthetic pack of a model, written to the cache on first use.

    Args:
        name: What its directory in the cache starts with.
        config: Dimensions.
        packing: The formats of its matrices.
        seed: Of the weights.
        progress: Called with (label, bytes done, bytes in all); a total of 0 while waiting for another process.

    Raises:
        InputError: The cache cannot be written, or its disk is too small (checked first).
    """
    identity = json.dumps([GENERATOR_VERSION, config.to_dict(), describe(packing), seed])
    directory = _packs_dir() / f"{_slug(name)}-synthetic-{_digest(identity)}"
    return _built_once(directory, progress, lambda: write_synthetic(directory, config, packing, seed, progress))


def find_model(name: str, progress: BytesProgress, group_size: int | None = None, seed: int = 0) -> tuple[Pack, str]:
    """Return the pack that ``--model name`` means, and the model's name for people and records.

    A preset gives its synthetic weights, or those that memsim ships; a model of the package registry is the file that
    `memsim models get` put into the cache; a pack directory is opened; a Hugging Face or MLX
    directory or a GGUF file is packed into the cache, once for each state of its files; a ``config.json`` gives
    synthetic weights of its shapes; what is none of these is looked for on the Hugging Face hub.

    Args:
        name: A preset, a path (``./NAME`` if it is called like a preset), or a hub id (``owner/model``).
        progress: As for ``cached_synthetic``.
        group_size: Of symmetric INT4; None takes what a pack or a quantised checkpoint has, and 32 otherwise.
        seed: Of synthetic weights.

    Raises:
        InputError: No such model (the message lists the presets), or its files cannot be used.
    """
    if name.lower() in PACKS:
        return _open_path(PACKS[name.lower()], progress, group_size, seed), name.lower()
    if name.lower() in PRESETS:
        pack = cached_synthetic(name.lower(), preset(name), group_size or DEFAULT_GROUP_SIZE, seed, progress)
        return pack, name.lower()
    try:
        path = local_source(name, progress)
        pack = _open_path(path, progress, group_size, seed)
        return pack, path.stem if path.suffix == ".json" else Path(name).absolute().name
    except OSError as error:  # of asking whether a file is there: no permission, a name that is too long
        raise InputError(f"cannot read model {name!r}: {error.strerror or error}") from error


def checkpoint_of(name: str) -> Path | None:
    """Return the checkpoint that ``--model name`` is packed from; None for a pack, or synthetic weights.

    Raises:
        InputError: ``name`` could be a hub id, but cannot be fetched.
    """
    if name.lower() in PACKS or name.lower() in PRESETS:
        return None
    path = local_source(name, lambda *_: None)
    return path if is_source(path) and not is_pack(path) else None


def identifier(name: str) -> str:
    """Return what ``--model name`` means in every directory: an absolute path, or a word that is none, as given.

    Raises:
        InputError: It cannot be asked whether a file of that name is there.
    """
    if name.lower() in PACKS or name.lower() in PRESETS or is_registry_model(name):
        return name.lower()
    try:
        path = Path(name).absolute()
        nowhere = not path.exists() and (is_hub_id(name) or path.name == name)  # or it is a name that nothing has
        return name if nowhere else str(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read model {name!r}: {getattr(error, 'strerror', None) or error}") from error


def local_source(name: str, progress: BytesProgress) -> Path:
    """Return the absolute path that ``name`` means: a model that was fetched, a path, or what the hub has.

    Raises:
        InputError: ``name`` could be a hub id, but cannot be fetched, or is to be fetched by its own command.
    """
    if is_registry_model(name):
        return registry_model(name)
    path = Path(name).absolute()
    return fetch(name, progress) if is_hub_id(name) and not path.exists() else path


def _open_path(path: Path, progress: BytesProgress, group_size: int | None, seed: int) -> Pack:
    if path.suffix == ".json" and path.is_file():
        config = config_from_dict(read_foreign(path, MAX_CONFIG_BYTES), str(path))
        return cached_synthetic(path.stem, config, group_size or DEFAULT_GROUP_SIZE, seed, progress)
    if is_pack(path):
        pack = open_pack(path)
        if group_size not in (None, pack.group_size):
            raise InputError(f"{path} is packed in groups of {pack.group_size}, not {group_size}; pack it again")
        return pack
    if is_source(path):
        return _cached_checkpoint(path, Recipe(group_size=group_size), progress)
    if found := what_it_is(path):
        raise InputError(found)
    problem = (
        "is neither a pack nor a Hugging Face directory" if path.is_dir() else "is no preset, directory or GGUF file"
    )
    raise InputError(
        f"model {str(path)!r} {problem}; presets: {', '.join([*PRESETS, *MODELS])}; a directory must hold pack.json, "
        f"or config.json and model.safetensors; a config.json alone gives synthetic weights"
    )


def _cached_checkpoint(source: Path, recipe: Recipe, progress: BytesProgress) -> Pack:
    directory = _packs_dir() / f"{_slug(source.name)}-packed-{_digest(_fingerprint(source, recipe))}"

    def build() -> Pack:
        return write_packed(open_source(source), directory, recipe, progress).pack

    return _built_once(directory, progress, build)


def _fingerprint(source: Path, recipe: Recipe) -> str:
    """Return what identifies the present state of a checkpoint: path, and sizes and times of the files that count."""
    try:
        files = sorted((p.name, (status := p.stat()).st_size, status.st_mtime_ns) for p in source_files(source))
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror or error}") from error
    return json.dumps([_PACKER_VERSION, os.path.realpath(source), files, asdict(recipe)])


def _built_once(directory: Path, progress: BytesProgress, build: Callable[[], Pack]) -> Pack:
    """Open the pack in ``directory``, after building it if no process has, or if it is broken."""
    if pack := _usable(directory):
        return pack
    with locked(directory, on_wait=lambda: progress("waiting for another memsim that writes the same pack", 0, 0)):
        if pack := _usable(directory):
            return pack
        if directory.exists():
            progress("the pack in the cache is damaged; writing it again", 0, 0)
            discard(directory)
        return build()


def _usable(directory: Path) -> Pack | None:
    if not directory.exists():
        return None
    try:
        return open_pack(directory)
    except InputError:
        return None


def _packs_dir() -> Path:
    directory = cache_dir(writable=False) / "packs"
    if directory.is_dir():  # those that are there are of use even where none can be added
        return directory
    cache_dir()
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create {directory}: {error.strerror}; set MEMSIM_CACHE to a writable directory"
        ) from error
    return directory


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")[:60] or "model"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
