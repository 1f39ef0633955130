"""The learning rates that `memsim compare` chooses from where the user names none."""

from collections.abc import Mapping

Grid = tuple[float, float, float]

LR_GRIDS: Mapping[str, Mapping[str, Grid]] = {
    "first-order": {
        "lora": (3e-4, 1e-3, 3e-3),
        "norms": (1e-2, 3e-2, 1e-1),
        "prefix": (1e-2, 3e-2, 1e-1),
        "prompt": (1e-2, 3e-2, 1e-1),
        "head": (1e-3, 3e-3, 1e-2),
    },
    "zeroth-order": {
        "lora": (1e-4, 3e-4, 1e-3),
        "norms": (3e-3, 1e-2, 3e-2),
        "prefix": (1e-1, 3e-1, 1e0),
        "prompt": (1e0, 3e0, 1e1),
        "head": (1e-4, 3e-4, 1e-3),
        "full": (1e-5, 3e-5, 1e-4),
    },
    "zeroth-order, by Adam or signs": {
        "lora": (1e-4, 3e-4, 1e-3),
        "norms": (3e-3, 1e-2, 3e-2),
        "prefix": (3e-2, 1e-1, 3e-1),
        "prompt": (3e-2, 1e-1, 3e-1),
        "head": (3e-4, 1e-3, 3e-3),
        "full": (1e-5, 3e-5, 1e-4),
    },
}
