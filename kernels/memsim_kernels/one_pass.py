"""What the one-pass heads share: a running softmax over tiles of logits, and the loss and dx at the end.

``state`` is float64 [rows, 5]: the largest logit so far, the sum of exp(logit - largest), the logit of the label, the
first column that had the largest logit, and whether the label was seen.
"""

import math

import numpy as np

from memsim_kernels.exponential import exp
from memsim_kernels.jit import F32, F64, U16, U32, helper
from memsim_kernels.levels import format_of
from memsim_kernels.panel import packed_weight
from memsim_kernels.softmax_rows import largest_of, sum_of_exponentials
from memsim_kernels.vectors import LANES

IGNORED = 0xFFFFFFFF
LARGEST, SUM, LABEL_LOGIT, FIRST, SEEN = range(5)
STATE_WORDS = 5


@helper
def start_rows(state: F64) -> None:
    """Prepare for the first tile."""
    state[:] = 0.0
    for t in range(state.shape[0]):
        state[t, LARGEST] = -np.inf
        state[t, FIRST] = -1.0


@helper
def absorb_row(state: F64, row: F32, column: int, inside: int, label: np.int64) -> np.float32:
    """Turn a row of logits into exp(logit - largest) and return what to multiply earlier sums with.

    The factor is 1 unless a larger logit appeared. The label's own term becomes 0 in ``row``: it is added at the end,
    in float32, where it cancels against one.

    Args:
        state: [5], of this row; updated.
        row: Logits of a tile, a multiple of LANES long; overwritten. Beyond ``inside`` it becomes 0.
        column: Column of the vocabulary where the tile begins.
        inside: Columns of the tile that are in the vocabulary.
        label: The label of this row.
    """
    for j in range(inside, row.size):
        row[j] = np.float32(-np.inf)
    largest = largest_of(row, row.size // LANES)
    factor = np.float32(1.0)
    if largest > state[LARGEST]:
        factor = exp(np.float32(state[LARGEST] - largest))
        state[LARGEST] = largest
        state[SUM] *= factor
        for j in range(inside):
            if row[j] == largest:
                state[FIRST] = column + j
                break
    own = label - column
    if 0 <= own < inside:
        state[LABEL_LOGIT] = row[own]
        state[SEEN] = 1.0
    state[SUM] += sum_of_exponentials(row, row.size // LANES, np.float32(state[LARGEST]))
    if 0 <= own < inside:
        row[own] = np.float32(0.0)
    return factor


@helper
def merge_states(states: F64, factors: F32) -> None:
    """Merge the states of consecutive parts of the vocabulary into the first one, in order.

    Args:
        states: [parts, rows, 5]; the first part's is overwritten.
        factors: [parts, rows], written: what the sums of each part are to be multiplied with.
    """
    parts, rows = states.shape[0], states.shape[1]
    for t in range(rows):
        best = 0
        for part in range(1, parts):
            if states[part, t, LARGEST] > states[best, t, LARGEST]:
                best = part
        largest, first = states[best, t, LARGEST], states[best, t, FIRST]
        total, logit, seen = 0.0, 0.0, 0.0
        for part in range(parts):
            weight = math.exp(states[part, t, LARGEST] - largest)  # 0 for a part without columns
            factors[part, t] = weight
            total += states[part, t, SUM] * weight
            if states[part, t, SEEN] > 0.0:
                logit, seen = states[part, t, LABEL_LOGIT], 1.0
        for part in range(parts):
            factors[part, t] /= total
        states[0, t, LARGEST], states[0, t, SUM], states[0, t, LABEL_LOGIT] = largest, total, logit
        states[0, t, FIRST], states[0, t, SEEN] = first, seen


@helper
def add_to_stats(stats: F64, state: F64, labels: U32, vocabulary: int) -> None:
    """Add losses, correct predictions and valid labels of some rows; a label out of range makes the loss NaN."""
    for t in range(labels.size):
        label = np.int64(labels[t])
        if label < vocabulary:
            stats[0] += state[t, LARGEST] + math.log(state[t, SUM]) - state[t, LABEL_LOGIT]
            stats[1] += 1.0 if state[t, FIRST] == label else 0.0
            stats[2] += 1.0
        elif label != IGNORED:
            stats[0] = np.nan


@helper
def add_to_lanes(stats: F64, state: F64, labels: U32, row: int, tokens: int, vocabulary: int) -> None:
    """Add rows ``row`` ... of ``tokens`` to the stats of the lanes that they are in: stats.size / 3 equal stretches."""
    length = max(1, tokens // (stats.size // 3))
    start = row
    while start < row + labels.size:
        lane = start // length
        end = min(row + labels.size, (lane + 1) * length)
        own = slice(start - row, end - row)
        add_to_stats(stats[3 * lane : 3 * lane + 3], state[own], labels[own], vocabulary)
        start = end


@helper
def count_valid(labels: U32, vocabulary: int) -> int:
    """Return how many labels are in the vocabulary."""
    valid = 0
    for t in range(labels.size):
        valid += 1 if np.int64(labels[t]) < vocabulary else 0
    return valid


@helper
def finish_row(
    out: F32, sums: F32, part_floats: int, factors: F32, state: F64, label: np.int64, vocabulary: int,
    q: U32, scales: U16, group_size: int, scale: float,
) -> None:  # fmt: skip
    """Set out to scale * (normalised sums of all parts + (p - 1) W[label]), or to 0 when the label is ignored.

    Args:
        out: [C], written.
        sums: The first part's sums of this row; the next part's are ``part_floats`` further on.
        part_floats: See ``sums``.
        factors: [parts], from ``merge_states``.
        state: [5], merged.
        label: The label of this row.
        vocabulary: V.
        q: Packed W.
        scales: Its scales.
        group_size: Columns that share a scale.
        scale: Factor of the mean loss over the number of valid labels.
    """
    out[:] = np.float32(0.0)
    if label >= vocabulary:
        return
    for part in range(factors.size):
        own = sums[part * part_floats :]
        for j in range(out.size):
            out[j] += own[j] * factors[part]
    less = np.float32(math.exp(state[LABEL_LOGIT] - state[LARGEST]) / state[SUM] - 1.0)
    form = format_of(q, scales, group_size)
    for j in range(out.size):
        value = packed_weight(q, scales, group_size, form, label, j)
        out[j] = (out[j] + less * value) * np.float32(scale)
