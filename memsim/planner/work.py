"""Floating-point operations of each node: the work that every reader of a step program agrees on."""

from memsim.ir.program import Node, Program


def node_flops(program: Program, node: Node) -> int:
    """Return the floating-point operations of one execution of ``node``, a multiply-add as two.

    Counted are matrix products (base, LoRA, attention, head); element-wise work is bound by memory, not by these.
    """
    types = [program.values[name].type for name in node.inputs]
    if node.op in ("linear", "linear_backward_input"):
        return 2 * types[0].shape[0] * types[1].shape[0] * types[1].shape[1]
    if node.op in ("linear_q4", "linear_q4_backward_input"):
        return 2 * types[0].shape[0] * int(node.attrs["n_rows"]) * int(node.attrs["n_columns"])
    if node.op == "linear_cross_entropy_q4":
        products = 2 if node.attrs["gradient"] else 1
        return 2 * products * types[0].shape[0] * int(node.attrs["n_rows"]) * int(node.attrs["n_columns"])
    if node.op in ("lora_a", "lora_a_backward_input"):
        return 2 * types[0].shape[0] * types[1].shape[0] * types[1].shape[1]
    if node.op == "lora_b":
        return 2 * types[1].shape[0] * types[2].shape[0] * types[2].shape[1]
    if node.op == "lora_b_backward":
        return 4 * types[0].shape[0] * types[2].shape[0] * types[2].shape[1]
    if node.op == "lora_a_backward":
        return 2 * types[0].shape[1] * types[0].shape[0] * types[1].shape[1]
    if node.op in ("attention", "attention_backward"):
        # q k^T and p v forward; backward makes q k^T again, then dv, dp, dq and dk. Half of each is masked.
        tokens, width = types[0].shape
        return (2 if node.op == "attention" else 5) * tokens * (tokens + 1) * width
    return 0


def step_flops(program: Program) -> int:
    """Return the floating-point operations of one whole step."""
    each = [node_flops(program, node) for node in program.nodes]
    return sum(each[index] for index in program.order())
