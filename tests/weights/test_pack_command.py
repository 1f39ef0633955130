import json
import os
import pty
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from memsim.cli.running.pack import command
from memsim.errors import InputError
from memsim.weights.pack import open_pack
from toy_checkpoints import TOY, UNTIED, source_tensors, write_checkpoint


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_prints_the_error_of_each_matrix_and_a_total(tmp_path):
    result = run(write_checkpoint(tmp_path / "hf", UNTIED), tmp_path / "out")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    matrices = [name for name, values in source_tensors(UNTIED).items() if values.ndim == 2]
    assert sorted(line.split()[0] for line in lines[1:-3]) == sorted(matrices)
    # Rounding of normal values: half of a step of 3 to 4 / 8, a whole one where two opposite weights are as large.
    assert re.fullmatch(r"model.embed_tokens.weight +77 x 40 +f32 +symmetric g32 +8\.\d\d% +0\.[2345]\d*", lines[1])
    assert re.fullmatch(r"total +16 +8\.\d\d% +0\.[2345]\d*", lines[-3])
    assert lines[-1] == f"{tmp_path}/out: 0.1 MiB in 4 files, symmetric g32"
    assert "packing: 0 %" in result.stderr
    assert "packing: 100 % of 0.1 MiB" in result.stderr
    assert len(result.stderr.splitlines()) <= 12


def test_says_when_there_is_no_tokenizer(tmp_path):
    source = write_checkpoint(tmp_path / "hf", TOY)
    said = run(source, tmp_path / "a").stderr
    assert f"memsim: no tokenizer: {source} has no tokenizer.json, no tokenizer.model, and not both" in said
    assert "runs of it need --tokenizer" in said
    (source / "tokenizer.json").write_text("{}")
    assert "tokenizer" not in run(source, tmp_path / "b").stderr


@pytest.mark.parametrize("to_stdout", [True, False])
def test_json_holds_every_tensor(tmp_path, to_stdout):
    path = tmp_path / "result.json"
    arguments = [write_checkpoint(tmp_path / "hf", TOY), tmp_path / "out", "--group-size", 64]
    result = run(*arguments, "--json", "-" if to_stdout else path)
    assert result.exit_code == 0
    record = json.loads(result.stdout if to_stdout else path.read_text())
    pack = open_pack(tmp_path / "out")
    assert (record["group_size"], record["model_hash"], record["n_bytes"]) == (64, pack.model_hash, pack.n_bytes)
    assert {item["name"]: tuple(item["shape"]) for item in record["tensors"]} == {
        name: values.shape for name, values in source_tensors(TOY).items() if values.ndim == 2
    }
    assert all(0.05 < item["relative_error"] < 0.2 for item in [*record["tensors"], record])
    assert all(0.1 < item["max_error"] < 0.5 and item["original"] == "f32" for item in record["tensors"])


def test_refuses_before_packing(tmp_path):
    source, out = write_checkpoint(tmp_path / "hf", TOY), tmp_path / "out"
    assert run(source, out, "--group-size", 16).exit_code == 2
    result = run(source, out, "--json", tmp_path / "none" / "result.json")
    assert isinstance(result.exception, InputError)
    assert str(result.exception).endswith("none/result.json: its directory does not exist")
    assert not out.exists()


def test_the_program_ends_with_one_line_and_its_exit_code(tmp_path):
    command_line = [sys.executable, "-m", "memsim", "pack", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command_line, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"memsim: cannot read {tmp_path}/config.json: No such file or directory\n"


def test_a_terminal_gets_a_bar_on_stderr(tmp_path):
    controller, terminal = pty.openpty()
    source = write_checkpoint(tmp_path / "hf", TOY)
    command_line = [sys.executable, "-m", "memsim", "pack", str(source), str(tmp_path / "out")]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=terminal, env=environment) as child:
        os.close(terminal)
        drawn = b""
        try:
            while piece := os.read(controller, 4096):
                drawn += piece
        except OSError:  # how Linux says that the other side is closed
            pass
        printed = child.stdout.read()
    os.close(controller)
    assert child.returncode == 0
    assert b"model.norm.weight" in drawn
    assert b"10 %" not in drawn  # the lines that a file or a pipe gets
    assert b"total" in printed
