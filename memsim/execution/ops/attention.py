"""Execution of attention and rotary positions, and of their gradients."""

from collections.abc import Callable, Sequence

import memsim_kernels as k
from memsim.execution.kernel_call import Attrs, Kernel, by_lane
from memsim.execution.storage.mapped_weights import Array


def _rope(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for y, x in by_lane(a, o[0], i[0]):
        k.rope_forward(y, x, i[1], i[2], a["n_heads"])


def _rope_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    k.rope_backward(o[0], i[0], i[1], i[2], a["n_heads"])


def _seen(a: Attrs) -> tuple[int, int, float, int, bool]:
    return a["n_heads"], a["n_kv_heads"], a["scale"], a["window"], a["causal"]


def _by_head(array: Array, count: int) -> Array:
    """Return the front of a buffer [NH, T] as [NH, count]."""
    return array.reshape(-1)[: len(array) * count].reshape(-1, count)


def _attending(n_valid: Sequence[Array], n_rows: int, a: Attrs) -> int:
    """Return how many rows are no padding: virtual tokens, and so many of the sequence."""
    return int(n_valid[0][0]) + int(a.get("n_before", 0)) if n_valid else n_rows


def attend(run: Callable[..., None], o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    """Let the tokens that are no padding attend to each other."""
    count = _attending(i[3:], len(i[0]), a)
    run(o[0][:count], _by_head(o[1], count), *(x[:count] for x in i[:3]), *_seen(a))
    o[0][count:] = 0


def attend_backward(run: Callable[..., None], o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    """Make the gradients of the tokens that are no padding; those of padding are zero."""
    count = _attending(i[6:], len(i[0]), a)
    gradients, tokens = (x[:count] for x in o[:3]), (x[:count] for x in i[:5])
    run(*gradients, _by_head(o[3], count), *tokens, _by_head(i[5], count), *_seen(a))
    for gradient in o[:3]:
        gradient[count:] = 0


def _attention(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    for y, lse, q, keys, v in by_lane(a, *o, *i[:3]):
        attend(k.attention_forward, (y, lse), (q, keys, v, *i[3:]), a)


def _attention_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    attend_backward(k.attention_backward, o, i, a)


ATTENTION_KERNELS: dict[str, Kernel] = {
    "rope": _rope,
    "rope_backward": _rope_backward,
    "attention": _attention,
    "attention_backward": _attention_backward,
}
