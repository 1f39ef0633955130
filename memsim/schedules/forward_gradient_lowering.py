"""Lowering a forward gradient: one forward with tangents, the exact directional derivative, an update along z.

(arXiv 2202.08587, and the zeroth-order benchmark's Forward-Grad.) The direction z is drawn as any other noise.
"""

from memsim.ir.program import Program
from memsim.ir.tangents import tangent_of
from memsim.models.parts import block_part
from memsim.schedules.emitter import Env
from memsim.schedules.tangents import with_tangents
from memsim.schedules.zeroth_order_lowering import ZeroOrderLowering

_ROWS = 2  # of x, and of its tangent


class ForwardGradientLowering(ZeroOrderLowering):
    """One step of a forward gradient on its way to a program."""

    def zeroth_order_step(self, balloon_bytes: int) -> Program:
        """Return the whole step."""
        states = self._begin()
        ids, labels = self._next_batch()
        words = self._embed(ids)
        still = self.builder.declare("embed/f.tangent", self.builder.values[words].type)
        self.builder.emit_declared("zero", [], [still])  # what is below the first adapter does not move
        (x,) = self.builder.emit("concat_rows", [words, still], ["embed/f.both"])
        if balloon_bytes:
            self.builder.emit_declared("balloon", [], [], {"n_bytes": balloon_bytes})
        for index in range(self.n_blocks):
            env, weights, adapters = self._page_in(index, "f")
            x = self._through(index, x, env | adapters | self._direction(index, adapters), _ROWS, "f", False)
            self.emit.evict(weights)
        env, weights = self._head_weights("f")
        env |= {"x": x, "labels": labels}
        head = self._program(self.graph.head("one_pass", train=True), _ROWS, False)
        self.emit.inline(head.nodes, head.values, "f", env)
        self.builder.emit_declared("emit_loss", [env["stats"]], [])
        self.builder.emit_declared("emit_estimate", [env["rho"]], [])
        self.emit.evict(weights)
        updated = [self._update(part, env["rho"], 0, state) for part, state in states.items()]
        return self._finish([name for names in updated for name in names], None)

    def _derive(self, program: Program, lanes: int, own_adapters: bool) -> Program:
        return with_tangents(program)

    def _direction(self, index: int, adapters: Env) -> Env:
        """Emit the noise of a block's adapters; return it as their tangents."""
        self.emit.enter(block_part(index), "forward")
        noise = self._perturbed(block_part(index), adapters, ("=0",), "f", "")
        return {tangent_of(name): value for name, value in noise.items()}
