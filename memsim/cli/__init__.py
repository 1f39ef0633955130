"""The ``memsim`` command: one thin module per subcommand, imported only when it is called."""

import importlib
import sys

import click
from click.shell_completion import CompletionItem

from memsim import __version__
from memsim.cli.say import say
from memsim.cli.streams import close_streams, hear_signals, open_streams
from memsim.errors import MemsimError
from memsim.system_limits import remedy, system_refusal

_COMMANDS = {
    "run": ("running", "Fine-tune a model in a process that the kernel kills at --budget."),
    "plan": ("predicting", "Find the fastest training step that fits a budget; nothing is run."),
    "compare": ("comparing", "Compare schedules and schemes by loss and accuracy."),
    "pack": ("running", "Quantise a checkpoint."),
    "simulate": ("predicting", "Simulate a run on a phone: would it survive, how long is a step."),
    "replay": ("predicting", "Do so with a recorded run, or with any memray capture."),
    "replay-seeds": ("running", "Make the adapter of a zeroth-order run again from its seeds."),
    "profile": ("measuring", "Show where time and memory of a step go."),
    "report": ("comparing", "Put runs side by side in one HTML file."),
    "validate": ("predicting", "Compare predictions with published and measured figures."),
    "check": ("comparing", "Run a baseline again: has its footprint grown?"),
    "diff": ("comparing", "Show what one run does otherwise than another."),
    "bench": ("measuring", "Time kernels and steps beside this machine's roofs and other programs."),
    "sweep": ("comparing", "Do every point of a grid file."),
    "models": ("listing", "List models, or fetch a real one."),
    "devices": ("listing", "List devices, show one with its sources, or measure this machine."),
}
"""Command -> the group that its module is in, and what it is for: help imports no command. People meet them in this
order."""


class _LazyGroup(click.Group):
    """Imports ``memsim.cli.<group>.<command>`` (attribute ``command``) on first use, so that ``--help`` starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the subcommands in the order in which people meet them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one subcommand, or None for an unknown name."""
        if cmd_name not in _COMMANDS:
            return None
        module = f"memsim.cli.{_COMMANDS[cmd_name][0]}.{cmd_name.replace('-', '_')}"
        command = importlib.import_module(module).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the names of subcommands without importing any, and the group's own options."""
        names = [CompletionItem(name) for name in _COMMANDS if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="memsim")
def cli() -> None:
    """Run, profile and simulate on-device LoRA fine-tuning under a memory cap.

    Results go to stdout, progress to stderr. Exit codes: 0 done and fits; 1 error; 2 usage; 3 a limit was broken
    (budget refused, killed at the cap, thrashing); 130 interrupted.
    """


def main() -> None:
    """Run the command line; every memsim error becomes one line on stderr and its exit code."""
    open_streams()
    hear_signals()
    try:
        cli.main(standalone_mode=False)
    except MemsimError as error:
        say(f"memsim: {error}{remedy(error.__cause__)}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("memsim: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our stdout (`| head`) went away: not an error of ours, and nothing more can be said.
        sys.exit(1)
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        # Of a disk, a file or a limit that no command expected to fail.
        line = system_refusal(error)
        if line is None:
            raise
        say(f"memsim: {line}", err=True)
        sys.exit(MemsimError.exit_code)
    finally:
        close_streams()
