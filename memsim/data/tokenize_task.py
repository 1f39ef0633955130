"""Examples of a task to labelled windows, in a process of its own, as ``tokenize`` does with text.

Over 250 lines: both sides of one process, with the job that they share.

``prepare_examples`` starts ``python -m memsim.data.tokenize_task JOB``. An example becomes one window for training,
of its right option, and one for each option in an evaluation. Labels are the tokens of the answer; all others are
ignored. For a classifier, an example is one window of its prompt, and its last token has the index of the right option
as its label. What is longer than a window loses tokens at its start, special ones excepted; what is shorter is padded
at its end, where no token before sees it.

A model that is not causal has every window between tokens of its own, the last of which says where padding begins; the
tokens of an answer are hidden in it, and their labels are on them.
"""

import codecs
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from memsim.data.examples import record_words
from memsim.data.record_files import record_lines
from memsim.data.tokenize import PROGRESS_BYTES, Bos, answer_parent, run_child, say, token_name, used
from memsim.data.tokenizer_choice import ChosenTokenizer
from memsim.data.tokenizer_file import begin_ids, load_tokenizer
from memsim.data.windows import IGNORED, Ids
from memsim.errors import InputError
from memsim.files import atomic_write
from memsim.json_decode import decode
from memsim.json_file import parse_object
from memsim.reading import open_regular
from memsim.results import TokenizerResult
from memsim.tasks.task import Example, Task

Encode = Callable[[str], tuple[list[int], int]]
"""Text to ids, of which the first so many are special tokens (a beginning of text)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleJob:
    """What the child is asked; paths are absolute.

    Attributes:
        source: A JSONL file, one example a line.
        source_name: What messages call it.
        tokenizer: The model's ``tokenizer.json``; None is byte-level.
        with_template: Whether examples read as the task's ``template`` or as its ``plain`` says.
        options: ``right`` for training, ``all`` for an evaluation, ``none`` for a classifier's labels.
        begins: Whether a window begins as the tokenizer begins a text.
        ends: The first and the last token of a window, if it must have them.
        mask_id: What stands for each token of an answer; None where the token before it predicts it.
    """

    source: str
    source_name: str
    tokenizer: str | None
    out_fd: int
    vocab_size: int
    seq_len: int
    task: Task
    with_template: bool
    options: str
    begins: bool = True
    ends: tuple[int, ...] | None = None
    mask_id: int | None = None


@dataclass(frozen=True, slots=True)
class ExampleInfo:
    """What became of the examples of a file.

    Attributes:
        n_truncated: Examples that lost tokens, because they are longer than a window.
        tokenizer: What made tokens of them, and what was added.
    """

    n_examples: int
    n_truncated: int
    tokenizer: TokenizerResult


def prepare_examples(
    source: Path,
    tokenizer: ChosenTokenizer,
    out: Path,
    task: Task,
    *,
    vocab_size: int,
    seq_len: int,
    with_template: bool,
    options: str,
    bos: Bos = "auto",
    ends: tuple[int, int] | None = None,
    mask_id: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExampleInfo:
    """Turn a JSONL file of examples into a file of labelled windows (see ``examples``), written atomically.

    Raises:
        InputError: The file or the tokenizer cannot be read, a line is not an example of the task, an answer does not
            fit a window, or an id is beyond the vocabulary; ``out`` cannot be written.
        WorkerError: The process died.
    """
    with atomic_write(out) as file:
        job = ExampleJob(
            source=str(source.absolute()),
            source_name=str(source),
            tokenizer=None if tokenizer.path is None else str(tokenizer.path.absolute()),
            out_fd=file.fileno(),
            vocab_size=vocab_size,
            seq_len=seq_len,
            task=task,
            with_template=with_template,
            options=options,
            begins=bos != "never",
            ends=ends,
            mask_id=mask_id,
        )
        last = run_child("memsim.data.tokenize_task", job, "n_examples", progress)
    return ExampleInfo(int(last["n_examples"]), int(last["n_truncated"]), used(tokenizer, last, every_window=True))


def main() -> None:
    """Run the job given as the only argument; the child's side of ``prepare_examples``."""
    job = decode(ExampleJob, json.loads(sys.argv[1]), "job")
    answer_parent(job.source_name, lambda: _tokenize(job))


