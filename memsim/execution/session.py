"""A training session: programs bound to weights, adapters, scratch and data, in this process.

Over 250 lines: it owns all memory of a run, and lets go of it in order.

The capped worker runs one; tests run it directly.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from memsim.data.examples import ExampleFile
from memsim.data.windows import IGNORED, Batches, Windows
from memsim.errors import DivergedError, WorkerError
from memsim.execution.executor import Executor, NodeFrame, Observer
from memsim.execution.kernel_call import Kernel
from memsim.execution.kernels import KERNELS
from memsim.execution.recorder import Recorder
from memsim.execution.storage.arrays import ArenaStorage, PlannedArena, SeparateArrays, allocate_arena, allocate_pinned
from memsim.execution.storage.initial_values import StoredPart
from memsim.execution.storage.mapped_weights import Array, MappedWeights
from memsim.execution.storage.scratch import ScratchFile, scratch_sizes
from memsim.execution.storage.trained_matrices import TrainedMatrices
from memsim.ir.program import Program, TensorType
from memsim.ir.serialize import PlacedProgram
from memsim.models.config import ModelConfig
from memsim.models.decoder import constants
from memsim.models.parts import part_names
from memsim.models.rope_tables import constant_values
from memsim.models.scheme import Scheme
from memsim.models.tiles import tiled_matrices
from memsim.planner.staging import staging
from memsim.run_directory.seed_log import step_key
from memsim.simulator.recordings.frames import STAGING
from memsim.weights.pack import Pack
from memsim.weights.readers.source import Checkpoint
from memsim.weights.trained import write_trained
from memsim.weights.whole_model import write_whole_model

_IDLE_BYTES = 1 << 20
"""Memory for saving the state of a session without an arena."""


@dataclass(frozen=True, slots=True)
class Score:
    """Mean loss (nats a token) and next-token accuracy over some tokens."""

    loss: float
    accuracy: float


class _NotFinite(Exception):
    """The loss of a micro-batch is NaN or infinite."""


class _Losses:
    """The executor's host: hands out windows and sums what the loss nodes emit."""

    def __init__(self, windows: Iterator[tuple[Array, Array]]) -> None:
        self._windows = windows
        self._total = np.zeros(3)
        self.raising = False
        self.rho: tuple[float, ...] = ()

    def next_batch(self, ids: Array, labels: Array, n_valid: Array | None = None) -> None:
        own_ids, own_labels = next(self._windows)
        count = len(own_ids)
        if not 0 < count <= len(ids) or len(own_labels) > len(labels):
            raise WorkerError(f"a window of {count} tokens does not fit a step that was planned for {len(ids)}")
        # A shorter window is padded, behind: no token before it sees that in a causal model, nor within n_valid.
        ids[:count], ids[count:] = own_ids, 0
        labels[: len(own_labels)], labels[len(own_labels) :] = own_labels, IGNORED
        if n_valid is not None:
            n_valid[0] = count

    def emit_loss(self, stats: Array) -> None:
        if self.raising and not np.isfinite(stats[0]):
            raise _NotFinite(float(stats[0]))
        self._total += stats

    def emit_estimate(self, rho: Array) -> None:
        if not np.isfinite(rho).all():  # the reported loss may be finite all the same: it is that of another lane
            raise _NotFinite(float("inf"))
        self.rho = tuple(rho.tolist())

    def clear(self) -> None:
        self._total[:] = 0

    def take_sums(self) -> tuple[float, float, float]:
        """Return the sum of losses, and how many labels were predicted right and were there, since last asked."""
        loss, correct, valid = self._total.tolist()
        self.clear()
        return loss, correct, valid

    def take(self) -> Score:
        loss, correct, valid = self.take_sums()
        return Score(loss / valid, correct / valid) if valid else Score(float("nan"), 0.0)


