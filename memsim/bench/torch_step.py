"""What users run today: one LoRA step by transformers and PEFT, timed in a process of its own.

``python -m memsim.bench.torch_step CONFIG.json`` prints one JSON line. Needs the extra ``test`` (torch, transformers,
peft). Weights are random: time and memory do not depend on them.
"""

import json
import resource
import sys
import time
from pathlib import Path
from statistics import median


def main() -> None:
    """Build the model of the given configuration, train ``steps`` steps, print median seconds and peak RSS."""
    job = json.loads(Path(sys.argv[1]).read_text())
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[job["dtype"]]
    fields = {key: value for key, value in job["config"].items() if key not in ("rope_theta", "attention_bias")}
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": job["config"]["rope_theta"]}
    model = AutoModelForCausalLM.from_config(Qwen2Config(**fields), dtype=dtype)
    lora = LoraConfig(r=job["rank"], lora_alpha=2 * job["rank"], target_modules="all-linear", lora_dropout=0.0)
    model = get_peft_model(model, lora, autocast_adapter_dtype=True)
    if job["checkpointing"]:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, job["config"]["vocab_size"], (1, job["seq_len"]))
    seconds = []
    for _ in range(job["steps"] + 1):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"step_s": median(seconds[1:]), "peak_rss_bytes": peak}))


if __name__ == "__main__":
    main()
