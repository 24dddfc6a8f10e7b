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


def engine_of(models: Models, dtype: torch.dtype = torch.float32) -> TransformersEngine:
    return TransformersEngine(
        EngineSpec(
            source=resolve(str(models.reference), "--reference"),
            dtype=dtype,
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


# Scores that are not finite


def overflow(monkeypatch: pytest.MonkeyPatch, *, room: int = 10**6) -> None:
    """One pair's scores are finite in float32 alone; beside the model in it, memory holds `room` tokens."""
    original = ResponseLogps.forward

    def forward(wrapped: ResponseLogps, batch: Any) -> torch.Tensor:
        logps = original(wrapped, batch)
        if next(wrapped.model.parameters()).dtype != torch.float32:
            return logps.index_fill(0, torch.tensor([0]), float("nan"))
        if batch.input_ids.numel() > room:
            raise torch.OutOfMemoryError
        return logps

    monkeypatch.setattr(ResponseLogps, "forward", forward)


def run_out_of_memory_at_the_fourth(parameters: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    original, places = torch.Tensor.float, {parameter.data_ptr() for parameter in parameters}
    converted: list[int] = []

    def in_float32(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() in places:
            converted.append(tensor.data_ptr())
            if len(converted) == 4:
                raise torch.OutOfMemoryError
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "float", in_float32)


def finite(engine: TransformersEngine) -> int:
    return sum(scores.finite for scores in engine.score(PAIRS, lambda *_: None))


@pytest.fixture
def half(models: Models) -> TransformersEngine:
    """The engine with its model in bfloat16."""
    return engine_of(models, torch.bfloat16)


def test_a_score_that_is_not_finite_is_computed_again(
    half: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflow(monkeypatch)
    assert finite(half) == len(PAIRS)
    assert {parameter.dtype for parameter in half._model.parameters()} == {torch.bfloat16}


def test_without_memory_for_float32_the_pair_stays_not_finite(
    half: TransformersEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is then what it was, to the last bit."""
    before = {name: parameter.clone() for name, parameter in half._model.named_parameters()}
    overflow(monkeypatch)
    run_out_of_memory_at_the_fourth(list(half._model.parameters()), monkeypatch)
    assert finite(half) == len(PAIRS) - 1
    for name, parameter in half._model.named_parameters():
        assert torch.equal(parameter.view(torch.int16), before[name].view(torch.int16)), name
    assert "1 of 1 pairs with scores that are not finite could not be computed again in float32 (out of memory)" in (
        capsys.readouterr().err
    )


def test_without_memory_for_a_pass_in_float32_the_pair_stays_not_finite(
    half: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And later passes are as large as before."""
    overflow(monkeypatch, room=10)
    tokens = half._budget.limit()
    assert finite(half) == len(PAIRS) - 1
    assert half._budget.limit() == tokens
    assert {parameter.dtype for parameter in half._model.parameters()} == {torch.bfloat16}


def test_a_model_that_just_fits_and_cannot_be_tried(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out_of_memory_above(0, monkeypatch)
    with pytest.raises(ModelError, match="does not fit on cpu"):
        engine_of(models)
