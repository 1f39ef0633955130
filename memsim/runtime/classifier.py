"""Whether a classifier tells the options of a task apart, and of how many classes."""

from memsim.errors import UsageError
from memsim.models.config import ModelConfig
from memsim.runtime.config import RunConfig
from memsim.tasks.task import Task


def classifier_labels(config: RunConfig, task: Task | None, model: ModelConfig) -> int:
    """Return the classes of the classifier that a run trains; 0 where options are told apart by the words of answers.

    RoBERTa trains one if it can: its own, or a new one in the place of its vocabulary.

    Raises:
        UsageError: What was asked for needs a task, classes, or another model.
    """
    if task is None:
        if model.num_labels is not None:
            raise UsageError(
                f"{config.model} classifies sequences: give it examples with --task, or use its masked model for text"
            )
        return 0
    if config.classifier is False and (config.scheme == "head" or model.num_labels is not None):
        problem = "--scheme head trains a classifier" if config.scheme == "head" else "this model has a classifier"
        raise UsageError(f"--label-words needs a vocabulary to choose from, but {problem}")
    if config.classifier and config.scheme != "head" and model.family.causal:
        raise UsageError(f"--classifier is for RoBERTa; {config.model} trains a classifier with --scheme head")
    needed = bool(config.classifier) or config.scheme == "head" or model.num_labels is not None
    has_classes = task.kind == "classification"
    if needed and not has_classes:
        option = _option(config) if config.scheme == "head" or config.classifier else "a model that classifies"
        raise UsageError(f"{option} needs classes, but every example of this task brings its own options")
    if not needed and (model.family.causal or not has_classes or config.classifier is False):
        return 0
    if model.num_labels not in (None, len(task.options)):
        raise UsageError(f"the model tells {model.num_labels} classes apart, but the task has {len(task.options)}")
    return len(task.options)


def _option(config: RunConfig) -> str:
    """Return the option by which a classifier, or none, was asked for."""
    if config.scheme == "head":
        return "--scheme head"
    return "--classifier" if config.classifier else "--label-words"
