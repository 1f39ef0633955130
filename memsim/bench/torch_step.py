"""The contestant that users run today: ``python -m memsim.bench.torch_step THREADS`` does LoRA steps by torch,
transformers and PEFT.

Weights are random: time and memory do not depend on them.
"""  # noqa: D205

import sys
from collections.abc import Callable
from typing import Any

from memsim.bench.contestant import Call, Case, reset_peak_rss, serve


def prepare(case: Case) -> dict[str, Call]:
    """Return one training step on one sequence: forward, backward, AdamW's update; or two forwards and MeZO's.

    Args:
        case: ``config`` (fields of a model's configuration, as Hugging Face names them), ``dtype`` (f32 or bf16),
            ``checkpointing``, ``rank``, ``alpha``, ``target_modules``, ``seq_len``; ``mezo`` for zeroth order.
    """
    import torch

    model = _model(case)
    if case.get("mezo"):
        return {"step": Call(_mezo_step(model, case))}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    ids = torch.randint(0, case["config"]["vocab_size"], (1, case["seq_len"]))
    reset_peak_rss()  # of drawing random weights

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"step": Call(step)}


def _mezo_step(model: Any, case: Case) -> Callable[[], None]:
    """Return a step as MeZO's own code does it: adapters moved in place by +eps, -2 eps, +eps, and by the update."""
    import torch

    model.eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids = torch.randint(0, case["config"]["vocab_size"], (1, case["seq_len"]))
    eps, lr = 1e-3, 1e-4
    reset_peak_rss()  # of drawing random weights

    def move(factor: float) -> None:
        torch.manual_seed(7)  # z again, never stored
        for parameter in parameters:
            parameter.data.add_(torch.randn_like(parameter.data), alpha=factor)

    @torch.inference_mode()
    def step() -> None:
        losses = []
        for factor in (eps, -2 * eps):
            move(factor)
            losses.append(float(model(input_ids=ids, labels=ids).loss))
        move(eps)
        move(-lr * (losses[0] - losses[1]) / (2 * eps))

    return step


def _model(case: Case) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    fields = dict(case["config"])
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[case["dtype"]]
    build: Any = AutoModelForCausalLM.from_config
    model = build(AutoConfig.for_model(**fields, use_cache=False), dtype=dtype)
    lora = LoraConfig(r=case["rank"], lora_alpha=case["alpha"], target_modules=case["target_modules"], lora_dropout=0.0)
    model = get_peft_model(model, lora)
    if case["checkpointing"]:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    return model.train()


def main() -> None:
    """Serve on as many threads as the command line says."""
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    serve(prepare)


if __name__ == "__main__":
    main()
