"""What tests on small models share: planning them, their data, their adapters."""

import re
from pathlib import Path

import numba
import numpy as np

from memsim.data.tokenizer_choice import ChosenTokenizer
from memsim.data.windows import Batches, TokenFile
from memsim.execution.session import Session
from memsim.ir.serialize import PlacedProgram
from memsim.models.lora import LoraConfig
from memsim.models.scheme import Scheme
from memsim.planner.run_plan import RunPlan, TrainingSetup, plan_run
from memsim.schedules.optimizers import OptimizerConfig
from memsim.schedules.zeroth_order import ZeroOrder
from memsim.weights.pack import Pack
from toy_families import toy_config

SEQ_LEN = 13  # odd, and no multiple of any tile


def plan_toy(
    pack: Pack,
    schedule: str = "mebp",
    seq_len: int = SEQ_LEN,
    lora: Scheme | None = None,
    optimizer: OptimizerConfig | None = None,
    accumulate: int = 1,
    evaluate: bool = False,
):  # type: ignore[no-untyped-def]
    setup = TrainingSetup(
        config=pack.config,
        packing=pack.formats,
        scheme=lora or LoraConfig(rank=3, alpha=6),
        schedule=schedule,
        n_tokens=seq_len,
        optimizer=optimizer or OptimizerConfig(lr=1e-2),
        accumulate=accumulate,
        threads=numba.get_num_threads(),
        evaluate=evaluate,
    )
    return plan_run(setup, pack.model_hash)


BY_BYTES = ChosenTokenizer(None, "bytes", None)


def in_file(path: Path) -> ChosenTokenizer:
    """A tokenizer.json, as the tokenizer of a run."""
    return ChosenTokenizer(path, "tokenizer.json", "0" * 64)


def token_file(path: Path, vocab_size: int, n_tokens: int = 4000, seed: int = 3, first: int = 0) -> TokenFile:
    np.random.default_rng(seed).integers(first, vocab_size, n_tokens, dtype=np.uint32).tofile(path)
    return TokenFile(path, vocab_size)


def randomize_adapters(session: Session, seed: int = 5) -> None:
    """Make A and B random and non-zero: with B = 0 every dA is zero and proves nothing."""
    generator = np.random.default_rng(seed)
    for _, _, tensor in session.adapters():
        tensor[...] = generator.normal(0, 0.1, tensor.shape)


def gradient_names(placed: PlacedProgram) -> dict[str, str]:
    """Return adapter (``block_000/self_attn.q_proj.lora_A``) -> value that holds its gradient, as updates read them."""
    names: dict[str, str] = {}
    for node in placed.program.nodes:
        if "n_tensors" in node.attrs and node.op != "zo_update":
            n = int(node.attrs["n_tensors"])
            # Adapters that are loaded for a phase have its prefix: ``block_000/r.self_attn...``.
            adapters = [re.sub("/[rubh][.]", "/", name) for name in node.inputs[1 : n + 1]]
            names |= dict(zip(adapters, node.inputs[n + 1 : 2 * n + 1], strict=True))
    return names


def flat_adapters(session: Session) -> np.ndarray:
    """Return all adapters of a session as one vector."""
    return np.concatenate([np.array(tensor).ravel() for _, _, tensor in session.adapters()])


def step_noise(session: Session, seed: int, step: int, direction: int = 0, rademacher: bool = False) -> np.ndarray:
    """Return z of a whole step, drawn here."""
    from memsim_kernels import add_noise

    drawn = []
    for parameter, (_, _, tensor) in enumerate(session.adapters()):
        z = np.zeros(tensor.size, np.float32)
        add_noise(z, 1.0, seed, step, direction, parameter, rademacher)
        drawn.append(z)
    return np.concatenate(drawn)


METHOD_LORA = LoraConfig(rank=3, alpha=6)  # an odd rank, which lanes pad


def plan_method(
    pack: Pack, schedule: str, lr: float = 1e-3, accumulate: int = 1, scheme: Scheme = METHOD_LORA, **settings: object
) -> RunPlan:
    """Plan a step of a zeroth-order method; ``settings`` are ``ZeroOrder``'s."""
    setup = TrainingSetup(
        config=pack.config,
        packing=pack.formats,
        scheme=scheme,
        schedule=schedule,
        n_tokens=SEQ_LEN,
        optimizer=OptimizerConfig(lr=lr),
        accumulate=accumulate,
        zeroth_order=ZeroOrder(**settings),  # type: ignore[arg-type]
    )
    return plan_run(setup, pack.model_hash)


def session_of(pack: Pack, disk: Path, plan: RunPlan, seed: int = 0, kernels: object = None) -> Session:
    """Return a session of a plan of ``plan_method``, with random adapters."""
    from memsim.execution.kernels import KERNELS

    session = Session(pack, METHOD_LORA, plan.train, None, disk, seed, kernels=kernels or KERNELS)  # type: ignore[arg-type]
    randomize_adapters(session)
    return session


__all__ = [
    "Batches",
    "SEQ_LEN",
    "flat_adapters",
    "plan_method",
    "session_of",
    "step_noise",
    "gradient_names",
    "plan_toy",
    "randomize_adapters",
    "token_file",
    "toy_config",
]
