"""The policy: loaded, given a LoRA adapter where asked for, and saved."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import ModelError
from ..loading import require_finite
from ..models import ModelSource, add_adapter, load_model, pick_dtype, resolve
from .config import TrainConfig
from .loaded import LoadedModel
from .lora import with_lora
from .quantization import keep_training_layout, quantization_config


def load_policy(config: TrainConfig, source: ModelSource, device: torch.device, checkpoint: Path | None) -> Any:
    """The model to train, in training mode with dropout off, so that it starts where the reference is.

    Args:
        source: the policy to start from; an adapter is merged into its base.
        checkpoint: a checkpoint to take the trained weights from.

    Raises:
        ModelError: it does not load.
    """
    if isinstance(source, LoadedModel):
        model = source.prepared(config, device, checkpoint)
    else:
        start = resolve(str(checkpoint), "checkpoint") if checkpoint and config.lora_rank == 0 else source
        model = _load_merged(config, start, device)
        if config.lora_rank:
            model = with_lora(config, model, checkpoint)
    _switch_dropout_off(model, keep_lora=config.lora_dropout > 0)
    model.config.use_cache = False
    if config.gradient_checkpointing:
        if config.lora_rank:
            # The base's inputs carry no gradient; without this, checkpointed blocks would drop the adapter's.
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def _load_merged(config: TrainConfig, source: ModelSource, device: torch.device) -> Any:
    dtype_name = config.dtype or ("auto" if config.lora_rank else "float32")
    base = source
    if source.kind == "adapter":
        base = resolve(source.base_name or "", f"--model {source.name} has the base")
    if base.kind != "causal-lm":
        raise ModelError(f"--model {source.name} is a {base.kind}", fix="name a causal language model")
    dtype = pick_dtype(dtype_name, base)
    model: Any = load_model(
        base,
        dtype=dtype,
        device=device,
        attn_implementation=config.attn_implementation,
        quantization=quantization_config(config, dtype, device),
    )
    keep_training_layout(model)
    if source.kind == "adapter":
        merged: Any = add_adapter(model, source)
        model = merged.merge_and_unload().requires_grad_(True)
    require_finite(model, f"--model {source.name}")
    return model


def _switch_dropout_off(model: nn.Module, *, keep_lora: bool) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and not (keep_lora and "lora_dropout" in name):
            module.p = 0.0
    # Attention dropout is a plain number in transformers' attention modules.
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters for the optimizer; vectors (norms, biases) get no weight decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def save_policy(model: Any, tokenizer: Any, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Weights (an adapter's alone with LoRA), configuration and tokenizer, as transformers reads them.

    Args:
        weights: the model's state dict where it is not its own.
    """
    model.config.use_cache = True
    model.save_pretrained(folder, state_dict=weights)
    model.config.use_cache = False
    tokenizer.save_pretrained(folder)
