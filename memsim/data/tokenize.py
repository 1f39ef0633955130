"""Text to token ids, in a process of its own, so that no other process of a run ever holds a tokenizer.

Over 250 lines: both sides of one process, with the job that they share.

``prepare_tokens`` starts ``python -m memsim.data.tokenize JOB`` (a JSON object). The child writes ids to the open
file it inherits and JSON lines to stdout: ``{"done_bytes", "total_bytes"}`` as it goes, then ``{"n_tokens"}`` and what
the tokenizer added, or ``{"error"}``. The text is streamed in pieces (``token_pieces``), to the ids of the whole. Every
document begins as its tokenizer begins it.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np

from memsim.cap.child import child_command, start_child
from memsim.data.record_files import holds_records, record_texts
from memsim.data.text import utf8_chunks
from memsim.data.token_pieces import ids_of_whole
from memsim.data.tokenizer_choice import ChosenTokenizer
from memsim.data.tokenizer_file import begin_ids, encoder, load_tokenizer
from memsim.data.windows import Ids, check_length
from memsim.errors import InputError, WorkerError
from memsim.files import atomic_write, last_line, temporary_file
from memsim.reading import open_regular
from memsim.results import TokenizerResult

DEFAULT_TEXT = "pydoc_data.topics"
PROGRESS_BYTES = 1 << 18

# tokenizer.json does not say which of its special tokens ends a text; these are the names that models in use give it.
_EOS_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")

Bos = Literal["auto", "document", "never"]

TextIds = Callable[[Iterable[str]], Iterator[Ids]]
"""The ids of one document, given in chunks."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What became of a text.

    Attributes:
        source: File name of the text, without its directory.
        tokenizer: What made tokens of it, and what was added.
    """

    n_tokens: int
    source: str
    tokenizer: TokenizerResult


@dataclass(frozen=True, slots=True)
class _Job:
    """What the child is asked: paths are absolute, names are what messages call them."""

    source: str | None
    source_name: str
    tokenizer: str | None
    out_fd: int
    vocab_size: int
    eos_id: int | None
    begins: bool
    ends: tuple[int, ...] = ()


def prepare_tokens(
    source: Path | None,
    tokenizer: ChosenTokenizer,
    out: Path,
    *,
    vocab_size: int,
    seq_len: int,
    eos_id: int | None = None,
    bos: Bos = "auto",
    ends: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenInfo:
    """Turn a text into a file of little-endian uint32 token ids, written atomically.

    Args:
        source: A UTF-8 text file, or one of records, each a JSON object with a ``text`` string. None is the text that
            every Python carries, ``pydoc_data.topics``.
        tokenizer: The model's. Bytes are ids 0 to 255.
        out: The token file to write.
        vocab_size: Ids must be below it.
        seq_len: The text must hold at least one sequence of it.
        eos_id: Stands between documents. None looks for a usual end-of-text token in the tokenizer, and separates
            documents by a newline when there is none.
        bos: Whether documents begin as the tokenizer begins a text, and with ``auto`` every window too, if that is by
            one token.
        ends: What every window stands between, in the place of all that.
        progress: Called with (bytes of text read, bytes in all).

    Raises:
        InputError: The text or the tokenizer cannot be read, the text is not UTF-8 or JSONL, too short, or has an id
            beyond the vocabulary; ``out`` cannot be written.
        WorkerError: The process died.
    """
    name = DEFAULT_TEXT if source is None else str(source)
    with atomic_write(out) as file:
        job = _Job(
            source=None if source is None else str(source.absolute()),
            source_name=name,
            tokenizer=None if tokenizer.path is None else str(tokenizer.path.absolute()),
            out_fd=file.fileno(),
            vocab_size=vocab_size,
            eos_id=eos_id,
            begins=bos != "never" and ends is None,
            ends=ends or (),
        )
        last = run_child("memsim.data.tokenize", job, "n_tokens", progress)
        check_length(int(last["n_tokens"]), seq_len, name)
    every_window = ends is not None or (bos == "auto" and len(last["begin_ids"]) == 1)
    return TokenInfo(
        int(last["n_tokens"]),
        DEFAULT_TEXT if source is None else source.name,
        used(tokenizer, last, every_window),
    )


def used(tokenizer: ChosenTokenizer, answer: Mapping[str, Any], every_window: bool) -> TokenizerResult:
    """Return what the record says of a tokenizer, from the answer of the process that used it."""
    return TokenizerResult(
        name=tokenizer.name,
        sha256=tokenizer.sha256,
        begins=tuple(answer["begins"]),
        begin_ids=tuple(answer["begin_ids"]),
        every_window=every_window and bool(answer["begins"] or answer["ends"]),
        between=answer["between"],
        ends=tuple(answer["ends"]),
    )


class ChildJob(Protocol):
    """What any such child is asked: a dataclass of plain data."""

    @property
    def source_name(self) -> str:
        """What messages call the file that it reads."""

    @property
    def out_fd(self) -> int:
        """The open file that it writes."""


def run_child(
    module: str, job: ChildJob, answer: str, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Run ``job`` in a child process, ``python -m module``, and return its last message, which holds ``answer``.

    Raises:
        InputError: What the child complains of.
        WorkerError: It died.
    """
    fields: Any = job
    command = child_command(module, json.dumps(asdict(fields)))
    last: dict[str, Any] = {}
    with (
        temporary_file() as stderr,
        start_child(command, pass_fds=(job.out_fd,), stdout=subprocess.PIPE, stderr=stderr) as child,
    ):
        try:
            assert child.stdout is not None
            for line in child.stdout:
                last = json.loads(line)
                if progress is not None and "done_bytes" in last:
                    progress(last["done_bytes"], last["total_bytes"])
        except BaseException:
            child.kill()
            raise
        child.wait()
        complaint = last_line(stderr)
    if "error" in last:
        raise InputError(last["error"])
    if answer not in last:
        raise WorkerError(f"the process that tokenizes {job.source_name} died ({child.returncode}): {complaint}")
    return last


