"""Lowering steps that train every weight: matrices stream from disk in bf16, in tiles that are perturbed when used.

Block programs are those of every other step. What reads a packed matrix in them is emitted as a run over the tiles of
the trained one instead; nothing is mapped from the pack. No copy of a matrix in f32 is larger than a tile, and
perturbing changes nothing on disk: only the update does, tile by tile, once the estimate is known. All lanes share what
is read of the disk, and those of one direction its noise.
"""

from collections.abc import Iterator, Mapping, Sequence

from memsim.ir.program import Attr, Node, Program, Space, TensorType, Value
from memsim.models.graph import ModelGraph
from memsim.models.parts import block_part, head_matrix
from memsim.models.tiles import Tile, TiledMatrix, parts_in_turn, tiled_matrices
from memsim.schedules.choices import Choices
from memsim.schedules.emitter import Emitter, Env
from memsim.schedules.lowering import Lowering
from memsim.schedules.zeroth_order import Estimator
from memsim.schedules.zeroth_order_lowering import ZeroOrderLowering

Lane = tuple[str, Env]
"""Prefix of a lane's names, and its environment."""


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
    """Emits block programs over trained matrices on the scratch file, for one lane or several side by side.

    A lane has activations and vectors of its own, and shares every read of a tile with the others.

    Attributes:
        lanes: What each adds to its weights, as ``perturb`` calls it.
        noise: The attributes of nodes that draw noise.
    """

    def __init__(self, graph: ModelGraph, choices: Choices) -> None:
        super().__init__(graph, choices)
        self.lanes: tuple[str, ...] = (".",)
        self.noise: dict[str, Attr] = {}
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
        """Emit the nodes of the only lane."""
        self.inline_lanes(nodes, values, [(prefix, env)])

    def inline_lanes(self, nodes: Sequence[Node], values: Mapping[str, Value], lanes: Sequence[Lane]) -> None:
        """Emit block-program nodes for every lane, those with a packed matrix as runs over tiles of the trained one.

        Args:
            nodes: In order.
            values: Of their program.
            lanes: Prefix of the names, and environment, of each of ``self.lanes``.
        """
        runs = {
            "embedding_q4": self._embedding,
            "linear_q4": self._linear,
            "linear_cross_entropy_q4": self._cross_entropy,
        }
        for node in nodes:
            if node.op in runs:
                runs[node.op](node, lanes)
                continue
            for prefix, env in lanes:
                super().inline([node], values, prefix, env)

    def _name(self, prefix: str, name: str) -> str:
        return f"{self.builder.part}/{prefix}.{name}"

    def _groups(self) -> list[list[int]]:
        """Return the lanes by the direction of their noise: those of one draw it once."""
        groups: dict[str, list[int]] = {}
        for number, lane in enumerate(self.lanes):
            groups.setdefault(lane[1:], []).append(number)
        return list(groups.values())

    def _perturbed(self, matrix: TiledMatrix, noise: int, group: list[int]) -> tuple[list[str], dict[str, Attr]]:
        """Return inputs and attributes of a node that widens rows for a group; ``noise`` is their first unit."""
        signs = ",".join(self.lanes[number] for number in group)
        attrs: dict[str, Attr] = {"signs": signs, "noise": noise, "unit_rows": matrix.unit_rows}
        return ([], attrs) if signs == "." else (["seed"], attrs | self.noise)

    def _tile(self, matrix: TiledMatrix, tile: Tile, lanes: Sequence[Lane]) -> Iterator[tuple[int, str]]:
        """Emit the way of a tile from disk, once, to f32, perturbed; yield (lane, its name) as each is there."""
        name = f"{matrix.name}.{tile.start}"
        kind = TensorType((tile.count, matrix.n_columns), "bf16")
        bits = self.builder.declare(self._name(lanes[0][0], f"{name}.bf16"), kind)
        self.builder.emit_declared("load", [tile.source], [bits])
        for group in self._groups():
            seed, attrs = self._perturbed(matrix, tile.noise, group)
            outputs = [self._name(lanes[number][0], name) for number in group]
            yield from zip(group, self.builder.emit("unpack_bf16", [bits, *seed], outputs, **attrs), strict=True)

    def _embedding(self, node: Node, lanes: Sequence[Lane]) -> None:
        ids, out = lanes[0][1][node.inputs[0]], node.outputs[0]
        matrix = self.matrices["embed", "embed_tokens"]
        kind = TensorType((*self.builder.values[ids].type.shape, matrix.n_columns), "bf16")
        rows = self.builder.declare(self._name(lanes[0][0], f"{out}.bf16"), kind)
        sources = [tile.source for tile in matrix.tiles()]
        self.builder.emit_declared("load_rows", [ids, *sources], [rows], {"tile_rows": matrix.tile_rows})
        for group in self._groups():
            seed, attrs = self._perturbed(matrix, matrix.first_noise, group)
            attrs["scale"] = node.attrs["scale"]
            outputs = [self._name(lanes[number][0], out) for number in group]
            for number, name in zip(
                group, self.builder.emit("embedding_bf16", [ids, rows, *seed], outputs, **attrs), strict=True
            ):
                lanes[number][1][out] = name

    def _linear(self, node: Node, lanes: Sequence[Lane]) -> None:
        name, out = node.inputs[1].removesuffix(".q"), node.outputs[0]
        matrix = self.matrices[self.builder.part, name]
        for tile in matrix.tiles():
            for number, w in self._tile(matrix, tile, lanes):
                prefix, env = lanes[number]
                x, bias = env[node.inputs[0]], [env[name] for name in node.inputs[3:]]
                kind = TensorType((self.builder.values[x].type.shape[0], matrix.n_rows))
                so_far = [env[out]] if tile.start else []
                y = self._result(so_far, self._name(prefix, f"{out}.{tile.start}"), kind)
                part = TensorType((kind.shape[0], tile.count))
                work = [] if tile.count == matrix.n_rows else [self.builder.declare(f"{y}.work", part)]
                attrs: dict[str, Attr] = {"start": tile.start, "n_rows": matrix.n_rows, "bias": bool(bias)}
                self.builder.emit_declared("linear_rows", [x, w, *so_far, *bias], [y, *work], attrs)
                env[out] = y

    def _cross_entropy(self, node: Node, lanes: Sequence[Lane]) -> None:
        labels, known = lanes[0][1][node.inputs[1]], dict[int, str]()
        matrix = self.matrices[head_matrix(self.graph.config)]
        (n_tokens,) = self.builder.values[labels].type.shape
        for tile in matrix.tiles():
            for number, w in self._tile(matrix, tile, lanes):
                prefix, env = lanes[number]
                so_far = [known[number]] if tile.start else []
                name = self._name(prefix, f"known.{tile.start}")
                known[number] = self._result(so_far, name, TensorType((4, n_tokens), "f64"))
                logits = self.builder.declare(f"{name}.logits", TensorType((n_tokens, tile.count)))
                inputs = [env[node.inputs[0]], w, labels, *so_far]
                self.builder.emit_declared("cross_entropy_rows", inputs, [name, logits], {"start": tile.start})
        inputs = [labels, *(known[number] for number in range(len(lanes)))]
        (stats,) = self.builder.emit("cross_entropy_stats", inputs, [self._name(lanes[0][0], "stats")])
        for _, env in lanes:
            env["stats"] = stats

    def _result(self, so_far: Sequence[str], name: str, kind: TensorType) -> str:
        return self.overwrite(so_far[0], name) if so_far else self.builder.declare(name, kind)


