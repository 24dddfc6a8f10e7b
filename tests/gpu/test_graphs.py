"""How many graphs FlexAttention is compiled into: few enough that Dynamo never gives up on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from tgdpo.data.tokenization import PairIds
from tgdpo.stages.models import resolve
from tgdpo.stages.score.engines import EngineSpec
from tgdpo.stages.score.engines.transformers import TransformersEngine

pytestmark = pytest.mark.gpu

MOST = 8


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_training_and_evaluation(
    family: str, cuda: torch.device, training: Any, make_family: Callable[[str], Path], tmp_path: Path
) -> None:
    """Rows of many lengths, an evaluation whose last row is a short one, a step over two pairs."""
    counters.clear()
    training(tmp_path / "run", model=str(make_family(family)), eval_fraction=0.25, eval_steps=2, batch_tokens=300)
    assert 1 <= counters["stats"]["unique_graphs"] <= MOST


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_scoring(family: str, cuda: torch.device, make_family: Callable[[str], Path]) -> None:
    counters.clear()
    rng = np.random.default_rng(0)
    source = resolve(str(make_family(family)), "--model")
    engine = TransformersEngine(
        EngineSpec(source=source, dtype=torch.bfloat16, device=cuda, batch_tokens=2000, longest=600)
    )
    for count in (1, 30, 2, 7):
        lengths = rng.integers(1, 150, (count, 3))
        pairs = [PairIds(*(rng.integers(5, 300, n).astype(np.int32) for n in row)) for row in lengths]
        engine.score(pairs, lambda *_: None)
    engine.close()
    assert 1 <= counters["stats"]["unique_graphs"] <= MOST