def main() -> None:
    """Run the job given as the only argument; the child's side of ``prepare_tokens``."""
    job = _Job(**json.loads(sys.argv[1]))
    answer_parent(job.source_name, lambda: _tokenize(job))


def answer_parent(source_name: str, work: Callable[[], dict[str, Any]]) -> None:
    """Do the work of a child, and send the parent what comes of it, or why nothing does."""
    try:
        answer = work()
    except InputError as error:
        say(error=str(error))
        sys.exit(1)
    except OSError as error:
        say(error=f"cannot tokenize {source_name}: {error.strerror or error}")
        sys.exit(1)
    say(**answer)


def say(**message: Any) -> None:
    """Send the parent one message."""
    print(json.dumps(message), flush=True)


def _tokenize(job: _Job) -> dict[str, Any]:
    """Write the ids of the job's text; return how many there are, and what was added."""
    n_tokens = said_bytes = 0
    with _open_source(job) as file, open(job.out_fd, "wb", closefd=False) as out:  # noqa: PTH123 (a descriptor)
        total_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        if total_bytes == 0:
            raise InputError(f"{job.source_name} is empty")
        records = job.source is None or holds_records(file, job.source_name)
        texts = record_texts(file, job.source_name) if records else iter([utf8_chunks(file, job.source_name)])
        loaded = load_tokenizer(job.tokenizer) if job.tokenizer else None
        ids_of: TextIds = _byte_ids if loaded is None else partial(ids_of_whole, encode=encoder(loaded))
        begin = begin_ids(loaded) if loaded is not None and job.begins else ()
        eos_id = job.eos_id if loaded is None else _end_of(loaded, job)
        for ids in token_runs(texts, ids_of, eos_id, begin):
            _check_vocabulary(ids, job)
            out.write(ids.tobytes())
            n_tokens += len(ids)
            if file.tell() >= said_bytes + PROGRESS_BYTES:
                said_bytes = file.tell()
                say(done_bytes=said_bytes, total_bytes=total_bytes)
    say(done_bytes=total_bytes, total_bytes=total_bytes)
    return {
        "n_tokens": n_tokens,
        "begin_ids": begin,
        "begins": [token_name(loaded, index) for index in begin],
        "between": None if eos_id is None else token_name(loaded, eos_id),
        "ends": [token_name(loaded, index) for index in job.ends],
    }


def _check_vocabulary(ids: Ids, job: _Job) -> None:
    largest = int(ids.max(initial=0))
    if largest >= job.vocab_size:
        raise InputError(
            f"{job.source_name} has token id {largest}, beyond the model's vocabulary of {job.vocab_size}; "
            f"use the tokenizer.json that belongs to the model"
        )


def _open_source(job: _Job) -> BinaryIO:
    """Open the text; the default text becomes JSONL in memory, one topic a document, in the order of their names."""
    if job.source is None:
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise InputError(f"this Python has no {DEFAULT_TEXT}; give a text file (--data)") from None
        lines = (json.dumps({"text": topics[name]}) + "\n" for name in sorted(topics))
        return io.BytesIO("".join(lines).encode())
    return open_regular(Path(job.source), job.source_name)


def _byte_ids(chunks: Iterable[str]) -> Iterator[Ids]:
    return (np.frombuffer(chunk.encode(), dtype=np.uint8).astype("<u4") for chunk in chunks)


def _end_of(tokenizer: Any, job: _Job) -> int | None:
    """Return the id that ends a document, if there is one."""
    found = (tokenizer.token_to_id(token) for token in _EOS_TOKENS)
    return job.eos_id if job.eos_id is not None else next((index for index in found if index is not None), None)


def token_name(tokenizer: Any, index: int) -> str:
    """Return what records call a token."""
    name = tokenizer.id_to_token(index) if tokenizer is not None else None
    return str(index) if name is None else str(name)


def token_runs(
    texts: Iterable[Iterable[str]], ids_of: TextIds, eos_id: int | None, begin: Sequence[int] = ()
) -> Iterator[Ids]:
    """Yield the ids of ``texts`` piece by piece.

    Args:
        texts: Documents in chunks.
        ids_of: Makes ids of one.
        eos_id: Stands between two documents; without one, a newline does.
        begin: Stands before each document.
    """
    first = np.array(begin, dtype="<u4")
    for number, chunks in enumerate(texts):
        if number:
            yield from ids_of(["\n"]) if eos_id is None else [np.array([eos_id], dtype="<u4")]
        if begin:
            yield first
        yield from ids_of(chunks)


if __name__ == "__main__":
    main()
