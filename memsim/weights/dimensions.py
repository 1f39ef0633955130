"""What ``--model`` means to a command that needs a model's dimensions and none of its weights."""

from pathlib import Path

from memsim.errors import InputError
from memsim.json_file import read_object
from memsim.models.config import ModelConfig
from memsim.models.config_file import config_from_dict
from memsim.models.matrix_formats import Packing
from memsim.models.presets import PRESETS, preset
from memsim.weights.cache import DEFAULT_GROUP_SIZE
from memsim.weights.pack import is_pack, open_pack
from memsim.weights.readers.hugging_face import CONFIG_FILE, MAX_CONFIG_BYTES


def find_dimensions(name: str) -> tuple[ModelConfig, Packing, str]:
    """Return (config, formats, name for people) of a preset, a pack, or a ``config.json`` or its directory.

    Raises:
        InputError: No such model (the message lists the presets), or its files cannot be used.
    """
    if name.lower() in PRESETS:
        return preset(name), DEFAULT_GROUP_SIZE, name.lower()
    directory = Path(name).absolute()
    try:
        if is_pack(directory):
            pack = open_pack(directory)
            return pack.config, pack.formats, directory.name
        where = directory if directory.suffix == ".json" else directory / CONFIG_FILE
        if where.is_file():
            config = config_from_dict(read_object(where, MAX_CONFIG_BYTES), str(where))
            return config, DEFAULT_GROUP_SIZE, directory.stem if where is directory else directory.name
    except OSError as error:  # of asking whether a file is there: no permission, a name that is too long
        raise InputError(f"cannot read model {name!r}: {error.strerror or error}") from error
    raise InputError(
        f"no model called {name!r}; presets: {', '.join(PRESETS)}; a directory must hold pack.json or {CONFIG_FILE}"
    )
