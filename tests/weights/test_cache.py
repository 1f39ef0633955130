import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import toy_checkpoints
from memsim.errors import InputError
from memsim.models.presets import PRESETS
from memsim.weights import cache
from memsim.weights.cache import cached_synthetic, find_model
from memsim.weights.pack_writer import pack_bytes
from toy_checkpoints import TOY, UNTIED, silent, write_checkpoint


@pytest.fixture(autouse=True)
def packs(tmp_path, monkeypatch):
    """Give every test a cache of its own; the value is where packs will be."""
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packs"


def names(directory):
    return sorted(path.name for path in directory.iterdir())


class Calls(list):
    """A progress callback that remembers its labels."""

    def __call__(self, label, done_bytes, total_bytes):
        self.append(label)


def test_synthetic_weights_are_written_once(packs):
    calls = Calls()
    first = cached_synthetic("toy", TOY, 32, 0, calls)
    assert first.directory.parent == packs
    assert calls
    calls.clear()
    assert cached_synthetic("toy", TOY, 32, 0, calls) == first
    assert calls == []
    assert names(packs) == [first.directory.name]


def test_everything_that_changes_the_weights_changes_the_place(packs, monkeypatch):
    variants = [(TOY, 32, 0), (UNTIED, 32, 0), (TOY, 64, 0), (TOY, 32, 1), (replace(TOY, rope_theta=1e4), 32, 0)]
    opened = [cached_synthetic("toy", *variant, silent) for variant in variants]
    assert [(pack.config, pack.group_size, pack.seed) for pack in opened] == variants
    monkeypatch.setattr(cache, "GENERATOR_VERSION", 2)
    cached_synthetic("toy", TOY, 32, 0, silent)
    assert len(names(packs)) == len(variants) + 1


def test_names_cannot_leave_the_cache(packs):
    pack = cached_synthetic("../../a b/.\n", TOY, 32, 0, silent)
    assert pack.directory.parent == packs
    assert pack.directory.name.startswith("a-b-")


def test_a_damaged_pack_is_written_again(packs):
    directory = cached_synthetic("toy", TOY, 32, 0, silent).directory
    (directory / "head.safetensors").write_bytes(b"")
    calls = Calls()
    pack = cached_synthetic("toy", TOY, 32, 0, calls)
    assert calls[0] == "the pack in the cache is damaged; writing it again"
    assert pack.part("head").path.stat().st_size == pack.part("head").n_bytes
    assert names(packs) == [directory.name]


CHILD = """
import os, signal, sys
from memsim.weights.cache import cached_synthetic
sys.path.insert(0, sys.argv[1])
from toy_checkpoints import TOY

labels = []
def progress(label, done_bytes, total_bytes):
    if not labels:
        print(label, flush=True)
        if sys.argv[2] == "wait for a line":
            sys.stdin.readline()
    labels.append(label)
    if sys.argv[2].isdigit():
        os.kill(os.getpid(), int(sys.argv[2]))

pack = cached_synthetic("toy", TOY, 32, 0, progress)
print(len(labels), pack.model_hash)
"""


def start(behaviour):
    command = [sys.executable, "-c", CHILD, str(Path(toy_checkpoints.__file__).parent), behaviour]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_processes_at_once_one_writes_and_the_other_waits(packs):
    with start("wait for a line") as writer:
        assert writer.stdout.readline() == "synthetic embed\n"  # it holds the lock and is in the middle of its work
        with start("go on") as waiter:
            assert waiter.stdout.readline() == "waiting for another memsim that writes the same pack\n"
            written, _ = writer.communicate("\n")
            waited, _ = waiter.communicate()
    assert (writer.returncode, waiter.returncode) == (0, 0)
    assert written.split()[1] == waited.split()[1]
    assert waited.split()[0] == "1"  # nothing but the wait
    assert len(names(packs)) == 1


