"""The capped worker: ``python -m memsim.execution.worker JOB.json FD`` trains and reports on the pipe FD.

It joins its cgroup before this file is read, so everything counts: interpreter, libraries, compiled kernels.
Nothing here may import what a step does not need.
"""

import errno
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from memsim.cap.confine import EXIT_OUT_OF_MEMORY, limit_data
from memsim.cap.footprint import GroupFootprint, NodeFootprint, process_footprint
from memsim.errors import DivergedError, MemsimError, WorkerError
from memsim.execution.compile_cache import forbid_compilation, loading
from memsim.execution.protocol import GO, Messages, WorkerJob, read_job
from memsim.system_limits import remedy, system_refusal

if TYPE_CHECKING:
    from memsim.data.windows import Windows
    from memsim.execution.recorder import Recorder
    from memsim.execution.storage.mapped_weights import MappedWeights
    from memsim.ir.program import Program
    from memsim.models.config import ModelConfig
    from memsim.weights.readers.source import Checkpoint


def main() -> None:
    """Run the job; report its end as a message and an exit code."""
    messages = Messages(int(sys.argv[2]))
    try:
        job = read_job(Path(sys.argv[1]))
        with forbid_compilation():
            _train(job, messages)
    except MemoryError:
        os._exit(EXIT_OUT_OF_MEMORY)
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        os._exit(EXIT_OUT_OF_MEMORY)  # no room is left for its stack, which limit_data counts
    except MemsimError as error:
        messages.send("error", message=f"{error}{remedy(error.__cause__)}", diverged=isinstance(error, DivergedError))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno == errno.ENOMEM:  # how mmap says MemoryError
            os._exit(EXIT_OUT_OF_MEMORY)
        messages.send("error", message=system_refusal(error) or str(error))
        sys.exit(MemsimError.exit_code)


def _train(job: WorkerJob, messages: Messages) -> None:
    from memsim.data.examples import ExampleFile
    from memsim.data.windows import Batches

    with loading():
        from memsim.execution.kernels import finish_loading, load_kernels
    from memsim.execution.saver import Saver
    from memsim.execution.session import Session
    from memsim.execution.storage.mapped_weights import MappedWeights
    from memsim.ir.serialize import load_program
    from memsim.models.schemes import scheme_from_dict
    from memsim.weights.pack import open_pack

    pack = open_pack(Path(job.pack))
    weights = MappedWeights(pack, job.cold, job.verify == "full")
    checking = _Check(weights)
    scheme = scheme_from_dict(job.scheme)
    with loading():
        kernels = load_kernels(job.compute, job.threads, job.kernel_rank)
    checkpoint = _open_checkpoint(job.checkpoint) if job.checkpoint else None
    footprint = _Footprint(job.group)
    train = load_program(Path(job.program))
    evaluate = load_program(Path(job.eval_program)) if job.eval_program else None
    before_bytes = footprint.read_bytes()
    recorder = _start_recording(train.program, job) if job.capture else None
    finish_loading()
    if job.data_limit_bytes is not None:
        limit_data(job.data_limit_bytes)
    baseline_bytes = footprint.read_bytes()
    tracker_bytes = max(baseline_bytes - before_bytes, 0) if recorder else 0
    messages.send("ready", baseline_bytes=baseline_bytes, tracker_bytes=tracker_bytes)
    if os.read(sys.stdin.fileno(), 1) != GO:
        return

    checking.finish()
    scratch = Path(job.scratch)
    session = Session(
        pack, scheme, train, evaluate, scratch, job.seed, job.cold, None, kernels, weights, recorder, checkpoint
    )
    task = job.task

    def open_data(path: str, n_options: int) -> "Windows":
        if task is None:
            return _windows(path, job, pack.config)
        settings = (task.n_labels, job.seq_len, n_options, task.end_id, task.one_label)
        return ExampleFile(Path(path), pack.config.vocab_size, *settings)

    eval_data = open_data(job.eval_tokens, task.n_options if task else 1) if job.eval_tokens else None
    batches = Batches(open_data(job.tokens, 1), job.seq_len, job.seed)

    def observe(index: int, start: float, seconds: float) -> None:
        messages.send_node(index, start, seconds, footprint.after_node(start + seconds))

    def evaluating(*_: float) -> None:
        messages.send("stage", name="evaluating")

    def evaluate_after(n_steps: int) -> None:
        if eval_data is None:
            return
        if task and isinstance(eval_data, ExampleFile) and task.n_options > 1:
            result = session.evaluate_choices(eval_data, job.seq_len, job.eval_sequences, task.mean, evaluating)
        else:
            result = session.evaluate(eval_data, job.seq_len, job.eval_sequences, evaluating)
        messages.send("eval", step=n_steps, loss=result.loss, accuracy=result.accuracy)

    saver = Saver(job, session, messages)
    first = saver.restore()
    if job.eval_first and first == 0:
        evaluate_after(0)
    for step in range(first, job.steps):
        start = time.perf_counter()
        with saver.saving_before(step):
            score = session.train_step(step, batches, job.accumulate, observe)
        seconds = time.perf_counter() - start
        messages.send("step", step=step, loss=score.loss, accuracy=score.accuracy, seconds=seconds, rho=session.rho)
        if recorder is not None and step < job.recorded_steps:
            if step + 1 == job.recorded_steps:
                recorder.stop()
            recorder.write_back()
        if step + 1 == job.steps or (job.eval_every and (step + 1) % job.eval_every == 0):
            if eval_data is not None:
                saver.require_finite(step + 1)
            evaluate_after(step + 1)
        if saver.after(step + 1) == "stop":
            messages.send("stopped")
            return
    messages.send("stage", name="writing the adapter")
    session.write_trained(Path(job.adapter), job.base_model)
    messages.send("done")


