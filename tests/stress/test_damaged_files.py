"""Commands on files that are damaged at random: one line, soon, and nothing left behind.

``test_fuzz`` gives readers many more, within this process.
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from damage import damaged

import memsim
from capped_runs import cache, memsim_command, run_toy, shared_cache, write_model
from gguf_files import write_gguf
from memsim.run_directory.checkpoints import DIRECTORY
from memsim.weights.pack import Pack
from toy_checkpoints import TOY, source_tensors, write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache")]
assert cache  # a fixture, found by name

SHORT_COMMANDS, LONG_COMMANDS = 3, 30
LIMIT_S = 10
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


def rehash_state(directory: Path) -> None:
    """Give the record of a checkpoint the checksum of the damaged state, as a hostile directory would."""
    state = directory / DIRECTORY / f"{STEP}.safetensors"
    record = state.with_suffix(".json")
    data = json.loads(record.read_text())["checkpoint"]
    data |= {"sha256": hashlib.sha256(state.read_bytes()).hexdigest(), "n_bytes": state.stat().st_size}
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    record.write_text(json.dumps({"checkpoint": data, "sha256": digest}))


def copied(what: str, request: pytest.FixtureRequest, target: Path) -> Path:
    """Copy what a kind's file is part of to ``target``."""
    if what == "device":
        source = Path(memsim.__file__).parent / "devices"
    else:
        found = request.getfixturevalue(what)
        source = found.directory if isinstance(found, Pack) else found
    return Path(shutil.copytree(source, target))


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
