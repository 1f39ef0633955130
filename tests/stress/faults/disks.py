"""Full disks, at the start and in mid-run, and places where nobody may write."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from workshop import NOBODY, Ending, Fault, Workshop, wait_for

from disk_images import fill, small_disk

DISK_BYTES = 64 << 20


@contextmanager
def full(shop: Workshop, at: str, free_bytes: int = 0) -> Iterator[Path]:
    """Mount a small disk and fill it up; yield a directory on it."""
    own = shop.directory / at
    own.mkdir()
    with small_disk(own, DISK_BYTES) as mount:
        fill(mount, free_bytes)
        yield mount


def full_from_the_start(option: str) -> "Fault":
    """Return the fault of a full disk below what ``option`` names."""

    def tried(shop: Workshop) -> Ending:
        with full(shop, "disk") as mount:
            name = {"--out": "run", "--scratch": "", "--json": "record.json"}[option]
            others = [] if option != "--out" else ["--out", mount / name]
            more = others or [option, mount / name]
            done = shop.memsim(*shop.arguments(), *more)
            assert not [path for path in mount.rglob(".*")], list(mount.rglob(".*"))
        return done

    says = "is full" if option == "--scratch" else "No space left on device"
    return Fault(f"full disk at the start: {option}", 1, says, tried)


def full_cache(shop: Workshop) -> Ending:
    with full(shop, "disk") as mount:
        return shop.memsim(*shop.arguments(), env={"MEMSIM_CACHE": str(mount)})


def full_in_mid_run(option: str, code: int, says: str) -> Fault:
    """Return the fault of a disk that fills up after a step, then is emptied, and the run goes on to the same bits."""

    def tried(shop: Workshop) -> Ending:
        own = shop.directory / "disk-place"
        own.mkdir()
        with small_disk(own, DISK_BYTES) as mount:
            out = mount / "run" if option == "--out" else shop.place / "out"
            more = ["--out", out] if option == "--out" else ["--scratch", mount]
            with shop.popen(*shop.arguments(steps=400), *more) as process:
                wait_for(process, "step 3/")
                filler = fill(mount, 0)
                printed, complaint = process.communicate(timeout=300)
            done = Ending(process.returncode, printed, complaint)
            if done.code == 0:  # it had what it needed
                return done
            filler.unlink()
            again = shop.memsim("run", "--resume", out, "--steps", 400)
            assert again.code == 0, again.err
            whole = shop.memsim(*shop.arguments("whole", steps=400))
            assert whole.code == 0, whole.err
            name = "adapter_model.safetensors"
            assert (out / name).read_bytes() == (shop.place / "whole" / name).read_bytes(), "other bits"
        return done

    return Fault(f"disk full in mid-run, then resumed: {option}", code, says, tried)


def read_only(shop: Workshop) -> Ending:
    own = shop.directory / "disk-place"
    own.mkdir()
    with small_disk(own, DISK_BYTES) as mount:
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        return shop.memsim(*shop.arguments(), "--out", mount / "run")


def read_only_cache(shop: Workshop) -> Ending:
    """A cache with everything in it, on a read-only mount."""
    warm = shop.memsim(*shop.arguments("warm"))
    assert warm.code == 0, warm.err
    subprocess.run(["mount", "--bind", shop.kernels, shop.cache], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", shop.cache], check=True)
        return shop.memsim(*shop.arguments())
    finally:
        subprocess.run(["umount", shop.cache], check=True)


def no_rights(shop: Workshop) -> Ending:
    """In a directory of somebody else's, without the right of root to write everywhere."""
    require("setpriv", "only root can give rights away")
    os.chown(shop.place, NOBODY, NOBODY)
    return shop.shell('exec setpriv --bounding-set -dac_override,-dac_read_search "$@"', *shop.arguments())


def no_home(shop: Workshop) -> Ending:
    """As a user without a name or a home, as in containers."""
    require_python_for(54321)
    for path in (shop.directory, shop.place):
        path.chmod(0o777)
    os.chown(shop.cache, 54321, 54321)
    return shop.memsim(*shop.arguments(), without=("HOME", "USER", "LOGNAME"), user=54321, group=54321, extra_groups=[])


def require(tool: str, reason: str) -> None:
    """Skip what cannot be tried here."""
    if os.geteuid() != 0 or not shutil.which(tool):
        pytest.skip(reason)


def require_python_for(user: int) -> None:
    """Skip where another user may not execute this Python."""
    require("true", "only root can be somebody else")
    try:
        subprocess.run([sys.executable, "-c", ""], user=user, check=True, capture_output=True)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("others may not execute this Python")


FAULTS = [
    *map(full_from_the_start, ("--out", "--scratch", "--json")),
    Fault("full disk at the start: the cache", 1, "No space left on device", full_cache),
    full_in_mid_run("--out", 1, "No space left on device"),
    full_in_mid_run("--scratch", 0, "adapter"),  # it has its room from the start
    Fault("read-only disk: --out", 1, "Read-only file system", read_only),
    Fault("read-only cache that has everything", 0, "adapter", read_only_cache),
    Fault("no rights: --out", 1, "Permission denied", no_rights),
    Fault("no HOME, and a user without a name", 0, "adapter", no_home),
]
