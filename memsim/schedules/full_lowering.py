"""Lowering steps that train every weight: matrices stream from disk in bf16, in tiles that are perturbed when used.

Block programs are those of every other step. What reads a packed matrix in them is emitted as a run over the tiles of
the trained one instead; nothing is mapped from the pack. No copy of a matrix in f32 is larger than a tile, and
perturbing changes nothing on disk: only the update does, tile by tile, once the estimate is known.
"""

from collections.abc import Mapping, Sequence

from memsim.ir.program import Attr, Node, Program, Space, TensorType, Value
from memsim.models.graph import ModelGraph
from memsim.models.parts import head_matrix
from memsim.models.tiles import Tile, TiledMatrix, parts_in_turn, tiled_matrices
from memsim.schedules.choices import Choices
from memsim.schedules.emitter import Emitter, Env
from memsim.schedules.lowering import Lowering
from memsim.schedules.zeroth_order import Estimator
from memsim.schedules.zeroth_order_lowering import ZeroOrderLowering


def full_choices(choices: Choices) -> Choices:
    """Return ``choices`` as a step has them that trains every weight.

    The MLP runs whole: in tiles of tokens it would read its matrices again for each.
    """
    return Choices(
        blocks=choices.blocks,
        unpack="tile",
        head="one_pass",
        adapters="paged",
        update="end",
        mlp_tile=None,
        prefetch=False,
    )


class TileEmitter(Emitter):
    """Emits block programs over trained matrices on the scratch file.

    Attributes:
        lane: What the stream that is emitted adds to its weights, as ``perturb`` calls it.
        noise: The attributes of nodes that draw noise.
    """

    def __init__(self, graph: ModelGraph, choices: Choices) -> None:
        super().__init__(graph, choices)
        self.lane, self.noise = ".", dict[str, Attr]()
        self.matrices = tiled_matrices(graph.config)
        for matrix in self.matrices.values():
            for tile in matrix.tiles():
                kind = TensorType((tile.count, matrix.n_columns), "bf16")
                self.builder.input(tile.source, kind, Space.SCRATCH, tile.source)

    def page_in(self, part: str, prefix: str, reads_bytes: int | None = None) -> Env:
        """Emit nothing: what a part stores is trained, and read where it is used."""
        return {}

    def evict(self, weights: Sequence[str]) -> None:
        """Emit nothing."""

    def prefetch(self, part: str) -> None:
        """Emit nothing: tiles are read ahead as everything that is loaded."""

    def inline(self, nodes: Sequence[Node], values: Mapping[str, Value], prefix: str, env: Env) -> None:
        """Emit block-program nodes, those with a packed matrix as runs over the tiles of the trained one."""
        runs = {
            "embedding_q4": self._embedding,
            "linear_q4": self._linear,
            "linear_cross_entropy_q4": self._cross_entropy,
        }
        for node in nodes:
            if node.op in runs:
                runs[node.op](node, prefix, env)
            else:
                super().inline([node], values, prefix, env)

    def _name(self, prefix: str, name: str) -> str:
        return f"{self.builder.part}/{prefix}.{name}"

    def _perturbed(self, matrix: TiledMatrix, noise: int) -> tuple[list[str], dict[str, Attr]]:
        """Return inputs and attributes of a node that widens rows whose first unit of noise is ``noise``."""
        attrs: dict[str, Attr] = {"sign": self.lane, "noise": noise, "unit_rows": matrix.unit_rows}
        return ([], attrs) if self.lane == "." else (["seed"], attrs | self.noise)

    def _tile(self, matrix: TiledMatrix, tile: Tile, prefix: str) -> str:
        """Emit the way of a tile from disk to f32, perturbed; return its name."""
        name = self._name(prefix, f"{matrix.name}.{tile.start}")
        bits = self.builder.declare(f"{name}.bf16", TensorType((tile.count, matrix.n_columns), "bf16"))
        self.builder.emit_declared("load", [tile.source], [bits])
        seed, attrs = self._perturbed(matrix, tile.noise)
        return self.builder.emit("unpack_bf16", [bits, *seed], [name], **attrs)[0]

    def _embedding(self, node: Node, prefix: str, env: Env) -> None:
        ids, out = env[node.inputs[0]], node.outputs[0]
        matrix = self.matrices["embed", "embed_tokens"]
        kind = TensorType((*self.builder.values[ids].type.shape, matrix.n_columns), "bf16")
        rows = self.builder.declare(self._name(prefix, f"{out}.bf16"), kind)
        sources = [tile.source for tile in matrix.tiles()]
        self.builder.emit_declared("load_rows", [ids, *sources], [rows], {"tile_rows": matrix.tile_rows})
        seed, attrs = self._perturbed(matrix, matrix.first_noise)
        attrs["scale"] = node.attrs["scale"]
        (env[out],) = self.builder.emit("embedding_bf16", [ids, rows, *seed], [self._name(prefix, out)], **attrs)

    def _linear(self, node: Node, prefix: str, env: Env) -> None:
        x, name, out, y = env[node.inputs[0]], node.inputs[1].removesuffix(".q"), node.outputs[0], ""
        matrix, bias = self.matrices[self.builder.part, name], [env[name] for name in node.inputs[3:]]
        kind = TensorType((self.builder.values[x].type.shape[0], matrix.n_rows))
        for tile in matrix.tiles():
            w = self._tile(matrix, tile, prefix)
            so_far = [y] if y else []
            y = self._result(y, self._name(prefix, f"{out}.{tile.start}"), kind)
            part = TensorType((kind.shape[0], tile.count))
            work = [] if tile.count == matrix.n_rows else [self.builder.declare(f"{y}.work", part)]
            attrs: dict[str, Attr] = {"start": tile.start, "n_rows": matrix.n_rows, "bias": bool(bias)}
            self.builder.emit_declared("linear_rows", [x, w, *so_far, *bias], [y, *work], attrs)
        env[out] = y

    def _cross_entropy(self, node: Node, prefix: str, env: Env) -> None:
        x, labels, known = env[node.inputs[0]], env[node.inputs[1]], ""
        matrix = self.matrices[head_matrix(self.graph.config)]
        (n_tokens,) = self.builder.values[labels].type.shape
        for tile in matrix.tiles():
            w = self._tile(matrix, tile, prefix)
            so_far = [known] if known else []
            known = self._result(known, self._name(prefix, f"known.{tile.start}"), TensorType((4, n_tokens), "f64"))
            logits = self.builder.declare(f"{known}.logits", TensorType((n_tokens, tile.count)))
            self.builder.emit_declared(
                "cross_entropy_rows", [x, w, labels, *so_far], [known, logits], {"start": tile.start}
            )
        (env["stats"],) = self.builder.emit("cross_entropy_stats", [known, labels], [self._name(prefix, "stats")])

    def _result(self, so_far: str, name: str, kind: TensorType) -> str:
        return self.overwrite(so_far, name) if so_far else self.builder.declare(name, kind)


