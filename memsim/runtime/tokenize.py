"""Text to token ids, in a process of its own, so that no other process of a run ever holds a tokenizer.

``prepare_tokens`` starts ``python -m memsim.runtime.tokenize JOB`` (a JSON object). The child writes ids to the open
file it inherits and JSON lines to stdout: ``{"done_bytes", "total_bytes"}`` as it goes, then ``{"n_tokens"}`` or
``{"error"}``. The text is streamed in pieces of 64 Ki characters, cut at a space before a word where there is one.
That is a boundary for the byte-level BPE and SentencePiece tokenizers in use, so the ids are those of the whole text.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

import memsim
from memsim.errors import InputError, WorkerError
from memsim.files import atomic_write, temporary_file
from memsim.printable import printable
from memsim.reading import open_regular
from memsim.runtime.confine import die_with_parent
from memsim.runtime.data import Ids, check_length
from memsim.runtime.text import jsonl_texts, pieces, utf8_chunks

DEFAULT_TEXT = "pydoc_data.topics"
MAX_TOKENIZER_BYTES = 256 << 20
PROGRESS_BYTES = 1 << 18

# tokenizer.json does not say which of its special tokens ends a text; these are the names that models in use give it.
_EOS_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")

Encode = Callable[[str], Ids]


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What became of a text.

    Attributes:
        source: File name of the text, without its directory.
        tokenizer: ``tokenizer.json``, or ``bytes`` for one id per byte.
    """

    n_tokens: int
    source: str
    tokenizer: str


@dataclass(frozen=True, slots=True)
class _Job:
    """What the child is asked: paths are absolute, names are what messages call them."""

    parent_pid: int
    source: str | None
    source_name: str
    tokenizer: str | None
    out_fd: int
    vocab_size: int
    eos_id: int | None


