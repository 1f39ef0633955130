"""``seeds.jsonl``: a zeroth-order run as its seeds and projected gradients, from which its adapters come again.

The first line says what was run; each other line is one step, some fifty bytes. With the initial adapters, which follow
from the run's seed, the same updates are made again to the bit, without a single forward.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

from memsim.errors import InputError
from memsim.files import writing
from memsim.json_decode import decode
from memsim.json_file import parse_json
from memsim.models.lora import LoraConfig
from memsim.models.scheme import Scheme
from memsim.models.schemes import make_scheme, scheme_to_dict
from memsim.reading import open_regular
from memsim.schedules.zeroth_order import Estimator, ZeroOrder, estimator, for_scheme

SCHEMA: Final = "memsim.seeds/1"
MAX_LINE_BYTES = 1 << 16
RUN_SEEDS = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedHeader:
    """What was run.

    Attributes:
        model: What ``--model`` finds it by from any directory.
        model_hash: The pack that the adapters belong to.
        seed: Of the adapters' initial values.
        scheme: What is trained; of the settings that follow it has some.
    """

    schema: Literal["memsim.seeds/1"] = field(default=SCHEMA)
    method: str
    model: str
    model_hash: str
    seed: int
    lora_rank: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    eps: float
    directions: int
    noise: str
    sparsity: float
    mask: str
    resample: int
    scheme: str = "lora"
    virtual_tokens: int = 0
    labels: int = 0

    @property
    def trains(self) -> Scheme:
        """What is trained.

        Raises:
            UsageError: No such scheme.
        """
        lora = LoraConfig(self.lora_rank, self.lora_alpha, self.target_modules)
        return make_scheme(self.scheme, lora, self.virtual_tokens, self.labels)

    def estimator(self, lr: float) -> Estimator:
        """Return the method with its settings.

        Raises:
            UsageError: They are not a method's.
        """
        settings = ZeroOrder(self.eps, self.directions, self.noise, self.sparsity, self.mask, self.resample)
        return for_scheme(estimator(self.method, settings, lr), self.trains)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedStep:
    """One step.

    Attributes:
        seed: Both words of the key of its noise: the run's, times 2^32, plus the step, from 0.
        rho: Its projected gradients.
    """

    seed: int
    lr: float
    rho: tuple[float, ...]


def step_key(seed: int, step: int) -> tuple[int, int]:
    """Return the two words of the key that the noise of a step is drawn with."""
    return seed % RUN_SEEDS, step % (1 << 32)


def header_of(decided: Estimator, model: str, model_hash: str, seed: int, scheme: Scheme) -> SeedHeader:
    """Return the header for a run of ``decided`` that trains ``scheme``."""
    lora = scheme if isinstance(scheme, LoraConfig) else LoraConfig()
    settings = scheme_to_dict(scheme)
    return SeedHeader(
        method=decided.name,
        model=model,
        model_hash=model_hash,
        seed=seed,
        lora_rank=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
        eps=decided.eps,
        directions=decided.directions,
        noise=decided.noise,
        sparsity=decided.sparsity,
        mask=decided.mask,
        resample=decided.resample,
        scheme=scheme.name,
        virtual_tokens=settings.get("virtual_tokens", 0),
        labels=settings.get("labels", 0),
    )


class SeedLog:
    """Appends steps to a log, a whole line at a time, so that a killed run leaves the steps it finished."""

    def __init__(self, path: Path, header: SeedHeader) -> None:
        """Create ``path`` with its first line, or go on with it if it has that of the same run.

        Raises:
            InputError: It is another run's, or cannot be written.
        """
        self._path = path
        new = not path.is_file() or not path.stat().st_size
        if not new and read_seed_log(path)[0] != header:
            raise InputError(f"{path} is the log of another run; move it away")
        with writing(path):
            self._file = path.open("ab", buffering=0)
        self._seed = header.seed
        if new:
            self._write(asdict(header))

    def write(self, step: int, lr: float, rho: Sequence[float]) -> None:
        """Add ``step`` (from 0).

        Raises:
            InputError: The disk is full or failed.
        """
        run, own = step_key(self._seed, step)
        self._write({"seed": (run << 32) + own, "lr": lr, "rho": list(rho)})

    def _write(self, line: object) -> None:
        data = memoryview(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        with writing(self._path):
            while data:
                data = data[self._file.write(data) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_seed_log(path: Path) -> tuple[SeedHeader, Iterator[SeedStep]]:
    """Read a log, untrusted: its header, and its steps one line in memory at a time.

    Raises:
        InputError: It cannot be read, or a line is too long, cut short or malformed; the message has its number.
    """
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise InputError(f"{path} is empty")
    return decode(SeedHeader, first[0], first[1]), (decode(SeedStep, value, where) for value, where in lines)


def _lines(path: Path) -> Iterator[tuple[object, str]]:
    with open_regular(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path} line {number}"
            if len(line) > MAX_LINE_BYTES or not line.endswith(b"\n"):
                raise InputError(f"{where} is cut short or too long for a seed log")
            yield parse_json(line, where), where
