"""The ops of zeroth-order steps: perturbed copies, estimates from losses, updates along noise that is drawn again."""

from collections.abc import Mapping, Sequence

import numpy as np

import memsim_kernels as k
from memsim.execution.kernel_call import Attrs, Kernel
from memsim.execution.storage.mapped_weights import Array


def draw(work: Array, seed: Array, factors: Mapping[int, float], parameter: int, row: int, a: Attrs) -> None:
    """Set ``work`` to the sum of factor * z over directions, under the mask.

    Args:
        work: [n] f32, written.
        seed: u32 [2]: the run's and the step's words of the key.
        factors: Direction -> factor.
        parameter: Number of the tensor in the model.
        row: Elements of one of its rows.
        a: ``Estimator.noise_attrs``.
    """
    run, step = int(seed[0]), int(seed[1])
    work.fill(0)
    for direction, factor in factors.items():
        k.add_noise(work, factor, run, step, direction, parameter, a["rademacher"])
    if a["density"] < 1:
        k.keep_some(work, row if a["mask_rows"] else 1, a["density"], run, step // a["resample"], parameter)


def _perturb(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    lanes, axes, work = a["signs"].split(","), a["axes"], o[-1]
    tensors = i[-len(axes) :]
    eps = a["eps"] * (float(i[1][0]) if len(i) > 1 + len(axes) else 1.0)
    for position, (w, out) in enumerate(zip(tensors, o, strict=False)):
        axis = int(axes[position])
        slot, rank = out.shape[axis] // len(lanes), w.shape[axis]
        if slot > rank:
            out.fill(0)
        places = [out[tuple(slice(n * slot, n * slot + rank) if d == axis else slice(None) for d in range(out.ndim))]
                  for n in range(len(lanes))]  # fmt: skip
        z = work[: w.size]
        drawn = ""
        for lane, place in zip(lanes, places, strict=True):
            if lane == ".":
                np.copyto(place, w)
                continue
            if lane[1:] != drawn:
                drawn = lane[1:]
                draw(z, i[0], {int(drawn): eps}, a["parameter"] + position, w.shape[-1], a)
            if lane[0] == "=":
                np.copyto(place, z.reshape(w.shape))
            else:
                (np.add if lane[0] == "+" else np.subtract)(w, z.reshape(w.shape), out=place)


def _means(stats: Sequence[Array]) -> Array:
    rows = np.concatenate(stats).reshape(-1, 3)
    means: Array = rows[:, 0] / np.maximum(rows[:, 2], 1.0)
    return means


def _estimate(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    losses = _means(i)
    if a["kind"] == "central":
        o[0][:] = (losses[0::2] - losses[1::2]) / (2 * a["eps"])
        return
    change = losses[1:] - losses[0]
    spread = a["eps"] if a["kind"] == "one_sided" else losses[1:].std()
    o[0][:] = change / spread if spread != 0 else 0.0  # a loss that is no number makes estimates that are none


def _accept(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    losses = np.array([_means(i[:1])[0], *_means(i[1:2])])
    losses[~np.isfinite(losses)] = np.inf  # what has no loss is never the lowest; argmin would take NaN
    o[0][0] = i[2][0] * (0.0, 1.0, -1.0)[int(np.argmin(losses))]


def _zo_update(o: Sequence[Array], i: Sequence[Array], a: Attrs) -> None:
    n, factors, start = a["n_tensors"], gradient_factors(i[2], a), 0
    for position, w in enumerate(i[3 : 3 + n]):
        gradient = o[-1][: w.size]
        draw_gradient(gradient, i[1], factors, a["parameter"] + position, w.shape[-1], a)
        state = i[3 + n].reshape(-1, _size(i[3 : 3 + n]))[:, start : start + w.size] if len(i) > 3 + n else ()
        _move(w.reshape(-1), gradient, state, int(i[0][0]), a)
        start += w.size


def gradient_factors(rho: Array, a: Attrs) -> dict[int, float]:
    """Return by what the noise of each direction is multiplied in the estimated gradient."""
    count, at = a["directions"], a["rho_at"]
    estimates = [float(value) for value in rho[at : at + count]]
    if a["sign"] == "estimate":
        estimates = [float(np.sign(value)) for value in estimates]
    return {direction: value / count for direction, value in enumerate(estimates)}


def draw_gradient(work: Array, seed: Array, factors: Mapping[int, float], parameter: int, row: int, a: Attrs) -> None:
    """Set ``work`` to the estimated gradient of a tensor; the arguments are those of :func:`draw`."""
    draw(work, seed, factors, parameter, row, a)
    if a["sign"] == "element":
        np.sign(work, out=work)


def _size(tensors: Sequence[Array]) -> int:
    return sum(tensor.size for tensor in tensors)


def _move(w: Array, gradient: Array, state: Sequence[Array], step: int, a: Attrs) -> None:
    """Update one flat tensor in place; ``state`` has a row for each moment."""
    if a["optimizer"] == "sgd":
        k.sgd_update(w, gradient, a["lr"], a["weight_decay"])
    elif a["optimizer"] == "momentum":
        k.momentum_update(w, state[0], gradient, a["lr"], a["momentum"], a["weight_decay"])
    else:
        settings = (a["lr"], a["beta1"], a["beta2"], a["eps"], a["weight_decay"])
        k.adamw_update(w, state[0], state[1], gradient, *settings, step)


ZEROTH_ORDER_KERNELS: dict[str, Kernel] = {
    "perturb": _perturb,
    "estimate": _estimate,
    "accept": _accept,
    "zo_update": _zo_update,
}
