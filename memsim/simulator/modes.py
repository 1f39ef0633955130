"""What a command may ask of a simulation, known before anything is simulated."""

from typing import Literal

Mode = Literal["foreground", "entitled", "background"]
"""How an app runs on a phone, which decides its limit."""

MODES: tuple[Mode, ...] = ("foreground", "entitled", "background")

STEPS = 20
"""Optimizer steps in a row where nobody says how many: enough to see heat."""
