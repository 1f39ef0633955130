"""The model as block programs: embedding and transformer block; ``head`` has its end.

One description serves all families: what differs is in ``ModelConfig`` and its ``Family``. Blocks of a kind are the
same program; ``x`` comes first among its inputs, weights, trainable tensors and constants after it, under the names
that ``parts`` and the scheme give them. What a trainable tensor does follows from its name.
"""

from memsim.ir.builder import Builder
from memsim.ir.matrix_format import MatrixFormat
from memsim.ir.program import Attr, Program, Space, TensorType
from memsim.models.config import ModelConfig
from memsim.models.matrix_formats import Formats
from memsim.models.parts import block_part, part_tensors
from memsim.models.scheme import Scheme


def constants(config: ModelConfig, n_tokens: int) -> dict[str, TensorType]:
    """Return the tables that block programs read, by name."""
    table = TensorType((n_tokens, config.head_dim // 2))
    return {f"{name}.{wave}": table for name in config.ropes() for wave in ("cos", "sin")}


def part_inputs(
    builder: Builder, config: ModelConfig, scheme: Scheme, part: str, formats: Formats, scopes: tuple[str, ...] = ("",)
) -> None:
    """Declare the stored and the trainable tensors of ``part`` whose names begin with one of ``scopes``.

    A vector that is trained takes the place of the stored one, and so does a matrix.
    """
    trained = scheme.shapes(config, part)
    replaced = {*trained, *(f"{name.removesuffix('.weight')}.{kind}" for name in trained for kind in ("q", "scales"))}
    for name, spec in part_tensors(config, part, formats).items():
        if name.startswith(scopes) and name not in replaced:
            builder.input(name, TensorType(spec.shape, spec.dtype), Space.MAPPED, f"{part}/{name}")
    for name, shape in trained.items():
        if name.startswith(scopes):
            builder.input(name, TensorType(shape), Space.PINNED)


def matrix_attrs(shape: tuple[int, int], stored: MatrixFormat) -> dict[str, Attr]:
    """Return what a node says of the packed matrix that it reads."""
    return {"n_rows": shape[0], "n_columns": shape[1], "group_size": stored.group_size}


def embed_program(config: ModelConfig, scheme: Scheme, n_tokens: int, formats: Formats) -> Program:
    """Return x [P + T, C] from ids [T], after the embeddings of P virtual tokens if ``prompt.weight`` is trained."""
    builder = Builder()
    builder.input("ids", TensorType((n_tokens,), "u32"))
    part_inputs(builder, config, scheme, "embed", formats)
    stored = formats.of("embed", "embed_tokens")
    attrs = matrix_attrs((config.vocab_size, config.hidden_size), stored) | {"scale": config.embedding_scale}
    first, normed = config.family.first_position, config.family.normed_embedding
    has_prompt = "prompt.weight" in builder.values
    out = "y" if first is None and not has_prompt else "words"
    builder.emit("embedding_q4", ["ids", "embed_tokens.q", "embed_tokens.scales"], [out], **attrs)
    if has_prompt:
        out, words = "y" if first is None else "prompted", out
        builder.emit("concat_rows", ["prompt.weight", words], [out])
    if first is not None:
        placed = "placed" if normed else "y"
        start = first + scheme.first_position
        builder.emit("add_table_rows", [out, "embed_positions.weight"], [placed], start=start)
        out = placed
    if normed:
        builder.emit("add_row", [out, "embed_types.weight"], ["typed"], row=0)
        emit_norm(builder, config, "typed", "embed_norm", "y")
    return builder.build(["y"])


class _Block:
    """A builder with the inputs of one segment of a block: ``x``, then weights, trainable tensors and constants."""

    def __init__(
        self, config: ModelConfig, scheme: Scheme, n_tokens: int, formats: Formats, x: str, scopes: tuple[str, ...]
    ) -> None:
        self.config, self.scheme, self.formats = config, scheme, formats
        self.builder = Builder()
        self.builder.input(x, TensorType((n_tokens, config.hidden_size)))
        part_inputs(self.builder, config, scheme, block_part(0), formats, scopes)

    def project(self, x: str, name: str, out: str) -> str:
        """Emit the projection ``name`` of ``x``, with its adapter if it has one; return ``out``."""
        attrs = matrix_attrs(self.config.projections()[name], self.formats.of(block_part(0), name))
        bias = [f"{name}.bias"] if self.config.has_bias(name) else []
        inputs, outputs = [x, f"{name}.q", f"{name}.scales", *bias], [out]
        if f"{name}.lora_A" in self.builder.values:
            inputs += [f"{name}.lora_A", f"{name}.lora_B"]
            outputs.append(f"{out}.h")
            attrs["lora_scale"] = self.scheme.scale
        self.builder.emit("linear_q4", inputs, outputs, **attrs)
        return out

    def norm(self, x: str, name: str, out: str) -> str:
        """Emit the norm ``name``, if there is one; return what it makes of ``x``."""
        return emit_norm(self.builder, self.config, x, name, out) if name else x

    def add(self, x: str, change: str, norm: str, out: str) -> Program:
        """Emit the residual connection with its norm, if there is one, and return the finished program."""
        if self.config.family.post_norm:
            self.builder.emit("add", [x, change], [f"{out}.sum"])
            self.norm(f"{out}.sum", norm, out)
        else:
            self.builder.emit("add", [x, self.norm(change, norm, f"{change}_norm")], [out])
        return self.builder.build([out])


def emit_norm(builder: Builder, config: ModelConfig, x: str, name: str, out: str) -> str:
    """Emit the norm ``name`` of ``x`` by the family's op; return ``out``."""
    statistics = {"rmsnorm": ["rstd"], "layernorm": ["mean", "rstd"]}[config.family.norm]
    outputs = [out, *(f"{out}.{statistic}" for statistic in statistics)]
    builder.emit(config.family.norm, [x, *config.norm_tensors(name)], outputs, eps=config.rms_norm_eps)
    return out


def _scopes(*norms: str) -> list[str]:
    return [f"{name}." for name in norms if name]


def attention_program(config: ModelConfig, scheme: Scheme, n_tokens: int, formats: Formats, layer_type: str) -> Program:
    """Return x_mid [T, C] = x + attention(norm(x)), from x [T, C], of a block of kind ``layer_type``.

    Some families norm q and k, a head at a time, and some what is added to x, or the sum instead. Trained
    ``self_attn.prefix_k`` and ``prefix_v`` [P, NKV D] stand before the rows of k and v; rows of nothing before q make
    the same mask serve, and the same count of rows that are no padding.
    """
    before, after = config.family.norms[:2]
    block = _Block(config, scheme, n_tokens, formats, "x", ("self_attn.", *_scopes(before, after)))
    builder = block.builder
    tables = [name for name in constants(config, n_tokens) if name.startswith(f"{config.rope_of(layer_type)}.")]
    for name in tables:
        builder.input(name, constants(config, n_tokens)[name], Space.PINNED, name)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads

    def heads_of(x: str, n_heads: int) -> str:
        """Emit the projection, norm and rotation of q or k, as far as the family has them."""
        normed = f"self_attn.{x}_norm" if config.family.qk_norm else ""
        name = block.norm(block.project(norm, f"self_attn.{x}_proj", x), normed, f"{x}_norm")
        if not tables:
            return name
        builder.emit("rope", [name, *tables], [f"{x}.rope"], n_heads=n_heads)
        return f"{x}.rope"

    norm = block.norm("x", before, "attn_norm")
    q, k = heads_of("q", heads), heads_of("k", kv_heads)
    v = block.project(norm, "self_attn.v_proj", "v")
    causal = config.family.causal
    padding = [] if causal else [builder.input("n_valid", TensorType((1,), "u32"))]
    seen: dict[str, Attr] = {"scale": config.attention_scale, "window": config.window(layer_type), "causal": causal}
    if before_all := 0 if causal else scheme.rows_before + scheme.first_position:
        seen["n_before"] = before_all
    if "self_attn.prefix_k" not in builder.values:
        builder.emit("attention", [q, k, v, *padding], ["attn", "attn.lse"], n_heads=heads, n_kv_heads=kv_heads, **seen)
    else:
        rows = builder.values["self_attn.prefix_k"].type.shape[0]
        builder.emit("place_rows", [q], ["q.all"], start=rows, n_rows=rows + n_tokens)
        builder.emit("concat_rows", ["self_attn.prefix_k", k], ["k.all"])
        builder.emit("concat_rows", ["self_attn.prefix_v", v], ["v.all"])
        outputs = ["attn.all", "attn.lse"]
        inputs = ["q.all", "k.all", "v.all", *padding]
        builder.emit("attention", inputs, outputs, n_heads=heads, n_kv_heads=kv_heads, **seen)
        builder.emit("take_rows", ["attn.all"], ["attn"], start=rows, count=n_tokens)
    return block.add("x", block.project("attn", "self_attn.o_proj", "o"), after, "x_mid")


def mlp_program(config: ModelConfig, scheme: Scheme, n_tokens: int, formats: Formats) -> Program:
    """Return y [T, C] = x_mid + MLP(norm(x_mid)), from x_mid [T, C]; every token by itself.

    Some families norm what is added to x_mid, too, or the sum instead.
    """
    before, after = config.family.norms[2:]
    block = _Block(config, scheme, n_tokens, formats, "x_mid", ("mlp.", *_scopes(before, after)))
    norm = block.norm("x_mid", before, "mlp_norm")
    gate = [block.project(norm, "mlp.gate_proj", "gate")] if config.family.gated else []
    up = block.project(norm, "mlp.up_proj", "up")
    block.builder.emit(config.family.activation, [*gate, up], [config.family.activation])
    return block.add("x_mid", block.project(config.family.activation, "mlp.down_proj", "down"), after, "y")
