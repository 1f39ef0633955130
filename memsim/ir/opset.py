"""The ops: what each reads and defines, as one shape rule an op, and which input an output may overwrite.

Shape letters: T tokens, C hidden_size, NH query heads, NKV key-value heads, D head_dim, V vocab_size, R LoRA rank,
K in_features, N out_features. A backward op that takes one input more than its shortest form adds to that input
(``dx = dx_in + ...``) instead of starting from zero.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memsim.ir.program import Attr, TensorType

Attrs = Mapping[str, Attr]
Pairs = tuple[tuple[int, int], ...]
ShapeRule = Callable[[Sequence[TensorType], Attrs], list[TensorType]]


class OpError(ValueError):
    """The inputs of an op do not fit it. A bug in whoever built the program, never the user's doing."""


@dataclass(frozen=True, slots=True)
class Op:
    """One row of the op table.

    Attributes:
        shape: The types of the outputs, from those of the inputs; None where the outputs are declared by the node
            itself (storage ops).
        may_reuse: Pairs (output, input): the output may be written over the input's storage if nothing reads the
            input later.
        beside_adapter: The same for a node with a LoRA adapter among its inputs, where that makes a difference.
    """

    name: str
    shape: ShapeRule | None
    may_reuse: Pairs = ()
    beside_adapter: Pairs = ()

    def reusable(self, attrs: Attrs) -> Pairs:
        """Return the pairs (output, input) for a node with these attributes."""
        return self.beside_adapter if self.beside_adapter and "lora_scale" in attrs else self.may_reuse


OPS: dict[str, Op] = {}


def _op(name: str, may_reuse: Pairs = (), beside_adapter: Pairs = ()) -> Callable[[ShapeRule], ShapeRule]:
    def register(rule: ShapeRule) -> ShapeRule:
        OPS[name] = Op(name, rule, may_reuse, beside_adapter)
        return rule

    return register


def lanes_of(attrs: Attrs) -> int:
    """Return how many sequences of equal length lie below one another in the rows of a node's operands."""
    return _integer(attrs, "lanes") if "lanes" in attrs else 1


def _require(condition: bool, inputs: Sequence[TensorType]) -> None:
    if not condition:
        raise OpError(f"inputs do not fit: {', '.join(map(str, inputs))}")


def _integer(attrs: Attrs, key: str) -> int:
    value = attrs[key]
    if not isinstance(value, int):
        raise OpError(f"{key} must be an integer, not {value!r}")
    return value


