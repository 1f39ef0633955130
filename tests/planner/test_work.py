"""Work per node, against counts made by hand and by brute force."""

import re
from pathlib import Path

import numpy as np
import pytest

from memsim.ir.gradients import of_input
from memsim.ir.op import Op, OpError, OpTable
from memsim.ir.ops import joined
from memsim.ir.ops.product import PRODUCT_ROWS
from memsim.ir.program import Attr, Node, Program, TensorType, Value
from memsim.ir.work import ELEMENTWISE, Kind
from memsim.models.graph import ModelGraph
from memsim.models.lora import LoraConfig
from memsim.models.presets import PRESETS
from memsim.planner.work import Work, node_kind, node_work, step_work
from memsim.schedules.choices import SCHEDULES
from memsim.schedules.lowering import lower, lower_evaluation
from memsim.schedules.optimizers import OptimizerConfig
from toy import toy_config

T, K, N, R = 13, 64, 48, 3
MATRIX = {"n_rows": N, "n_columns": K, "group_size": 32}
Q, SCALES = TensorType((N // 16, K // 8, 16), "u32"), TensorType((K // 32, N), "f16")
X, Y, H, A, B = (TensorType(shape) for shape in ((T, K), (T, N), (T, R), (R, K), (N, R)))
LORA = {"lora_scale": 2.0}
PRODUCT, ADAPTER = 2 * T * N * K, 2 * T * R * (N + K)
PACKED = N * K // 2 + N * K // 32 * 2
RANK = LoraConfig().rank
STATS = TensorType((3,), "f64")


def _work(op: str, inputs: list[TensorType], outputs: list[TensorType], **attrs: Attr) -> Work:
    names = [f"v{index}" for index in range(len(inputs) + len(outputs))]
    values = {name: Value(name, kind) for name, kind in zip(names, [*inputs, *outputs], strict=True)}
    node = Node(op, tuple(names[: len(inputs)]), tuple(names[len(inputs) :]), attrs)
    return node_work(Program(values, node.inputs, node.outputs, (node,)), node)


def test_a_row_without_work_or_given_twice_is_refused() -> None:
    table = OpTable()
    with pytest.raises(TypeError, match="work"):
        table.op("conv")  # type: ignore[call-arg]
    table.op("conv", work=ELEMENTWISE)(lambda i, attrs: [i[0]])
    with pytest.raises(OpError, match="conv has two rows"):
        joined([table, table])
    undeclared = OpTable(conv=Op(name="conv", shape=None, work=ELEMENTWISE, gradient=of_input))
    with pytest.raises(OpError, match="needs a shape rule"):
        joined([undeclared])


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "attrs", "expected"),
    [
        ("linear", [X, TensorType((N, K))], [Y], {}, Work(PRODUCT, moved_bytes=4 * (T * K + N * K + T * N))),
        ("linear_q4", [X, Q, SCALES], [Y], MATRIX, Work(PRODUCT, 0, N * K, 4 * T * (K + N) + PACKED)),
        ("linear_q4_backward_input", [Y, Q, SCALES], [X], MATRIX, Work(PRODUCT, 0, N * K, 4 * T * (K + N) + PACKED)),
        (
            "linear_q4",
            [X, Q, SCALES, TensorType((N,)), A, B],
            [Y, H],
            MATRIX | LORA,
            Work(PRODUCT + ADAPTER, 0, N * K, 4 * (T * (K + N + R) + N + R * (N + K)) + PACKED),
        ),
        (
            "linear_q4_backward_input",
            [Y, Q, SCALES, A, B, X],
            [X, H],
            MATRIX | LORA,
            Work(PRODUCT + ADAPTER, 0, N * K, 4 * (T * (2 * K + N + R) + R * (N + K)) + PACKED),
        ),
        (
            "linear",
            [X, TensorType((N, K)), A, B],
            [Y, H],
            LORA,
            Work(PRODUCT + ADAPTER, moved_bytes=4 * (T * (K + N + R) + N * K + R * (N + K))),
        ),
        (
            "linear_backward_input",
            [Y, TensorType((N, K)), A, B, X],
            [X, H],
            LORA,
            Work(PRODUCT + ADAPTER, moved_bytes=4 * (T * (2 * K + N + R) + N * K + R * (N + K))),
        ),
        (
            "lora_backward",
            [Y, X, A, B],
            [A, B, TensorType((2, T, R))],
            LORA,
            Work(2 * ADAPTER, moved_bytes=4 * (T * (N + K + 2 * R) + 2 * R * (N + K))),
        ),
        (
            "linear_backward_weight",
            [Y, X],
            [TensorType((N, K))],
            {},
            Work(PRODUCT, moved_bytes=4 * (T * (K + N) + N * K)),
        ),
        ("sum_rows", [Y], [TensorType((N,))], {}, Work(moved_bytes=4 * (T * N + N))),
        ("take_rows", [X], [TensorType((3, K))], {}, Work(moved_bytes=2 * 12 * K)),
        ("take_rows", [X, TensorType((3, K))], [TensorType((3, K))], {}, Work(moved_bytes=3 * 12 * K)),
        ("unpack_q4", [Q, SCALES], [TensorType((N, K))], MATRIX, Work(0, 0, N * K, PACKED + 4 * N * K)),
        ("add", [X, X], [X], {}, Work(moved_bytes=12 * T * K)),
        (
            "embedding_q4",
            [TensorType((T,), "u32"), Q, SCALES],
            [X],
            MATRIX,
            Work(moved_bytes=4 * T + T * PACKED // N + 4 * T * K),
        ),
    ],
)
def test_one_node(
    op: str, inputs: list[TensorType], outputs: list[TensorType], attrs: dict[str, Attr], expected: Work
) -> None:
    assert _work(op, inputs, outputs, **attrs) == expected


@pytest.mark.parametrize(("window", "causal"), [(0, True), (1, True), (4, True), (13, True), (99, True), (0, False)])
def test_attention_counts_the_pairs_that_the_mask_lets_through(window: int, causal: bool) -> None:
    query, key = np.arange(T)[:, None], np.arange(T)[None, :]
    pairs = int(((key <= query) & (key > query - (window or T)) | np.bool_(not causal)).sum())
    attrs = {"n_heads": 4, "n_kv_heads": 2, "window": window, "causal": causal}
    types = [X, TensorType((T, K // 2)), TensorType((T, K // 2))]
    forward = _work("attention", types, [X, TensorType((4, T))], **attrs)
    assert (forward.matmul_flops, forward.attention_flops) == (0, 2 * 2 * pairs * K)
    backward = _work("attention_backward", [X, *types, X, TensorType((4, T))], types, **attrs)
    assert backward.attention_flops == 5 * 2 * pairs * K


@pytest.mark.parametrize(("n_tokens", "passes"), [(256, 1), (257, 2)])
def test_the_one_pass_head_unpacks_once_for_both_products(n_tokens: int, passes: int) -> None:
    x, labels = TensorType((n_tokens, K)), TensorType((n_tokens,), "u32")
    work = TensorType((999,))
    train = _work("linear_cross_entropy_q4", [x, labels, Q, SCALES], [STATS, work, x], gradient=True, **MATRIX)
    assert train == Work(4 * n_tokens * N * K, 0, passes * N * K, n_tokens * (8 * K + 4) + PACKED + 24)
    loss = _work("linear_cross_entropy_q4", [x, labels, Q, SCALES], [STATS, work], gradient=False, **MATRIX)
    assert loss.matmul_flops == 2 * n_tokens * N * K


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_differ_by_what_they_recompute(schedule: str) -> None:
    config, n_tokens = PRESETS["qwen2.5-0.5b"], 64
    graph = ModelGraph(config, LoraConfig(), n_tokens, 32)
    choices = SCHEDULES[schedule](config.num_hidden_layers, graph.residuals)
    program = lower(graph, choices, OptimizerConfig())
    blocks = config.num_hidden_layers * sum(rows * columns for rows, columns in config.projections().values())
    down = config.num_hidden_layers * config.hidden_size * config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    # Forward and gradient of the input; the first block's q, k and v need no gradient of theirs.
    products = 2 * blocks - config.hidden_size * (q + 2 * kv) + 2 * config.vocab_size * config.hidden_size
    if schedule != "backprop":
        products += blocks - down
    adapter = sum(RANK * (rows + columns) for rows, columns in config.projections().values())
    fused = config.num_hidden_layers * adapter * (2 if schedule == "backprop" else 3)
    fused -= RANK * (3 * config.hidden_size + q + 2 * kv)
    if schedule != "backprop":
        fused -= config.num_hidden_layers * RANK * (config.hidden_size + config.intermediate_size)
    linear = [node for node in program.nodes if node.op.startswith("linear")]
    assert sum(node_work(program, node).matmul_flops for node in linear) == 2 * n_tokens * (products + fused)
    backward = [node for node in program.nodes if node.op == "lora_backward"]
    gradients = 4 * n_tokens * config.num_hidden_layers * adapter
    assert sum(node_work(program, node).matmul_flops for node in backward) == gradients


@pytest.mark.parametrize(("op", "width"), [("linear_q4", K), ("linear_q4_backward_input", N)])
def test_products_unpack_a_tile_again_for_every_so_many_rows(op: str, width: int) -> None:
    for n_tokens, times in ((1, 1), (PRODUCT_ROWS, 1), (PRODUCT_ROWS + 1, 2), (4 * PRODUCT_ROWS, 4)):
        work = _work(op, [TensorType((n_tokens, width)), Q, SCALES], [TensorType((n_tokens, N + K - width))], **MATRIX)
        assert work.unpacked_weights == times * N * K


@pytest.mark.parametrize(("module", "rows"), [("matmul", PRODUCT_ROWS), ("q4_bf16", 2 * PRODUCT_ROWS)])
def test_kernels_unpack_for_as_many_rows(module: str, rows: int) -> None:
    source = Path(__file__).parents[2] / "kernels" / "memsim_kernels" / f"{module}.py"
    found = re.search(r"^ROWS = (\d+)", source.read_text(), re.MULTILINE)
    assert found and int(found[1]) == rows


def test_a_step_repeats_its_micro_batches() -> None:
    config = toy_config()
    steps = []
    for accumulate in (1, 3):
        graph = ModelGraph(config, LoraConfig(rank=3), 13, 32, accumulate)
        choices = SCHEDULES["mebp"](config.num_hidden_layers, graph.residuals)
        steps.append(step_work(lower(graph, choices, OptimizerConfig())))
    assert steps[1].flops == 3 * steps[0].flops
    assert steps[1].unpacked_weights == 3 * steps[0].unpacked_weights


def test_evaluation_is_a_forward() -> None:
    config = toy_config()
    graph = ModelGraph(config, LoraConfig(rank=3), 13, 32)
    program = lower_evaluation(graph, SCHEDULES["tiled"](config.num_hidden_layers, graph.residuals))
    assert {node_kind(node) for node in program.nodes} >= {Kind.MATMUL, Kind.ATTENTION, Kind.ELEMENTWISE, Kind.STORAGE}
    pairs, width = 13 * 14 // 2, config.num_attention_heads * config.head_dim
    assert step_work(program).attention_flops == config.num_hidden_layers * 4 * pairs * width
