"""``memsim profile decompression``: the share of unpacking against sequence length, measured here and simulated."""

from typing import Any

import click

from memsim.cli.json_option import file_option, json_option
from memsim.cli.options import compute_option, devices_option, model_option, number_option, schedule_option
from memsim.models.presets import PRESETS
from memsim.schedules.choices import SCHEDULES


@click.command(name="decompression", context_settings={"show_default": True})
@model_option(f"A preset ({', '.join(PRESETS)}) or DIR.")
@click.option(
    "--seq-len", "lengths", default="16,32,64,128,256,512,1024,2048", metavar="LIST", help="Tokens, with commas."
)
@devices_option("Simulate there; may be repeated.", ("iphone-15-pro-max",))
@click.option("--measure/--no-measure", default=True, help="Also run here; otherwise only simulate.")
@schedule_option(list(SCHEDULES), "tiled", "Whose products unpack inside: the fused way.")
@click.option(
    "--naive", type=click.Choice(list(SCHEDULES)), default="mebp", help="What unpacks each block beforehand, in f32."
)
@compute_option("Of the fused products.")
@number_option("--steps", 2, "Timed steps of each run, after one more.", least=1)
@click.option("--budget", default="4GB", metavar="SIZE", help="Cap of each run.")
@number_option("--threads", 0, "Here; 0 takes every processor.", least=0)
@file_option("--plot", "Draw the curves as SVG into FILE.")
@json_option("the record")
def decompression(**values: Any) -> None:
    """Show what unpacking INT4 weights takes of forward, backward and step, against the sequence length.

    With this runtime's kernels, which unpack inside each product, and with a path that unpacks every block beforehand.
    Measured in real capped steps (leave the machine idle; some minutes for all lengths) and simulated.
    """
    from memsim.cli.measuring.profile_decompression_work import decompression as carry_out

    carry_out(**values)
