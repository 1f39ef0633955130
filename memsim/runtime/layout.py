"""The files of a run that exist before its first step: token ids, step programs, settings."""

from dataclasses import dataclass, replace
from pathlib import Path

from memsim.data.masking import mask_token_id
from memsim.data.tokenize import prepare_tokens
from memsim.data.tokenize_task import prepare_examples
from memsim.file_names import PROGRAM_FILE
from memsim.files import require_free, writing
from memsim.host import host_info, versions
from memsim.ir.serialize import save_program
from memsim.models.tiles import matrices_bytes
from memsim.results import TokenizerResult
from memsim.run_directory.checkpoints import N_KEPT
from memsim.run_directory.directory import EVAL_PROGRAM_FILE, RunDirectory
from memsim.run_directory.settings_file import Identity, file_digest, write_run_file
from memsim.runtime.kernels.marker import kernels_digest
from memsim.runtime.origin import Origin
from memsim.runtime.preflight import Ready
from memsim.runtime.run_progress import RunProgress


@dataclass(frozen=True, slots=True)
class LaidOut:
    """The files of a run in its work directory, before they count.

    Attributes:
        identity: What the bits of the run depend on.
        files: Those that move to the directory of checkpoints.
    """

    identity: Identity
    files: tuple[Path, ...]


def lay_out(ready: Ready, directory: RunDirectory, progress: RunProgress, before: Identity | None) -> LaidOut:
    """Write token ids and step programs to the work directory.

    Args:
        ready: The run.
        directory: Its directory.
        progress: Told when tokenizing begins.
        before: Of an earlier command, whose files of token ids serve if they are still whole.

    Raises:
        InputError: A text cannot be read or is too short, or the disk is full.
    """
    _require_room(ready, directory)
    pack, digests, files = ready.pack, {}, []
    known, tokenizer = (before.texts, before.tokenizer) if before else ({}, None)
    for name in ready.texts:
        earlier = directory.checkpoints / name
        if name in known and earlier.is_file() and file_digest(earlier) == known[name]:
            digests[name] = known[name]
            continue
        tokenizer = _write_data(ready, name, directory.work / name, progress)
        digests[name] = file_digest(directory.work / name)
        files.append(directory.work / name)
    save_program(ready.plan.train, directory.work / PROGRAM_FILE)
    if ready.plan.evaluate is not None:
        save_program(ready.plan.evaluate, directory.work / EVAL_PROGRAM_FILE)
    identity = Identity(
        model_hash=pack.model_hash,
        texts=digests,
        program=file_digest(directory.work / PROGRAM_FILE),
        threads=ready.setup.threads,
        compute=ready.compute,
        cpu=host_info().cpu,
        kernels=kernels_digest(),
        versions={name: version for name, version in versions().items() if name != "python"},
        tokenizer=tokenizer,
    )
    return LaidOut(identity, tuple(files))


def _require_room(ready: Ready, directory: RunDirectory) -> None:
    """Check that a disk has room for every trained weight: a working copy, checkpoints, and the model in the end."""
    if ready.setup.scheme.trains_matrices:
        n_bytes, what = matrices_bytes(ready.pack.config), "training every weight"
        require_free(ready.config.scratch or directory.path, n_bytes, f"{what} in place")
        require_free(directory.path, (N_KEPT + 2) * n_bytes, f"{what}, with {N_KEPT + 1} checkpoints and the result,")


def _write_data(ready: Ready, name: str, path: Path, progress: RunProgress) -> TokenizerResult:
    """Make a file of token ids, or of the examples of a task; return what made them."""
    config, pack, task, text = ready.config, ready.pack, ready.task, ready.texts[name]
    progress.stage("tokenizing")
    vocab_size, seq_len, ends = pack.config.vocab_size, config.seq_len, pack.config.family.ends
    if task is None:
        return prepare_tokens(
            text,
            ready.tokenizer,
            path,
            vocab_size=vocab_size,
            seq_len=seq_len,
            eos_id=pack.eos_token_id,
            bos=config.bos,
            ends=ends,
        ).tokenizer
    assert text is not None
    labels = ready.setup.scheme.labels
    done = prepare_examples(
        text,
        ready.tokenizer,
        path,
        task,
        vocab_size=vocab_size,
        seq_len=seq_len,
        with_template=config.template,
        options="none" if labels else "right" if name == "tokens.bin" else "all",
        bos=config.bos,
        ends=ends,
        mask_id=mask_token_id(ready.tokenizer.path, vocab_size) if ends and not labels else None,
    )
    progress.note(f"{done.n_truncated} of the {done.n_examples} examples of {text} are cut to {seq_len} tokens")
    return done.tokenizer


def accept(ready: Ready, directory: RunDirectory, laid: LaidOut, origin: Origin) -> None:
    """Put what was laid out where a resumed run will look for it.

    Raises:
        InputError: The directory cannot be written, or the disk is full.
    """
    with writing(directory.path):
        (directory.work / PROGRAM_FILE).replace(directory.path / PROGRAM_FILE)
        for path in laid.files:
            path.replace(directory.checkpoints / path.name)
    write_run_file(directory.checkpoints, replace(ready.config, out=None), laid.identity, origin)
