"""The end of a model as a program: from the last block's output to the loss."""

from memsim.ir.builder import Builder
from memsim.ir.program import Attr, Program, TensorType
from memsim.models.config import ModelConfig
from memsim.models.decoder import emit_norm, matrix_attrs, part_inputs
from memsim.models.matrix_formats import Formats
from memsim.models.parts import head_matrix, matrices
from memsim.models.scheme import Scheme


def label_type(config: ModelConfig, n_tokens: int) -> TensorType:
    """Return the type of the labels of one sequence: one a token, or one in all."""
    return TensorType((1 if config.num_labels is not None else n_tokens,), "u32")


def head_program(
    config: ModelConfig,
    scheme: Scheme,
    n_tokens: int,
    formats: Formats,
    scale: float,
    one_pass: bool,
    train: bool,
    threads: int,
) -> Program:
    """Return stats (loss, accuracy, count) from x [P + T, C] and labels; ``scale`` weighs the loss's gradient.

    In one pass the vocabulary is streamed once for the loss and, in training, the gradient of the normed x. A
    classifier has few classes and no need of that. The P rows of virtual tokens have no labels, but the first one is
    what RoBERTa's classifier reads, as in PEFT. With a trained ``score.weight`` the one label of a sequence is the
    class of the token that has it.
    """
    builder = Builder()
    builder.input("x", TensorType((scheme.rows_before + n_tokens, config.hidden_size)))
    builder.input("labels", label_type(config, n_tokens))
    scores = "score.weight" in scheme.shapes(config, "head")
    part_inputs(builder, config, scheme, "head", formats, ("norm.", "score.") if scores else ("",))
    x = "x"
    if scheme.rows_before and config.num_labels is None:
        (x,) = builder.emit("take_rows", [x], ["tokens"], start=scheme.rows_before, count=n_tokens)
    if scores:
        builder.emit("take_labelled", [x, "labels"], ["last", "label"])
        emit_norm(builder, config, "last", "norm", "norm")
        builder.emit("linear", ["norm", "score.weight"], ["logits"])
        builder.emit("cross_entropy", ["logits", "label"], ["stats", "lse"], scale=scale)
        return builder.build(["stats"])
    if head_matrix(config)[0] != "head":
        part_inputs(builder, config, scheme, head_matrix(config)[0], formats, ("embed_",))
    if config.num_labels is not None:
        _classifier(builder, config, formats, scale)
        return builder.build(["stats"])
    matrix = head_matrix(config)[1]
    x = _transform(builder, config, x, formats) if config.family.transformed_head else x
    emit_norm(builder, config, x, "norm", "norm")
    attrs = matrix_attrs((config.vocab_size, config.hidden_size), formats.of(*head_matrix(config)))
    packed = [f"{matrix}.q", f"{matrix}.scales"]
    bias = ["lm_head.bias"] if config.family.transformed_head else []
    if one_pass:
        outputs = ["stats", "work", *(["norm.grad"] if train else [])]
        attrs |= {"scale": scale, "gradient": train, "threads": threads}
        builder.emit("linear_cross_entropy_q4", ["norm", "labels", *packed, *bias], outputs, **attrs)
    else:
        builder.emit("linear_q4", ["norm", *packed, *bias], ["logits"], **attrs)
        builder.emit("cross_entropy", ["logits", "labels"], ["stats", "lse"], scale=scale)
    return builder.build(["stats"])


def _project(builder: Builder, config: ModelConfig, x: str, name: str, out: str, formats: Formats) -> str:
    """Emit the product of ``x`` with a matrix of the head, which has a bias and may be trained."""
    if f"{name}.weight" in builder.values:
        builder.emit("linear", [x, f"{name}.weight", f"{name}.bias"], [out])
        return out
    attrs: dict[str, Attr] = matrix_attrs(matrices(config, "head")[name], formats.of("head", name))
    builder.emit("linear_q4", [x, f"{name}.q", f"{name}.scales", f"{name}.bias"], [out], **attrs)
    return out


def _transform(builder: Builder, config: ModelConfig, x: str, formats: Formats) -> str:
    """Emit what comes before the norm of a masked language model's head."""
    dense = _project(builder, config, x, "head_dense", "dense", formats)
    return builder.emit(config.family.activation, [dense], ["head_activation"])[0]


def _classifier(builder: Builder, config: ModelConfig, formats: Formats, scale: float) -> None:
    """Emit the loss of one label from the first token."""
    (first,) = builder.emit("take_rows", ["x"], ["first"], start=0, count=1)
    dense = _project(builder, config, first, "classifier.dense", "dense", formats)
    (pooled,) = builder.emit("tanh", [dense], ["pooled"])
    logits = _project(builder, config, pooled, "classifier.out_proj", "logits", formats)
    builder.emit("cross_entropy", [logits, "labels"], ["stats", "lse"], scale=scale)
