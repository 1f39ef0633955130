"""Files of every kind that memsim reads, damaged at random: one line each, soon, and in little memory."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from damage import damaged

import memsim
from capped_runs import cache, memsim_command, run_toy, shared_cache, write_model
from gguf_files import write_gguf
from memsim.cap.footprint import ProcessStatus
from memsim.errors import InputError, MemsimError
from memsim.ir.serialize import load_program
from memsim.result_file import read_result
from memsim.run_directory.checkpoints import DIRECTORY, Checkpoints
from memsim.run_directory.events import read_events
from memsim.run_directory.steps_file import History
from memsim.runtime.resume import read_resumption
from memsim.simulator.device_file import read_device
from memsim.weights.pack import Pack, open_pack, verify_part
from memsim.weights.readers.formats import open_source
from memsim.weights.tensor_file import map_file, read_header
from toy_checkpoints import TOY, source_tensors, write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache")]
assert cache  # a fixture, found by name

SHORT, LONG = 12, 420  # of each kind
SHORT_COMMANDS, LONG_COMMANDS = 3, 30
LIMIT_S = 10
LIMIT_BYTES = 500 << 20
STEP = "step-00000004"


@pytest.fixture(scope="module")
def pack(disk: Path) -> Pack:
    return write_model(disk / "damaged-model")


@pytest.fixture(scope="module")
def finished(pack: Pack, disk: Path) -> Path:
    """The directory of a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSIM_CACHE", str(shared_cache()))
        run_toy(pack.directory, disk / "finished", seq_len=8, steps=4, checkpoint_every=2)
    return disk / "finished"


@pytest.fixture(scope="module")
def sources(disk: Path) -> Path:
    """A directory with a Hugging Face checkpoint ``hf`` and ``model.gguf``."""
    directory = disk / "sources"
    directory.mkdir()
    write_checkpoint(directory / "hf", TOY, source_tensors(TOY))
    write_gguf(directory / "model.gguf", "qwen2", TOY.to_dict(), source_tensors(TOY))
    return directory


def read_pack(directory: Path) -> None:
    pack = open_pack(directory)
    for name, part in pack.parts.items():
        verify_part(pack, name, map_file(part.path))


def read_weights(path: Path) -> None:
    for tensor in open_source(path).tensors.values():
        with tensor.open() as reader:
            for first in range(0, tensor.rows[0], 64):
                reader.read(first, min(64, tensor.rows[0] - first))


def read_history(directory: Path) -> None:
    """Read what a resumed run reads."""
    complaints: list[str] = []
    read_resumption(directory, {})
    checkpoint = Checkpoints(directory).newest(complaints.append)
    History(directory, checkpoint, ())
    if complaints:
        raise InputError(complaints[0])


def read_state(directory: Path) -> None:
    path = directory / DIRECTORY / f"{STEP}.safetensors"
    read_header(path, 16 << 20)


def rehash_state(directory: Path) -> None:
    """Give the record of a checkpoint the checksum of the damaged state, as a hostile directory would."""
    state = directory / DIRECTORY / f"{STEP}.safetensors"
    record = state.with_suffix(".json")
    data = json.loads(record.read_text())["checkpoint"]
    data |= {"sha256": hashlib.sha256(state.read_bytes()).hexdigest(), "n_bytes": state.stat().st_size}
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    record.write_text(json.dumps({"checkpoint": data, "sha256": digest}))


# Name -> what is copied, which of its files is damaged, what reads it.
KINDS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "result": ("finished", "result.json", lambda path: read_result(path / "result.json")),
    "events": ("finished", "events.jsonl", lambda path: list(read_events(path / "events.jsonl"))),
    "program": ("finished", "program.jsonl", lambda path: load_program(path / "program.jsonl")),
    "run settings": ("finished", "checkpoints/run.json", read_history),
    "checkpoint record": ("finished", f"checkpoints/{STEP}.json", read_history),
    "checkpoint state": ("finished", f"checkpoints/{STEP}.safetensors", read_state),
    "steps": ("finished", "checkpoints/steps.jsonl", read_history),
    "pack description": ("pack", "pack.json", read_pack),
    "pack weights": ("pack", "block_001.safetensors", read_pack),
    "safetensors": ("sources", "hf/model.safetensors", lambda path: read_weights(path / "hf")),
    "model configuration": ("sources", "hf/config.json", lambda path: read_weights(path / "hf")),
    "gguf": ("sources", "model.gguf", lambda path: read_weights(path / "model.gguf")),
    "device": ("device", "iphone-15-pro-max.toml", lambda path: read_device(path / "iphone-15-pro-max.toml")),
}


