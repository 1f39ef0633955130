"""How a capture says whose an allocation is: each node and each value has a Python frame of its own name.

memray's records hold an address, a size and a stack, and no time. A recorded run therefore executes each node in a
frame of the file ``NODE_FILE`` that first makes and drops a mark, which cuts the stream of records into nodes; and it
allocates each value in a frame of the file ``VALUE_FILE`` whose function is the value's name.
"""

from memsim.ir.program import Node

NODE_FILE = "memsim node"
VALUE_FILE = "memsim value"

MARK_BYTES = 4096
"""Size of a mark; too large for NumPy's cache of small blocks."""

SMALLEST_BLOCK_BYTES = 1024
"""NumPy keeps smaller blocks for itself, so values of fewer bytes are mapped; in a value's frame, what malloc gave in
smaller pieces is NumPy's own."""

PADDING_BYTES = 64
"""What malloc is asked for beyond a value's bytes, so that the value can begin at a cache line: kernels are slower
where it does not. Mapped values begin at a page and have none."""

STAGING = "staging"
"""The value that is the memory through which scratch values pass."""


def node_frame(index: int, node: Node) -> str:
    """Return the name of the frame of node ``index``."""
    return f"node_{index:04d} {node}"


def node_of_frame(name: str) -> int:
    """Return the index in the name of a node's frame.

    Raises:
        ValueError: It is not such a name.
    """
    prefix, _, number = name.partition(" ")[0].partition("_")
    if prefix != "node" or not (number.isascii() and number.isdecimal()) or len(number) > 9:
        raise ValueError(f"{name!r} is not the frame of a node")
    return int(number)
