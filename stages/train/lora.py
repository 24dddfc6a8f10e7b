"""LoRA: an adapter on the policy, over weights that may be quantised (QLoRA)."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import UsageError
from ..models import add_adapter, resolve
from .config import TrainConfig


def with_lora(config: TrainConfig, model: nn.Module, checkpoint: Path | None) -> Any:
    """`model` with a new adapter, or with the one of a checkpoint; the adapter alone is trainable.

    Raises:
        UsageError: the options name modules that the model does not have, or that cannot carry such an adapter.
    """
    import peft

    if checkpoint:
        return add_adapter(model, resolve(str(checkpoint), "checkpoint"), trainable=True)
    torch.manual_seed(config.seed)
    modules = config.lora_target_modules
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=config.lora_dropout,
        target_modules=modules[0] if modules == ("all-linear",) else list(modules),
        modules_to_save=list(config.lora_modules_to_save) or None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
    )
    try:
        # A model without values, of a plan, gets an adapter without values.
        return peft.get_peft_model(model, lora, low_cpu_mem_usage=next(model.parameters()).is_meta)
    except ValueError as error:
        raise UsageError(
            f"--lora-target-modules {' '.join(modules)} ({str(error).splitlines()[0]})",
            fix="name modules of the model, such as q_proj, or all-linear",
        ) from error
