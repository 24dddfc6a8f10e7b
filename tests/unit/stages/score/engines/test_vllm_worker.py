"""What is taken from vLLM's results and asked of it, without vLLM; test_conformance.py has the rest."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tgdpo.data.tokenization import PairIds
from tgdpo.errors import UsageError
from tgdpo.stages.model_files import link_model
from tgdpo.stages.score.engines.vllm_worker import (
    FLAT_BATCH_TOKENS,
    _requests,
    engine_arguments,
    flat_scores,
    target_scores,
)

IDS = [11, 12, 13, 21, 22]
PROMPT = 3


def flat(cached: int | None, ids: list[int], logprobs: list[float]) -> Any:
    return SimpleNamespace(num_cached_tokens=cached, prompt_logprobs=SimpleNamespace(token_ids=ids, logprobs=logprobs))


def test_flat_results_are_those_of_the_response() -> None:
    found = flat_scores(PROMPT, IDS, flat(0, IDS[1:], [-1.0, -2.0, -3.0, -4.0]))
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [-3, -4])


def test_rows_of_the_prompt_may_come_from_the_cache() -> None:
    """The ids and values there mean nothing then."""
    found = flat_scores(PROMPT, IDS, flat(2, [0, 99, 21, 22], [7.0, 7.0, -3.0, -4.0]))
    np.testing.assert_array_equal(found, [-3, -4])


@pytest.mark.parametrize(
    "output",
    [
        flat(3, IDS[1:], [-1.0, -2.0, -3.0, -4.0]),
        flat(None, IDS[1:], [-1.0, -2.0, -3.0, -4.0]),
        flat(0, [12, 13, 22, 21], [-1.0, -2.0, -3.0, -4.0]),
        flat(0, IDS[2:], [-2.0, -3.0, -4.0]),
        SimpleNamespace(num_cached_tokens=0, prompt_logprobs=None),
    ],
    ids=["cache reaches into the response", "cache unknown", "other ids", "a row too few", "nothing"],
)
def test_flat_results_that_cannot_be_trusted_are_none(output: Any) -> None:
    assert flat_scores(PROMPT, IDS, output) is None


def target(scores: Any, ids: list[int] = IDS) -> Any:
    return SimpleNamespace(prompt_token_id_logprobs=scores, prompt_token_ids=ids)


def test_target_results() -> None:
    scores = np.array([[-3.0], [-4.0]], np.float32)
    np.testing.assert_array_equal(target_scores(2, IDS, target(scores)), [-3, -4])
    assert target_scores(2, IDS, target(None)) is None
    assert target_scores(2, IDS, target(scores[:1])) is None
    assert target_scores(2, IDS, target(scores, IDS[::-1])) is None


def test_the_cache_is_read_where_its_blocks_end_before_the_response() -> None:
    def second(prompt: int, alike: int) -> Any:
        chosen = np.arange(100, 150, dtype=np.int32)
        rejected = np.concatenate([chosen[:alike], chosen[alike:] + 100])
        return list(_requests([PairIds(np.arange(prompt, dtype=np.int32), chosen, rejected)]))[1]

    assert second(33, 0).may_read_cache(16)
    assert second(31, 0).may_read_cache(16)
    assert not second(32, 0).may_read_cache(16)
    assert not second(31, 1).may_read_cache(16)
    assert second(33, 14).may_read_cache(16)
    assert not second(33, 15).may_read_cache(16)


def test_arguments_fit_the_data_and_the_route(spec: Any) -> None:
    found = engine_arguments(spec(), Path("m"), by_target_ids=True)
    assert (found["max_model_len"], found["max_num_batched_tokens"], found["dtype"]) == (101, 8192, "bfloat16")
    assert found["load_format"] == "safetensors"
    flat_route = engine_arguments(spec(), Path("m"), by_target_ids=False)
    assert flat_route["max_num_batched_tokens"] == FLAT_BATCH_TOKENS
    own = engine_arguments(
        spec(arguments={"max_num_batched_tokens": 4096, "enforce_eager": False}), Path("m"), by_target_ids=False
    )
    assert (own["max_num_batched_tokens"], own["enforce_eager"]) == (4096, False)


def test_rows_longer_than_max_model_len_are_refused(spec: Any) -> None:
    with pytest.raises(UsageError, match="--max-model-len 100: the longest row has 100 tokens"):
        engine_arguments(spec(arguments={"max_model_len": 100}), Path("m"), by_target_ids=True)


def test_a_folder_of_links_holds_no_other_weights(tmp_path: Path) -> None:
    folder, target = tmp_path / "model", tmp_path / "links"
    folder.mkdir()
    target.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "consolidated.safetensors", "modeling.py"):
        (folder / name).write_text(name)
    link_model(folder, [folder / "config.json", folder / "model.safetensors"], target)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (target / "model.safetensors").read_text() == "model.safetensors"