class FullLowering(ZeroOrderLowering):
    """One zeroth-order step that trains every weight on its way to a program; each lane has a stream of its own."""

    emit: TileEmitter

    def __init__(self, graph: ModelGraph, estimator: Estimator) -> None:
        """Prepare for the updates of every part."""
        super().__init__(graph, estimator)
        self.choices = full_choices(self.choices)
        self.emit.noise = {"eps": estimator.eps, **estimator.noise_attrs()}

    def _emitter(self, graph: ModelGraph, choices: Choices) -> Emitter:
        return TileEmitter(graph, full_choices(choices))

    def _begin(self) -> dict[str, str]:
        return dict.fromkeys(parts_in_turn(self.graph.config), "") | super()._begin()

    def _stream(
        self, prefix: str, ids: str, labels: str, lanes: Sequence[str], scale: str = "", report: bool = False
    ) -> str:
        (self.emit.lane,) = lanes
        return super()._stream(prefix, ids, labels, lanes, scale, report)

    def _update(self, part: str, rho: str, rho_at: int, state: str) -> list[str]:
        """Emit the update of one part: its vectors, if any, and its matrices tile by tile, each in place on disk."""
        names = super()._update(part, rho, rho_at, state) if part in self.emit.stores else []
        self.emit.enter(part, "update")
        attrs = self.estimator.update_attrs() | {"directions": self.estimator.directions, "rho_at": rho_at}
        for matrix in self.emit.matrices.values():
            for tile in matrix.tiles() if matrix.part == part else ():
                new = self.emit.overwrite(tile.source, f"{tile.source}.new")
                own: dict[str, Attr] = {"noise": tile.noise, "unit_rows": matrix.unit_rows}
                self.builder.emit_declared("zo_update_bf16", ["seed", rho, tile.source], [new], attrs | own)
                names.append(new)
        return names


class FullEvaluation(Lowering):
    """The evaluation of a model whose every weight is trained."""

    def _emitter(self, graph: ModelGraph, choices: Choices) -> Emitter:
        return TileEmitter(graph, full_choices(choices))


def lower_full_evaluation(graph: ModelGraph, choices: Choices) -> Program:
    """Return the verified program of one evaluation batch of a model whose every weight is trained."""
    return FullEvaluation(graph, full_choices(choices)).evaluation()
