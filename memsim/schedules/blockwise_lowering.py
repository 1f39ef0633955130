"""Lowering block-wise zeroth-order steps: each block is perturbed while all others are as they are.

Perturbing block b alone changes nothing below it: two lanes branch off the plain forward at b. By Jacobi all branches
go on side by side, so that the weights are streamed once; by Gauss and Seidel each goes to the loss by itself, block b
is updated, and the plain forward goes on with its new adapters.
"""

from memsim.ir.program import Program
from memsim.models.parts import block_part
from memsim.schedules.emitter import Env
from memsim.schedules.zeroth_order_lowering import ZeroOrderLowering

_PAIR = 2


class BlockwiseLowering(ZeroOrderLowering):
    """One block-wise step on its way to a program."""

    def zeroth_order_step(self, balloon_bytes: int) -> Program:
        """Return the whole step."""
        states = self._begin()
        ids, labels = self._next_batch()
        x = self._embed(ids)
        if balloon_bytes:
            self.builder.emit_declared("balloon", [], [], {"n_bytes": balloon_bytes})
        step = self._jacobi if self.estimator.method.blocks == "jacobi" else self._gauss_seidel
        rhos, new = step(x, labels, states)
        self.emit.enter("", "forward")
        self.builder.emit_declared("emit_estimate", rhos, [])
        return self._finish(new, None)

    def _jacobi(self, x: str, labels: str, states: dict[str, str]) -> tuple[list[str], list[str]]:
        branches: list[str] = []
        for index in range(self.n_blocks):
            env, weights, adapters = self._page_in(index, "f")
            plain = env | adapters
            branches = [self._through(index, pair, plain, _PAIR, f"b{n}", False) for n, pair in enumerate(branches)]
            branches.append(self._branch(index, x, env, adapters))
            x = self._through(index, x, plain, 1, "f", False)
            self.emit.evict(weights)
        env, weights = self._head_weights("h")
        rhos = []
        for index, pair in enumerate(branches):
            stats = self._losses(pair, labels, env, _PAIR, f"b{index}")
            rhos.append(self._estimate([stats], f"rho{index}"))
        stats = self._losses(x, labels, env, 1, "f")
        self.builder.emit_declared("emit_loss", [stats], [])
        self.emit.evict(weights)
        updated = [self._update(part, rho, 0, state) for (part, state), rho in zip(states.items(), rhos, strict=True)]
        return rhos, [name for names in updated for name in names]

    def _gauss_seidel(self, x: str, labels: str, states: dict[str, str]) -> tuple[list[str], list[str]]:
        rhos: list[str] = []
        new: list[str] = []
        for index in range(self.n_blocks):
            env, weights, adapters = self._page_in(index, f"p{index}")
            pair = self._branch(index, x, env, adapters)
            self.emit.evict(weights)
            for above in range(index + 1, self.n_blocks):
                env, weights, adapters = self._page_in(above, f"p{index}")
                pair = self._through(above, pair, env | adapters, _PAIR, f"b{index}", False)
                self.emit.evict(weights)
            env, weights = self._head_weights(f"h{index}")
            stats = self._losses(pair, labels, env, _PAIR, f"b{index}")
            if index == 0:
                self.builder.emit_declared("emit_loss", [stats], [])
            self.emit.evict(weights)
            rhos.append(self._estimate([stats], f"rho{index}"))
            part = block_part(index)
            new += self._update(part, rhos[index], 0, states[part])
            self.emit.stores[part] = {"": new[-1]}  # what later nodes of this block read
            if index + 1 < self.n_blocks:
                env, weights, adapters = self._page_in(index, "f")
                x = self._through(index, x, env | adapters, 1, "f", False)
                self.emit.evict(weights)
        return rhos, new

    def _branch(self, index: int, x: str, env: Env, adapters: Env) -> str:
        """Emit block ``index`` with its adapters perturbed both ways; return both outputs."""
        prefix = f"z{index}"
        perturbed = self._perturbed(block_part(index), adapters, ("+0", "-0"), prefix, "")
        (both,) = self.builder.emit("repeat_rows", [x], [f"{block_part(index)}/{prefix}.both"], lanes=_PAIR)
        return self._through(index, both, env | perturbed, _PAIR, prefix, own_adapters=True)
