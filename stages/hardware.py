"""What a model costs, from its configuration alone, and what GPUs can do: the ground of both stages' `--plan`.

Legend: D hidden size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import UsageError

GIB, MIB = 2**30, 2**20


class Gpu(NamedTuple):
    """A kind of GPU. Peaks are for dense bfloat16 products with float32 sums; data sheets often print twice that, for
    sparse ones."""

    name: str
    memory: int
    """Bytes, as the card's own tool (nvidia-smi, rocm-smi) reports them; the driver keeps a little from programs."""
    flops: float
    """Operations per second."""
    source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A10G", 23_028 * MIB, 70e12, "AWS, EC2 G5 instances; NVIDIA A10G data sheet"),
        Gpu("A100-40GB", 40_960 * MIB, 312e12, "NVIDIA A100 data sheet"),
        Gpu("A100-80GB", 81_920 * MIB, 312e12, "NVIDIA A100 data sheet"),
        Gpu("B200", 183_359 * MIB, 2250e12, "NVIDIA DGX B200 data sheet, one of eight, half of the sparse figure"),
        Gpu("H100-PCIe", 81_559 * MIB, 756e12, "NVIDIA H100 data sheet, half of the sparse figure"),
        Gpu("H100", 81_559 * MIB, 989e12, "NVIDIA H100 SXM data sheet, half of the sparse figure"),
        Gpu("H200", 143_771 * MIB, 989e12, "NVIDIA H200 SXM data sheet, half of the sparse figure"),
        Gpu("L4", 23_034 * MIB, 121e12, "NVIDIA L4 data sheet, half of the sparse figure"),
        Gpu("L40S", 46_068 * MIB, 362e12, "NVIDIA L40S data sheet, half of the sparse figure"),
        Gpu("MI300X", 196_592 * MIB, 1307e12, "AMD Instinct MI300X data sheet"),
        Gpu("RTX4090", 24_564 * MIB, 165e12, "NVIDIA Ada GPU architecture white paper"),
    )
}


def gpu_named(name: str) -> Gpu:
    """The GPU of `--gpu`. Raises UsageError for one that is not in the table."""
    known = {known.lower(): gpu for known, gpu in GPUS.items()}
    if name.lower() not in known:
        raise UsageError(f"--gpu {name} is not in the table", fix=f"use one of {', '.join(GPUS)}")
    return known[name.lower()]


class ModelSize(NamedTuple):
    """What decides a model's cost. Parameters count once where they are tied."""

    parameters: int
    active_parameters: int
    """Of the body, those that a token is multiplied with: no embedding, no head, of experts those that are chosen."""
    head: int
    """Elements of the head's weight, V * D, tied or not; 0 of a model without one."""
    layers: int
    attention_width: int
    """Heads times head size."""
    vocabulary: int


def empty_model(config: dict[str, Any], dtype: torch.dtype) -> Any:
    """The causal LM of a config.json without values: on the meta device, or whatever fake mode is active.

    Raises:
        UsageError: transformers does not know the architecture.
    """
    import transformers

    try:
        known = transformers.AutoConfig.for_model(**config)
        return transformers.AutoModelForCausalLM.from_config(known, dtype=dtype)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{config.get('model_type')} models cannot be planned ({str(error).splitlines()[0]})",
            fix="name a causal LM whose code is in transformers",
        ) from error


def parameters(config: dict[str, Any]) -> ModelSize:
    """Counts a causal LM's parameters without allocating any.

    Args:
        config: the content of its config.json.
    """
    with torch.device("meta"):
        return size_of(empty_model(config, torch.bfloat16))


def size_of(model: Any) -> ModelSize:
    """The same of a model that is there, on any device."""
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    outside = {id(p) for p in _parameters_outside_the_body(model)}
    share = _share_of_experts(text)
    body = sum(
        p.numel() * (share if ".experts." in name else 1)
        for name, p in model.named_parameters()
        if id(p) not in outside
    )
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        active_parameters=round(body),
        head=0 if head is None else head.weight.numel(),
        layers=text.num_hidden_layers,
        attention_width=text.num_attention_heads * head_size,
        vocabulary=text.vocab_size,
    )


def _parameters_outside_the_body(model: Any) -> list[nn.Parameter]:
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [parameter for end in ends if end is not None for parameter in end.parameters()]


def _share_of_experts(text_config: Any) -> float:
    """How much of its experts a mixture uses for a token."""
    chosen = getattr(text_config, "num_experts_per_tok", None)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((getattr(text_config, name) for name in names if getattr(text_config, name, None)), None)
    return chosen / total if chosen and total else 1.0


def forward_flops(size: ModelSize, *, tokens: float, head_tokens: float, attended: float) -> float:
    """Floating-point operations of a forward pass; a multiplication and an addition count as two.

    Args:
        tokens: that run through the body.
        head_tokens: positions at which the head computes logits.
        attended: pairs of a query and a key it sees, per layer; half the square of the length for a causal sequence.
    """
    body = 2 * size.active_parameters * tokens
    attention = 4 * size.attention_width * size.layers * attended
    return body + attention + 2 * size.head * head_tokens
