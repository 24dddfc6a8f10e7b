"""Passes that do not fit in a card's memory are done again in smaller ones, with the same results."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from caches import random_rows, write_cache

from tgdpo.data.tokenization import PairIds
from tgdpo.stages.models import resolve
from tgdpo.stages.score.engines import EngineSpec
from tgdpo.stages.score.engines.transformers import TransformersEngine

pytestmark = pytest.mark.gpu


@contextmanager
def limited(device: torch.device, limit: int) -> Iterator[None]:
    """As if the card had `limit` bytes."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def failures(device: torch.device) -> int:
    """How often an allocation has failed for good."""
    return int(torch.cuda.memory_stats(device)["num_ooms"])


@pytest.fixture
def wide(tokenizer: Any, tmp_path: Path) -> Path:
    """A policy whose activations outweigh its weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=4096, num_hidden_layers=4, num_attention_heads=4,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


def test_a_step_is_repeated_in_smaller_passes(
    cuda: torch.device, training: Any, wide: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """The same losses with three quarters of the memory that whole batches take."""
    cache = write_cache(tmp_path / "cache", random_rows(600, vocabulary=len(tokenizer)), tokenizer)
    options = {
        "cache": str(cache), "model": str(wide), "batch_size": 200, "batch_tokens": 100_000, "mixed_precision": "no"
    }  # fmt: skip
    training(tmp_path / "warm", **options)
    torch.cuda.reset_peak_memory_stats()
    whole = training(tmp_path / "whole", **options)
    peak, before = torch.cuda.max_memory_reserved(cuda), failures(cuda)
    with limited(cuda, peak * 3 // 4):
        halved = training(tmp_path / "halved", **options)
    assert failures(cuda) > before, "nothing was repeated: the limit is too high for this test to show anything"
    assert [r["loss"] for r in halved] == pytest.approx([r["loss"] for r in whole], rel=1e-3)


def test_a_scoring_batch_is_halved(cuda: torch.device, wide: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = [PairIds(*(rng.integers(5, 300, n).astype(np.int32) for n in (100, 100, 100))) for _ in range(200)]
    source = resolve(str(wide), "--model")
    spec = EngineSpec(source=source, dtype=torch.float32, device=cuda, batch_tokens=60_000, longest=200)
    engine = TransformersEngine(spec)
    whole = engine.score(pairs, lambda *_: None)
    peak, before = torch.cuda.max_memory_reserved(cuda), failures(cuda)
    with limited(cuda, peak * 3 // 4):
        halved = engine.score(pairs, lambda *_: None)
    engine.close()
    assert failures(cuda) > before, "nothing was repeated: the limit is too high for this test to show anything"
    for expected, found in zip(whole, halved, strict=True):
        np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=1e-4)
