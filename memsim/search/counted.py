"""What schedules of a region need beside what the front knows of them."""

from collections.abc import Sequence
from math import prod

from memsim.models.parts import block_part
from memsim.planner.plan import LIBRARY_FLOOR_BYTES
from memsim.planner.run_plan import TrainingSetup
from memsim.planner.staging import most_read_ahead, staging_for
from memsim.search.needs import Needs
from memsim.search.space import Region

_ITEM_BYTES = 4


class Counted:
    """What schedules of one region need, as the planner and the run count it.

    Args:
        setup: What is planned.
        region: Choices for the whole step.
        needs: How budgets are counted.
        restored: What each block reads back from the scratch file; at least nothing.
    """

    def __init__(
        self, setup: TrainingSetup, region: Region, needs: Needs, restored: Sequence[tuple[int, ...]] = ()
    ) -> None:
        sizes = {part: sum(map(prod, tensors.values())) for part, tensors in setup.graph().trained.items()}
        size = max(sizes.values())
        paged = region.whole.adapters == "paged"
        adapters = _ITEM_BYTES * size if paged else 0
        state = 0 if region.whole.state == "pinned" else _ITEM_BYTES * setup.optimizer.state_size(size)
        largest = max((n_bytes for block in restored for n_bytes in block), default=0)
        held = staging_for(max(adapters, state), max(adapters, largest)).n_bytes
        loads = {part: [_ITEM_BYTES * count] for part, count in sizes.items() if paged}
        parts = [block_part(index) for index in range(len(restored))]
        copies = [n_bytes for part in ("embed", *parts, "head") for n_bytes in loads.get(part, [])]
        for part, block in zip(reversed(parts), reversed(restored), strict=True):
            copies += [*loads.get(part, []), *block]
        copies += loads.get("embed", [])
        self._held_bytes = region.pinned_bytes + held
        self._floor_bytes = LIBRARY_FLOOR_BYTES + 2 * region.frames[0].together_bytes + most_read_ahead(copies)
        self._needs = needs

    def peak(self, arena_bytes: int) -> int:
        """Return the working set with so many live bytes in the arena."""
        return arena_bytes + self._held_bytes

    def total(self, arena_bytes: int, n_nodes: int) -> int:
        """Return the smallest budget."""
        return self._needs.total(self.peak(arena_bytes), self._floor_bytes, n_nodes)
