"""Storage and host ops: whoever emits one declares its outputs.

``balloon`` is the tests' rogue allocation: it touches ``n_bytes`` that no plan knows of.
"""

from memsim.ir.op import Effect, Op, OpTable
from memsim.ir.work import ELEMENTWISE, NOTHING, STORAGE, Kind, OpWork

_ROWS = OpWork(Kind.STORAGE, moves=lambda i, o: o[0].n_bytes)

STORAGE_OPS = OpTable(
    {
        name: Op(name=name, shape=None, work=work, effect=effect)
        for name, work, effect in (
            ("page_in", NOTHING, Effect.PAGES_IN),
            ("prefetch", NOTHING, Effect.ASKS_AHEAD),
            ("evict", NOTHING, Effect.EVICTS),
            ("spill", STORAGE, Effect.SPILLS),
            ("restore", STORAGE, Effect.RESTORES),
            ("load", STORAGE, Effect.LOADS),
            ("load_rows", _ROWS, Effect.GATHERS),
            ("store", STORAGE, Effect.REPLACES),
            ("zero", ELEMENTWISE, Effect.NONE),
            ("next_batch", STORAGE, Effect.NONE),
            ("emit_loss", STORAGE, Effect.NONE),
            ("emit_estimate", STORAGE, Effect.NONE),
            ("balloon", NOTHING, Effect.NONE),
        )
    }
)
