"""Lowering: block programs and choices become one flat step program.

This is the only description of a training step. Plain backprop, MeBP and every later schedule differ in the
``Choices`` given here, that is, in which values the backward nodes read: kept, restored or recomputed.
"""

from collections.abc import Mapping, Sequence

from memsim.ir.autodiff import BlockBackward
from memsim.ir.builder import Builder
from memsim.ir.in_place import reuse_in_place
from memsim.ir.opset import OpError
from memsim.ir.program import Attr, Node, Program, Repeat, Space, TensorType, Value
from memsim.ir.verify import verify
from memsim.models.decoder import CONSTANTS
from memsim.models.graph import ModelGraph
from memsim.models.lora import adapter_shapes
from memsim.models.parts import block_part, head_matrix, matrices, part_tensors
from memsim.schedules.choices import BlockChoices, Choices
from memsim.schedules.optimizers import OptimizerConfig

Env = dict[str, str]

HEAD_TILE_BYTES = 1 << 20
"""Packed bytes that a product streaming through the embedding wants at once; generous, the kernels use less."""


def lower(
    graph: ModelGraph,
    choices: Choices,
    optimizer: OptimizerConfig,
    accumulate: int = 1,
    balloon_bytes: int = 0,
) -> Program:
    """Return the verified program of one training step.

    Args:
        graph: Block programs of the model.
        choices: The schedule.
        optimizer: What updates the adapters at the end of the step.
        accumulate: Micro-batches a step; their gradients are summed before the update.
        balloon_bytes: Insert a node that touches this many unplanned bytes (for testing the cap).
    """
    return _Lowering(graph, choices).step(optimizer, accumulate, balloon_bytes)


def lower_evaluation(graph: ModelGraph, choices: Choices) -> Program:
    """Return the verified program of one evaluation batch: the forward and the loss."""
    return _Lowering(graph, choices).evaluation()


