"""The dummy engine."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from support import Models

from tgdpo.data.tokenization import PairIds
from tgdpo.stages.models import resolve
from tgdpo.stages.score.engines import EngineSpec, score_pairs
from tgdpo.stages.score.engines.dummy import DummyEngine

PAIRS = [PairIds(*(np.arange(5, 5 + n + i, dtype=np.int32) for n in (4, 6, 5))) for i in range(7)]


@pytest.fixture
def spec(models: Models) -> Any:
    def make(model: str = "reference", **arguments: float) -> EngineSpec:
        return EngineSpec(
            source=resolve(str(getattr(models, model)), "--reference"),
            dtype=torch.float32,
            device=torch.device("cpu"),
            batch_tokens=1,
            arguments=arguments,
        )

    return make


def test_scores_depend_on_ids_and_model_alone(spec: Any) -> None:
    whole = score_pairs(DummyEngine(spec()), PAIRS, lambda *_: None)
    alone = [score_pairs(DummyEngine(spec()), [pair], lambda *_: None)[0] for pair in PAIRS]
    other = score_pairs(DummyEngine(spec("guidance")), PAIRS, lambda *_: None)
    for ours, same, differs in zip(whole, alone, other, strict=True):
        np.testing.assert_array_equal(ours.chosen, same.chosen)
        assert (ours.chosen != differs.chosen).all()
        assert ((ours.rejected <= 0) & (ours.rejected >= -10)).all()
        assert ours.finite


def test_it_takes_the_time_that_it_is_told(spec: Any) -> None:
    start = time.monotonic()
    DummyEngine(spec(seconds_to_load=0.05, seconds_per_token=1e-3)).score(PAIRS[:1], lambda *_: None)
    assert time.monotonic() - start >= 0.05 + 1e-3 * PAIRS[0].tokens
