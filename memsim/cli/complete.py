"""What the shell completes where an option takes a name; where no name begins like the word, it completes files."""

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _names(known: Callable[[], Iterable[str]]) -> Complete:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in known() if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]

    return complete


def _in_list(known: Callable[[], Iterable[str]]) -> Complete:
    """Complete the last name of a list with commas."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{name}") for name in known() if name.startswith(last)]

    return complete


def _models() -> Iterable[str]:
    from memsim.models.presets import PRESETS

    return [*PRESETS, *_fetched()]


def _fetched() -> Iterable[str]:
    from memsim.weights.registry_models import MODELS

    return MODELS


def _devices() -> Iterable[str]:
    from memsim.simulator.device_file import HOST, added, built_in

    return dict.fromkeys([*built_in(), *added(), HOST])


def _tasks() -> Iterable[str]:
    from memsim.tasks.task_file import built_in

    return built_in()


def _schedules() -> Iterable[str]:
    from memsim.schedules.names import SCHEDULE_NAMES

    return SCHEDULE_NAMES


models = _names(_models)
fetched = _names(_fetched)
devices = _names(_devices)
tasks = _names(_tasks)
model_list = _in_list(_models)
schedule_list = _in_list(_schedules)
