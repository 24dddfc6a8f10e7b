"""The forward pass against full logits: values, gradients, chunks, adapters, and models whose head is special."""

from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tgdpo.data.packing import collate
from tgdpo.data.tokenization import PairIds
from tgdpo.stages import logps
from tgdpo.stages.logps import ResponseLogps, to_device

VOCABULARY = 61


def llama(**config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.2, **config,
        )
    )  # fmt: skip


MODEL = llama()


def naive(model: Any, pairs: list[PairIds]) -> torch.Tensor:
    """One sequence at a time, all logits."""
    parts = []
    for pair in pairs:
        for response in (pair.chosen, pair.rejected):
            ids = torch.from_numpy(np.concatenate([pair.prompt, response])).long()[None]
            rows = model(ids).logits[0].float().log_softmax(-1)[len(pair.prompt) - 1 : -1]
            parts.append(rows.gather(-1, torch.from_numpy(response).long()[:, None]).squeeze(-1))
    return torch.cat(parts)


_ids = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12).map(lambda ids: np.array(ids, np.int32))
pairs_strategy = st.lists(st.builds(PairIds, prompt=_ids, chosen=_ids, rejected=_ids), min_size=1, max_size=4)


def forward(model: Any, pairs: list[PairIds]) -> torch.Tensor:
    return ResponseLogps(model)(to_device(collate(pairs, pad_id=0), torch.device("cpu")))  # type: ignore[no-any-return]


@settings(deadline=None, max_examples=40)
@given(pairs_strategy)
def test_ragged_batches(pairs: list[PairIds]) -> None:
    with torch.no_grad():
        torch.testing.assert_close(forward(MODEL, pairs), naive(MODEL, pairs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 10_000])
def test_gradients_through_chunks(tied: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logps, "LOGITS_PER_CHUNK", rows * VOCABULARY)
    rng = np.random.default_rng(0)
    pairs = [PairIds(*(rng.integers(0, VOCABULARY, n).astype(np.int32) for n in (5, 7, 3))) for _ in range(3)]
    gradients = []
    for compute in (forward, naive):
        model = llama(tie_word_embeddings=tied)
        (compute(model, pairs) * torch.linspace(-1, 1, 30)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[1].items():
        assert (gradients[0][name] - expected).norm() <= 1e-5 * expected.norm(), name


def test_an_adapter_on_body_and_head() -> None:
    model = peft.get_peft_model(
        llama(), peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    )
    pairs = [PairIds(*(np.arange(n, dtype=np.int32) for n in (4, 6, 5)))]
    wrapped = ResponseLogps(model)
    assert wrapped.runs_head_apart
    with torch.no_grad():
        adapted = forward(model, pairs)
        torch.testing.assert_close(adapted, naive(model, pairs), atol=1e-5, rtol=0)
        with model.disable_adapter():
            assert not torch.allclose(forward(model, pairs), adapted, atol=1e-3)


class Louder(torch.nn.Module):
    """A head that the forward pass knows nothing of."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, **inputs: Any) -> Any:
        output = self.inner(**inputs)
        output.logits = output.logits * 2
        return output


def test_a_head_that_is_not_understood_is_detected() -> None:
    model = Louder(MODEL)
    wrapped = ResponseLogps(model)
    assert not wrapped.runs_head_apart
    pairs = [PairIds(*(np.arange(n, dtype=np.int32) for n in (4, 6, 5)))]
    with torch.no_grad():
        found = wrapped(to_device(collate(pairs, pad_id=0), torch.device("cpu")))
        expected = naive(lambda ids: model(input_ids=ids), pairs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_half_precision_has_a_float32_log_softmax() -> None:
    pairs = [PairIds(*(np.arange(n, dtype=np.int32) for n in (4, 6, 5)))]
    model = llama().to(torch.bfloat16)
    with torch.no_grad():
        found = forward(model, pairs)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, naive(model, pairs), atol=2e-2, rtol=0)
    # More digits than bfloat16 has.
    assert not torch.equal(found, found.bfloat16().float())