def test_threads_of_one_process_share_the_work_too(packs):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(cached_synthetic("toy", TOY, 32, 0, silent))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 4
    assert len({pack.model_hash for pack in found}) == 1
    assert len(names(packs)) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_first_pack_that_was_interrupted_is_done_again(packs, number):
    with start(str(int(number))) as child:
        child.communicate()
    assert child.returncode == -number
    assert all(name.startswith(".") for name in names(packs))
    assert bool(names(packs)) == (number == signal.SIGKILL)  # what only the next run can remove
    pack = cached_synthetic("toy", TOY, 32, 0, silent)
    assert names(packs) == [pack.directory.name]


def test_a_disk_too_small_is_refused_before_writing(packs, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=pack_bytes(TOY, 32) - 1))
    calls = Calls()
    with pytest.raises(InputError, match="the synthetic pack needs 0.1 MiB in .*, which has 0.1 MiB free"):
        cached_synthetic("toy", TOY, 32, 0, calls)
    assert calls == []
    assert names(packs) == []


def test_a_cache_that_cannot_be_written_is_one_line(packs, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot create the cache .*; set MEMSIM_CACHE to a writable directory"):
        cached_synthetic("toy", TOY, 32, 0, silent)
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path))
    (tmp_path / "packs").touch()
    with pytest.raises(InputError, match="cannot create .*/packs: .*; set MEMSIM_CACHE"):
        cached_synthetic("toy", TOY, 32, 0, silent)


def test_find_model_gives_a_preset_its_synthetic_weights(monkeypatch):
    monkeypatch.setitem(PRESETS, "toy-1b", TOY)
    pack, name = find_model("Toy-1B", silent)
    assert (name, pack.source, pack.group_size, pack.seed) == ("toy-1b", "synthetic", 32, 0)
    other, _ = find_model("toy-1b", silent, group_size=64, seed=9)
    assert (other.group_size, other.seed) == (64, 9)


def test_find_model_opens_a_pack(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "toy-1b", TOY)
    built, _ = find_model("toy-1b", silent)
    directory = shutil.copytree(built.directory, tmp_path / "mine")
    pack, name = find_model(str(directory), silent)
    assert (name, pack.directory, pack.model_hash) == ("mine", directory, built.model_hash)
    assert find_model(str(directory), silent, group_size=32)[0] == pack
    with pytest.raises(InputError, match="mine is packed in groups of 32, not 64; pack it again"):
        find_model(str(directory), silent, group_size=64)
    directory.rename(tmp_path / "toy-1b")
    monkeypatch.chdir(tmp_path)
    assert find_model("toy-1b", silent)[0].directory == built.directory
    assert find_model("./toy-1b", silent)[0].directory == tmp_path / "toy-1b"


def test_find_model_packs_a_checkpoint_once_for_each_state_of_its_files(tmp_path, packs):
    source = write_checkpoint(tmp_path / "hf", TOY, shards=2)
    (source / "notes.txt").write_text("not part of the model")
    calls = Calls()
    pack, name = find_model(str(source), calls)
    assert (name, pack.source, pack.directory.parent) == ("hf", "packed", packs)
    calls.clear()
    (source / "notes.txt").write_text("changed")
    assert find_model(str(source), calls)[0] == pack
    assert calls == []
    assert find_model(str(source), silent, group_size=64)[0].group_size == 64
    os.utime(source / "config.json", (1, 1))
    find_model(str(source), calls)
    assert calls
    assert len(names(packs)) == 3


def test_find_model_explains_what_it_takes(tmp_path):
    with pytest.raises(
        InputError, match="'/.*/qwen' is no preset, directory or GGUF file; presets: qwen2.5-0.5b, .*pack.json, or"
    ):
        find_model("qwen", silent)
    with pytest.raises(InputError, match="is neither a pack nor a Hugging Face directory; presets"):
        find_model(str(tmp_path), silent)
    with pytest.raises(InputError, match="cannot read model 'xx.*': File name too long"):
        find_model("x" * 300, silent)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(InputError, match="'gpt2' is not supported"):
        find_model(str(tmp_path), silent)
