"""AdamW steps of transformers + PEFT on the windows of a run, from its initial adapter (for ``check_checkpoints``)."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from memsim.data.windows import Batches


def peft_losses(model: Any, untouched: Path, batches: Batches, steps: int, lr: float) -> list[float]:
    """Return the loss of each step; torch's own settings of AdamW are memsim's too.

    Args:
        model: Transformers', in f32.
        untouched: A run at a rate of 0: its adapter is the one that every run of its seed starts with.
        batches: The windows in the order of the run.
        steps: How many.
        lr: The learning rate.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of a base model without a name on the hub
        peft = PeftModel.from_pretrained(model, untouched, is_trainable=True)
    optimizer = torch.optim.AdamW([parameter for parameter in peft.parameters() if parameter.requires_grad], lr=lr)
    losses = []
    for step in range(steps):
        ids, labels = (torch.from_numpy(np.array(part).astype(np.int64)) for part in batches.batch(step))
        loss: Any = torch.nn.functional.cross_entropy(peft(input_ids=ids[None]).logits[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