class Session:
    """Trainable tensors (adapters, for short), optimizer state and executors of one run.

    Args:
        pack: The weights; must be the ones that the programs were lowered for.
        scheme: What is trained; must be the one that the programs were lowered for.
        train: The step program.
        evaluate: The evaluation program, if any.
        scratch_directory: Where spilled values and optimizer state go; on a disk.
        seed: Of the adapters' initial values and of a zeroth-order step's noise.
        cold: Drop evicted weight pages from the page cache too.
        arena: Storage of the step program's arena values; the planned arena by default.
        kernels: What executes each op; f32 by default.
        weights: The parts of ``pack``, mapped; by default mapped, and checked, when first paged in.
        recorder: Records the step program: makes one allocation a value, and runs each node in a frame of its own.
        checkpoint: What ``pack`` was made from: matrices that are trained start as they are there; without it, as the
            pack has them.

    Attributes:
        matrices: Those that are trained, in bf16; see ``trainables`` for all else.
        keeps_state_of_bad_step: Whether a step whose loss is not finite leaves the state as it was before.

    Raises:
        WorkerError: A program belongs to other weights.
        InputError: The scratch directory cannot serve.
    """

    def __init__(
        self,
        pack: Pack,
        scheme: Scheme,
        train: PlacedProgram,
        evaluate: PlacedProgram | None,
        scratch_directory: Path,
        seed: int,
        cold: bool = False,
        arena: ArenaStorage | None = None,
        kernels: Mapping[str, Kernel] = KERNELS,
        weights: MappedWeights | None = None,
        recorder: Recorder | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        placed = {"train": train} | ({"evaluate": evaluate} if evaluate else {})
        if any(item.model_hash != pack.model_hash for item in placed.values()):
            raise WorkerError(
                f"the step program was lowered for other weights than {pack.directory}; plan the run again"
            )
        programs = {name: item.program for name, item in placed.items()}
        self._config, self._scheme, self._kernels, self._seed = pack.config, scheme, kernels, seed
        self._eos_token_id = pack.eos_token_id
        self._pinned = allocate_pinned(programs, recorder.allocate if recorder else None)
        self._weights = weights or MappedWeights(pack, cold)
        stage = partial(recorder.map, STAGING) if recorder else None
        sizes = scratch_sizes(*programs.values())
        self._scratch = ScratchFile(sizes, staging(programs.values()), scratch_directory, stage)
        arena_bytes = max(item.arena_bytes for item in placed.values())
        if recorder:
            arena, arena_bytes = SeparateArrays(train.program, allocate=recorder.allocate), _IDLE_BYTES
        self._buffer = buffer = allocate_arena(arena_bytes)
        self._windows: Iterator[tuple[Array, Array]] = iter(())
        self._losses = _Losses(iter(self._next_window, None))
        self._program = train.program
        self.keeps_state_of_bad_step = _emits_losses_first(train.program)
        self._train = self._executor(train, arena or PlannedArena(train, buffer), recorder.nodes if recorder else None)
        self._evaluate = self._executor(evaluate, PlannedArena(evaluate, buffer)) if evaluate else None
        _fill_constants(self._pinned, pack.config, scheme)
        for part, name, key, tensor in self._trainable_tensors():
            stored = StoredPart(pack, self._weights, part)
            scheme.fill_initial(tensor, name, (seed, *key), stored)
            stored.close()
        self.matrices = TrainedMatrices(tiled_matrices(pack.config) if scheme.trains_matrices else {}, self._scratch)
        self.matrices.fill(pack, self._weights, checkpoint)

    def _executor(
        self, placed: PlacedProgram, arena: ArenaStorage, frames: Sequence[NodeFrame] | None = None
    ) -> Executor:
        storage = (arena, self._pinned, self._weights, self._scratch)
        return Executor(placed.program, *storage, self._losses, self._kernels, frames)

    def _next_window(self) -> tuple[Array, Array]:
        return next(self._windows)

    def train_step(self, step: int, batches: Batches, accumulate: int, observe: Observer | None = None) -> Score:
        """Run one step (numbered from 0) on ``accumulate`` windows; return its loss and accuracy before the update.

        Raises:
            DivergedError: The loss is not finite.
        """
        self._windows = (batches.batch(step * accumulate + micro) for micro in range(accumulate))
        self._begin(step)
        self._losses.raising = self.keeps_state_of_bad_step
        try:
            self._train.run(observe, step)
            loss = (score := self._losses.take()).loss
        except _NotFinite as error:
            loss = error.args[0]
        finally:
            self._losses.raising = False
            self._losses.clear()
        if not np.isfinite(loss):
            raise DivergedError(f"the loss is {loss} at step {step + 1}{self._advice(step)}")
        return score

    def _advice(self, step: int) -> str:
        """Return what to do about a loss of ``step`` that is not finite: before any update it is not --lr's fault."""
        perturbs = any(node.op == "estimate" for node in self._program.nodes)
        if step or not self.keeps_state_of_bad_step:
            return "; lower --lr or --zo-eps" if perturbs else "; lower --lr"
        if perturbs:
            return ", before any update: lower --zo-eps, unless the model's own weights give no finite loss"
        return ", before any update, so --lr is not the cause: the model's own weights give no finite loss"

    def _begin(self, step: int) -> None:
        self._losses.rho = ()
        self._pinned["step"][0] = step + 1
        if "seed" in self._pinned:
            self._pinned["seed"][:] = step_key(self._seed, step)

    @property
    def rho(self) -> tuple[float, ...]:
        """The projected gradients of the last step, if it was a zeroth-order one."""
        return self._losses.rho

    def replay_step(self, step: int, rho: tuple[float, ...]) -> None:
        """Run one step (numbered from 0) of a program from ``lower_replay``, whose projected gradients are known."""
        self._begin(step)
        self._pinned["rho"][:] = rho
        self._train.run()

    def evaluate(self, tokens: Windows, seq_len: int, n_sequences: int, observe: Observer | None = None) -> Score:
        """Return the score over the first ``n_sequences`` windows of ``tokens``."""
        if self._evaluate is None:
            raise WorkerError("this session has no evaluation program")
        count = min(n_sequences, tokens.n_windows(seq_len))
        self._windows = (tokens.window(index, seq_len) for index in range(count))
        for _ in range(count):
            self._evaluate.run(observe)
        return self._losses.take()

    def evaluate_choices(
        self, examples: ExampleFile, seq_len: int, n_examples: int, mean: bool, observe: Observer | None = None
    ) -> Score:
        """Return the mean loss a token of the right options, and the share of examples whose right option scores best.

        An option's score is the log likelihood of its labelled tokens: their sum, or their ``mean``. The first of equal
        ones is chosen; an example whose scores are not all finite counts as wrong.
        """
        if self._evaluate is None:
            raise WorkerError("this session has no evaluation program")
        count = min(n_examples, examples.n_windows(seq_len) // examples.n_options)
        loss = tokens = n_right = 0.0
        for example in range(count):
            scores = np.empty(examples.n_options)
            for option in range(examples.n_options):
                index = example * examples.n_options + option
                self._windows = iter([examples.window(index, seq_len)])
                self._evaluate.run(observe)
                total, _, labels = self._losses.take_sums()
                scores[option] = -total / (labels if mean else 1)
                if examples.is_right(index):
                    right, loss, tokens = option, loss + total, tokens + labels
            n_right += bool(np.isfinite(scores).all()) and int(scores.argmax()) == right
        return Score(loss / tokens, n_right / count)

    def state_types(self) -> dict[str, TensorType]:
        """Return name -> type of every array of `state`, in its order."""
        values = (self._program.values[name] for name in self._program.state())
        return {value.source: value.type for value in values}

    def state(self, replacing: bool = False) -> Iterator[tuple[str, Array]]:
        """Yield (name, array) of all that a step reads of the steps before it: adapters and optimizer state.

        Args:
            replacing: What is written to an array before the next is asked for stays.
        """
        for source, kind in self.state_types().items():
            if source in self._scratch:
                yield source, self._scratch.array(source, kind.dtype, kind.shape)
                if replacing:
                    self._scratch.write_back(source)
            else:
                yield source, self._pinned[source]

    def idle_memory(self) -> memoryview:
        """Return the arena, in which nothing lives between two steps: planned memory, from a page boundary on."""
        return memoryview(self._buffer)

    def adapters(self) -> Iterator[tuple[int, str, Array]]:
        """Yield (block, name such as ``self_attn.q_proj.lora_A``, tensor) for every trainable tensor of the blocks."""
        for part, name, tensor in self.trainables():
            if part.startswith("block_"):
                yield int(part.removeprefix("block_")), name, tensor

    def trainables(self) -> Iterator[tuple[str, str, Array]]:
        """Yield (part, name, tensor) for every trainable tensor: blocks, then embedding, then head.

        What is written to a tensor before the next is asked for stays.
        """
        return ((part, name, tensor) for part, name, _, tensor in self._trainable_tensors())

    def _trainable_tensors(self) -> Iterator[tuple[str, str, tuple[int, int], Array]]:
        """Yield (part, name, (number of the part, position in it), tensor)."""
        embed, *blocks, head = part_names(self._config)
        for number, part in enumerate((*blocks, embed, head)):
            store, start = f"{part}/adapters", 0
            for position, (name, shape) in enumerate(self._scheme.shapes(self._config, part).items()):
                if store in self._scratch:
                    size = prod(shape)
                    tensor = self._scratch.array(store, "f32")[start : start + size].reshape(shape)
                    start += size
                else:
                    tensor = self._pinned[f"{part}/{name}"]
                yield part, name, (number, position), tensor
            if store in self._scratch:
                self._scratch.write_back(store)

    def write_trained(self, directory: Path, base_model: str) -> None:
        """Write what was trained into ``directory``: see ``weights.trained`` and ``weights.whole_model``.

        Raises:
            InputError: The directory cannot be written, or the disk is full.
        """
        if self._scheme.trains_matrices:
            write_whole_model(directory, self.trainables, self.matrices.tiles, self._config, self._eos_token_id)
        else:
            write_trained(directory, self.trainables, self._config, self._scheme, base_model)

    def array(self, name: str, evaluation: bool = False) -> Array:
        """Return the array of a value of the step program (or the evaluation program), for inspection."""
        executor = self._evaluate if evaluation else self._train
        if executor is None:
            raise WorkerError("this session has no evaluation program")
        return executor.array(name)


def _emits_losses_first(program: Program) -> bool:
    """Return whether every loss of a step is known before the step changes what outlives it."""
    state = set(program.state())
    writes = (i for i, node in enumerate(program.nodes) if state & {program.root(name) for name in node.outputs})
    losses = (i for i, node in enumerate(program.nodes) if node.op == "emit_loss")
    return max(losses, default=-1) < min(writes, default=len(program.nodes))


def _fill_constants(pinned: dict[str, Array], config: ModelConfig, scheme: Scheme) -> None:
    n_rows = max((len(pinned[name]) for name in constants(config, 1)), default=0)
    for name, table in constant_values(config, n_rows, scheme.first_position).items():
        np.copyto(pinned[name], table)
