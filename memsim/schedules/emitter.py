"""Emitting pieces of a step program: block-program nodes under their step names, weights, trainables, gradients.

The trainable tensors of a part are called its adapters here, whatever the scheme.
"""

from collections.abc import Mapping, Sequence
from math import prod

from memsim.ir.autodiff import BlockBackward
from memsim.ir.builder import Builder
from memsim.ir.op import OpError
from memsim.ir.program import Attr, Node, Space, TensorType, Value
from memsim.models.decoder import constants, matrix_attrs
from memsim.models.graph import ModelGraph
from memsim.models.parts import block_part, matrices, part_tensors
from memsim.schedules.choices import Choices
from memsim.schedules.optimizers import OptimizerConfig

Env = dict[str, str]
"""Block-program name -> step-program name."""

HEAD_TILE_BYTES = 1 << 20
"""Packed bytes that a product streaming through the embedding wants at once; generous, the kernels use less."""


class Emitter:
    """Appends nodes to one step program.

    Attributes:
        gradients: Adapter source -> the value that holds its gradient so far.
        stores: Part with something trained -> where its adapters are.
    """

    def __init__(self, graph: ModelGraph, choices: Choices) -> None:
        self.graph = graph
        self.choices = choices
        self.builder = Builder()
        self.gradients: dict[str, str] = {}
        tables = constants(graph.config, graph.n_rows).items()
        self.constants = {name: self.builder.input(name, kind, Space.PINNED, name) for name, kind in tables}
        blocks_first = sorted(graph.trained, key=lambda part: not part.startswith("block_"))
        self.stores = {part: self._declare_adapters(part) for part in blocks_first}

    def enter(self, part: str, phase: str) -> None:
        """Stamp ``part`` and ``phase`` on the nodes that follow."""
        self.builder.part, self.builder.phase = part, phase

    # -- adapters, their gradients and their state -----------------------------------------------------------------

    def _declare_adapters(self, part: str) -> Env:
        """Declare the adapters of a part: one pinned input each, or one flat vector on the scratch file."""
        if self.choices.adapters == "paged":
            source = f"{part}/adapters"
            return {"": self.builder.input(source, TensorType((self.size(part),)), Space.SCRATCH, source)}
        return {
            name: self.builder.input(f"{part}/{name}", TensorType(shape), Space.PINNED, f"{part}/{name}")
            for name, shape in self.graph.trained[part].items()
        }

    def size(self, part: str) -> int:
        """Return the elements of a part's adapters."""
        return sum(map(prod, self.graph.trained[part].values()))

    def adapters(self, part: str, prefix: str) -> Env:
        """Return the names of a part's adapters, if any, loaded from the scratch file if they are there."""
        store = self.stores.get(part, {})
        if self.choices.adapters == "pinned" or not store:
            return dict(store)
        env = {
            name: self.builder.declare(f"{part}/{prefix}.{name}", TensorType(shape))
            for name, shape in self.graph.trained[part].items()
        }
        self.builder.emit_declared("load", [store[""]], list(env.values()))
        return env

    def zero_gradients(self, part: str) -> None:
        """Emit zeroed gradients, to which every micro-batch adds."""
        self.enter(part, "backward")
        for name, shape in self.graph.trained[part].items():
            source = f"{part}/{name}"
            self.gradients[source] = self.builder.declare(f"zero/{source}", TensorType(shape))
            self.builder.emit_declared("zero", [], [self.gradients[source]])

    def declare_state(self, part: str, optimizer: OptimizerConfig) -> str:
        """Declare the flat optimizer state of a part; return its name, empty if there is none."""
        size = optimizer.state_size(self.size(part))
        if not size:
            return ""
        source = f"{part}/state"
        space = Space.PINNED if self.choices.state == "pinned" else Space.SCRATCH
        return self.builder.input(source, TensorType((size,)), space, source)

    def update(self, part: str, optimizer: OptimizerConfig, state: str, adapters: Env) -> list[str]:
        """Emit the update of a part's adapters, in place; return what holds the new ones."""
        self.enter(part, "update")
        old = [adapters[name] for name in self.graph.trained[part]]
        gradients = [self.gradients[f"{part}/{name}"] for name in self.graph.trained[part]]
        new = [self.overwrite(name, f"{name}.new") for name in old]
        states = [state] if state else []
        outputs = [*new, *(self.overwrite(name, f"{name}.new") for name in states)]
        attrs = optimizer.attrs() | {"n_tensors": len(old)}
        self.builder.emit_declared(optimizer.name, ["step", *old, *gradients, *states], outputs, attrs)
        return self.put_back(part, new)

    def put_back(self, part: str, new: list[str]) -> list[str]:
        """Emit the way of a part's new adapters to where they live; return what holds them."""
        if self.choices.adapters == "pinned":
            return new
        store = self.overwrite(self.stores[part][""], f"{part}/adapters.new")
        self.builder.emit_declared("store", [self.stores[part][""], *new], [store])
        return [store]

    def overwrite(self, old: str, new: str) -> str:
        """Declare ``new`` in the storage of ``old``."""
        value = self.builder.values[old]
        self.builder.values[new] = Value(new, value.type, value.space, value.source, alias_of=old)
        return new

    # -- weights ---------------------------------------------------------------------------------------------------

    def page_in(self, part: str, prefix: str, reads_bytes: int | None = None) -> Env:
        """Emit the page-in of ``part``, of which ``reads_bytes`` are read (all of it by default).

        A block's pages are wanted together; embedding and head stream through theirs, a tile at a time. A stored vector
        that is trained is paged in with its file, and not read: its adapter takes its name.
        """
        specs = part_tensors(self.graph.config, part, self.graph.formats)
        env: Env = {}
        for name, spec in specs.items():
            value = f"{part}/{prefix}.{name}" + ("" if name not in self.graph.trained.get(part, ()) else ".stored")
            env[name] = self.builder.declare(value, TensorType(spec.shape, spec.dtype), Space.MAPPED, f"{part}/{name}")
        reads = sum(spec.n_bytes for spec in specs.values()) if reads_bytes is None else reads_bytes
        attrs: dict[str, Attr] = {"part": part, "reads_bytes": reads, "together_bytes": self._together_bytes(part)}
        self.builder.emit_declared("page_in", [], list(env.values()), attrs)
        return env

    def evict(self, weights: Sequence[str]) -> None:
        """Emit the eviction of ``weights`` (and the end of their unpacked copies)."""
        self.builder.emit_declared("evict", list(weights), [])

    def prefetch(self, part: str) -> None:
        """Emit the request to read ahead what is wanted together of ``part``, if so chosen.

        Of the head's matrix that is the first tile: the head runs through it, and the kernel reads ahead of who does.
        """
        if self.choices.prefetch:
            attrs: dict[str, Attr] = {"part": part, "together_bytes": self._together_bytes(part)}
            self.builder.emit_declared("prefetch", [], [], attrs)

    def _together_bytes(self, part: str) -> int:
        total = sum(spec.n_bytes for spec in part_tensors(self.graph.config, part, self.graph.formats).values())
        return total if part.startswith("block_") else min(total, HEAD_TILE_BYTES)

    def block_weights(self, index: int, prefix: str) -> tuple[Env, list[str]]:
        """Page a block in and unpack it if so chosen; return its names and the values that live until eviction."""
        part = block_part(index)
        env = self.page_in(part, prefix)
        if self.choices.unpack == "block":
            for name, (n_rows, n_columns) in matrices(self.graph.config, part).items():
                attrs = matrix_attrs((n_rows, n_columns), self.graph.formats.of(part, name))
                packed = [env[f"{name}.q"], env[f"{name}.scales"]]
                (env[f"{name}.w"],) = self.builder.emit("unpack_q4", packed, [f"{part}/{prefix}.{name}.w"], **attrs)
        return env, list(env.values())

    # -- nodes of block programs -----------------------------------------------------------------------------------

    def inline(self, nodes: Sequence[Node], values: Mapping[str, Value], prefix: str, env: Env) -> None:
        """Emit block-program nodes with their names bound through ``env``, which learns their outputs."""
        for node in nodes:
            op, names = _dense(node, env)
            outputs = [f"{self.builder.part}/{prefix}.{name}" for name in node.outputs]
            inputs = [env[name] for name in names]
            for name, out in zip(node.outputs, outputs, strict=True):
                env[name] = self.builder.declare(out, values[name].type)
            self.builder.emit_declared(op, inputs, outputs, node.attrs)

    def inline_backward(self, backward: BlockBackward, part: str, prefix: str, env: Env) -> None:
        """Emit the backward nodes of a segment; adapter gradients add to what there is of them."""
        sources = {gradient: f"{part}/{name}" for name, gradient in backward.gradients.items()}
        for node in backward.nodes:
            so_far = {
                name: self.gradients[sources[name]]
                for name in node.outputs
                if name in sources and sources[name] in self.gradients
            }
            env.update({f"{name}.so_far": old for name, old in so_far.items()})
            adding = Node(node.op, (*node.inputs, *(f"{name}.so_far" for name in so_far)), node.outputs, node.attrs)
            self.inline([adding], backward.values, prefix, env)
            for name, old in so_far.items():  # in the same buffer: the next micro-batch adds to it again
                new = env[name]
                self.builder.values[new] = Value(new, self.builder.values[new].type, alias_of=old)
                self.gradients[sources[name]] = new
        for gradient, source in sources.items():
            if source.rpartition("/")[2] in self.graph.trained.get(part, ()):
                self.gradients[source] = env[gradient]


def _dense(node: Node, env: Env) -> tuple[str, list[str]]:
    """Return (op, inputs) of ``node``, reading the unpacked matrix where its block has one."""
    if node.op not in ("linear_q4", "linear_q4_backward_input"):
        return node.op, list(node.inputs)
    x, q, _, *rest = node.inputs
    w = q.removesuffix(".q") + ".w"
    return (node.op.replace("_q4", ""), [x, w, *rest]) if w in env else (node.op, list(node.inputs))


def nodes_for(nodes: Sequence[Node], wanted: set[str], available: set[str]) -> list[Node]:
    """Return the nodes that compute ``wanted`` from ``available``, in order.

    Raises:
        OpError: Something wanted can be computed from nothing that is available.
    """
    missing = set(wanted) - available
    needed: list[Node] = []
    for node in reversed(nodes):
        if missing & set(node.outputs):
            missing -= set(node.outputs)
            missing |= set(node.inputs) - available
            needed.append(node)
    if missing:
        raise OpError(f"nothing to recompute {', '.join(sorted(missing))} from: keep or spill it")
    return needed[::-1]
