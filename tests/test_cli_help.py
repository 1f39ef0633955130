import subprocess
import sys
from collections.abc import Iterator

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


def subcommand(words: str) -> click.Command:
    command: click.Command = cli
    for word in words.split():
        assert isinstance(command, click.Group)
        inner = command.get_command(click.Context(command), word)
        assert inner is not None
        command = inner
    return command


def leaves(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command that does something, those of a group one by one."""
    if not isinstance(command, click.Group):
        yield words
        return
    for name in command.list_commands(click.Context(command)):
        inner = command.get_command(click.Context(command), name)
        assert inner is not None
        yield from leaves(inner, (*words, name))


COMMANDS = [" ".join(words) for words in leaves(cli, ())]


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
    code = "import sys, memsim.cli; print(*(name for name in sys.modules if name.count('.') > 2 or 'numpy' in name))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not [name for name in shown.split() if name.startswith("memsim.cli.") or "numpy" in name]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_explains_every_option(name: str) -> None:
    result = CliRunner().invoke(cli, [*name.split(), "--help"], prog_name="memsim")
    assert result.exit_code == 0
    command = subcommand(name)
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"
            assert (parameter.opts[0] in result.output) != parameter.hidden


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_serves_json(name: str) -> None:
    options = [option for parameter in subcommand(name).params for option in parameter.opts]
    assert "--json" in options


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_a_usage_error(name: str) -> None:
    done = run(*name.split(), "--no-such-option")
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


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_is_said_before_numbers_are_imported(name: str) -> None:
    code = (
        "import sys, memsim.cli\n"
        f"sys.argv = ['memsim', *{name.split()!r}, '--no-such-option']\n"
        "try:\n    memsim.cli.main()\n"
        "except SystemExit as end:\n    print(end.code, {'numpy', 'numba', 'psutil', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, "No such option" in done.stderr) == ("2 set()\n", True), done.stderr
