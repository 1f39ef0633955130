"""Schedules as data for records and plan files, and back from there, untrusted."""

from itertools import groupby

from memsim.errors import InputError
from memsim.json_file import shown
from memsim.results import BlocksRecord, ChoicesRecord
from memsim.schedules.choices import BlockChoices, Choices

BLOCK_INPUT = "x"


def record_choices(choices: Choices) -> ChoicesRecord:
    """Return a schedule as data."""
    return ChoicesRecord(
        blocks=tuple(
            BlocksRecord(count=len(list(alike)), keep=tuple(sorted(block.keep)), spill=tuple(sorted(block.spill)))
            for block, alike in groupby(choices.blocks)
        ),
        unpack=choices.unpack,  # type: ignore[arg-type]
        head=choices.head,  # type: ignore[arg-type]
        adapters=choices.adapters,  # type: ignore[arg-type]
        update=choices.update,  # type: ignore[arg-type]
        mlp_tile=choices.mlp_tile,
        prefetch=choices.prefetch,
        state=choices.state,  # type: ignore[arg-type]
        groups=choices.groups,
    )


def recorded_choices(record: ChoicesRecord, n_blocks: int, residuals: tuple[str, ...], where: str) -> Choices:
    """Return the schedule of an untrusted record, checked against the model that it is for.

    Args:
        record: Decoded, its fields of the right types.
        n_blocks: Blocks of the model.
        residuals: What its blocks may keep or spill.
        where: What error messages call the record's origin.

    Raises:
        InputError: It is for another number of blocks, names what is no residual, or tiles by no token.
    """
    counts = [entry.count for entry in record.blocks]
    if sum(counts) != n_blocks or 0 in counts:
        raise InputError(f"{where} is for {sum(counts)} blocks, the model has {n_blocks}; make a plan for this model")
    for entry in record.blocks:
        unknown = sorted({*entry.keep, *entry.spill} - {*residuals})
        if unknown:
            raise InputError(f"{where}: {shown(unknown[0])} is no residual of this model; make a plan for it")
        if BLOCK_INPUT not in {*entry.keep, *entry.spill}:
            raise InputError(f"{where}: nothing to recompute {BLOCK_INPUT} from, keep or spill it in every block")
        both = sorted({*entry.keep} & {*entry.spill})
        if both:
            raise InputError(f"{where}: {both[0]} is both kept and spilled")
    if record.mlp_tile == 0:
        raise InputError(f"{where}: mlp_tile is 0 tokens")
    if record.groups is not None and not 1 <= record.groups <= n_blocks:
        raise InputError(f"{where}: groups is {record.groups}; it must be 1 to {n_blocks}, the model's blocks")
    blocks = [BlockChoices(frozenset(entry.keep), frozenset(entry.spill)) for entry in record.blocks]
    return Choices(
        blocks=tuple(block for block, count in zip(blocks, counts, strict=True) for _ in range(count)),
        unpack=record.unpack,
        head=record.head,
        adapters=record.adapters,
        update=record.update,
        mlp_tile=record.mlp_tile,
        prefetch=record.prefetch,
        state=record.state,
        groups=record.groups,
    )


def describe(choices: Choices) -> list[str]:
    """Return a schedule in lines for people: first what holds for the step, then its blocks."""
    tile = f"the MLP in tiles of {choices.mlp_tile} tokens" if choices.mlp_tile else "the MLP whole"
    lines = [
        f"head {choices.head.replace('_', ' ')}, {tile}, adapters {choices.adapters}, optimizer state {choices.state}"
        + (", weights unpacked by block" if choices.unpack == "block" else "")
    ]
    first = 0
    for entry in record_choices(choices).blocks:
        last = first + entry.count - 1
        which = f"block {first}" if entry.count == 1 else f"blocks {first} to {last}"
        parts = [
            f"{verb} {', '.join(names)}" for verb, names in (("keep", entry.keep), ("spill", entry.spill)) if names
        ]
        lines.append(f"{which}: {'; '.join(parts) or 'recompute everything'}")
        first = last + 1
    return lines