def copied(what: str, request: pytest.FixtureRequest, target: Path) -> Path:
    """Copy what a kind's file is part of to ``target``."""
    if what == "device":
        source = Path(memsim.__file__).parent / "devices"
    else:
        found = request.getfixturevalue(what)
        source = found.directory if isinstance(found, Pack) else found
    return Path(shutil.copytree(source, target))


@contextmanager
def limits() -> Iterator[None]:
    """Fail on what takes longer than 10 seconds or allocates more than 500 MiB."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"took over {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, late)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    status = ProcessStatus()
    resource.setrlimit(resource.RLIMIT_DATA, (status.sizes_bytes()["VmData"] + LIMIT_BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        signal.signal(signal.SIGALRM, before)
        status.close()


def tree(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_one_line(kind: str, request: pytest.FixtureRequest, tmp_path: Path, long: bool) -> None:
    what, name, read = KINDS[kind]
    directory = copied(what, request, tmp_path / "copy")
    path, refused = directory / name, 0
    original, names = path.read_bytes(), tree(tmp_path)
    kept = {file: file.read_bytes() for file in (directory / DIRECTORY).glob("*.json*")}
    read(directory)  # as it is, it can be read
    with limits():
        for seed in range(LONG if long else SHORT):
            signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
            for file, data in kept.items():
                file.write_bytes(data)
            random = np.random.default_rng((seed, len(kind)))
            path.write_bytes(damaged(random, original))
            if kind == "checkpoint state":
                rehash_state(directory)
            try:
                read(directory)
            except MemsimError as error:
                refused += 1
                text = str(error)
                assert "\n" not in text and text.isprintable(), (seed, text)
                assert len(text) < 2000, (seed, text)
            except Exception as error:
                raise AssertionError(f"{kind}, seed {seed}: {type(error).__name__}: {error}") from error
    assert refused > 0
    assert tree(tmp_path) == names


COMMANDS: dict[str, tuple[str, str, list[object]]] = {
    "resume": ("finished", "checkpoints/run.json", ["run", "--resume", "copy", "--steps", 5]),
    "resume state": ("finished", f"checkpoints/{STEP}.safetensors", ["run", "--resume", "copy", "--steps", 5]),
    "model": ("pack", "block_002.safetensors", ["run", "--model", "copy", "--seq-len", 8, "--steps", 1]),
    "gguf": ("sources", "model.gguf", ["pack", "copy/model.gguf", "out"]),
    "device": ("device", "iphone-15-pro-max.toml", ["devices", "show", "copy/iphone-15-pro-max.toml"]),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_command_on_a_damaged_file_says_one_line(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, long: bool
) -> None:
    what, name, arguments = COMMANDS[kind]
    names: set[str] = set()
    for seed in range(LONG_COMMANDS if long else SHORT_COMMANDS):
        work = tmp_path / str(seed)
        work.mkdir()
        directory = copied(what, request, work / "copy")
        data = damaged(np.random.default_rng((seed, 7)), (directory / name).read_bytes())
        (directory / name).write_bytes(data)
        if kind == "resume state":
            rehash_state(directory)
        options = ["--budget", "400MB", "--lora-rank", 4, "--threads", 1, "--out", "out"] if kind == "model" else []
        command = memsim_command(*arguments, *options)
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, timeout=LIMIT_S * 6, check=False
        )
        assert done.returncode in (0, 1, 2, 3), (seed, done)
        assert "Traceback" not in done.stderr, (seed, done.stderr)
        if done.returncode:
            assert done.stderr.splitlines()[-1].startswith(("memsim: ", "Usage", "Error")), (seed, done.stderr)
        names |= {path.name for path in work.iterdir()}
        shutil.rmtree(work)
    assert names <= {"copy", "out"}
