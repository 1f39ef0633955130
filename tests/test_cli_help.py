import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from memsim import __version__
from memsim.cli import _COMMANDS, cli


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ``memsim`` as a user does, in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "memsim", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def subcommand(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for word in (*_COMMANDS, "Exit codes", "130 interrupted"):
        assert word in done.stdout


def test_version_is_the_package_s() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"memsim, version {__version__}\n")


def test_an_unknown_command_is_a_usage_error() -> None:
    done = run("rnu")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "No such command 'rnu'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_is_imported_only_when_it_is_called() -> None:
    code = "import sys, memsim.cli; print(*(name for name in sys.modules if name.startswith('memsim.cli.')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_of_a_command_explains_every_option(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"], prog_name="memsim")
    assert result.exit_code == 0
    command = subcommand(name)
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"
            assert (parameter.opts[0] in result.output) != parameter.hidden


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_serves_json(name: str) -> None:
    options = [option for parameter in subcommand(name).params for option in parameter.opts]
    assert "--json" in options


@pytest.mark.parametrize("name", _COMMANDS)
def test_an_unknown_option_is_a_usage_error(name: str) -> None:
    done = run(name, "--no-such-option")
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_loads_no_compiler_and_no_tokenizer() -> None:
    code = (
        "import sys\nfrom memsim.cli import cli\ncli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'numba', 'torch', 'tokenizers', 'matplotlib', 'memsim_kernels'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
