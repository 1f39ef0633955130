"""What ``--model`` means to a command that needs a model's dimensions and none of its weights."""

from pathlib import Path

from memsim.errors import InputError
from memsim.json_file import read_foreign
from memsim.models.config import ModelConfig
from memsim.models.config_file import config_from_dict
from memsim.models.matrix_formats import Packing
from memsim.models.presets import PRESETS, preset
from memsim.weights.cache import DEFAULT_GROUP_SIZE
from memsim.weights.pack import is_pack, open_pack
from memsim.weights.readers.formats import is_source, open_source
from memsim.weights.readers.gguf_files import is_gguf
from memsim.weights.readers.hub import fetch_config, is_hub_id
from memsim.weights.readers.hugging_face import CONFIG_FILE, MAX_CONFIG_BYTES
from memsim.weights.readers.safetensors_index import has_weights
from memsim.weights.recipe import Recipe
from memsim.weights.registry_models import MODELS, is_registry_model, registry_model
from memsim.weights.what_it_is import what_it_is


def find_dimensions(name: str) -> tuple[ModelConfig, Packing, str]:
    """Return (config, formats, name for people) of what ``--model`` may be, and read no weight of it.

    Of a checkpoint these are the formats that a run packs it into; of a ``config.json`` alone, and of a model on the
    hub, of which only that file is fetched, symmetric INT4.

    Raises:
        InputError: No such model (the message lists the presets), or its files cannot be used.
    """
    if name.lower() in PRESETS:
        return preset(name), DEFAULT_GROUP_SIZE, name.lower()
    path = registry_model(name) if is_registry_model(name) else Path(name).absolute()
    try:
        if is_hub_id(name) and not path.exists():
            return _of_config(fetch_config(name), Path(name).name)
        if is_pack(path):
            pack = open_pack(path)
            return pack.config, pack.formats, path.name
        if is_gguf(path) or (is_source(path) and has_weights(path)):
            checkpoint = open_source(path)
            return checkpoint.config, Recipe().formats(checkpoint), path.stem if path.is_file() else path.name
        where = path if path.suffix == ".json" else path / CONFIG_FILE
        if where.is_file():
            return _of_config(where, path.stem if where is path else path.name)
    except OSError as error:  # of asking whether a file is there: no permission, a name that is too long
        raise InputError(f"cannot read model {name!r}: {error.strerror or error}") from error
    raise InputError(
        what_it_is(path)
        or f"no model called {name!r}; presets: {', '.join([*PRESETS, *MODELS])}; a directory must hold pack.json or "
        f"{CONFIG_FILE}"
    )


def _of_config(path: Path, name: str) -> tuple[ModelConfig, Packing, str]:
    if is_gguf(path):  # one of a repository's
        checkpoint = open_source(path)
        return checkpoint.config, Recipe().formats(checkpoint), path.stem
    return config_from_dict(read_foreign(path, MAX_CONFIG_BYTES), str(path)), DEFAULT_GROUP_SIZE, name
