"""``memsim pack``: quantise a checkpoint of any format into a pack."""

from pathlib import Path
from typing import Any

import click

from memsim.cli.json_option import json_option
from memsim.weights.recipe import CHOICES, EMBEDDING_BITS


@click.command(name="pack")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_name",
    type=click.Choice(CHOICES),
    help="How matrices are stored: the paper's symmetric INT4, affine INT4, or for each matrix the smallest format "
    "that keeps what SOURCE has. By default the last for a checkpoint that is quantised, else symmetric.",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    help="Weights of a row that share one scale; 32 by default. 128 is for affine alone.",
)
@click.option(
    "--embedding-bits",
    type=click.Choice([str(bits) for bits in EMBEDDING_BITS]),
    help="Bits of the token embedding, which is the head too where they are tied. By default as the format has it.",
)
@click.option(
    "--calibrate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="TEXT",
    help="Round so that errors compensate each other on TEXT (GPTQ), block by block: a lower loss for minutes of time.",
)
@click.option(
    "--measure",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="TEXT",
    help="Print the loss of the pack on TEXT, and that of SOURCE. Take another text than the one to calibrate with.",
)
@json_option("the result")
def command(**values: Any) -> None:
    """Quantise the checkpoint SOURCE and write it to the new directory OUT.

    SOURCE is a Hugging Face directory (config.json, safetensors in bf16, f16 or f32, one file or shards), an MLX one
    (affine; 4 bits and fewer are taken over exactly), a GGUF file (Q4_0, Q4_1, Q5_0 and Q8_0 are taken over exactly,
    Q4_K to the rounding of its scales to float16; other types are quantised to 8 bits), or a model on the Hugging Face
    hub (owner/model, or owner/model/file.gguf). Its tokenizer.json is copied, or made of tokenizer.model, of vocab.json
    and merges.txt, or of the metadata of a GGUF file. SOURCE is streamed by rows, so that packing takes under 300 MB of
    memory for a matrix of any size.
    """
    from memsim.cli.running.pack_work import command as carry_out

    carry_out(**values)
