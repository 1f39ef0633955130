"""What the shell completes, asked as the shell asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "from memsim.cli import main; main()"


def ask(words: str, instruction: str = "bash_complete", code: str = CODE) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a script called ``memsim`` does, with what a shell's completion sets."""
    count = len(words.split()) - (not words.endswith(" "))
    environment = os.environ | {"COMP_WORDS": words, "COMP_CWORD": str(count), "_MEMSIM_COMPLETE": instruction}
    named = f"import sys; sys.argv[0] = 'memsim'; {code}"
    return subprocess.run([sys.executable, "-c", named], env=environment, capture_output=True, text=True, check=False)


def completions(words: str) -> list[str]:
    done = ask(words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "some", "all_begin"),
    [
        ("memsim re", ["plain,replay", "plain,replay-seeds", "plain,report"], "plain,re"),
        ("memsim run --sched", ["plain,--schedule"], "plain,--sched"),
        ("memsim run --schedule me", ["plain,mebp", "plain,mesp", "plain,mezo"], "plain,me"),
        ("memsim run --model qwen2.5-", ["plain,qwen2.5-0.5b", "plain,qwen2.5-3b"], "plain,qwen2.5-"),
        ("memsim run --task ", ["plain,sst2", "plain,copa"], "plain,"),
        ("memsim simulate --device i", ["plain,iphone-15-pro-max", "plain,iphone-17-pro"], "plain,iphone-"),
        ("memsim devices show rasp", ["plain,raspberry-pi-5"], "plain,rasp"),
        ("memsim plan --device ho", ["plain,host"], "plain,host"),
        ("memsim compare --schedules mebp,zo-s", ["plain,mebp,zo-sgd-sign"], "plain,mebp,zo-s"),
    ],
)
def test_names_are_completed(words: str, some: list[str], all_begin: str) -> None:
    found = completions(words)
    assert set(some) <= set(found)
    assert all(item.startswith(all_begin) for item in found)


def test_what_is_no_name_is_completed_as_a_file() -> None:
    assert completions("memsim run --model ./chec") == ["file,./chec"]
    assert completions("memsim run --data no") == ["file,no"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(shell: str) -> None:
    if shell == "bash" and not Path("/bin/bash").exists():
        pytest.skip("click asks bash for its version")
    done = ask("memsim ", f"{shell}_source")
    assert done.returncode == 0
    assert f"_MEMSIM_COMPLETE={shell}_complete" in done.stdout


def test_completing_a_command_imports_no_numpy() -> None:
    code = (
        "import atexit; from memsim.cli import main; "
        "atexit.register(lambda: print('numpy' in sys.modules, file=sys.stderr)); main()"
    )
    assert ask("memsim si", code=code).stderr == "False\n"
    assert ask("memsim simulate --de", code=code).stderr == "False\n"
    assert ask("memsim si", code=f"import numpy; {code}").stderr == "True\n"  # so the others can fail