class _Lowering:
    def __init__(self, graph: ModelGraph, choices: Choices) -> None:
        if len(choices.blocks) != graph.config.num_hidden_layers:
            raise OpError(f"choices for {len(choices.blocks)} blocks, model has {graph.config.num_hidden_layers}")
        self.graph = graph
        self.choices = choices
        self.builder = Builder()
        self.gradients: dict[str, str] = {}
        constant = TensorType((graph.n_tokens, graph.config.head_dim // 2))
        self.constants = {name: self.builder.input(name, constant, Space.PINNED, name) for name in CONSTANTS}
        self.adapters = [self._declare_adapters(index) for index in range(graph.config.num_hidden_layers)]
        self.saved: list[Env] = [{} for _ in self.adapters]

    def step(self, optimizer: OptimizerConfig, accumulate: int, balloon_bytes: int) -> Program:
        states = self._declare_state(optimizer)
        if accumulate > 1:
            self._zero_gradients()
        start = len(self.builder.nodes)
        ids, labels = self._batch()
        x = self._embed(ids)
        for index in range(len(self.adapters)):
            x = self._forward(index, x)
        if balloon_bytes:
            self._enter("head", "forward")
            self.builder.emit_declared("balloon", [], [], {"n_bytes": balloon_bytes})
        dx = self._head(x, labels, train=True)
        for index in reversed(range(len(self.adapters))):
            dx = self._backward(index, dx)
        repeat = Repeat(start, len(self.builder.nodes), accumulate)
        updated = [name for index in range(len(self.adapters)) for name in self._update(index, optimizer, states)]
        return self._finish(updated, repeat)

    def evaluation(self) -> Program:
        ids, labels = self._batch()
        x = self._embed(ids)
        for index in range(len(self.adapters)):
            x = self._forward(index, x, train=False)
        self._head(x, labels, train=False)
        return self._finish([], None)

    def _finish(self, outputs: Sequence[str], repeat: Repeat | None) -> Program:
        program = reuse_in_place(self.builder.build(outputs, repeat))
        verify(program)
        return program

    # -- values that live outside the step -------------------------------------------------------------------------

    def _declare_adapters(self, index: int) -> Env:
        env: Env = {}
        for name, shape in adapter_shapes(self.graph.config, self.graph.lora).items():
            source = f"{block_part(index)}/{name}"
            env[name] = self.builder.input(source, TensorType(shape), Space.PINNED, source)
        return env

    def _declare_state(self, optimizer: OptimizerConfig) -> list[str]:
        """Declare the step counter and each block's flat optimizer state."""
        self.builder.input("step", TensorType((1,), "f64"), Space.PINNED, "step")
        shapes = adapter_shapes(self.graph.config, self.graph.lora).values()
        size = optimizer.state_size(sum(rows * columns for rows, columns in shapes))
        if not size:
            return []
        sources = [f"{block_part(index)}/state" for index in range(len(self.adapters))]
        return [self.builder.input(source, TensorType((size,)), Space.SCRATCH, source) for source in sources]

    def _zero_gradients(self) -> None:
        for index, adapters in enumerate(self.adapters):
            self._enter(block_part(index), "backward")
            for adapter in adapters.values():
                name = self.builder.declare(f"zero/{adapter}", self.builder.values[adapter].type)
                self.builder.emit_declared("zero", [], [name])
                self.gradients[adapter] = name

    # -- the step, in order ----------------------------------------------------------------------------------------

    def _enter(self, part: str, phase: str) -> None:
        self.builder.part, self.builder.phase = part, phase

    def _batch(self) -> tuple[str, str]:
        self._enter("", "forward")
        kind = TensorType((self.graph.n_tokens,), "u32")
        ids, labels = (self.builder.declare(name, kind) for name in ("ids", "labels"))
        self.builder.emit_declared("next_batch", [], [ids, labels])
        return ids, labels

    def _embed(self, ids: str) -> str:
        self._enter("embed", "forward")
        specs = part_tensors(self.graph.config, "embed", self.graph.group_size).values()
        row_bytes = sum(spec.n_bytes for spec in specs) // self.graph.config.vocab_size
        env = self._page_in("embed", "f", reads_bytes=self.graph.n_tokens * row_bytes)
        weights = list(env.values())
        env["ids"] = ids
        self._inline(self.graph.embed.nodes, self.graph.embed.values, "f", env)
        self._evict(weights)
        return env["y"]

    def _forward(self, index: int, x: str, train: bool = True) -> str:
        part = block_part(index)
        self._enter(part, "forward")
        chosen = self.choices.blocks[index] if train else BlockChoices(frozenset(), frozenset())
        env, weights = self._block_env(index, "f")
        env["x"] = x
        self._save(part, chosen, env, index)
        for node in self.graph.block.nodes:
            self._inline([node], self.graph.block.values, "f", env)
            self._save(part, chosen, env, index)
        self._evict(weights)
        return env["y"]

    def _save(self, part: str, chosen: BlockChoices, env: Env, index: int) -> None:
        """Remember the kept residuals that exist by now, and spill those that must go."""
        saved = self.saved[index]
        for name in sorted((chosen.keep | chosen.spill) & env.keys() - saved.keys()):
            saved[name] = env[name]
            if name in chosen.spill:
                source = f"{part}/{name}"
                kind = self.builder.values[env[name]].type
                saved[name] = self.builder.declare(f"{part}/s.{name}", kind, Space.SCRATCH, source)
                self.builder.emit_declared("spill", [env[name]], [saved[name]])

    def _head(self, x: str, labels: str, train: bool) -> str:
        self._enter("head", "forward")
        env: Env = {}
        for part in dict.fromkeys(("head", head_matrix(self.graph.config)[0])):
            env |= self._page_in(part, "h")
        weights = list(env.values())
        env |= {"x": x, "labels": labels}
        self._inline(self.graph.head.nodes, self.graph.head.values, "f", env)
        self.builder.emit_declared("emit_loss", [env["stats"]], [])
        if not train:
            self._evict(weights)
            return ""
        self._enter("head", "backward")
        backward = self.graph.head_backward
        self._inline(backward.nodes, backward.values, "b", env)
        self._evict(weights)
        return env[backward.gradients["x"]]

    def _backward(self, index: int, dy: str) -> str:
        """Recompute what block ``index`` did not save, differentiate it; return the gradient of its input."""
        part = block_part(index)
        backward = self.graph.backward if index else self.graph.first_backward
        self._enter(part, "recompute")
        env, weights = self._block_env(index, "r")
        available = self._restore(part, index, env)
        recomputed = _nodes_for(self.graph.block.nodes, set(backward.residuals) - available, available | env.keys())
        self._inline(recomputed, self.graph.block.values, "r", env)
        self._enter(part, "backward")
        env[backward.seed] = dy
        for node in backward.nodes:
            self._inline([self._accumulating(node, backward, index, env)], backward.values, "b", env)
        self.gradients |= {self.adapters[index][name]: env[backward.gradients[name]] for name in self.adapters[index]}
        self._evict(weights)
        return env[backward.gradients["x"]] if index else ""

    def _restore(self, part: str, index: int, env: Env) -> set[str]:
        """Bring the saved residuals of a block back into ``env``; return their names."""
        for name, saved in self.saved[index].items():
            value = self.builder.values[saved]
            env[name] = saved
            if value.space is Space.SCRATCH:
                env[name] = self.builder.declare(f"{part}/r.{name}", value.type)
                self.builder.emit_declared("restore", [saved], [env[name]])
        return set(self.saved[index])

    def _accumulating(self, node: Node, backward: BlockBackward, index: int, env: Env) -> Node:
        """Return ``node``, adding to the gradient so far where it produces one and micro-batches are summed."""
        for name, adapter in self.adapters[index].items():
            if adapter in self.gradients and node.outputs[0] == backward.gradients[name]:
                env[f"zero.{name}"] = self.gradients[adapter]
                return Node(node.op, (*node.inputs, f"zero.{name}"), node.outputs, node.attrs)
        return node

    def _update(self, index: int, optimizer: OptimizerConfig, states: list[str]) -> list[str]:
        """Emit the update of one block's adapters, in place; return the new parameters."""
        part = block_part(index)
        self._enter(part, "update")
        parameters = list(self.adapters[index].values())
        old = parameters + states[index : index + 1]
        new = [self._overwrite(name, f"{name}.new") for name in old]
        inputs = ["step", *parameters, *(self.gradients[name] for name in parameters), *states[index : index + 1]]
        attrs = optimizer.attrs() | {"n_tensors": len(parameters)}
        return list(self.builder.emit_declared(optimizer.name, inputs, new, attrs))

    def _overwrite(self, old: str, new: str) -> str:
        """Declare ``new`` in the storage of ``old``."""
        value = self.builder.values[old]
        self.builder.values[new] = Value(new, value.type, value.space, value.source, alias_of=old)
        return new

    # -- weights ---------------------------------------------------------------------------------------------------

    def _page_in(self, part: str, prefix: str, reads_bytes: int | None = None) -> Env:
        """Emit the page-in of ``part``, of which ``reads_bytes`` are read (all of it by default).

        A block's pages are wanted together; embedding and head stream through theirs, a tile at a time.
        """
        specs = part_tensors(self.graph.config, part, self.graph.group_size)
        env = {
            name: self.builder.declare(
                f"{part}/{prefix}.{name}", TensorType(spec.shape, spec.dtype), Space.MAPPED, f"{part}/{name}"
            )
            for name, spec in specs.items()
        }
        total = sum(spec.n_bytes for spec in specs.values())
        together = total if part.startswith("block_") else min(total, HEAD_TILE_BYTES)
        attrs: dict[str, Attr] = {
            "part": part,
            "reads_bytes": total if reads_bytes is None else reads_bytes,
            "together_bytes": together,
        }
        self.builder.emit_declared("page_in", [], list(env.values()), attrs)
        return env

    def _evict(self, weights: Sequence[str]) -> None:
        self.builder.emit_declared("evict", list(weights), [])

    def _block_env(self, index: int, prefix: str) -> tuple[Env, list[str]]:
        """Page a block in, unpack it if so chosen; return its names and the values that live until its eviction."""
        part = block_part(index)
        env = self._page_in(part, prefix)
        if self.choices.unpack == "block":
            for name, (n_rows, n_columns) in matrices(self.graph.config, part).items():
                attrs = {"n_rows": n_rows, "n_columns": n_columns, "group_size": self.graph.group_size}
                packed = [env[f"{name}.q"], env[f"{name}.scales"]]
                (env[f"{name}.w"],) = self.builder.emit("unpack_q4", packed, [f"{part}/{prefix}.{name}.w"], **attrs)
        weights = list(env.values())
        return env | self.constants | self.adapters[index], weights

    def _inline(self, nodes: Sequence[Node], values: Mapping[str, Value], prefix: str, env: Env) -> None:
        """Emit block-program nodes with their names bound through ``env``, which learns their outputs."""
        for node in nodes:
            op, names = _dense(node, env)
            inputs = [env[name] for name in names]
            outputs = [f"{self.builder.part}/{prefix}.{name}" for name in node.outputs]
            for name, out in zip(node.outputs, outputs, strict=True):
                env[name] = self.builder.declare(out, values[name].type)
            self.builder.emit_declared(op, inputs, outputs, node.attrs)
            added = node.inputs[-1]
            if added.startswith("zero."):
                # The sum must stay in the buffer that the next micro-batch adds to.
                self.builder.values[outputs[0]] = Value(outputs[0], values[node.outputs[0]].type, alias_of=env[added])


def _dense(node: Node, env: Env) -> tuple[str, list[str]]:
    """Return (op, inputs) of ``node``, reading the unpacked matrix where its block has one."""
    if node.op not in ("linear_q4", "linear_q4_backward_input"):
        return node.op, list(node.inputs)
    x, q, _, *rest = node.inputs
    w = q.removesuffix(".q") + ".w"
    return (node.op.replace("_q4", ""), [x, w, *rest]) if w in env else (node.op, list(node.inputs))


def _nodes_for(nodes: Sequence[Node], wanted: set[str], available: set[str]) -> list[Node]:
    """Return the nodes that compute ``wanted`` from ``available``, in order."""
    missing = set(wanted)
    needed: list[Node] = []
    for node in reversed(nodes):
        if missing & set(node.outputs):
            missing -= set(node.outputs)
            missing |= set(node.inputs) - available
            needed.append(node)
    if missing:
        raise OpError(f"nothing to recompute {', '.join(sorted(missing))} from: keep or spill it")
    return needed[::-1]
