"""Execution of the ops whose products are in bf16, with f32 sums."""

from collections.abc import Sequence

import numpy as np

import memsim_kernels as k
from memsim.errors import WorkerError
from memsim.execution.kernel_call import NO_BIAS, Attrs, Kernel, by_lane
from memsim.execution.ops.attention import attend, attend_backward
from memsim.execution.ops.loss import head_outputs
from memsim.execution.ops.product import backward_extras, forward_extras
from memsim.execution.ops.tangent import tangent_kernels
from memsim.execution.storage.mapped_weights import Array
from memsim_kernels.lora import Adapter


def _fits_bf16(q: Array, a: Attrs) -> bool:
    """Return whether a head of q is a number of whole steps of 32."""
    return int(q.shape[1]) // int(a["n_heads"]) % 32 == 0


def bf16_kernels(threads: int, rank: int) -> dict[str, Kernel]:
    """Return the ops whose products are in bf16, with f32 sums. Loads code that only some processors can run."""
    from memsim_kernels.attention_bf16 import attention_backward_bf16, attention_forward_bf16
    from memsim_kernels.head_bf16 import head_q4_bf16
    from memsim_kernels.q4_bf16 import (
        ROWS,
        STEPS,
        linear_q4_backward_input_bf16,
        linear_q4_forward_bf16,
        workspace_floats,
    )

    work = np.empty(workspace_floats(ROWS, 32 * STEPS, threads, rank), np.float32)
    work.fill(0)  # np.zeros would take its pages in the first step, and no baseline would hold them

    def fitting(adapter: Adapter) -> Adapter:
        if len(adapter.a) > rank:  # would write beyond the workspace
            raise WorkerError(f"the kernels were loaded for a LoRA rank of {rank}, not {len(adapter.a)}")
        return adapter

    def linear_q4(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
        bias, adapter = forward_extras(o, i[3:], a)
        linear_q4_forward_bf16(o[0], i[0], i[1], i[2], bias, a["group_size"], work, fitting(adapter))

    def linear_q4_backward_input(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
        accumulate, adapter = backward_extras(o, i[3:], a)
        linear_q4_backward_input_bf16(o[0], i[0], i[1], i[2], a["group_size"], accumulate, work, fitting(adapter))

    def linear_cross_entropy_q4(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
        stats, dx, head_work, labels = head_outputs(o, i[1], a)
        head_q4_bf16(
            stats, dx, i[0], labels, i[2], i[3], a["n_rows"], a["group_size"], a["scale"], head_work,
            bias=i[4] if len(i) > 4 else NO_BIAS,
        )  # fmt: skip

    def attention(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
        run = attention_forward_bf16 if _fits_bf16(i[0], a) else k.attention_forward
        for y, lse, q, keys, v in by_lane(a, *o, *i[:3]):
            attend(run, (y, lse), (q, keys, v, *i[3:]), a)

    def attention_backward(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
        attend_backward(attention_backward_bf16 if _fits_bf16(i[1], a) else k.attention_backward, o, i, a)

    return {
        "attention": attention,
        "attention_backward": attention_backward,
        "linear_q4": linear_q4,
        "linear_q4_backward_input": linear_q4_backward_input,
        "linear_cross_entropy_q4": linear_cross_entropy_q4,
    } | tangent_kernels(linear_q4, linear_cross_entropy_q4)
