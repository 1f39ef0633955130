"""Lowering a zeroth-order step: perturbed forwards as lanes of one stream, their losses, one estimate, updates.

Over 250 lines: lanes, noise and updates of one method are read together.

Weights, adapters, scratch and block programs are those of every step (``lowering``, ``emitter``); a step adds
``perturb`` before each block, ``estimate`` after the last lane, and updates that draw the noise again.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import prod

from memsim.ir.program import Attr, Program, Repeat, Space, TensorType
from memsim.models.graph import ModelGraph
from memsim.models.parts import block_part
from memsim.schedules.choices import BlockChoices, Choices
from memsim.schedules.emitter import Env
from memsim.schedules.lanes import in_lanes, lane_axis, stacked
from memsim.schedules.lowering import Lowering
from memsim.schedules.zeroth_order import Estimator

_MLP_ROWS = 512
"""Rows of all lanes together that are in an MLP at once: a product unpacks its matrix once for as many."""

SEED_WORDS = TensorType((2,), "u32")
_STATS = 3


def zeroth_order_choices(n_blocks: int, estimator: Estimator) -> Choices:
    """Return what a zeroth-order step and its evaluation choose: the smallest of everything, and nothing is kept."""
    lanes = len(estimator.lanes) if estimator.method.streams == "shared" else 1
    # The backward of a hybrid's top blocks works on these tiles too, and holds several times as much.
    rows = _MLP_ROWS // 2 if estimator.method.hybrid else _MLP_ROWS
    return Choices(
        blocks=(BlockChoices(frozenset(), frozenset()),) * n_blocks,
        unpack="tile",
        head="one_pass",
        adapters="paged",
        update="end",
        mlp_tile=max(1, rows // lanes),
        prefetch=True,
    )


class ZeroOrderLowering(Lowering):
    """One step of a zeroth-order method on its way to a program."""

    def __init__(self, graph: ModelGraph, estimator: Estimator) -> None:
        super().__init__(graph, zeroth_order_choices(graph.config.num_hidden_layers, estimator))
        self.estimator = estimator
        # Noise is drawn by the number of a tensor: blocks first, then what else is trained.
        counts = [len(graph.trained[part]) for part in self.emit.stores]
        self._first = dict(zip(self.emit.stores, accumulate(counts, initial=0), strict=False))
        self._in_lanes: dict[tuple[int, int, bool], tuple[Program, Program]] = {}

    def zeroth_order_step(self, balloon_bytes: int) -> Program:
        """Return the whole step."""
        estimator, method = self.estimator, self.estimator.method
        states = self._begin()
        streams = [estimator.lanes] if method.streams == "shared" else [(lane,) for lane in estimator.lanes]
        micro_batches = self.graph.accumulate
        sums = (
            [self._zero_losses(number, len(lanes)) for number, lanes in enumerate(streams)] if micro_batches > 1 else []
        )
        start = len(self.builder.nodes)
        ids, labels = self._next_batch()
        reported = "." if "." in estimator.lanes else ""  # a lane that is not perturbed is the step's loss, if any
        losses = [
            self._stream(f"f{n}", ids, labels, lanes, report=not reported or reported in lanes)
            for n, lanes in enumerate(streams)
        ]
        if sums:
            losses = [self._add_losses(total, stats) for total, stats in zip(sums, losses, strict=True)]
        if balloon_bytes:
            self.builder.emit_declared("balloon", [], [], {"n_bytes": balloon_bytes})
        repeat = Repeat(start, len(self.builder.nodes), micro_batches)
        rho = self._estimate(losses, "rho")
        if method.accepts:
            tried = self._stream("a", ids, labels, ("-0", "+0"), scale=rho)
            self.emit.enter("", "forward")
            (rho,) = self.builder.emit("accept", [*losses, tried, rho], ["rho.accepted"])
        self.builder.emit_declared("emit_estimate", [rho], [])
        updated = [self._update(part, rho, 0, state) for part, state in states.items()]
        return self._finish([name for names in updated for name in names], repeat)

    def replay(self) -> Program:
        """Return the updates alone, of a step whose projected gradients are known, in the pinned value ``rho``."""
        states = self._begin()
        kind = TensorType((self.estimator.n_estimates(self.n_blocks),), "f64")
        rho = self.builder.input("rho", kind, Space.PINNED, "rho")
        own = 1 if self.estimator.method.blocks else 0  # each block has an estimate of its own
        updated = [self._update(part, rho, own * number, state) for number, (part, state) in enumerate(states.items())]
        return self._finish([name for names in updated for name in names], None)

    def _declare(self) -> None:
        self._declare_step()
        self.builder.input("seed", SEED_WORDS, Space.PINNED, "seed")

    def _begin(self) -> dict[str, str]:
        """Declare what outlives a step; return the optimizer state of each part with something trained."""
        self._declare()
        return {part: self.emit.declare_state(part, self.estimator.optimizer) for part in self.emit.stores}

    # -- lanes -----------------------------------------------------------------------------------------------------

    def _stream(
        self, prefix: str, ids: str, labels: str, lanes: Sequence[str], scale: str = "", report: bool = False
    ) -> str:
        """Emit one forward of all ``lanes``; return the statistics of their losses.

        Args:
            prefix: Of the names of this stream's values.
            ids: Tokens.
            labels: Their labels.
            lanes: What each adds to the adapters.
            scale: A value to multiply the perturbation with, beside the learning rate; empty for eps alone.
            report: Whether these losses are the step's.
        """
        self.emit.enter("embed", "forward")
        adapters = self._perturbed("embed", self.emit.adapters("embed", prefix), lanes, prefix, scale)
        x = self._embed(ids, prefix, adapters)
        if len(lanes) > 1:
            (x,) = self.builder.emit("repeat_rows", [x], [f"embed/{prefix}.lanes"], lanes=len(lanes))
        for index in range(self.n_blocks):
            x = self._block(index, x, lanes, prefix, scale)
        env, weights = self._head_weights(prefix)
        env |= self._perturbed("head", self.emit.adapters("head", prefix), lanes, prefix, scale)
        stats = self._losses(x, labels, env, len(lanes), prefix)
        if weights:
            self.emit.evict(weights)
        if report:
            base = lanes.index(".") if "." in lanes else -1
            self.builder.emit_declared("emit_loss", [stats], [], {"base": base})
        return stats

    def _block(self, index: int, x: str, lanes: Sequence[str], prefix: str, scale: str) -> str:
        env, weights, adapters = self._page_in(index, prefix)
        env |= self._perturbed(block_part(index), adapters, lanes, prefix, scale)
        y = self._through(index, x, env, len(lanes), prefix, own_adapters=True)
        self.emit.evict(weights)
        return y

    def _page_in(self, index: int, prefix: str) -> tuple[Env, list[str], Env]:
        """Emit the page-in of a block; return what its nodes read, what to evict, and its adapters."""
        self.emit.enter(block_part(index), "forward")
        env, weights = self.emit.block_weights(index, prefix)
        for following in [block_part(index + 1)] if index + 1 < self.n_blocks else self._head_parts():
            self.emit.prefetch(following)
        return env | self.emit.constants | self.padding, weights, self.emit.adapters(block_part(index), prefix)

    def _through(self, index: int, x: str, env: Env, lanes: int, prefix: str, own_adapters: bool) -> str:
        """Emit the forward nodes of a block for the lanes in ``x``; return its output."""
        env = env | {"x": x}
        attention = self._program(self.graph.attention(index).forward, lanes, own_adapters)
        self.emit.inline(attention.nodes, attention.values, prefix, env)
        tiles = self._tiles(self.choices.blocks[index])
        if not tiles:
            mlp = self._program(self.graph.mlp(index=index).forward, lanes, own_adapters)
            self.emit.inline(mlp.nodes, mlp.values, prefix, env)
            return env["y"]
        part, y = self.builder.part, env["x_mid"]
        for number, (start, count) in enumerate(tiles):
            mlp = self._program(self.graph.mlp(count, index).forward, lanes, own_adapters)
            name = f"{part}/{prefix}.{number}"
            (rows,) = self.builder.emit("take_rows", [y], [f"{name}.x_mid"], start=start, count=count, lanes=lanes)
            inner = env | {"x_mid": rows}
            self.emit.inline(mlp.nodes, mlp.values, f"{prefix}.{number}", inner)
            (y,) = self.builder.emit("put_rows", [y, inner["y"]], [f"{name}.rows"], start=start, lanes=lanes)
        return y

    def _program(self, program: Program, lanes: int, own_adapters: bool) -> Program:
        key = (id(program), lanes, own_adapters)
        if key not in self._in_lanes:
            # The program itself is kept too: its identity must not become another one's.
            self._in_lanes[key] = program, self._derive(program, lanes, own_adapters)
        return self._in_lanes[key][1]

    def _derive(self, program: Program, lanes: int, own_adapters: bool) -> Program:
        return in_lanes(program, lanes, own_adapters)

    def _perturbed(self, part: str, adapters: Env, lanes: Sequence[str], prefix: str, scale: str) -> Env:
        """Emit the adapters of every lane, stacked; return their names."""
        if not adapters:
            return {}
        axes = {name: lane_axis(name) if len(lanes) > 1 else 0 for name in adapters}
        new = {}
        for name, value in adapters.items():
            kind = stacked(self.builder.values[value].type, axes[name], len(lanes))
            new[name] = self.builder.declare(f"{part}/{prefix}.z.{name}", kind)
        step = self.estimator.optimizer.lr if scale else self.estimator.eps
        attrs: dict[str, Attr] = {
            "signs": ",".join(lanes),
            "axes": "".join(map(str, axes.values())),
            "eps": step,
            "parameter": self._first[part],
        }
        inputs = ["seed", *([scale] if scale else []), *adapters.values()]
        outputs = [*new.values(), self._workspace(part, f"{prefix}.z.work")]
        self.builder.emit_declared("perturb", inputs, outputs, attrs | self.estimator.noise_attrs())
        return new

    def _workspace(self, part: str, name: str) -> str:
        """Declare room for the noise of one tensor of a part."""
        largest = max(map(prod, self.graph.trained[part].values()))
        return self.builder.declare(f"{part}/{name}", TensorType((largest,)))

    # -- losses and the estimate -----------------------------------------------------------------------------------

    def _head_weights(self, prefix: str) -> tuple[Env, list[str]]:
        """Emit the page-in of the head; return what its nodes read and what to evict."""
        self.emit.enter("head", "forward")
        env = self._page_in_head(f"{prefix}.h")
        self.emit.prefetch(block_part(0))
        return env, list(env.values())

    def _losses(self, x: str, labels: str, env: Env, lanes: int, prefix: str) -> str:
        """Emit the head without a gradient; return the statistics of each lane's loss."""
        env = env | {"x": x, "labels": labels}
        head = self._program(self.graph.head("one_pass", train=False), lanes, own_adapters=False)
        self.emit.inline(head.nodes, head.values, prefix, env)
        return env["stats"]

    def _zero_losses(self, number: int, lanes: int) -> str:
        self.emit.enter("", "forward")
        total = self.builder.declare(f"losses{number}", TensorType((_STATS * lanes,), "f64"))
        self.builder.emit_declared("zero", [], [total])
        return total

    def _add_losses(self, total: str, stats: str) -> str:
        new = self.emit.overwrite(total, f"{total}.sum")
        self.builder.emit_declared("sum_losses", [total, stats], [new])
        return new

    def _estimate(self, losses: Sequence[str], name: str) -> str:
        self.emit.enter("", "forward")
        estimator = self.estimator
        kind, eps, directions = estimator.method.estimate, estimator.eps, estimator.directions
        return self.builder.emit("estimate", losses, [name], kind=kind, eps=eps, directions=directions)[0]

    # -- updates ---------------------------------------------------------------------------------------------------

    def _update(self, part: str, rho: str, rho_at: int, state: str) -> list[str]:
        """Emit the update of one part, whose estimates begin at ``rho_at``; return what holds its new adapters."""
        estimator = self.estimator
        self.emit.enter(part, "update")
        adapters = list(self.emit.adapters(part, "u").values())
        states = [state] if state else []
        new = [self.emit.overwrite(name, f"{name}.new") for name in (*adapters, *states)]
        attrs = estimator.update_attrs() | {
            "n_tensors": len(adapters),
            "parameter": self._first[part],
            "directions": estimator.directions,
            "rho_at": rho_at,
        }
        inputs = ["step", "seed", rho, *adapters, *states]
        self.builder.emit_declared("zo_update", inputs, [*new, self._workspace(part, "u.work")], attrs)
        return self.emit.put_back(part, new[: len(adapters)])
