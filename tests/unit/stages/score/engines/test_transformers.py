"""The transformers engine: where memory runs out, and what it has FlexAttention compiled for."""

from typing import Any

import numpy as np
import pytest
import torch
from support import Models

from tgdpo.data.tokenization import PairIds
from tgdpo.errors import ModelError
from tgdpo.stages import logps
from tgdpo.stages.attention import SHARED_PROMPT_FLEX
from tgdpo.stages.logps import ResponseLogps
from tgdpo.stages.models import resolve
from tgdpo.stages.score.engines import EngineSpec
from tgdpo.stages.score.engines.transformers import TransformersEngine


@pytest.fixture
def engine(models: Models) -> TransformersEngine:
    """A small model with room for all pairs in one batch."""
    return engine_of(models)


def engine_of(models: Models) -> TransformersEngine:
    return TransformersEngine(
        EngineSpec(
            source=resolve(str(models.reference), "--reference"),
            dtype=torch.float32,
            device=torch.device("cpu"),
            batch_tokens=10_000,
        )
    )


PAIRS = [PairIds(*(np.arange(5, 5 + n + i, dtype=np.int32) for n in (4, 6, 5))) for i in range(7)]


def run_out_of_memory_above(tokens: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    original = ResponseLogps.forward
    sizes: list[int] = []

    def forward(self: ResponseLogps, batch: Any) -> torch.Tensor:
        sizes.append(batch.input_ids.numel())
        if sizes[-1] > tokens:
            raise torch.OutOfMemoryError
        return original(self, batch)

    monkeypatch.setattr(ResponseLogps, "forward", forward)
    return sizes


def test_a_batch_that_does_not_fit_is_halved(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = engine.score(PAIRS, lambda *_: None)
    sizes = run_out_of_memory_above(60, monkeypatch)
    counted: list[int] = []
    found = engine.score(PAIRS, lambda pairs, _: counted.append(pairs))
    assert sum(counted) == len(PAIRS)
    assert max(sizes) > 60
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.chosen, theirs.chosen, atol=1e-5)
        np.testing.assert_allclose(ours.rejected, theirs.rejected, atol=1e-5)


def test_a_pair_that_does_not_fit_is_an_error(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out_of_memory_above(10, monkeypatch)
    with pytest.raises(ModelError, match="does not fit in the memory of cpu"):
        engine.score(PAIRS, lambda *_: None)


def test_scoring_runs_the_graph_that_was_tried(
    models: Models, graphs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logps, "_attentions", lambda _: [SHARED_PROMPT_FLEX])
    engine = engine_of(models)
    assert len(graphs) == 1
    assert sum(pair.tokens for pair in PAIRS) > 128, "a row of one block has a graph of its own"
    engine.score(PAIRS, lambda *_: None)
    assert len(graphs) == 1
