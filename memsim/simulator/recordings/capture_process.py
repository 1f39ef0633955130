"""``python -m memsim.simulator.recordings.capture_process TASK PATH MEMORY_BYTES CPU_S`` prints a capture as JSON.

A process of its own, with limits on memory and time, since memray's reader is C++ that trusts its input. The last line
is an object; if it has the key ``error``, the capture cannot be read.

``nodes`` prints ``[node, [[value, bytes], ...], [value, ...]]`` for each node that a recorded run executed, in order:
what it allocated and what was freed after it. The first line is node -1: what was held before the first node.
``summary`` prints the high-water mark, what held it by place, whose capture it is, and the heap against time.
"""

import json
import resource
import sys
from collections.abc import Iterator
from typing import Any

from memsim.simulator.holders import largest_holders
from memsim.simulator.recordings.frames import (
    MARK_BYTES,
    NODE_FILE,
    PADDING_BYTES,
    SMALLEST_BLOCK_BYTES,
    VALUE_FILE,
    node_of_frame,
)

MAX_SNAPSHOTS = 2_000
MAX_HOLDERS = 10

_Record = Any
_Lines = Iterator[Any]


def main() -> None:
    """Run one task."""
    task, path = sys.argv[1], sys.argv[2]
    memory_bytes, cpu_s = int(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    try:
        from memray import FileReader

        with FileReader(path, max_memory_records=MAX_SNAPSHOTS) as reader:
            for line in {"nodes": _nodes, "summary": _summary}[task](reader):
                print(json.dumps(line, separators=(",", ":")))
    except MemoryError:
        print(json.dumps({"error": "it takes more memory than a capture may"}))
    except (OSError, ValueError, RuntimeError, NotImplementedError, AssertionError, OverflowError) as error:
        print(json.dumps({"error": " ".join(str(error).split())[:300] or type(error).__name__}))


def _nodes(reader: Any) -> _Lines:
    from memray import AllocatorType

    frees = {int(AllocatorType.FREE), int(AllocatorType.MUNMAP), int(AllocatorType.PYMALLOC_FREE)}
    mapped = int(AllocatorType.MMAP)
    owners: dict[int, tuple[str, str]] = {}
    live: dict[int, str] = {}
    allocated: list[list[Any]] = []
    freed: list[str] = []
    node, count = -1, 0
    for record in reader.get_allocation_records():
        count += 1
        if record.allocator in frees:
            if (name := live.pop(record.address, None)) is not None:
                freed.append(name)
            continue
        name, file = _owner(record, owners)
        if file == NODE_FILE and record.size == MARK_BYTES:
            yield [node, allocated, freed]
            node, allocated, freed = node_of_frame(name), [], []
        elif file == VALUE_FILE and (record.size >= SMALLEST_BLOCK_BYTES or record.allocator == mapped):
            live[record.address] = name
            allocated.append([name, record.size - (0 if record.allocator == mapped else PADDING_BYTES)])
    yield [node, allocated, freed]
    yield {"records": count}


def _owner(record: _Record, owners: dict[int, tuple[str, str]]) -> tuple[str, str]:
    """Return function and file of the frame that allocated, looked up once a stack."""
    stack = record.stack_id
    if stack not in owners:
        frames = record.stack_trace(max_stacks=1)
        owners[stack] = (frames[0][0], frames[0][1]) if frames else ("", "")
    return owners[stack]


def _summary(reader: Any) -> _Lines:
    meta = reader.metadata
    stacks = ((r.stack_trace(), r.size) for r in reader.get_high_watermark_allocation_records(merge_threads=True))
    held = largest_holders(stacks, MAX_HOLDERS)
    yield {
        "records": meta.total_allocations,
        "peak_bytes": meta.peak_memory,
        "start_ms": round(meta.start_time.timestamp() * 1000),
        "pid": meta.pid,
        "command_line": meta.command_line,
        "snapshots": [[item.time, item.rss, item.heap] for item in reader.get_memory_snapshots()],
        "held": [{"place": place, "n_bytes": n_bytes} for place, n_bytes in held],
    }


if __name__ == "__main__":
    main()