def _tokenize(job: ExampleJob) -> dict[str, Any]:
    """Write the windows of every example; return how many there are, how many are cut short, and what was added."""
    n_examples = n_truncated = said_bytes = 0
    loaded = load_tokenizer(job.tokenizer) if job.tokenizer else None
    encode = _byte_encoder() if loaded is None else _encoder(loaded, job.begins)
    source = open_regular(Path(job.source), job.source_name)
    with source as file, open(job.out_fd, "wb", closefd=False) as out:  # noqa: PTH123 (a descriptor)
        total_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        for where, line in record_lines(file, job.source_name):
            example = job.task.example(
                parse_object(line.removeprefix(codecs.BOM_UTF8), where), job.with_template, where
            )
            windows = [_window(tokens, job.seq_len, where) for tokens in _tokens(example, encode, job, where)]
            for record, _ in windows:
                _check_vocabulary(record, job, where)
                out.write(record.tobytes())
            n_examples += 1
            n_truncated += any(cut for _, cut in windows)
            if file.tell() >= said_bytes + PROGRESS_BYTES:
                said_bytes = file.tell()
                say(done_bytes=said_bytes, total_bytes=total_bytes)
    if not n_examples:
        raise InputError(f"{job.source_name} has no example")
    begin = begin_ids(loaded) if loaded is not None and job.begins and job.ends is None else ()
    return {
        "n_examples": n_examples,
        "n_truncated": n_truncated,
        "begin_ids": begin,
        "begins": [token_name(loaded, index) for index in begin],
        "between": None,
        "ends": [token_name(loaded, index) for index in job.ends or ()],
    }


@dataclass(frozen=True, slots=True)
class _Tokens:
    """One window before it is cut or padded.

    Attributes:
        is_right: Whether it is that of the right option.
        special: Special tokens at the start of ``ids``.
        labels: Of the last ids before the ``after`` that end the window.
    """

    is_right: bool
    ids: list[int]
    special: int
    labels: list[int]
    after: int = 0


def _tokens(example: Example, encode: Encode, job: ExampleJob, where: str) -> Iterator[_Tokens]:
    """Yield what becomes of an example.

    Raises:
        InputError: An answer is no token of its own after its prompt.
    """
    if job.options == "none":
        ids, special = encode(example.options[0].prompt)
        yield _between(_Tokens(True, ids, special, [example.right]), job.ends)
        return
    for index, texts in enumerate(example.options):
        if job.options == "right" and index != example.right:
            continue
        prompt, special = encode(texts.prompt)
        ids, _ = encode(texts.prompt + texts.answer)
        # The answer is what follows the tokens that both have; a token that spans both belongs to it.
        shared = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
        answer = ids[max(shared, 1) :]
        if not answer:
            raise InputError(f"{where}: the answer {texts.answer!r:.60} has no token of its own after its prompt")
        if job.mask_id is None:
            yield _Tokens(index == example.right, ids[:-1], special, answer)
        else:
            hidden = ids[: -len(answer)] + [job.mask_id] * len(answer)
            yield _between(_Tokens(index == example.right, hidden, special, answer), job.ends)


def _between(tokens: _Tokens, ends: tuple[int, ...] | None) -> _Tokens:
    """Put a window between ``ends``, in the place of the tokenizer's own special tokens."""
    if ends is None:
        return tokens
    first, last = ends
    return replace(tokens, ids=[first, *tokens.ids[tokens.special :], last], special=1, after=1)


def _window(tokens: _Tokens, seq_len: int, where: str) -> tuple[Ids, bool]:
    """Return the record of one window, and whether it was cut short.

    Raises:
        InputError: The answer alone is longer than a window.
    """
    ids, special, labels, after = tokens.ids, tokens.special, tokens.labels, tokens.after
    if len(labels) + special + after > seq_len:
        raise InputError(f"{where} has an answer of {len(labels)} tokens, which does not fit --seq-len {seq_len}")
    cut = len(ids) > seq_len
    if cut:
        ids = ids[:special] + ids[special - seq_len :]
    record = np.zeros(record_words(seq_len), dtype="<u4")
    record[0] = tokens.is_right
    record[1 : 1 + len(ids)] = ids
    record[1 + seq_len :] = IGNORED
    end = 1 + seq_len + len(ids) - after
    record[end - len(labels) : end] = labels
    return record, cut


def _check_vocabulary(record: Ids, job: ExampleJob, where: str) -> None:
    largest = int(record[1 : 1 + job.seq_len].max())
    if job.options != "none":
        labels = record[1 + job.seq_len :]
        largest = max(largest, int(labels[labels != IGNORED].max()))
    if largest >= job.vocab_size:
        raise InputError(
            f"{where} has token id {largest}, beyond the model's vocabulary of {job.vocab_size}; "
            f"use the tokenizer.json that belongs to the model"
        )


def _byte_encoder() -> Encode:
    return lambda text: (list(text.encode()), 0)


def _encoder(tokenizer: Any, begins: bool) -> Encode:
    def encode(text: str) -> tuple[list[int], int]:
        encoding = tokenizer.encode(text)
        special = encoding.special_tokens_mask
        own = [index for index, flag in enumerate(special) if not flag]
        # An end of text that the tokenizer adds is no part of an answer.
        first, end = (own[0], own[-1] + 1) if own else (0, 0)
        return (encoding.ids[:end], first) if begins else (encoding.ids[first:end], 0)

    return encode


if __name__ == "__main__":
    main()