class FullLowering(ZeroOrderLowering):
    """One zeroth-order step that trains every weight on its way to a program."""

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
        self.emit.lanes = tuple(lanes)
        envs = self._part("embed", prefix, [{"ids": ids} for _ in lanes], [self.graph.embed])
        for index in range(self.n_blocks):
            own = [self.emit.constants | {"x": env["y"]} for env in envs]
            programs = [self.graph.attention(index).forward, self.graph.mlp(index=index).forward]
            envs = self._part(block_part(index), prefix, own, programs)
        own = [{"x": env["y"], "labels": labels} for env in envs]
        stats = self._part("head", prefix, own, [self.graph.head("one_pass", train=False)])[0]["stats"]
        if report:
            base = lanes.index(".") if "." in lanes else -1
            self.builder.emit_declared("emit_loss", [stats], [], {"base": base})
        return stats

    def _part(self, part: str, prefix: str, envs: Sequence[Env], programs: Sequence[Program]) -> list[Env]:
        """Emit one part for every lane, whose environments are ``envs``; return what they have grown to."""
        self.emit.enter(part, "forward")
        vectors = self.emit.adapters(part, prefix)
        lanes = []
        for number, (lane, env) in enumerate(zip(self.emit.lanes, envs, strict=True)):
            name = f"{prefix}.{number}"
            lanes.append((name, env | self._perturbed(part, vectors, (lane,), name, "")))
        for program in programs:
            self.emit.inline_lanes(program.nodes, program.values, lanes)
        return [env for _, env in lanes]

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