def _start_recording(program: "Program", job: WorkerJob) -> "Recorder":
    from memsim.execution.recorder import Recorder, prepare_heap

    prepare_heap(job.mapped_from_bytes)
    recorder = Recorder(program, Path(str(job.capture)), job.mapped_from_bytes)
    recorder.start()
    return recorder


def _windows(path: str, job: WorkerJob, config: "ModelConfig") -> "Windows":
    """Return the windows of a token file, masked if the model needs that."""
    from memsim.data.windows import TokenFile

    file = TokenFile(Path(path), config.vocab_size, job.begin_id)
    if job.mask_id is None or config.family.ends is None:
        return file
    from memsim.data.masking import MaskedTokens

    return MaskedTokens(file, config.vocab_size, job.mask_id, config.family.ends, job.seed)


def _open_checkpoint(path: str) -> "Checkpoint":
    from memsim.weights.readers.formats import open_source

    return open_source(Path(path))


class _Check:
    """The checksums of the weights, taken while the kernels load: hashing needs no Python."""

    def __init__(self, weights: "MappedWeights") -> None:
        self._weights = weights
        self._error: MemsimError | None = None
        self._thread = threading.Thread(target=self._run, name="memsim-check", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._weights.verify()
        except MemsimError as error:
            self._error = error

    def finish(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


class _Footprint:
    """Footprint of this process: its group's, or without one smaps_rollup's."""

    def __init__(self, group: str | None) -> None:
        self._group = GroupFootprint(Path(group)) if group else None
        self._node = NodeFootprint(self._group) if self._group else None

    def read_bytes(self) -> int:
        return self._group.read_bytes() if self._group else process_footprint()

    def after_node(self, now_s: float) -> int:
        """Return the footprint if it is cheap to read, else 0: smaps_rollup takes milliseconds.

        Raises:
            WorkerError: Somebody removed the group.
        """
        try:
            return self._node.read_bytes(now_s) if self._node else 0
        except OSError as error:
            raise WorkerError(
                f"the cgroup of the worker has gone ({error.strerror}): nothing holds it to its cap any more"
            ) from error


if __name__ == "__main__":
    main()
