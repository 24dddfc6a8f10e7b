"""What every engine must do, the same for all: against the naive float32 forward of the model."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import make_model, make_tokenizer

from tgdpo.data.tokenization import PairIds
from tgdpo.stages.models import resolve
from tgdpo.stages.score.engines import Engine, EngineSpec, PairScores, engine_class, score_pairs

CONTEXT = 256
VOCABULARY = 400
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed (make test-vllm)")
# A block of the prefix cache is 32 tokens here, so that most prompts are read from it.
ARGUMENTS: dict[str, dict[str, Any]] = {"transformers": {}, "vllm": {"block_size": 32}, "vllm-v2": {"block_size": 32}}
V2 = "v2_runner.VllmV2Engine"

Load = Callable[..., Engine]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a head width that vLLM's CPU kernels have."""
    tokenizer = make_tokenizer(chat=False, vocabulary=VOCABULARY)
    folder = tmp_path_factory.mktemp("model")
    return make_model(
        folder, tokenizer, seed=0, hidden_size=64, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of attention, MLP and LM head that changes what the model says."""
    import peft

    torch.manual_seed(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    peft.get_peft_model(base, config).save_pretrained(folder)
    return folder


@pytest.fixture(
    scope="module",
    params=["transformers", pytest.param("vllm", marks=needs_vllm), pytest.param("vllm-v2", marks=needs_vllm)],
)
def load(request: pytest.FixtureRequest, model: Path) -> Iterator[Load]:
    """Loads the engine; all that were loaded are closed at the end, one at a time is open."""
    name = request.param
    open_engines: dict[str | None, Engine] = {}

    def load_one(adapter: Path | None = None, *, again: bool = False) -> Engine:
        key = str(adapter) if adapter else None
        if key not in open_engines or again:
            for engine in open_engines.values():
                engine.close()
            open_engines.clear()
            open_engines[key] = class_of(name)(spec(name, model, adapter))
        return open_engines[key]

    yield load_one
    for engine in open_engines.values():
        engine.close()


def class_of(name: str) -> type[Engine]:
    return engine_class(V2 if name == "vllm-v2" else name)


def spec(name: str, model: Path, adapter: Path | None = None) -> EngineSpec:
    return EngineSpec(
        source=resolve(str(model), "--reference"),
        adapter=resolve(str(adapter), "--guidance") if adapter else None,
        dtype=torch.float32,
        device=torch.device("cpu"),
        batch_tokens=512,
        longest=CONTEXT,
        arguments=ARGUMENTS[name],
    )


def naive(model: Any, pair: PairIds) -> PairScores:
    rows = []
    for response in (pair.chosen, pair.rejected):
        ids = torch.from_numpy(np.concatenate([pair.prompt, response])).long()[None]
        with torch.no_grad():
            logps = model(ids).logits[0].float().log_softmax(-1)
        rows.append(logps[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1)[len(pair.prompt) - 1 :].numpy())
    return PairScores(*rows)


def assert_naive(found: list[PairScores], model: Any, pairs: list[PairIds], tolerance: float = 1e-4) -> None:
    assert len(found) == len(pairs)
    for scores, pair in zip(found, pairs, strict=True):
        for ours, expected in zip(scores, naive(model, pair), strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, expected, atol=tolerance)


def make_pairs(*lengths: tuple[int, int, int], seed: int = 0) -> list[PairIds]:
    rng = np.random.default_rng(seed)
    return [PairIds(*(rng.integers(5, VOCABULARY, n).astype(np.int32) for n in each)) for each in lengths]


def score(engine: Engine, pairs: list[PairIds]) -> list[PairScores]:
    counted: list[tuple[int, int]] = []
    found = score_pairs(engine, pairs, lambda *batch: counted.append(batch))
    assert sum(n for n, _ in counted) == len(pairs)
    assert sum(tokens for _, tokens in counted) == sum(pair.tokens for pair in pairs)
    return found


@pytest.fixture(scope="module")
def reference(model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(model).eval()


def test_ragged_batches_in_their_order(load: Load, reference: Any) -> None:
    rng = np.random.default_rng(3)
    pairs = make_pairs(*((int(a), int(b), int(c)) for a, b, c in rng.integers(1, 80, (40, 3))))
    assert_naive(score(load(), pairs), reference, pairs)


def test_one_token_responses_and_prompts(load: Load, reference: Any) -> None:
    pairs = make_pairs((1, 1, 1), (1, 1, 2), (40, 1, 1), (1, 30, 1))
    assert_naive(score(load(), pairs), reference, pairs)


def test_rows_up_to_the_context(load: Load, reference: Any) -> None:
    pairs = make_pairs((1, CONTEXT - 1, 3), (CONTEXT - 1, 1, 1), (128, 128, 100))
    assert_naive(score(load(), pairs), reference, pairs)


@pytest.mark.parametrize("prompt", [31, 32, 33, 64, 96])
def test_prompts_at_the_edge_of_a_cache_block(load: Load, reference: Any, prompt: int) -> None:
    """What is read from a prefix cache never reaches into the response, even where both responses begin alike."""
    pairs = make_pairs((prompt, 20, 50), (prompt, 70, 40), seed=prompt)
    (first, second) = pairs
    alike = PairIds(second.prompt, second.chosen, np.concatenate([second.chosen[:36], second.rejected[:4]]))
    assert_naive(score(load(), [first, alike]), reference, [first, alike])


def test_duplicates(load: Load, reference: Any) -> None:
    """One pair many times, its responses swapped, and the same prompt with others."""
    (pair, other) = make_pairs((64, 32, 40), (64, 9, 70))
    pairs = [pair, pair, PairIds(pair.prompt, pair.rejected, pair.chosen), PairIds(pair.prompt, *other[1:]), pair]
    assert_naive(score(load(), pairs), reference, pairs)


def test_no_pairs(load: Load) -> None:
    assert score(load(), []) == []


def test_two_runs_give_the_same_bytes(load: Load) -> None:
    """Whatever was scored before, and after the model was loaded again."""
    pairs = make_pairs((64, 20, 30), (70, 50, 5), (3, 60, 61))
    first = score(load(), pairs)
    score(load(), make_pairs((64, 33, 3), seed=9) + pairs[:2])
    for again in (score(load(), pairs), score(load(again=True), pairs)):
        assert [(a.tobytes(), b.tobytes()) for a, b in again] == [(a.tobytes(), b.tobytes()) for a, b in first]


def test_an_adapter(load: Load, reference: Any, adapter: Path) -> None:
    import peft

    pairs = make_pairs((10, 20, 30), (64, 3, 8))
    base = transformers.AutoModelForCausalLM.from_pretrained(reference.config._name_or_path)
    adapted = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    engine = load(adapter)
    assert_naive(score(engine, pairs), adapted, pairs)
    assert np.abs(naive(adapted, pairs[0]).chosen - naive(reference, pairs[0]).chosen).max() > 0.1
    if engine.switches_adapter:
        engine.adapter_on = False
        assert_naive(score(engine, pairs), reference, pairs)
        engine.adapter_on = True


def test_half_precision_is_near(load: Load, reference: Any, model: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["load"]
    if name == "vllm-v2":
        pytest.skip("the interpreter of its kernels says nothing about half precision")
    pairs = make_pairs((20, 40, 60), (70, 30, 9))
    engine = class_of(name)(replace(spec(name, model), dtype=torch.bfloat16))
    try:
        assert_naive(score(engine, pairs), reference, pairs, tolerance=1.0)
    finally:
        engine.close()
