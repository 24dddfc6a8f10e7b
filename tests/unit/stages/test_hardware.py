"""Counts of parameters and operations against published sizes and torch's own counters."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from tgdpo.errors import UsageError
from tgdpo.stages.hardware import GPUS, forward_flops, gpu_named, parameters, size_of

LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
SMALL = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def test_llama_3_8b() -> None:
    size = parameters(LLAMA_8B)
    assert size.parameters == 8_030_261_248
    assert size.active_parameters == size.parameters - 2 * 128256 * 4096
    assert (size.head, size.layers, size.attention_width) == (128256 * 4096, 32, 4096)


def test_tied_weights_count_once() -> None:
    tied, untied = (parameters(LLAMA_8B | {"tie_word_embeddings": tied}) for tied in (True, False))
    assert untied.parameters - tied.parameters == tied.head
    assert tied.active_parameters == untied.active_parameters


def test_of_experts_only_the_chosen_are_active() -> None:
    """Qwen3-30B-A3B: 30.5 billion parameters, 3.3 of them for a token, embedding and head included."""
    size = parameters({
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    })  # fmt: skip
    assert size.parameters == pytest.approx(30.5e9, rel=2e-3)
    assert size.active_parameters + 2 * size.head == pytest.approx(3.3e9, rel=0.02)


def test_operations_of_a_forward_pass() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, attn_implementation="eager"))
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 50, dtype=torch.long))
    # The eager attention computes the masked half too.
    counted = forward_flops(size_of(model), tokens=50, head_tokens=50, attended=50 * 50)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("name", [*GPUS, "h100", "rtx4090"])
def test_gpus(name: str) -> None:
    gpu = gpu_named(name)
    assert 10e9 < gpu.memory < 400e9
    assert 50e12 < gpu.flops < 5000e12
    assert gpu.source


def test_a_gpu_that_is_not_known_lists_the_known() -> None:
    with pytest.raises(UsageError, match="A100-80GB"):
        gpu_named("Voodoo2")


def test_a_model_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="no-such-type"):
        parameters({"model_type": "no-such-type"})
