"""What a file or directory is that is no model, for whoever gave it as one."""

from pathlib import Path

from memsim.errors import InputError
from memsim.json_file import read_foreign, shown
from memsim.reading import open_regular

_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024  # they have about 134
_MAX_CONFIG_BYTES = 1 << 20


def lfs_pointer(path: Path) -> str | None:
    """Return what to do with a file that Git LFS left in the place of a large one; None for any other."""
    try:
        with open_regular(path) as file:
            start = file.read(_POINTER_BYTES + 1)
    except (OSError, InputError):
        return None
    if not start.startswith(_POINTER) or len(start) > _POINTER_BYTES:
        return None
    return f"{path} is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"


def what_it_is(path: Path) -> str | None:
    """Return what a directory is that people take for a model, and what to give instead; None for any other.

    That is the directory that the hub's cache keeps for a model, and an adapter.
    """
    snapshots = path / "snapshots"
    if snapshots.is_dir() and (path / "refs").is_dir():
        found = sorted(item for item in snapshots.iterdir() if item.is_dir())
        where = f"; give {found[-1]}" if found else ", which holds no snapshot"
        return f"{path} is what the Hugging Face hub's cache keeps for a model{where}"
    adapter = path / "adapter_config.json"
    if adapter.is_file():
        try:
            base = read_foreign(adapter, _MAX_CONFIG_BYTES).get("base_model_name_or_path")
        except InputError:
            base = None
        known = f", {shown(base)}" if isinstance(base, str) and base else ""
        return f"{path} is an adapter; give the model that it was trained on{known}"
    return None
