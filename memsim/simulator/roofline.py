"""Seconds of one op that reads and writes memory only: a roofline with separate rates for each kind of work."""

from dataclasses import dataclass

from memsim.ir.work import Kind
from memsim.planner.work import Work
from memsim.simulator.device import Numbers


@dataclass(frozen=True, slots=True)
class OpTime:
    """Seconds of an op: turning INT4 into floats, and everything else (launch included)."""

    compute_s: float
    unpack_s: float


def op_time(kind: Kind, work: Work, numbers: Numbers, speed: float = 1.0) -> OpTime:
    """Return the time of an op at a share ``speed`` of full speed.

    Arithmetic and unpacking follow each other and overlap with memory traffic (Williams et al., "Roofline", CACM 52(4),
    2009); the slower side counts.
    """
    flops_per_s = numbers.dense_flops_per_s if kind is Kind.DENSE else numbers.matmul_flops_per_s
    arithmetic_s = work.matmul_flops / flops_per_s + work.attention_flops / numbers.attention_flops_per_s
    unpack_s = work.unpacked_weights / numbers.unpack_weights_per_s
    bytes_per_s = {
        Kind.ELEMENTWISE: numbers.elementwise_bytes_per_s,
        Kind.STORAGE: numbers.elementwise_bytes_per_s,
        Kind.VOCABULARY: numbers.vocabulary_bytes_per_s,
    }.get(kind, numbers.memory_bytes_per_s)
    busy_s = max(arithmetic_s + unpack_s, work.moved_bytes / bytes_per_s) / speed
    share = unpack_s / (arithmetic_s + unpack_s) if unpack_s else 0.0
    return OpTime(busy_s * (1 - share) + numbers.op_launch_s / speed, busy_s * share)
