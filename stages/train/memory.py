"""The memory that training needs, part by part, worked out on a model without values.

Weights, gradients and optimizer state follow from shapes and are exact. Activations are what the real forward pass
keeps for its backward pass, added up while it runs on tensors without values; kernels of a GPU may keep more or less.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...data.packing import Layout, collate
from ...data.tokenization import PairIds
from ..attention import SHARED_PROMPT
from ..head import BLOCK_BYTES, CPU_BLOCK_BYTES
from ..logps import to_device
from .config import TrainConfig
from .optimizers import OPTIMIZERS

_SMALLEST_QUANTIZED = 4096
"""bitsandbytes and torchao keep the moments of smaller tensors as they are."""
_BNB_BLOCK, _QLORA_BLOCK, _TORCHAO_BLOCKS = 256, 64, {8: 256, 4: 128}


class Activations(NamedTuple):
    """Bytes that one forward pass keeps."""

    kept: int
    """With all activations kept."""
    recomputed: int
    """With gradient checkpointing: the layers' inputs, and one layer's activations while it is computed again."""
    weight_copies: int
    """What autocast keeps of the weights in half precision, with all activations kept."""
    layer_copies: int
    """With gradient checkpointing: one layer's, while it is computed again."""


def weight_bytes(config: TrainConfig, model: Any) -> int:
    """Bytes of the weights, quantised ones in the form they are loaded in."""
    quantized = _quantized_weights(config, model)
    plain: dict[int, int] = {id(p): p.numel() * p.element_size() for p in model.parameters() if id(p) not in quantized}
    return sum((*plain.values(), *quantized.values()))


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of the gradients."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def optimizer_bytes(config: TrainConfig, model: nn.Module) -> int:
    """Bytes of the optimizer's state."""
    return sum(_state_bytes(config, p) for p in model.parameters() if p.requires_grad)


def logits_bytes(model: Any, rows: int, compute: torch.dtype, *, on_gpu: bool) -> int:
    """Bytes of the head's block of logits, of its float32 forms, and of the copy and gradient of its weight.

    Args:
        rows: response tokens of a pass.
    """
    head = model.get_output_embeddings().weight
    logits = rows * model.config.get_text_config().vocab_size * compute.itemsize
    # On a GPU the whole block has two float32 forms; on a CPU a thin slice of it.
    block = min(logits, BLOCK_BYTES) * (1 + 2 * 4 / compute.itemsize) if on_gpu else min(logits, CPU_BLOCK_BYTES)
    copy = head.numel() * compute.itemsize if head.dtype != compute else 0
    return int(block + copy + (head.numel() * head.element_size() if head.requires_grad else 0))


def activation_bytes(model: Any, lengths: Sequence[int], pairs: int, compute: torch.dtype) -> Activations:
    """Runs the body on pairs without values.

    Args:
        model: a causal LM made in a fake mode that is active.
        lengths: tokens of prompt, chosen and rejected.
        pairs: in the pass.
        compute: dtype of autocast, or that of the weights.
    """
    layout: Layout = "packed"
    try:
        one = _kept_bytes(model, lengths, 1, compute, layout)
    except Exception:  # whatever a model without packed rows stumbles over
        layout = "padded"
        one = _kept_bytes(model, lengths, 1, compute, layout)
    two = _kept_bytes(model, lengths, 2, compute, layout)
    copies = max(0, 2 * one.bytes - two.bytes) if compute != model.dtype else 0
    a_pair = two.bytes - one.bytes
    text = model.config.get_text_config()
    layers_inputs = text.num_hidden_layers * (two.hidden_bytes - one.hidden_bytes) * pairs
    kept = a_pair * pairs
    layers = text.num_hidden_layers
    return Activations(kept, layers_inputs + kept // layers, copies, copies // layers)


class _Kept(NamedTuple):
    bytes: int
    hidden_bytes: int
    """Of the layers' output: that of one layer's input too."""


def _kept_bytes(model: Any, lengths: Sequence[int], pairs: int, compute: torch.dtype, layout: Layout) -> _Kept:
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = [PairIds(*(np.zeros(length, np.int32) for length in lengths))] * pairs
    batch = to_device(collate(ids, layout), torch.device("cpu"))
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    causal_lm.set_attn_implementation(SHARED_PROMPT if layout == "packed" else "sdpa")
    if layout == "packed":
        inputs |= {"position_ids": batch.position_ids, "packed_row": batch.packed_row}
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that its address is not given to another
        return tensor

    with (
        torch.autocast("cpu", dtype=compute, enabled=compute != causal_lm.dtype),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        hidden = causal_lm.get_decoder()(**inputs).last_hidden_state
    return _Kept(sum(storage.nbytes() for storage in kept.values()), hidden.numel() * hidden.element_size())


def _quantized_weights(config: TrainConfig, model: Any) -> dict[int, int]:
    """Bytes of each weight that bitsandbytes quantises: every linear layer's but the head's."""
    if not (config.load_in_4bit or config.load_in_8bit):
        return {}
    head = model.get_output_embeddings().weight
    return {
        id(module.weight): _quantized_bytes(config, module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name and module.weight is not head
    }


def _quantized_bytes(config: TrainConfig, weight: Tensor) -> int:
    elements = weight.numel()
    if config.load_in_8bit:
        return elements + weight.shape[0] * 4
    blocks = -(-elements // _QLORA_BLOCK)
    constants = blocks * 4
    if config.use_bnb_nested_quant:
        constants = blocks + -(-blocks // _BNB_BLOCK) * 4 + 256 * 4 + 4
    return -(-elements // 2) + constants + 16 * 4  # a table of the 16 numbers


def _state_bytes(config: TrainConfig, parameter: Tensor) -> int:
    kind = OPTIMIZERS[config.optim]
    elements, size = int(parameter.numel()), int(parameter.element_size())
    if config.optim == "adafactor":
        factors = elements if parameter.ndim < 2 else elements // parameter.shape[-1] + elements // parameter.shape[-2]
        return int(factors) * 4 + 4
    if kind.bits is None:
        return kind.moments * elements * size + (4 if kind.moments else 0)
    if kind.package == "torchao":
        block = _TORCHAO_BLOCKS[kind.bits]
        if elements < _SMALLEST_QUANTIZED or elements % block:
            return kind.moments * elements * size + 4
        return kind.moments * (elements * kind.bits // 8 + elements // block * 4 + (1 << kind.bits) * 4) + 4
    if kind.bits == 32 or elements < _SMALLEST_QUANTIZED:
        return kind.moments * elements * 4
    return kind.moments * (elements + -(-elements // _BNB_BLOCK) * 4)