def _require_packed(q: TensorType, scales: TensorType, attrs: Attrs) -> None:
    """Check that (q, scales) store a matrix [n_rows, n_columns]: kernels read them by address."""
    n_rows, n_columns, group = (_integer(attrs, key) for key in ("n_rows", "n_columns", "group_size"))
    panels, groups = -(-n_rows // 16), -(-n_columns // group)
    fits = q == TensorType((panels, groups * group // 8, 16), "u32") and scales == TensorType(
        (groups, 16 * panels), "f16"
    )
    _require(group in (32, 64) and fits, (q, scales))


@_op("embedding_q4")
def _embedding_q4(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """X [T, C] = ``scale`` times rows ``ids`` [T] of the packed embedding (q, scales)."""
    _require(len(i) == 3 and i[0].dtype == "u32", i)
    _require_packed(i[1], i[2], attrs)
    return [TensorType((i[0].shape[0], _integer(attrs, "n_columns")))]


@_op("unpack_q4")
def _unpack_q4(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """W [N, K] from the packed matrix (q, scales)."""
    _require(len(i) == 2, i)
    _require_packed(i[0], i[1], attrs)
    return [TensorType((_integer(attrs, "n_rows"), _integer(attrs, "n_columns")))]


def _adapter(pair: Sequence[TensorType], n_rows: int, n_columns: int, inputs: Sequence[TensorType]) -> int:
    """Check a LoRA adapter A [R, K], B [N, R] of a matrix [N, K]; return R."""
    a, b = pair
    rank = a.shape[0]
    _require(a.shape == (rank, n_columns) and b.shape == (n_rows, rank), inputs)
    return rank


def _linear_outputs(
    x: TensorType, bias_and_adapter: Sequence[TensorType], shape: tuple[int, int], attrs: Attrs
) -> list[TensorType]:
    """Return y [T, N] and, with an adapter, the workspace h [T, R]."""
    n_rows, n_columns = shape
    has_adapter = "lora_scale" in attrs
    _require(x.shape[1] == n_columns and len(bias_and_adapter) - 2 * has_adapter in (0, 1), (x, *bias_and_adapter))
    y = TensorType((x.shape[0], n_rows))
    if not has_adapter:
        return [y]
    return [y, TensorType((x.shape[0], _adapter(bias_and_adapter[-2:], n_rows, n_columns, bias_and_adapter)))]


def _linear_backward_outputs(
    dy: TensorType, adapter_and_dx: Sequence[TensorType], shape: tuple[int, int], attrs: Attrs
) -> list[TensorType]:
    """Return dx [T, K] and, with an adapter, the workspace dh [T, R]."""
    n_rows, n_columns = shape
    has_adapter = "lora_scale" in attrs
    _require(dy.shape[1] == n_rows and len(adapter_and_dx) - 2 * has_adapter in (0, 1), (dy, *adapter_and_dx))
    dx = TensorType((dy.shape[0], n_columns))
    if not has_adapter:
        return [dx]
    return [dx, TensorType((dy.shape[0], _adapter(adapter_and_dx[:2], n_rows, n_columns, adapter_and_dx)))]


def _matrix_shape(attrs: Attrs) -> tuple[int, int]:
    return _integer(attrs, "n_rows"), _integer(attrs, "n_columns")


@_op("linear")
def _linear(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, N] = x [T, K] w[N, K]^T (+ bias [N]) (+ lora_scale (x A^T) B^T), from (x, w, [bias], [A, B])."""
    n_rows, n_columns = i[1].shape
    return _linear_outputs(i[0], i[2:], (n_rows, n_columns), attrs)


@_op("linear_backward_input", may_reuse=((0, 2),), beside_adapter=((0, 4),))
def _linear_backward_input(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, K] = dy [T, N] w[N, K] (+ lora_scale (dy B) A) (+ dx_in), from (dy, w, [A, B], [dx_in])."""
    n_rows, n_columns = i[1].shape
    return _linear_backward_outputs(i[0], i[2:], (n_rows, n_columns), attrs)


@_op("linear_q4")
def _linear_q4(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """As ``linear`` with W packed (q, scales), unpacked tile by tile: from (x, q, scales, [bias], [A, B])."""
    _require_packed(i[1], i[2], attrs)
    return _linear_outputs(i[0], i[3:], _matrix_shape(attrs), attrs)


@_op("linear_q4_backward_input", may_reuse=((0, 3),), beside_adapter=((0, 5),))
def _linear_q4_backward_input(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """As ``linear_backward_input`` with W packed: from (dy, q, scales, [A, B], [dx_in])."""
    _require_packed(i[1], i[2], attrs)
    return _linear_backward_outputs(i[0], i[3:], _matrix_shape(attrs), attrs)


@_op("lora_backward", may_reuse=((0, 4), (1, 5)))
def _lora_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """DA [R, K] = dh^T x (+ dA_in), dB [N, R] = dy^T h (+ dB_in), and a workspace for h and dh [2, T, R].

    From (dy [T, N], x [T, K], A, B), with h = lora_scale x A^T and dh = lora_scale dy B.
    """
    dy, x, a, b = i[:4]
    _require(len(i) in (4, 6) and dy.shape[0] == x.shape[0], i)
    rank = _adapter((a, b), dy.shape[1], x.shape[1], i)
    return [a, b, TensorType((2, x.shape[0], rank))]


@_op("linear_backward_weight", may_reuse=((0, 2),))
def _linear_backward_weight(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dw [N, K] = dy^T x (+ dw_in), from (dy [T, N], x [T, K])."""
    _require(len(i) in (2, 3) and i[0].shape[0] == i[1].shape[0], i)
    return [TensorType((i[0].shape[1], i[1].shape[1]))]


@_op("sum_rows", may_reuse=((0, 1),))
def _sum_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """The gradient of a bias: the sum [N] of the rows of dy [T, N] (+ db_in)."""
    _require(len(i) in (1, 2), i)
    return [TensorType(i[0].shape[1:])]


@_op("rmsnorm")
def _rmsnorm(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, C] = x rstd weight and rstd [T] = 1 / sqrt(mean(x^2) + eps), from (x, weight [C]).

    A weight of D < C columns norms each D columns by themselves, as one head: rstd is then [T C / D].
    """
    (rows, columns), (length,) = i[0].shape, i[1].shape
    _require(length > 0 and columns % length == 0, i)
    return [i[0], TensorType((rows * (columns // length),))]


@_op("rmsnorm_backward_input", may_reuse=((0, 4),))
def _rmsnorm_backward_input(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, C] (+ dx_in), from (dy, x, rstd, weight)."""
    _require(len(i) in (4, 5) and i[0] == i[1] and _rmsnorm((i[1], i[3]), attrs)[1] == i[2], i)
    return [i[1]]


@_op("rmsnorm_backward_weight", may_reuse=((0, 4),))
def _rmsnorm_backward_weight(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dweight [C], or [D] where each D columns are normed by themselves (+ dw_in), from (dy, x, rstd, weight)."""
    _require(len(i) in (4, 5) and i[0] == i[1] and _rmsnorm((i[1], i[3]), attrs)[1] == i[2], i)
    return [i[3]]


@_op("layernorm")
def _layernorm(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, C] = (x - mean) rstd weight + bias, mean [T] and rstd [T], from (x, weight [C], bias [C])."""
    _require(len(i) == 3 and i[0].shape[1:] == i[1].shape == i[2].shape, i)
    row = TensorType((i[0].shape[0],))
    return [i[0], row, row]


@_op("layernorm_backward_input", may_reuse=((0, 5),))
def _layernorm_backward_input(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, C] (+ dx_in), from (dy, x, mean, rstd, weight)."""
    _require(len(i) in (5, 6) and i[0] == i[1] and [i[1], *i[2:4]] == _layernorm((i[1], i[4], i[4]), attrs), i)
    return [i[1]]


@_op("layernorm_backward_weight", may_reuse=((0, 4),))
def _layernorm_backward_weight(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dweight [C] (+ dw_in), from (dy, x, mean, rstd); the bias's gradient is ``sum_rows``."""
    _require(len(i) in (4, 5) and i[0] == i[1] and i[2] == i[3] == TensorType(i[0].shape[:1]), i)
    return [TensorType(i[0].shape[1:])]


@_op("rope", may_reuse=((0, 0),))
def _rope(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Rotate each head of x [T, heads D] by position, from (x, cos [T, D/2], sin [T, D/2])."""
    _require(i[1] == i[2] and i[0].shape[1] == _integer(attrs, "n_heads") * 2 * i[1].shape[1], i)
    return [i[0]]


@_op("rope_backward", may_reuse=((0, 0),))
def _rope_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Rotate a gradient back, from (dy, cos, sin)."""
    return _rope(i, attrs)


def _padding(rest: Sequence[TensorType], attrs: Attrs) -> None:
    """Check the optional last input of attention: the number of tokens that are no padding, u32 [1]."""
    _require(len(rest) == 0 or (list(rest) == [TensorType((1,), "u32")] and not attrs["causal"]), rest)


@_op("attention")
def _attention(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Grouped-query attention: o [T, NH D] and lse [NH, T], from (q [T, NH D], k [T, NKV D], v, [n_valid]).

    O = softmax(``scale`` q k^T) v. If ``causal``, query t sees keys max(0, t - window + 1) ... t (0 ... t if ``window``
    is 0), otherwise all keys. With n_valid only the first so many tokens attend and are seen; o is 0 beyond.
    """
    q, k, v = i[:3]
    _padding(i[3:], attrs)
    window, causal, scale = _integer(attrs, "window"), attrs["causal"], attrs["scale"]
    seen = isinstance(causal, bool) and (window == 0 or (window > 0 and causal))
    if not (seen and isinstance(scale, float) and scale > 0.0):
        raise OpError(f"attention needs a float scale > 0, a bool causal, window >= 0 and 0 unless causal: {attrs}")
    heads, kv_heads = _integer(attrs, "n_heads"), _integer(attrs, "n_kv_heads")
    lanes = lanes_of(attrs)
    _require(k == v and q.shape[1] * kv_heads == k.shape[1] * heads and q.shape[0] % lanes == 0, i)
    return [q, TensorType((lanes * heads, q.shape[0] // lanes))]


@_op("attention_backward")
def _attention_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """dq, dk, dv and the workspace delta [NH, T], from (do, q, k, v, o, lse, [n_valid])."""
    _padding(i[6:], attrs)
    _require(len(i) in (6, 7) and i[0] == i[1] == i[4] and _attention(i[1:4], attrs)[1] == i[5], i)
    return [i[1], i[2], i[3], i[5]]


@_op("swiglu", may_reuse=((0, 0),))
def _swiglu(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """S = silu(gate) up, from (gate [T, H], up [T, H])."""
    _require(i[0] == i[1], i)
    return [i[0]]


@_op("swiglu_backward", may_reuse=((0, 1), (1, 2)))
def _swiglu_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """dgate, dup, from (ds, gate, up)."""
    return [i[1], i[2]]


@_op("geglu", may_reuse=((0, 0),))
def _geglu(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """S = gelu(gate) up with the tanh form of GELU, from (gate [T, H], up [T, H])."""
    return _swiglu(i, attrs)


@_op("geglu_backward", may_reuse=((0, 1), (1, 2)))
def _geglu_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """dgate, dup, from (ds, gate, up)."""
    return _swiglu_backward(i, attrs)


@_op("relu", may_reuse=((0, 0),))
def _relu(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, H] = max(x, 0)."""
    _require(len(i) == 1, i)
    return [i[0]]


@_op("relu_backward", may_reuse=((0, 0), (0, 1)))
def _relu_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, H], from (dy, x)."""
    _require(len(i) == 2 and i[0] == i[1], i)
    return [i[1]]


@_op("gelu", may_reuse=((0, 0),))
def _gelu(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, H] = x Phi(x), the GELU with the error function."""
    return _relu(i, attrs)


@_op("gelu_backward", may_reuse=((0, 0), (0, 1)))
def _gelu_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, H], from (dy, x)."""
    return _relu_backward(i, attrs)


@_op("tanh", may_reuse=((0, 0),))
def _tanh(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, H] = tanh(x)."""
    return _relu(i, attrs)


@_op("tanh_backward", may_reuse=((0, 0), (0, 1)))
def _tanh_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dx [T, H] = dy (1 - y^2), from (dy, y)."""
    return _relu_backward(i, attrs)


@_op("add_row", may_reuse=((0, 0),))
def _add_row(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, C] = x + row ``row`` of a table [P, C], such as token types."""
    _require(len(i) == 2 and i[0].shape[1] == i[1].shape[1] and 0 <= _integer(attrs, "row") < i[1].shape[0], i)
    return [i[0]]


@_op("add_table_rows", may_reuse=((0, 0),))
def _add_table_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, C] = x + rows from ``start`` on of a table [P, C], such as learned positions."""
    (n_tokens, columns), (rows, table_columns), start = i[0].shape, i[1].shape, _integer(attrs, "start")
    _require(len(i) == 2 and columns == table_columns and 0 <= start <= rows - n_tokens // lanes_of(attrs), i)
    return [i[0]]


@_op("add", may_reuse=((0, 0), (0, 1)))
def _add(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y = a + b."""
    _require(i[0] == i[1], i)
    return [i[0]]


@_op("cross_entropy")
def _cross_entropy(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Stats f64 [3] = (sum of losses, number correct, number valid) and lse [T], from (logits [T, V], labels [T])."""
    lanes = lanes_of(attrs)
    _require(i[1].dtype == "u32" and i[0].shape[0] == lanes * i[1].shape[0], i)
    return [TensorType((3 * lanes,), "f64"), TensorType((i[0].shape[0],))]


@_op("cross_entropy_backward", may_reuse=((0, 0),))
def _cross_entropy_backward(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Dlogits = scale (softmax - onehot) / valid, from (logits, labels, lse, stats)."""
    _require(len(i) == 4, i)
    return [i[0]]


HEAD_ROWS = 256
"""Tokens that the one-pass head does at a time; more go through the vocabulary again."""


def head_rows(gradient: bool) -> int:
    """Return how many tokens the one-pass head does at a time: without a gradient there is room for twice as many."""
    return HEAD_ROWS if gradient else 2 * HEAD_ROWS


def head_work_floats(n_tokens: int, n_columns: int, threads: int, gradient: bool = True) -> int:
    """Return the f32 workspace of ``linear_cross_entropy_q4``: what the kernels of any compute path ask for, at most.

    Each thread holds a tile of logits for every token of ``head_rows``, with a gradient a row of sums too, and its
    panels.
    """
    rows = -(-min(n_tokens, head_rows(gradient)) // 16) * 16
    line = -(-n_columns // 32) * 32 + 16
    return rows * line // 2 + threads * (rows * ((line if gradient else 0) + 384) + 36_000) + 16


@_op("linear_cross_entropy_q4")
def _linear_cross_entropy_q4(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Loss statistics as of ``cross_entropy``, a workspace and, if attribute ``gradient``, dx [T, K].

    From (x [T, K], labels [T], q, scales, [bias [V]]). The logits x W^T + bias are never all there: one pass over the
    rows of W makes a tile of them, loss and gradient. With ``lanes`` the labels are those of each, and statistics come
    for each.
    """
    lanes = lanes_of(attrs)
    _require(len(i) == 4 or (len(i) == 5 and i[4] == TensorType((_integer(attrs, "n_rows"),))), i)
    _require(i[0].shape == (lanes * i[1].shape[0], attrs["n_columns"]), i)
    _require_packed(i[2], i[3], attrs)
    n_tokens, n_columns = i[0].shape
    work = TensorType((head_work_floats(n_tokens, n_columns, _integer(attrs, "threads"), bool(attrs["gradient"])),))
    return [TensorType((3 * lanes,), "f64"), work, *([i[0]] if attrs["gradient"] else [])]


@_op("take_rows", may_reuse=((0, 1),))
def _take_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """A copy of rows ``start`` to ``start + count`` of x [T, C], or of each of its lanes (+ y_in), from (x, [y_in])."""
    start, count, lanes = _integer(attrs, "start"), _integer(attrs, "count"), lanes_of(attrs)
    _require(len(i) in (1, 2) and 0 <= start < start + count <= i[0].shape[0] // lanes, i)
    return [TensorType((lanes * count, i[0].shape[1]))]


@_op("place_rows")
def _place_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [n_rows, C]: the rows of x from row ``start`` on, zeros elsewhere."""
    start, n_rows = _integer(attrs, "start"), _integer(attrs, "n_rows")
    _require(len(i) == 1 and 0 <= start <= n_rows - i[0].shape[0], i)
    return [TensorType((n_rows, i[0].shape[1]))]


@_op("take_labelled")
def _take_labelled(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """The row [1, C] of x [T, C] that has a label, and the label u32 [1], from (x, labels [T])."""
    _require(len(i) == 2 and i[1] == TensorType(i[0].shape[:1], "u32"), i)
    return [TensorType((1, i[0].shape[1])), TensorType((1,), "u32")]


@_op("put_rows", may_reuse=((0, 0),))
def _put_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Rows from ``start`` on replaced, of x or of each of its lanes, from (x [T, C], rows [count, C])."""
    start, lanes = _integer(attrs, "start"), lanes_of(attrs)
    _require(i[0].shape[1] == i[1].shape[1] and 0 <= start <= (i[0].shape[0] - i[1].shape[0]) // lanes, i)
    return [i[0]]


@_op("repeat_rows")
def _repeat_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [lanes T, C]: x [T, C] once for each lane, one copy below the other."""
    return [TensorType((lanes_of(attrs) * i[0].shape[0], i[0].shape[1]))]


@_op("concat_rows")
def _concat_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [T, C] of all inputs [T_i, C], one below the other."""
    _require(len({kind.shape[1] for kind in i}) == 1, i)
    return [TensorType((sum(kind.shape[0] for kind in i), i[0].shape[1]))]


def _update_shape(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """New parameters (and state), from (step f64 [1], n parameters, n gradients, state if the optimizer has any)."""
    n = _integer(attrs, "n_tensors")
    _require(len(i) - 1 - 2 * n in (0, 1) and list(i[1 : n + 1]) == list(i[n + 1 : 2 * n + 1]), i)
    return [*i[1 : n + 1], *i[2 * n + 1 :]]


for _name in ("sgd", "momentum", "adamw"):
    OPS[_name] = Op(_name, _update_shape)


def lane_slot(rank: int) -> int:
    """Return the ranks that each of several lanes takes in stacked adapters; those beyond its own are zero.

    Products reduce 32 ranks at a time, even and odd ones apart: a lane that neither straddles such a step nor begins
    at an odd rank has the sums, to the bit, that it has alone.
    """
    return -(-rank // 32) * 32 if rank > 32 else max(2, 1 << (rank - 1).bit_length())


@_op("perturb")
def _perturb(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """The tensors of each lane, w + s z: (seed u32 [2], [scale f64 [1]], n tensors) -> n tensors and a workspace.

    ``signs`` says what each lane gets: ``+3,-3`` the noise of direction 3 times ``eps`` (or the scale), added and
    subtracted; ``.`` nothing; ``=3`` is that noise itself, without w. ``axes`` has a digit for each tensor: along that
    axis the lanes are stacked, each in ``lane_slot`` of it. A single lane is not padded.
    """
    lanes, axes = str(attrs["signs"]).split(","), str(attrs["axes"])
    tensors = i[-len(axes) :]
    _require(i[0] == TensorType((2,), "u32") and len(i) - len(axes) in (1, 2), i)
    stacked = []
    for kind, axis in zip(tensors, map(int, axes), strict=True):
        shape = list(kind.shape)
        shape[axis] = shape[axis] if len(lanes) == 1 else len(lanes) * lane_slot(shape[axis])
        stacked.append(TensorType(tuple(shape)))
    return [*stacked, TensorType((max(kind.n_bytes for kind in tensors) // 4,))]


# An op with its tangent: rows of the activations are those of x, and then those of x', as many again.


@_op("linear_q4_tangent")
def _linear_q4_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [2 T, N] of x [2 T, K], a workspace h [2 T, R] and another, from (x, q, scales, [bias], [A, B, A', B']).

    Y' = x' W^T + scale ((x' A^T) B^T + (x A'^T) B^T + (x A^T) B'^T).
    """
    _require_packed(i[1], i[2], attrs)
    n_rows, n_columns = _matrix_shape(attrs)
    rows, has_adapter = i[0].shape[0], "lora_scale" in attrs
    _require(i[0].shape[1] == n_columns and len(i) - 3 - 4 * has_adapter in (0, 1), i)
    y = TensorType((rows, n_rows))
    if not has_adapter:
        return [y]
    rank = _adapter(i[-4:-2], n_rows, n_columns, i)
    _require(i[-4:-2] == i[-2:], i)
    return [y, TensorType((rows, rank)), TensorType((2, rank, n_rows))]


@_op("rmsnorm_tangent")
def _rmsnorm_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [2 T, C] and rstd, as of ``rmsnorm`` over x, from (x [2 T, C], weight)."""
    half = TensorType((i[0].shape[0] // 2, i[0].shape[1]))
    return [i[0], _rmsnorm([half, i[1]], attrs)[1]]


@_op("layernorm_tangent")
def _layernorm_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [2 T, C], mean [T] and rstd [T], from (x [2 T, C], weight, bias)."""
    row = TensorType((i[0].shape[0] // 2,))
    return [i[0], row, row]


@_op("attention_tangent")
def _attention_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """O [2 T, NH D], lse [NH, T] and a workspace, from (q, k, v) of 2 T rows each, and [n_valid]."""
    n_tokens, head_dim = i[0].shape[0] // 2, i[0].shape[1] // _integer(attrs, "n_heads")
    work = TensorType((3 * min(n_tokens, TANGENT_ROWS) * n_tokens + 7 * n_tokens * head_dim,))
    lse = _attention([*(TensorType((n_tokens, kind.shape[1])) for kind in i[:3]), *i[3:]], attrs)[1]
    return [i[0], lse, work]


@_op("gated_tangent")
def _gated_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """S [2 T, H] and a workspace [3, T, H], from (gate, up) of 2 T rows each; ``activation`` says which."""
    _require(i[0] == i[1], i)
    return [i[0], TensorType((3, i[0].shape[0] // 2, i[0].shape[1]))]


@_op("relu_tangent")
def _relu_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [2 T, H], from x [2 T, H]."""
    return [i[0]]


@_op("gelu_tangent")
def _gelu_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Y [2 T, H], from x [2 T, H]."""
    return [i[0]]


@_op("add_table_rows_tangent")
def _add_table_rows_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """X with rows of a table added to its first half, from (x [2 T, C], table)."""
    return [i[0]]


@_op("linear_cross_entropy_q4_tangent")
def _linear_cross_entropy_q4_tangent(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Stats, workspace and dx of ``linear_cross_entropy_q4`` over x, and the loss's tangent f64 [1] = <dx, x'>."""
    half = TensorType((i[0].shape[0] // 2, i[0].shape[1]))
    return [*_linear_cross_entropy_q4([half, *i[1:]], attrs), TensorType((1,), "f64")]


TANGENT_ROWS = 256
"""Queries whose scores, with tangents, are in memory at once."""


@_op("sum_losses", may_reuse=((0, 0),))
def _sum_losses(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Statistics of all micro-batches so far, from (sums, stats)."""
    _require(i[0] == i[1], i)
    return [i[0]]


@_op("estimate")
def _estimate(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Projected gradients f64 [directions] from the statistics f64 [3 lanes] of perturbed losses.

    ``kind`` is that of ``schedules.zeroth_order.Method.estimate``; several inputs are the lanes of several streams.
    """
    directions = _integer(attrs, "directions")
    lanes = 2 * directions if attrs["kind"] == "central" else directions + 1
    _require({kind.dtype for kind in i} == {"f64"} and sum(kind.shape[0] for kind in i) == 3 * lanes, i)
    return [TensorType((directions,), "f64")]


@_op("accept")
def _accept(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Rho f64 [1] or its opposite or 0: which of w - lr g, w + lr g and w has the lowest loss.

    From (statistics whose first lane is w, those of the two candidates f64 [6], rho).
    """
    _require(i[1].shape == (6,) and i[2] == TensorType((1,), "f64"), i)
    return [i[2]]


@_op("zo_update")
def _zo_update(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """New tensors (and state) and a workspace, from (step f64 [1], seed u32 [2], rho f64 [], n tensors, [state]).

    The gradient is the mean of rho_i z_i over ``directions`` directions, the estimate of the first of which is
    ``rho_at``; z is drawn again.
    """
    n = _integer(attrs, "n_tensors")
    tensors = i[3 : 3 + n]
    _require(i[1] == TensorType((2,), "u32") and i[2].dtype == "f64" and len(i) - 3 - n in (0, 1), i)
    _require(_integer(attrs, "rho_at") + _integer(attrs, "directions") <= i[2].shape[0], i)
    return [*tensors, *i[3 + n :], TensorType((max(kind.n_bytes for kind in tensors) // 4,))]


# Matrices in bf16, in tiles of rows [N', K]: see ``models.tiles``. ``signs`` are those of lanes, as of ``perturb``; all
# that have noise have that of one direction.


@_op("unpack_bf16")
def _unpack_bf16(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """W f32 [N', K] = w + s z for each lane, from (tile bf16 [N', K], [seed u32 [2]]).

    Every ``unit_rows`` rows are a unit of noise; ``noise`` is the number of the first.
    """
    _require(i[0].dtype == "bf16" and list(i[1:]) in ([], [TensorType((2,), "u32")]), i)
    return [TensorType(i[0].shape)] * len(str(attrs["signs"]).split(","))


@_op("embedding_bf16")
def _embedding_bf16(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """X f32 [T, K] = ``scale`` times (w + s z) for each lane, from (ids [T], their rows bf16 [T, K], [seed])."""
    _require(i[0].dtype == "u32" and i[0].shape[0] == i[1].shape[0], i)
    return _unpack_bf16(i[1:], attrs)


@_op("linear_rows")
def _linear_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Columns from ``start`` on of y [T, ``n_rows``] = x w^T (+ bias), from (x [T, K], w [N', K], [y], [bias [N]]).

    The first tile begins y, every other one needs it. A workspace [T, N'] follows, unless the tile is the matrix.
    """
    (n_tokens, columns), (rows, w_columns) = i[0].shape, i[1].shape
    start, n_rows = _integer(attrs, "start"), _integer(attrs, "n_rows")
    y = TensorType((n_tokens, n_rows))
    rest = [*([y] if start else []), *([TensorType((n_rows,))] if attrs["bias"] else [])]
    _require(columns == w_columns and start + rows <= n_rows and list(i[2:]) == rest, i)
    return [y, *([TensorType((n_tokens, rows))] if rows < n_rows else [])]


@_op("cross_entropy_rows")
def _cross_entropy_rows(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """What is known of the losses after the vocabulary's rows ``start`` to ``start + N'``, and logits [T, N'].

    From (x [T, K], w [N', K], labels [T], [the same of the rows before]): f64 [4, T] with the largest logit, the sum of
    exponentials relative to it, the label's logit, and the row of the largest.
    """
    (n_tokens, columns), (rows, w_columns) = i[0].shape, i[1].shape
    known = TensorType((4, n_tokens), "f64")
    rest = [known] if _integer(attrs, "start") else []
    _require(columns == w_columns and i[2] == TensorType((n_tokens,), "u32") and list(i[3:]) == rest, i)
    return [known, TensorType((n_tokens, rows))]


@_op("cross_entropy_stats")
def _cross_entropy_stats(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """Stats f64 [3 lanes] as of ``cross_entropy``, from (labels [T], what ``cross_entropy_rows`` knows of each)."""
    _require(set(i[1:]) == {TensorType((4, *i[0].shape), "f64")}, i)
    return [TensorType((3 * len(i[1:]),), "f64")]


@_op("zo_update_bf16")
def _zo_update_bf16(i: Sequence[TensorType], attrs: Attrs) -> list[TensorType]:
    """The new tile, from (seed, rho, tile bf16): w - lr g in f32, rounded to bf16 at random, without bias."""
    _require(i[0] == TensorType((2,), "u32") and i[1].dtype == "f64" and i[2].dtype == "bf16", i)
    return [i[2]]


# Storage and host ops: their outputs are declared by whoever emits them. `balloon` is the tests' rogue allocation:
# it touches `n_bytes` that no plan knows of.
for _name in (
    *("page_in", "prefetch", "evict", "spill", "restore", "load", "load_rows", "store", "zero"),
    *("next_batch", "emit_loss", "emit_estimate", "balloon"),
):
    OPS[_name] = Op(_name, None)
