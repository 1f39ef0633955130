"""Lowering: block programs and choices become one flat step program.

Over 250 lines: it is the only description of a training step, and is read as one.

This is the only description of a training step. Plain backprop, MeBP and every later schedule differ in the
``Choices`` given here, that is, in which values the backward nodes read: kept, restored or recomputed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from memsim.ir.in_place import reuse_in_place
from memsim.ir.op import OpError
from memsim.ir.program import Program, Repeat, Space, TensorType
from memsim.ir.verify import verify
from memsim.models.graph import ModelGraph
from memsim.models.head import label_type
from memsim.models.parts import block_part, part_tensors
from memsim.schedules.choices import BlockChoices, Choices
from memsim.schedules.emitter import Emitter, Env, nodes_for
from memsim.schedules.optimizers import OptimizerConfig

_KEEP_NOTHING = BlockChoices(frozenset(), frozenset())


def lower(graph: ModelGraph, choices: Choices, optimizer: OptimizerConfig, balloon_bytes: int = 0) -> Program:
    """Return the verified program of one training step.

    Args:
        graph: Block programs of the model; its ``accumulate`` micro-batches are summed before the update.
        choices: The schedule.
        optimizer: What updates the adapters.
        balloon_bytes: Insert a node that touches this many unplanned bytes (for testing the cap).
    """
    return Lowering(graph, choices).step(optimizer, balloon_bytes)


def lower_evaluation(graph: ModelGraph, choices: Choices) -> Program:
    """Return the verified program of one evaluation batch: the forward and the loss."""
    return Lowering(graph, choices).evaluation()


class Lowering:
    """One step of first-order training on its way to a program; other steps build on its pieces."""

    def __init__(self, graph: ModelGraph, choices: Choices) -> None:
        self.n_blocks = graph.config.num_hidden_layers
        if len(choices.blocks) != self.n_blocks:
            raise OpError(f"choices for {len(choices.blocks)} blocks, but the model has {self.n_blocks}")
        self.graph = graph
        self.choices = choices
        self.emit = self._emitter(graph, choices)
        self.builder = self.emit.builder
        self.saved: list[Env] = [{} for _ in range(self.n_blocks)]
        self.padding: Env = {}
        self.ids = ""

    def _emitter(self, graph: ModelGraph, choices: Choices) -> Emitter:
        return Emitter(graph, choices)

    def step(self, optimizer: OptimizerConfig, balloon_bytes: int) -> Program:
        """Return the program of a training step."""
        self._declare_step()
        states = {part: self.emit.declare_state(part, optimizer) for part in self.emit.stores}
        at_end = self.choices.update == "end" or self.graph.accumulate > 1
        if self.graph.accumulate > 1:
            for part in self.emit.stores:
                with self._turn(part):
                    self.emit.zero_gradients(part)
        start = len(self.builder.nodes)
        labels, x = self._forward_all(train=True)
        if balloon_bytes:
            self.emit.enter("head", "forward")
            self.builder.emit_declared("balloon", [], [], {"n_bytes": balloon_bytes})
        new: list[str] = []
        for part, adapters in self._backward_all(x, labels):
            if not at_end and adapters:
                with self._turn(part):
                    new += self.emit.update(part, optimizer, states[part], adapters)
        repeat = Repeat(start, len(self.builder.nodes), self.graph.accumulate)
        if at_end:
            for part in self.emit.stores:
                self.emit.enter(part, "update")
                with self._turn(part):
                    new += self.emit.update(part, optimizer, states[part], self.emit.adapters(part, "u"))
        return self._finish(new, repeat)

    def evaluation(self) -> Program:
        """Return the program of an evaluation batch."""
        labels, x = self._forward_all(train=False)
        self._head(x, labels, train=False)
        return self._finish([], None)

    def _declare_step(self) -> None:
        self.builder.input("step", TensorType((1,), "f64"), Space.PINNED, "step")

    def _backward_all(self, x: str, labels: str) -> Iterator[tuple[str, Env]]:
        """Emit head and backward, part by part as far down as something is trained; yield (part, its adapters)."""
        dx, adapters = self._head(x, labels, train=True)
        yield "head", adapters
        for index in reversed(range(self.n_blocks)):
            part = block_part(index)
            if self.graph.goes_back(part):
                with self._turn(part):
                    below, adapters = self._backward(index, dx)
                    dx = self._pass_on(dx, below)
                yield part, adapters
        if "embed" in self.graph.trained:
            yield "embed", self._embed_backward(dx)

    def _finish(self, outputs: Sequence[str], repeat: Repeat | None) -> Program:
        program = reuse_in_place(self.builder.build(outputs, repeat))
        verify(program)
        return program

    # -- turns -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self, part: str) -> Iterator[None]:
        """Let the nodes emitted inside be executed in the turns of ``part`` only, if it is a block and blocks have any.

        Embedding and head are trained in every step.
        """
        groups = self.choices.groups
        if groups is not None and part.startswith("block_"):
            self.builder.turn = {"turns": groups, "turn": int(part.removeprefix("block_")) % groups}
        yield
        self.builder.turn = {}

    def _pass_on(self, dx: str, below: str) -> str:
        """Return the gradient of a block's input: with turns it is ``dx``, unless the block replaces that."""
        if self.choices.groups is None or not below:
            return below
        new = self.emit.overwrite(dx, f"{self.builder.part}/b.passed")
        self.builder.emit_declared("put_rows", [dx, below], [new], {"start": 0})
        return new

    # -- forward ---------------------------------------------------------------------------------------------------

    def _forward_all(self, train: bool) -> tuple[str, str]:
        """Emit batch, embedding and blocks; return the labels and the last block's output."""
        ids, labels = self._next_batch()
        x = self._embed(ids)
        for index in range(self.n_blocks):
            saves = train and self.graph.goes_back(block_part(index))
            x = self._forward(index, x, self.choices.blocks[index] if saves else _KEEP_NOTHING)
        return labels, x

    def _next_batch(self) -> tuple[str, str]:
        self.emit.enter("", "forward")
        config, n_tokens = self.graph.config, self.graph.n_tokens
        self.ids = ids = self.builder.declare("ids", TensorType((n_tokens,), "u32"))
        labels = self.builder.declare("labels", label_type(config, n_tokens))
        if not config.family.causal:
            self.padding = {"n_valid": self.builder.declare("n_valid", TensorType((1,), "u32"))}
        self.builder.emit_declared("next_batch", [], [ids, labels, *self.padding.values()])
        return ids, labels

    def _embed(self, ids: str, prefix: str = "f", adapters: Env | None = None) -> str:
        """Emit the embedding, with what is trained in it or with ``adapters`` in its place; return its output."""
        self.emit.enter("embed", "forward")
        env, weights = self._embed_inputs(ids, prefix, adapters)
        self.emit.inline(self.graph.embed.nodes, self.graph.embed.values, prefix, env)
        self.emit.evict(weights)
        return env["y"]

    def _embed_inputs(self, ids: str, prefix: str, adapters: Env | None = None) -> tuple[Env, list[str]]:
        """Emit the page-in of the embedding; return the names of all that it reads, and those to evict."""
        specs = part_tensors(self.graph.config, "embed", self.graph.formats)
        # A row a token of the words and of the table of positions; all of what is the same for every token.
        words, positions = self.graph.config.vocab_size, self.graph.config.position_table() or (1,)
        tables = {"embed_positions.weight": positions[0]} | dict.fromkeys(
            ("embed_tokens.q", "embed_tokens.scales"), words
        )
        read = {"embed_positions.weight": self.graph.n_rows}
        reads = sum(
            read.get(name, self.graph.n_tokens) * (spec.n_bytes // tables[name]) if name in tables else spec.n_bytes
            for name, spec in specs.items()
        )
        env = self.emit.page_in("embed", prefix, reads)
        weights = list(env.values())
        env |= (self.emit.adapters("embed", prefix) if adapters is None else adapters) | {"ids": ids}
        return env, weights

    def _forward(self, index: int, x: str, chosen: BlockChoices) -> str:
        part = block_part(index)
        self.emit.enter(part, "forward")
        env, weights = self.emit.block_weights(index, "f")
        for following in [block_part(index + 1)] if index + 1 < self.n_blocks else self._head_parts():
            self.emit.prefetch(following)
        env |= self.emit.constants | self.padding | self.emit.adapters(part, "f")
        env["x"] = x
        self._save(index, chosen, env)
        attention, tiles = self.graph.attention(index), self._tiles(chosen)
        segments = [attention] if tiles else [attention, self.graph.mlp(index=index)]
        for segment in segments:
            for node in segment.forward.nodes:
                self.emit.inline([node], segment.forward.values, "f", env)
                self._save(index, chosen, env)
        y = self._mlp_forward_tiles(index, env, tiles) if tiles else env["y"]
        self.emit.evict(weights)
        return y

    def _save(self, index: int, chosen: BlockChoices, env: Env) -> None:
        """Remember the kept residuals that exist by now, and spill those that must go."""
        part, saved = block_part(index), self.saved[index]
        for name in sorted((chosen.keep | chosen.spill) & env.keys() - saved.keys()):
            saved[name] = env[name]
            if name in chosen.spill:
                kind = self.builder.values[env[name]].type
                saved[name] = self.builder.declare(f"{part}/s.{name}", kind, Space.SCRATCH, f"{part}/{name}")
                with self._turn(part):
                    self.builder.emit_declared("spill", [env[name]], [saved[name]])

    # -- the MLP in tiles of tokens --------------------------------------------------------------------------------

    def _tiles(self, chosen: BlockChoices) -> list[tuple[int, int]]:
        """Return (first row, rows) of each tile; none when the MLP runs whole."""
        tile, n_rows = self.choices.mlp_tile, self.graph.n_rows
        if tile is None or tile >= n_rows or (chosen.keep | chosen.spill) & self._inside_mlp():
            return []
        return [(start, min(tile, n_rows - start)) for start in range(0, n_rows, tile)]

    def _inside_mlp(self) -> set[str]:
        return {name for node in self.graph.mlp().forward.nodes for name in node.outputs}

    def _rows(self, source: str, name: str, start: int, count: int) -> str:
        return self.builder.emit("take_rows", [source], [name], start=start, count=count)[0]

    def _mlp_forward_tiles(self, index: int, env: Env, tiles: list[tuple[int, int]]) -> str:
        """Replace the rows of x_mid by those of y, tile by tile; return y."""
        part, y = self.builder.part, env["x_mid"]
        for number, (start, count) in enumerate(tiles):
            segment = self.graph.mlp(count, index)
            inner = env | {"x_mid": self._rows(y, f"{part}/f{number}.x_mid", start, count)}
            self.emit.inline(segment.forward.nodes, segment.forward.values, f"f{number}", inner)
            (y,) = self.builder.emit("put_rows", [y, inner["y"]], [f"{part}/f{number}.rows"], start=start)
        return y

    def _mlp_backward_tiles(self, index: int, env: Env, dy: str, tiles: list[tuple[int, int]]) -> str:
        """Recompute and differentiate the MLP tile by tile, replacing the rows of dy by those of d x_mid."""
        part, dx = self.builder.part, dy
        for number, (start, count) in enumerate(tiles):
            segment = self.graph.mlp(count, index)
            self.emit.enter(part, "recompute")
            inner = env | {"x_mid": self._rows(env["x_mid"], f"{part}/r{number}.x_mid", start, count)}
            needed = nodes_for(segment.forward.nodes, set(segment.backward.residuals), set(inner))
            self.emit.inline(needed, segment.forward.values, f"r{number}", inner)
            self.emit.enter(part, "backward")
            inner[segment.backward.seed] = self._rows(dx, f"{part}/b{number}.dy", start, count)
            self.emit.inline_backward(segment.backward, part, f"b{number}", inner)
            rows = inner[segment.backward.gradients["x_mid"]]
            (dx,) = self.builder.emit("put_rows", [dx, rows], [f"{part}/b{number}.rows"], start=start)
        return dx

    # -- head and backward -----------------------------------------------------------------------------------------

    def _head_parts(self) -> list[str]:
        """Return the parts that the head reads: with tied embeddings its matrix is the embedding's."""
        return list(dict.fromkeys(source.partition("/")[0] for source in self._head_reads()))

    def _head_reads(self) -> dict[str, int]:
        """Return what the head reads of the weights, as source -> bytes."""
        values = self.graph.head(self.choices.head, train=False).values.values()
        return {value.source: value.n_bytes for value in values if value.space is Space.MAPPED}

    def _page_in_head(self, prefix: str) -> Env:
        """Emit the page-in of what the head reads; return its names."""
        env: Env = {}
        reads = self._head_reads()
        for part in self._head_parts():
            n_bytes = sum(size for source, size in reads.items() if source.startswith(f"{part}/"))
            env |= self.emit.page_in(part, prefix, n_bytes)
        return env

    def _head(self, x: str, labels: str, train: bool) -> tuple[str, Env]:
        """Emit the loss and, for training, its backward.

        Returns:
            The gradient of ``x`` (empty where nothing below needs it) and the names of the head's adapters.
        """
        self.emit.enter("head", "forward")
        env = self._page_in_head("h")
        weights = list(env.values())
        adapters = self.emit.adapters("head", "h")
        env |= adapters | {"x": x, "labels": labels}
        forward = self.graph.head(self.choices.head, train)
        self.emit.inline(forward.nodes, forward.values, "f", env)
        self.builder.emit_declared("emit_loss", [env["stats"]], [])
        dx = ""
        if train:
            self.emit.enter("head", "backward")
            backward = self.graph.head_backward(self.choices.head)
            if self.graph.trains_below("head"):
                self.emit.prefetch(block_part(self.n_blocks - 1))
            self.emit.inline_backward(backward, "head", "b", env)
            dx = env[backward.gradients["x"]] if "x" in backward.gradients else ""
        if weights:  # a classifier that is trained reads none
            self.emit.evict(weights)
        return dx, adapters

    def _embed_backward(self, dy: str) -> Env:
        """Recompute of the embedding what its backward reads, and differentiate it; return its adapters' names."""
        backward = self.graph.embed_backward()
        if not backward.residuals:
            self.emit.enter("embed", "backward")
            self.emit.inline_backward(backward, "embed", "b", {backward.seed: dy})
            return self.emit.adapters("embed", "b")
        self.emit.enter("embed", "recompute")
        adapters = self.emit.adapters("embed", "r")
        env, weights = self._embed_inputs(self.ids, "r", adapters)
        needed = nodes_for(self.graph.embed.nodes, set(backward.residuals), set(env))
        self.emit.inline(needed, self.graph.embed.values, "r", env)
        self.emit.enter("embed", "backward")
        self.emit.inline_backward(backward, "embed", "b", env | {backward.seed: dy})
        self.emit.evict(weights)
        return adapters

    def _backward(self, index: int, dy: str) -> tuple[str, Env]:
        """Recompute what a block did not save and differentiate it.

        Returns:
            The gradient of its input (empty where nothing below needs it) and the names of its adapters.
        """
        part = block_part(index)
        attention = self.graph.attention(index)
        self.emit.enter(part, "recompute")
        env, weights = self.emit.block_weights(index, "r")
        following = index - (self.choices.groups or 1)
        if following >= 0:
            self.emit.prefetch(block_part(following))
        adapters = self.emit.adapters(part, "r")
        env |= self.emit.constants | self.padding | adapters
        self._restore(index, env)
        tiles = self._tiles(self.choices.blocks[index])
        mlp = None if tiles else self.graph.mlp(index=index)
        self._recompute(index, env, {*attention.backward.residuals, *(mlp.backward.residuals if mlp else ("x_mid",))})
        self.emit.enter(part, "backward")
        if mlp is None:
            dy = self._mlp_backward_tiles(index, env, dy, tiles)
        else:
            env[mlp.backward.seed] = dy
            self.emit.inline_backward(mlp.backward, part, "b", env)
            dy = env[mlp.backward.gradients["x_mid"]]
        env[attention.backward.seed] = dy
        self.emit.inline_backward(attention.backward, part, "b", env)
        self.emit.evict(weights)
        dx = attention.backward.gradients.get("x")
        return (env[dx] if dx else ""), adapters

    def _recompute(self, index: int, env: Env, wanted: set[str]) -> None:
        """Emit the forward nodes that ``wanted`` values need beyond what ``env`` has."""
        attention, mlp = self.graph.attention(index).forward, self.graph.mlp(index=index).forward
        inside = self._inside_mlp()
        of_mlp = nodes_for(mlp.nodes, wanted & inside, {*env, "x_mid"})
        reads = {name for node in of_mlp for name in node.inputs}
        of_attention = nodes_for(attention.nodes, wanted - inside | reads & {"x_mid"}, set(env))
        self.emit.inline(of_attention, attention.values, "r", env)
        self.emit.inline(of_mlp, mlp.values, "r", env)

    def _restore(self, index: int, env: Env) -> None:
        """Bring the saved residuals of a block back into ``env``."""
        part = block_part(index)
        for name, saved in self.saved[index].items():
            value = self.builder.values[saved]
            env[name] = saved
            if value.space is Space.SCRATCH:
                env[name] = self.builder.declare(f"{part}/r.{name}", value.type)
                self.builder.emit_declared("restore", [saved], [env[name]])
