"""Main program of a point: ``python -m memsim.sweep.child PARENT ARGUMENTS`` is ``memsim ARGUMENTS``.

It dies with the process whose id is PARENT: points of a sweep that is gone would only be in the way.
"""

import runpy
import sys

from memsim.cap.confine import die_with_parent


def main() -> None:
    """Run the ``memsim`` command in this process."""
    parent, *arguments = sys.argv[1:]
    die_with_parent(int(parent))
    sys.argv = ["memsim", *arguments]
    runpy.run_module("memsim", run_name="__main__")


if __name__ == "__main__":
    main()
