"""The commands as functions: what ``memsim.plan``, ``memsim.simulate`` and ``memsim.replay`` are.

``memsim.runtime.run`` is ``memsim run``.
"""