def prepare_tokens(
    source: Path | None,
    tokenizer: Path | None,
    out: Path,
    *,
    vocab_size: int,
    seq_len: int,
    eos_id: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenInfo:
    """Turn a text into a file of little-endian uint32 token ids, written atomically.

    Args:
        source: A UTF-8 text file, or ``.jsonl`` with a ``text`` string in each line's object. None is the text that
            every Python carries, ``pydoc_data.topics``.
        tokenizer: The model's ``tokenizer.json``. None is byte-level: ids 0 to 255.
        out: The token file to write.
        vocab_size: Ids must be below it.
        seq_len: The text must hold at least one sequence of it.
        eos_id: Stands between documents. None looks for a usual end-of-text token in the tokenizer, and separates
            documents by a newline when there is none.
        progress: Called with (bytes of text read, bytes in all).

    Raises:
        InputError: The text or the tokenizer cannot be read, the text is not UTF-8 or JSONL, too short, or has an id
            beyond the vocabulary; ``out`` cannot be written.
        WorkerError: The process died.
    """
    name = DEFAULT_TEXT if source is None else str(source)
    with atomic_write(out) as file:
        job = _Job(
            parent_pid=os.getpid(),
            source=None if source is None else str(source.absolute()),
            source_name=name,
            tokenizer=None if tokenizer is None else str(tokenizer.absolute()),
            out_fd=file.fileno(),
            vocab_size=vocab_size,
            eos_id=eos_id,
        )
        n_tokens = int(run_child("memsim.runtime.tokenize", job, "n_tokens", progress)["n_tokens"])
        check_length(n_tokens, seq_len, name)
    return TokenInfo(
        n_tokens, DEFAULT_TEXT if source is None else source.name, "bytes" if tokenizer is None else "tokenizer.json"
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
    command = [sys.executable, "-m", module, json.dumps(asdict(fields))]
    # The directory that holds the package, and not the user's, goes first on the child's import path.
    root = Path(memsim.__file__).parent.parent
    last: dict[str, Any] = {}
    with (
        temporary_file() as stderr,
        subprocess.Popen(
            command, cwd=root, pass_fds=(job.out_fd,), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
        ) as child,
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
        stderr.seek(0)
        complaint = stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
    if "error" in last:
        raise InputError(last["error"])
    if answer not in last:
        raise WorkerError(f"the process that tokenizes {job.source_name} died ({child.returncode}): {complaint}")
    return last


def main() -> None:
    """Run the job given as the only argument; the child's side of ``prepare_tokens``."""
    job = _Job(**json.loads(sys.argv[1]))
    die_with_parent(job.parent_pid)
    try:
        n_tokens = _tokenize(job)
    except InputError as error:
        say(error=str(error))
        sys.exit(1)
    except OSError as error:
        say(error=f"cannot tokenize {job.source_name}: {error.strerror or error}")
        sys.exit(1)
    say(n_tokens=n_tokens)


def say(**message: int | str) -> None:
    """Send the parent one message."""
    print(json.dumps(message), flush=True)


def _tokenize(job: _Job) -> int:
    """Write the ids of the job's text and return how many there are."""
    n_tokens = said_bytes = 0
    with _open_source(job) as file, open(job.out_fd, "wb", closefd=False) as out:  # noqa: PTH123 (a descriptor)
        total_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        if total_bytes == 0:
            raise InputError(f"{job.source_name} is empty")
        is_jsonl = job.source is None or Path(job.source).suffix.lower() == ".jsonl"
        texts = jsonl_texts(file, job.source_name) if is_jsonl else iter([utf8_chunks(file, job.source_name)])
        encode, eos_id = _byte_encoder(job) if job.tokenizer is None else _tokenizer_encoder(job)
        for ids in token_runs(texts, encode, eos_id):
            _check_vocabulary(ids, job)
            out.write(ids.tobytes())
            n_tokens += len(ids)
            if file.tell() >= said_bytes + PROGRESS_BYTES:
                said_bytes = file.tell()
                say(done_bytes=said_bytes, total_bytes=total_bytes)
    say(done_bytes=total_bytes, total_bytes=total_bytes)
    return n_tokens


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


def _byte_encoder(job: _Job) -> tuple[Encode, int | None]:
    return lambda text: np.frombuffer(text.encode(), dtype=np.uint8).astype("<u4"), job.eos_id


def _tokenizer_encoder(job: _Job) -> tuple[Encode, int | None]:
    """Load a ``tokenizer.json`` and return its encoder and the id that ends a document, if it has one."""
    tokenizer = load_tokenizer(job.tokenizer or "")
    found = (tokenizer.token_to_id(token) for token in _EOS_TOKENS)
    eos_id = job.eos_id if job.eos_id is not None else next((id for id in found if id is not None), None)
    return lambda text: np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype="<u4"), eos_id


def load_tokenizer(path: str) -> Any:
    """Return the ``tokenizers.Tokenizer`` in a ``tokenizer.json``, untrusted.

    Raises:
        InputError: It cannot be read, or is none.
    """
    from tokenizers import Tokenizer

    name = f"tokenizer {path}"
    with open_regular(Path(path), name) as file:
        data = file.read(MAX_TOKENIZER_BYTES + 1)
    if len(data) > MAX_TOKENIZER_BYTES:
        raise InputError(f"{name} is larger than {MAX_TOKENIZER_BYTES >> 20} MiB")
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except BaseException as error:  # the library raises bare Exception for every kind of corruption, and panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{name} is corrupt: {printable(' '.join(str(error).split()))[:200]}") from error
    # A tokenizer.json saved after use may cut or pad every text to one length.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_runs(texts: Iterable[Iterable[str]], encode: Encode, eos_id: int | None) -> Iterator[Ids]:
    """Yield the ids of ``texts`` piece by piece, with ``eos_id`` (or, without one, a newline) between two texts."""
    separator = encode("\n") if eos_id is None else np.array([eos_id], dtype="<u4")
    for number, chunks in enumerate(texts):
        if number:
            yield separator
        for piece in pieces(chunks):
            yield encode(piece)


if __name__ == "__main__":
    main()
