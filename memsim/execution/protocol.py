"""What the parent tells the worker, and what the worker tells the parent: JSON, one object a line."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

PAUSE_S = 0.02
"""How long messages may wait for the parent to read them."""

PIPE_BYTES = 1 << 16
"""What a pipe holds: over a thousand nodes, which take longer than the pause."""

GO, STOP = b"g", b"s"
"""What the parent writes to the worker's stdin: begin; end after this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskJob:
    """What the worker must know of a task.

    Attributes:
        n_labels: Labels are below it: the vocabulary, or the labels of a classifier.
        n_options: Windows of an example in an evaluation; 1 where a classifier tells the right option itself.
        mean: Whether an option's score is the mean of its tokens' log likelihoods, and not their sum.
        end_id: The token that ends a window, with padding behind it; None where padding is not told apart.
        one_label: Whether a window has one label in all, and not one for each token.
    """

    n_labels: int
    n_options: int
    mean: bool
    end_id: int | None = None
    one_label: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJob:
    """The worker's orders, a JSON file.

    Attributes:
        group: The worker's own cgroup, to read its footprint from; None without one.
        data_limit_bytes: Set RLIMIT_DATA for this footprint once the kernels are loaded; None where a cgroup caps.
        eval_every: Evaluate after every so many steps; 0 only at the end.
        eval_first: Evaluate before the first step too.
        scheme: What is trained, as ``models.schemes.scheme_to_dict`` writes it.
        task: None for plain text.
        mask_id: Stands for a hidden token in masked language modelling; None predicts the next token.
        begin_id: Begins every window of a text; None for nothing.
        cold: Drop weight pages from the page cache at every eviction.
        verify: When weights are checked against their checksums: ``first``, or ``full``: at every page-in.
        kernel_rank: The most LoRA ranks that a product sees at once.
        checkpoint: What the pack was made from, where matrices are trained; None for none.
        capture: Where memray records to; None in a run that is not recorded.
        recorded_steps: How many steps, from the first, it records.
        mapped_from_bytes: Values of this size and more are mapped one by one in a recorded run.
        checkpoints: Directory of the checkpoints.
        checkpoint_every: Save the state after every so many steps; it is saved after the last one, too.
        first_step: Steps that are done already; their state is in ``checkpoints``.
    """

    group: str | None
    data_limit_bytes: int | None
    threads: int
    compute: str
    pack: str
    program: str
    eval_program: str | None
    task: TaskJob | None
    tokens: str
    eval_tokens: str | None
    eval_sequences: int
    eval_every: int
    eval_first: bool
    steps: int
    seq_len: int
    accumulate: int
    seed: int
    mask_id: int | None
    begin_id: int | None
    cold: bool
    verify: str
    scratch: str
    adapter: str
    kernel_rank: int
    scheme: dict[str, Any]
    base_model: str
    checkpoints: str
    checkpoint_every: int
    first_step: int = 0
    checkpoint: str | None = None
    capture: str | None = None
    recorded_steps: int = 0
    mapped_from_bytes: int = 0


class Messages:
    """The worker's end of the pipe. Every message is written at once: the last one says where a killed worker was."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, kind: str, **fields: Any) -> None:
        """Send one message of ``kind``."""
        self._write(json.dumps({"kind": kind, **fields}))

    def send_node(self, index: int, start_s: float, seconds: float, footprint_bytes: int) -> None:
        """Send the message that thousands of nodes a step send: a bare list."""
        self._write(f"[{index},{start_s:.6f},{seconds:.6f},{footprint_bytes}]")

    def _write(self, line: str) -> None:
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(self._descriptor, data) :]


def read_messages(pipe: BinaryIO) -> Iterator[Any]:
    """Yield the worker's messages until it closes the pipe; a last line cut short by a kill is dropped."""
    rest = b""
    while data := os.read(pipe.fileno(), PIPE_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        yield from json.loads(b"[" + b",".join(lines) + b"]")
        # Waking up for each of thousands of nodes would take a tenth of a step from a worker that uses all processors.
        time.sleep(PAUSE_S)


def read_job(path: Path) -> WorkerJob:
    """Read the orders that the parent of this process wrote."""
    data = json.loads(path.read_bytes())
    data["task"] = TaskJob(**data["task"]) if data["task"] else None
    return WorkerJob(**data)
