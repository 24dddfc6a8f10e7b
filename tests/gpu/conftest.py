"""The device: CUDA if the machine has it, else the CPU, where most of these tests run small.

A bare card has only what the product needs, so nothing here uses more than that and pytest: with
`--confcutdir tests/gpu` the conftest above, which needs the development packages, is left out.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import transformers
from caches import random_rows, write_cache
from support import make_model, make_tokenizer, records_of

from tgdpo.stages.train.config import TrainConfig
from tgdpo.stages.train.run import train

CPU = torch.device("cpu")
Records = list[dict[str, Any]]
Training = Callable[..., Records]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the product's side of a comparison runs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The same, for what a CPU does not have."""
    if device.type != "cuda":
        pytest.skip("needs CUDA")
    return device


@pytest.fixture(autouse=True)
def loud_recompiles() -> Iterator[None]:
    """Each test has all of Dynamo's graphs to itself, and one too many is an error instead of a silent slow path."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Of all policies and caches here."""
    return make_tokenizer(chat=False)


@pytest.fixture(scope="session")
def policy(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with heads as large as FlexAttention's kernels need them, two queries to a key."""
    folder = tmp_path_factory.mktemp("policy")
    return make_model(folder, tokenizer, seed=0, hidden_size=256, num_attention_heads=4, initializer_range=0.05)


@pytest.fixture(scope="session")
def cache(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty scored pairs with responses of 1 to 40 tokens."""
    rows = random_rows(40, vocabulary=len(tokenizer))
    return write_cache(tmp_path_factory.mktemp("caches") / "cache", rows, tokenizer)


@pytest.fixture
def training(cache: Path, policy: Path) -> Training:
    """Trains the policy with these options and returns what was logged."""

    def run(output: Path, **options: Any) -> Records:
        where: dict[str, Any] = {"cache": str(cache), "model": str(policy), "output": str(output)}
        settings = {"learning_rate": 1e-3, "batch_size": 8, "logging_steps": 1, "save_steps": 0}
        train(TrainConfig(**where | settings | options))
        return records_of(output)

    return run


FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma2": transformers.Gemma2Config,
    "gemma3": transformers.Gemma3TextConfig,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512},
    "qwen2": {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 448},
    "qwen3": {"num_attention_heads": 8, "num_key_value_heads": 1, "hidden_size": 128, "head_dim": 128},
    "gemma2": {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 128, "head_dim": 256,
               "query_pre_attn_scalar": 256, "sliding_window": 30},
    "gemma3": {"num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 128, "head_dim": 256,
               "sliding_window": 30},
}  # fmt: skip
"""Queries to a key 4, 7, 8, 2 and 4; head sizes 64, 64, 128, 256 and 256."""


@pytest.fixture(scope="session")
def make_family(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a two-layer model of a family; those with windows have one layer with and one without."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            config = FAMILIES[name](
                vocab_size=len(tokenizer), intermediate_size=128, num_hidden_layers=2, max_position_embeddings=4096,
                initializer_range=0.05, bos_token_id=1, eos_token_id=2, pad_token_id=0, **SHAPES[name],
            )  # fmt: skip
            if hasattr(config, "layer_types") and name.startswith("gemma"):
                config.layer_types = ["sliding_attention", "full_attention"]
            made[name] = tmp_path_factory.mktemp(name)
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(made[name])
            tokenizer.save_pretrained(made[name])
        return made[name]

    return make
