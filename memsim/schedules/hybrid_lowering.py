"""Lowering a hybrid step: backpropagation through the top blocks, a zeroth-order estimate for those below.

One forward serves both. Its first lane is not perturbed, and is what the top blocks are differentiated along; the other
lanes carry perturbations of the lower blocks to the loss.
"""

from dataclasses import replace

from memsim.errors import UsageError
from memsim.ir.program import Program, Space
from memsim.models.graph import ModelGraph
from memsim.models.parts import block_part
from memsim.schedules.emitter import Env
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.zeroth_order import Estimator
from memsim.schedules.zeroth_order_lowering import ZeroOrderLowering


class HybridLowering(ZeroOrderLowering):
    """One hybrid step on its way to a program."""

    def __init__(self, graph: ModelGraph, estimator: Estimator, optimizer: OptimizerConfig) -> None:
        """Check the number of top blocks.

        Raises:
            UsageError: It leaves no block for one of both.
        """
        n_blocks, k = graph.config.num_hidden_layers, estimator.hybrid_k
        if not 1 <= k < n_blocks:
            raise UsageError(
                f"--hybrid-k {k} must be 1 to {n_blocks - 1} of the model's {n_blocks} blocks: the others are "
                f"zeroth-order"
            )
        super().__init__(replace(graph, frozen_below=n_blocks - k), estimator)
        self.lowest, self.optimizer = n_blocks - k, optimizer

    def zeroth_order_step(self, balloon_bytes: int) -> Program:
        """Return the whole step."""
        self._declare()
        tops = [block_part(index) for index in range(self.lowest, self.n_blocks)]
        states = {part: self.emit.declare_state(part, self.optimizer) for part in tops}
        ids, labels = self._next_batch()
        lanes = self.estimator.lanes
        (x,) = self.builder.emit("repeat_rows", [self._embed(ids)], ["embed/f.lanes"], lanes=len(lanes))
        for index in range(self.n_blocks):
            x = self._block(index, x, lanes, "f", "") if index < self.lowest else self._top_block(index, x)
        if balloon_bytes:
            self.builder.emit_declared("balloon", [], [], {"n_bytes": balloon_bytes})
        dx, rho = self._split_head(x, labels)
        new: list[str] = []
        for index in reversed(range(self.lowest, self.n_blocks)):
            dx, adapters = self._backward(index, dx)
            new += self.emit.update(block_part(index), self.optimizer, states[block_part(index)], adapters)
        for index in range(self.lowest):
            new += self._update(block_part(index), rho, 0, "")
        self.emit.enter("", "forward")
        self.builder.emit_declared("emit_estimate", [rho], [])
        return self._finish(new, None)

    def _base_lane(self, x: str, name: str) -> str:
        return self.builder.emit("take_rows", [x], [name], start=0, count=self.graph.n_tokens)[0]

    def _top_block(self, index: int, x: str) -> str:
        """Emit a block that all lanes pass alike; spill its input of the first lane."""
        part = block_part(index)
        env, weights, adapters = self._page_in(index, "f")
        base = self._base_lane(x, f"{part}/f.base")
        saved = self.builder.declare(f"{part}/s.x", self.builder.values[base].type, Space.SCRATCH, f"{part}/x")
        self.builder.emit_declared("spill", [base], [saved])
        self.saved[index]["x"] = saved
        y = self._through(index, x, env | adapters, len(self.estimator.lanes), "f", own_adapters=False)
        self.emit.evict(weights)
        return y

    def _split_head(self, x: str, labels: str) -> tuple[str, str]:
        """Emit the loss of the first lane with its gradient, and those of the others; return dx and the estimate."""
        env, weights = self._head_weights("f")
        n_others = len(self.estimator.lanes) - 1
        base = self._base_lane(x, "head/f.base")
        others = self.builder.emit(
            "take_rows", [x], ["head/f.others"], start=self.graph.n_tokens, count=n_others * self.graph.n_tokens
        )[0]
        perturbed = self._losses(others, labels, env, n_others, "z")
        own: Env = env | {"x": base, "labels": labels}
        forward = self.graph.head(self.choices.head, train=True)
        self.emit.inline(forward.nodes, forward.values, "f", own)
        self.builder.emit_declared("emit_loss", [own["stats"]], [])
        rho = self._estimate([own["stats"], perturbed], "rho")
        self.emit.enter("head", "backward")
        self.emit.prefetch(block_part(self.n_blocks - 1))
        backward = self.graph.head_backward(self.choices.head)
        self.emit.inline_backward(backward, "head", "b", own)
        self.emit.evict(weights)
        return own[backward.gradients["x"]], rho
