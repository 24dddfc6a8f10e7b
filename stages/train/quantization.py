"""Weights in 4 or 8 bits (bitsandbytes) under a LoRA adapter."""

import importlib.util
from typing import Any

import torch
from torch import nn

from ...errors import UsageError
from ..models import ModelSource
from .config import TrainConfig


def is_quantized(config: TrainConfig) -> bool:
    """Whether the policy's own weights are quantised as they are loaded."""
    return config.load_in_4bit or config.load_in_8bit


def require_quantization(config: TrainConfig, source: ModelSource) -> None:
    """Raises UsageError where the policy cannot be quantised; cheap, so that it comes before weights are loaded."""
    if not is_quantized(config):
        return
    option = "--load-in-4bit" if config.load_in_4bit else "--load-in-8bit"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            f"{option} needs bitsandbytes, which is not installed", fix="pip install 'tgdpo[bitsandbytes]'"
        )
    if source.kind == "adapter":
        raise UsageError(
            f"{option} with --model {source.name}, an adapter, which cannot be merged into quantised weights",
            fix="merge it first (merge_and_unload of peft, save_pretrained), or leave the option out",
        )


def quantization_config(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """What transformers needs to quantise while loading, or None.

    Args:
        dtype: of the weights that stay as they are (embeddings, norms, head), and of the products of quantised ones
            where autocast does not say otherwise.
    """
    if not is_quantized(config):
        return None
    import transformers

    if config.load_in_8bit:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    in_bf16 = device.type == "cuda" and config.mixed_precision in ("auto", "bf16") and torch.cuda.is_bf16_supported()
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=torch.bfloat16 if in_bf16 else dtype,
    )


def keep_training_layout(model: nn.Module) -> None:
    """Stops bitsandbytes from packing 4-bit weights anew, with coarser constants, when a CPU evaluates them.

    Its layers do so for good in the first pass in evaluation mode; training then would go on with other weights.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
