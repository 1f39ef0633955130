"""What ``memsim validate`` does once the options are read."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from memsim.cap.processors import available_threads
from memsim.cli.say import say
from memsim.result_file import emit_json
from memsim.simulator.device_file import find_device
from memsim.simulator.published_figures import REPETITIONS, SEQ_LEN, SOURCE, Measurement
from memsim.simulator.validation import APART, Prediction, Validation, validate_table
from memsim.units import format_bytes

CAVEAT = (
    "Left out are the constants' fits only: what the published runtime holds, and how often it passes over the logits, "
    "was settled with the whole table in view."
)


def command(device: str, host: bool, calibration: str, held_out: str, threads: int, json_path: str | None) -> None:
    """Predict the published table of MeBP and MeZO, and print every error."""
    if host:
        from memsim.cli.predicting.validate_host import show_host_validation

        show_host_validation(calibration, held_out, threads or available_threads(), json_path)
        return
    target = find_device(device)
    validation = validate_table(target)
    if json_path is not None:
        emit_json(_plain(validation, target.name), json_path)
    if json_path != "-":
        say(f"{SOURCE}, seq {SEQ_LEN}, mean of {REPETITIONS} steps", "")
        say(*_table(validation, "peak footprint, MB", lambda m: m.peak_bytes / 1e6, "memory", ".0f"))
        say(*_table(validation, "step, s", lambda m: m.step_s, "time", ".2f"))
        say(_constants(validation))


def _table(validation: Validation, title: str, read: Callable[[Measurement], float], what: str, form: str) -> list[str]:
    def row(p: Prediction) -> str:
        published = read(p.published)
        cells = [f"{p.published.model:<14}{p.published.method:<8}{published:>10{form}}"]
        for measurement in (p.fitted, p.held_out):
            cells.append(f"{read(measurement):>10{form}}{read(measurement) / published - 1:>+8.1%}")
        return "".join(cells)

    lines = [f"{title:<22}{'published':>10}{'fitted':>10}{'error':>8}{'held out':>10}{'error':>8}"]
    lines += [row(prediction) for prediction in validation.predictions]
    for how, name in (("fitted", "fitted on all"), ("held_out", "model held out")):
        errors = validation.errors[what, how]
        order = f"{errors.pairs - errors.disordered} of {errors.pairs} pairs more than {APART:.0%} apart in order"
        lines.append(f"{name}: mean error {errors.mean:.1%}, worst {errors.worst:.1%}; {order}")
    return [*lines, ""]


def _constants(validation: Validation) -> str:
    fitted = validation.fits[""]
    return (
        f"fitted: products {fitted.flops_per_s / 1e12:.2f} TFLOP/s, softmax over the vocabulary "
        f"{fitted.vocabulary_bytes_per_s / 1e9:.2f} GB/s, app baseline "
        f"{format_bytes(fitted.app_baseline_bytes, decimal=True)}. {CAVEAT}"
    )


def _plain(validation: Validation, device: str) -> dict[str, Any]:
    return {
        "command": "validate",
        "source": SOURCE,
        "device": device,
        "caveat": CAVEAT,
        "predictions": [asdict(prediction) for prediction in validation.predictions],
        "fits": {left_out or "none left out": asdict(item) for left_out, item in validation.fits.items()},
        "errors": [{"figure": what, "how": how, **asdict(errors)} for (what, how), errors in validation.errors.items()],
    }
