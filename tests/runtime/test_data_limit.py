"""Caps by the kernel's limit on data: whatever fails for want of memory, in a thread, an import or a page, says so."""

import pytest

from capped_runs import cache
from memsim.runtime import RunConfig, run

assert cache  # a fixture, found by name


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("budget_mb", [40, 60, 68, 70, 76])
def test_too_small_a_budget_is_killed_at_the_cap(budget_mb: int) -> None:
    """From the import of NumPy to the threads that write the scratch file, one after the other does not fit."""
    budget = {"budget_bytes": budget_mb * 10**6, "enforcement": "rlimit+watchdog", "plan_check": False}
    done = run(RunConfig(**budget, model="tiny", schedule="mebp", seq_len=512, steps=1))  # type: ignore[arg-type]
    assert done.result.exit_reason == "killed_at_cap"
    assert done.result.message is not None
    assert done.result.message.startswith(f"killed at the cap of {budget_mb}.0 MB ")
