"""Small file systems of their own, for tests that fill a disk; only where a test may mount."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(directory: Path, n_bytes: int) -> Iterator[Path]:
    """Yield the mount point of an empty ext4 of ``n_bytes``, or skip the test."""
    image, mount = directory / "disk.img", directory / "disk"
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("mkfs.ext4", "mount", "umount")):
        pytest.skip("only root can mount a small disk")
    with image.open("wb") as file:
        file.truncate(n_bytes)
    mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", image, mount], check=False, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


def fill(directory: Path, free_bytes: int) -> Path:
    """Fill the disk of ``directory`` up to ``free_bytes``; return the file that does so."""
    path = directory / "filler"
    with path.open("wb") as file, suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(directory).free - free_bytes, 1))
    return path
