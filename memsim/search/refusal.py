"""What to say where nothing fits."""

from memsim.errors import LimitError
from memsim.search.longest import longest_sequence
from memsim.search.search import Search
from memsim.units import format_bytes


def nothing_fits(searched: Search, budget_bytes: int, decimal: bool = False) -> LimitError:
    """Return the error: what the smallest schedule needs, how much is missing, and what would fit."""
    smallest, setup = searched.smallest(), searched.setup
    need = smallest.need_bytes

    def show(n_bytes: int) -> str:
        return format_bytes(n_bytes, decimal)

    longest = longest_sequence(setup, searched.needs, budget_bytes, searched.smallest_named)
    shorter = f"or shorten --seq-len to {longest}" if longest else "no --seq-len fits"
    peak = smallest.plan.memory.peak_bytes
    beside = "interpreter, libraries and mapped files" if searched.needs.with_files else "the app itself"
    return LimitError(
        f"no schedule fits: the smallest needs {show(need)} ({show(peak)} working set, {show(need - peak)} {beside}), "
        f"{show(need - budget_bytes)} over the budget of {show(budget_bytes)}. Raise --budget to {show(need)}; "
        f"{shorter}"
    )
