"""Scores of small models of five families as the engine computes them, against one sequence at a time on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tgdpo.data.tokenization import PairIds
from tgdpo.stages.attention import SHARED_PROMPT, SHARED_PROMPT_FLEX
from tgdpo.stages.models import resolve
from tgdpo.stages.score.engines import EngineSpec
from tgdpo.stages.score.engines.transformers import TransformersEngine

pytestmark = pytest.mark.gpu

TOLERANCES = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (0.5, 0.05)}
"""Largest and mean error in nats a token. A wrong mask is off by far more than the means."""


def pairs_of(lengths: list[tuple[int, int, int]], vocabulary: int) -> list[PairIds]:
    rng = np.random.default_rng(0)
    return [PairIds(*(rng.integers(5, vocabulary, n).astype(np.int32) for n in one)) for one in lengths]


def expected_scores(folder: Path, pairs: list[PairIds], dtype: torch.dtype) -> np.ndarray:
    """With the weights rounded to `dtype`, in float32, full logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).float().eval()
    rows = []
    for pair in pairs:
        for response in (pair.chosen, pair.rejected):
            ids = torch.from_numpy(np.concatenate([pair.prompt, response])).long()[None]
            with torch.inference_mode():
                logps = model(ids, use_cache=False).logits[0].log_softmax(-1)[len(pair.prompt) - 1 : -1]
            rows.append(logps.gather(-1, torch.from_numpy(response).long()[:, None]).squeeze(-1).numpy())
    return np.concatenate(rows)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.bfloat16) for family in ("llama", "qwen2", "qwen3", "gemma2", "gemma3")),
        ("llama", torch.float32),
        ("gemma2", torch.float32),
    ],
    ids=str,
)
def test_the_engines_scores(
    family: str, dtype: torch.dtype, device: torch.device, tokenizer: Any, make_family: Callable[[str], Path]
) -> None:
    """The first call's rows are short, as those of a last shard with one pair: nothing longer has compiled before."""
    folder = make_family(family)
    spec = EngineSpec(
        source=resolve(str(folder), "--model"), dtype=dtype, device=device, batch_tokens=1024, longest=600
    )
    engine = TransformersEngine(spec)
    found = engine._model.config._attn_implementation
    assert found == (SHARED_PROMPT_FLEX if device.type == "cuda" else SHARED_PROMPT)
    for lengths in ([(12, 30, 21)], [(5, 3, 2)], [(200, 100, 150), (40, 260, 90), (300, 40, 200), (3, 7, 1)]):
        pairs = pairs_of(lengths, len(tokenizer))
        scores = engine.score(pairs, lambda *_: None)
        error = np.abs(
            np.concatenate([side for pair in scores for side in pair]) - expected_scores(folder, pairs, dtype)
        )
        largest, mean = TOLERANCES[dtype]
        assert error.max() <= largest
        assert error.mean() <= mean
    engine.close()
