"""A zeroth-order run made again from its seed log: the same updates, without a forward.

``python -m memsim.runtime.replay_seeds LOG PACK OUT MODEL [CHECKPOINT]`` is the process that makes them;
``replay_seeds`` starts it with the kernels that a run's worker has, so that the bits are the same.
"""

import subprocess
import sys
from itertools import chain
from pathlib import Path

import memsim
from memsim.errors import InputError, MemsimError, WorkerError
from memsim.execution.compile_cache import kernel_environment
from memsim.ir.serialize import PlacedProgram
from memsim.models.graph import ModelGraph
from memsim.planner.plan import plan_memory
from memsim.run_directory.seed_log import SeedHeader, SeedStep, read_seed_log, step_key
from memsim.runtime.compiling import Progress
from memsim.runtime.prepare import prepare_kernels
from memsim.schedules.catalog import lower_replay
from memsim.staged_directory import locked, staged_directory
from memsim.weights.cache import checkpoint_of, find_model
from memsim.weights.pack import Pack, open_pack


def replay_seeds(log: Path, model: str | None, out: Path, progress: Progress) -> int:
    """Write what the run of ``log`` ended with into ``out``, as a run does.

    Args:
        log: ``seeds.jsonl`` of a run.
        model: The run's model if it has moved; None finds it by the name in the log.
        out: A directory that does not exist.
        progress: Told what begins.

    Returns:
        The steps that were made again.

    Raises:
        InputError: The log is malformed, is of another model, or a file cannot be read or written.
        WorkerError: The process ended.
    """
    if out.exists():
        raise InputError(f"--out {out} exists; choose a directory that does not")
    header, _ = read_seed_log(log)
    pack, name = find_model(model or header.model, lambda *_: None)
    checkpoint = checkpoint_of(model or header.model) if header.trains.trains_matrices else None
    prepare_kernels(1, progress)
    progress("replaying")
    command = [
        sys.executable,
        "-m",
        "memsim.runtime.replay_seeds",
        *map(str, map(Path.absolute, (log, pack.directory, out))),
    ]
    done = subprocess.run(
        [*command, name, *([str(checkpoint)] if checkpoint else [])],
        cwd=Path(memsim.__file__).parent.parent,
        env=kernel_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        known = done.returncode == InputError.exit_code and last.startswith("memsim: ")
        raise (InputError(last.removeprefix("memsim: ")) if known else WorkerError(f"cannot replay {log}: {last}"))
    return int(done.stdout)


def main() -> None:
    """Replay a log; print the number of its steps."""
    log, pack, out = map(Path, sys.argv[1:4])
    try:
        print(_replay(log, open_pack(pack), out, sys.argv[4], Path(sys.argv[5]) if len(sys.argv) > 5 else None))
    except MemsimError as error:
        print(f"memsim: {error}", file=sys.stderr)
        sys.exit(InputError.exit_code)


def _replay(log: Path, pack: Pack, out: Path, name: str, checkpoint: Path | None = None) -> int:
    from memsim.execution.kernels import load_kernels
    from memsim.execution.session import Session
    from memsim.weights.readers.formats import open_source

    header, steps = read_seed_log(log)
    if header.model_hash != pack.model_hash:
        raise InputError(f"{log} is of other weights than {pack.directory}; name its model with --model")
    scheme = header.trains
    scheme.check(pack.config)
    first = next(steps, None)
    if first is None:
        raise InputError(f"{log} has no steps")
    placed = place_replay(header, first.lr, pack)
    count, n_estimates = 0, header.estimator(first.lr).n_estimates(pack.config.num_hidden_layers)
    with locked(out), staged_directory(out) as directory:
        source = open_source(checkpoint) if checkpoint else None
        kernels = load_kernels("f32", 1)
        session = Session(pack, scheme, placed, None, directory, header.seed, kernels=kernels, checkpoint=source)
        for number, step in enumerate(chain([first], steps)):
            _check_step(header, first, step, number, n_estimates, log)
            session.replay_step(number, step.rho)
            count += 1
        session.write_trained(directory, name)
    return count


def place_replay(header: SeedHeader, lr: float, pack: Pack) -> PlacedProgram:
    """Return the placed program of one step of a replay."""
    program = lower_replay(ModelGraph(pack.config, header.trains, 1, pack.group_size), header.estimator(lr))
    plan = plan_memory(program)
    return PlacedProgram(program, pack.model_hash, plan.offsets, plan.arena_bytes)


def _check_step(header: SeedHeader, first: SeedStep, step: SeedStep, number: int, n_estimates: int, log: Path) -> None:
    run, own = step_key(header.seed, number)
    where = f"{log} line {number + 2}"
    if step.seed != (run << 32) + own:
        raise InputError(f"{where}: seed {step.seed} is not that of step {number + 1}; the log has lost or mixed lines")
    if step.lr != first.lr:
        raise InputError(
            f"{where}: the learning rate changes from {first.lr:g} to {step.lr:g}, which a replay cannot follow"
        )
    if len(step.rho) != n_estimates:
        raise InputError(f"{where}: {len(step.rho)} projected gradients, not {n_estimates}")


if __name__ == "__main__":
    main()
