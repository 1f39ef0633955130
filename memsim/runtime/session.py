"""A training session: programs bound to weights, adapters, scratch and data, in this process.

The capped worker runs one; tests run it directly.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memsim.errors import DivergedError, WorkerError
from memsim.ir.serialize import PlacedProgram
from memsim.models.config import ModelConfig
from memsim.models.decoder import constant_values, constants
from memsim.models.lora import LoraConfig, adapter_shapes, fill_initial
from memsim.models.parts import block_part
from memsim.planner.staging import staging
from memsim.runtime.data import IGNORED, Batches, Windows
from memsim.runtime.executor import Executor, Observer
from memsim.runtime.kernels import KERNELS, Kernel
from memsim.runtime.paging import Array, MappedWeights
from memsim.runtime.scratch import ScratchFile, scratch_sizes
from memsim.runtime.seed_log import step_key
from memsim.runtime.storage import ArenaStorage, PlannedArena, allocate_arena, allocate_pinned
from memsim.weights.pack import Pack


@dataclass(frozen=True, slots=True)
class Score:
    """Mean loss (nats a token) and next-token accuracy over some tokens."""

    loss: float
    accuracy: float


class _Losses:
    """The executor's host: hands out windows and sums what the loss nodes emit."""

    def __init__(self, windows: Iterator[tuple[Array, Array]]) -> None:
        self._windows = windows
        self._total = np.zeros(3)
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
        self._total += stats

    def emit_estimate(self, rho: Array) -> None:
        self.rho = tuple(rho.tolist())

    def take(self) -> Score:
        loss, correct, valid = self._total.tolist()
        self._total[:] = 0
        return Score(loss / valid, correct / valid) if valid else Score(float("nan"), 0.0)


class Session:
    """Adapters, optimizer state and executors of one run.

    Args:
        pack: The weights; must be the ones that the programs were lowered for.
        train: The step program.
        evaluate: The evaluation program, if any.
        scratch_directory: Where spilled values and optimizer state go; on a disk.
        seed: Of the adapters' initial values and of a zeroth-order step's noise.
        cold: Drop evicted weight pages from the page cache too.
        arena: Storage of the step program's arena values; the planned arena by default.
        kernels: What executes each op; f32 by default.
        weights: The parts of ``pack``, mapped; by default mapped, and checked, when first paged in.

    Raises:
        WorkerError: A program belongs to other weights.
        InputError: The scratch directory cannot serve.
    """

    def __init__(
        self,
        pack: Pack,
        lora: LoraConfig,
        train: PlacedProgram,
        evaluate: PlacedProgram | None,
        scratch_directory: Path,
        seed: int,
        cold: bool = False,
        arena: ArenaStorage | None = None,
        kernels: Mapping[str, Kernel] = KERNELS,
        weights: MappedWeights | None = None,
    ) -> None:
        placed = {"train": train} | ({"evaluate": evaluate} if evaluate else {})
        if any(item.model_hash != pack.model_hash for item in placed.values()):
            raise WorkerError(
                f"the step program was lowered for other weights than {pack.directory}; plan the run again"
            )
        programs = {name: item.program for name, item in placed.items()}
        self._config, self._lora, self._kernels, self._seed = pack.config, lora, kernels, seed
        self._pinned = allocate_pinned(programs)
        self._weights = weights or MappedWeights(pack, cold)
        self._scratch = ScratchFile(scratch_sizes(*programs.values()), staging(programs.values()), scratch_directory)
        buffer = allocate_arena(max(item.arena_bytes for item in placed.values()))
        self._windows: Iterator[tuple[Array, Array]] = iter(())
        self._losses = _Losses(iter(self._next_window, None))
        self._train = self._executor(train, arena or PlannedArena(train, buffer))
        self._evaluate = self._executor(evaluate, PlannedArena(evaluate, buffer)) if evaluate else None
        _fill_constants(self._pinned, pack.config)
        for block, name, position, tensor in self._adapter_tensors():
            fill_initial(tensor, name, seed, block, position)

    def _executor(self, placed: PlacedProgram, arena: ArenaStorage) -> Executor:
        return Executor(placed.program, arena, self._pinned, self._weights, self._scratch, self._losses, self._kernels)

    def _next_window(self) -> tuple[Array, Array]:
        return next(self._windows)

    def train_step(self, step: int, batches: Batches, accumulate: int, observe: Observer | None = None) -> Score:
        """Run one step (numbered from 0) on ``accumulate`` windows; return its loss and accuracy before the update.

        Raises:
            DivergedError: The loss is not finite.
        """
        self._windows = (batches.batch(step * accumulate + micro) for micro in range(accumulate))
        self._begin(step)
        self._train.run(observe, step)
        score = self._losses.take()
        if not np.isfinite(score.loss):
            raise DivergedError(f"the loss is {score.loss} at step {step + 1}; lower --lr")
        return score

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

    def adapters(self) -> Iterator[tuple[int, str, Array]]:
        """Yield (block, name such as ``self_attn.q_proj.lora_A``, tensor) for every adapter tensor."""
        return ((block, name, tensor) for block, name, _, tensor in self._adapter_tensors())

    def _adapter_tensors(self) -> Iterator[tuple[int, str, int, Array]]:
        shapes = adapter_shapes(self._config, self._lora)
        for block in range(self._config.num_hidden_layers):
            store, start = f"{block_part(block)}/adapters", 0
            for position, (name, shape) in enumerate(shapes.items()):
                if store in self._scratch:
                    size = shape[0] * shape[1]
                    tensor = self._scratch.array(store, "f32")[start : start + size].reshape(shape)
                    start += size
                else:
                    tensor = self._pinned[f"{block_part(block)}/{name}"]
                yield block, name, position, tensor
            if store in self._scratch:
                self._scratch.write_back(store)

    def array(self, name: str, evaluation: bool = False) -> Array:
        """Return the array of a value of the step program (or the evaluation program), for inspection."""
        executor = self._evaluate if evaluation else self._train
        if executor is None:
            raise WorkerError("this session has no evaluation program")
        return executor.array(name)


def _fill_constants(pinned: dict[str, Array], config: ModelConfig) -> None:
    n_tokens = max((len(pinned[name]) for name in constants(config, 1)), default=0)
    for name, table in constant_values(config, n_tokens).items():
        np.copyto(pinned[name], table)
