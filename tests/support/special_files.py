"""Files that are no files, made where a test wants them."""

import os
import socket
import stat
from pathlib import Path

import pytest


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is at most 107 bytes long
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def make_device(path: Path) -> None:
    """Make a node of our own that behaves as ``/dev/null`` does."""
    make_node(path, 3)


def make_full_device(path: Path) -> None:
    """Make a node of our own that behaves as ``/dev/full`` does."""
    make_node(path, 7)


def make_node(path: Path, minor: int) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, minor))
        os.close(os.open(path, os.O_WRONLY))
    except PermissionError:
        pytest.skip("making a device node takes rights that this user, or this mount, does not have")


SPECIAL = {"a pipe": make_fifo, "a socket": make_socket, "a device": make_device, "a directory": Path.mkdir}
"""What ``reading.open_regular`` calls a thing -> what makes one."""
