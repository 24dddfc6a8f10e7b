"""The forward pass against full logits: values, gradients, chunks, adapters, and models whose head is special."""

import copy
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as torch_flex

from tgdpo.data.packing import Layout, collate
from tgdpo.data.tokenization import PairIds
from tgdpo.stages import flex, head, logps
from tgdpo.stages.attention import SHARED_PROMPT, SHARED_PROMPT_FLEX
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


def forward(model: Any, pairs: list[PairIds], layout: Layout | None = None) -> torch.Tensor:
    wrapped = ResponseLogps(model, layout)
    return wrapped(to_device(collate(pairs, wrapped.layout), torch.device("cpu")))  # type: ignore[no-any-return]


COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.2}
SMALL = COMMON | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SMALL | {"num_key_value_heads": 2}
PACKED_CONFIGS = [
    transformers.LlamaConfig(**GROUPED),
    transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True, attention_bias=True),
    transformers.Qwen2Config(**GROUPED),
    transformers.Qwen3Config(**GROUPED, head_dim=8),
    transformers.MistralConfig(**GROUPED, sliding_window=5),
    transformers.GemmaConfig(**GROUPED, head_dim=8),
    transformers.Gemma2Config(
        **GROUPED, head_dim=8, sliding_window=4, attn_logit_softcapping=3.0, final_logit_softcapping=5.0,
        query_pre_attn_scalar=8,
    ),
    transformers.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=4),
    transformers.GPTNeoXConfig(**SMALL),
    transformers.GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4),
    transformers.CohereConfig(**GROUPED, logit_scale=0.3),
    transformers.GraniteConfig(**GROUPED, logits_scaling=3.0),
    transformers.Phi3Config(**GROUPED, pad_token_id=0),
]  # fmt: skip
PADDED_CONFIGS = [
    transformers.MambaConfig(**COMMON, hidden_size=32, num_hidden_layers=2, state_size=4),
    transformers.BloomConfig(**COMMON, hidden_size=32, n_layer=2, n_head=4),
    transformers.GptOssConfig(
        **GROUPED, head_dim=8, sliding_window=4, num_local_experts=2, num_experts_per_tok=1, pad_token_id=0
    ),
]  # fmt: skip


def make(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()


def shown(config: Any) -> str:
    return str(config.model_type)


@pytest.fixture(scope="module", params=PACKED_CONFIGS, ids=shown)
def packed_model(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A model in its plain form, and the same wrapped."""
    return make(request.param), ResponseLogps(make(request.param))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=pairs_strategy)
def test_packed_pairs_score_as_one_sequence_at_a_time(
    packed_model: tuple[Any, ResponseLogps], pairs: list[PairIds]
) -> None:
    plain, wrapped = packed_model
    assert wrapped.layout == "packed"
    with torch.no_grad():
        found = wrapped(to_device(collate(pairs, wrapped.layout), torch.device("cpu")))
        torch.testing.assert_close(found, naive(plain, pairs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", PADDED_CONFIGS, ids=shown)
def test_layers_that_cannot_run_a_packed_row_are_found_out(config: Any) -> None:
    wrapped = ResponseLogps(make(config))
    assert wrapped.layout == "padded"
    assert wrapped.fallbacks == ["its layers cannot run packed pairs, so rows are padded"]
    pairs = [PairIds(*(np.arange(n, dtype=np.int32) for n in lengths)) for lengths in ((4, 6, 5), (9, 1, 2))]
    with torch.no_grad():
        found = wrapped(to_device(collate(pairs, wrapped.layout), torch.device("cpu")))
        torch.testing.assert_close(found, naive(make(config), pairs), atol=1e-5, rtol=0)


@pytest.fixture
def cuda_attentions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA tries first, without its compiler."""
    monkeypatch.setattr(logps, "_attentions", lambda _: [SHARED_PROMPT_FLEX, SHARED_PROMPT])
    monkeypatch.setattr(flex, "_compiled", lambda: torch_flex.flex_attention)


@pytest.mark.usefixtures("cuda_attentions")
@pytest.mark.parametrize("config", PACKED_CONFIGS, ids=shown)
def test_flex_attention_scores_as_one_sequence_at_a_time(config: Any) -> None:
    wrapped = ResponseLogps(make(config).requires_grad_(False))
    assert wrapped.model.config._attn_implementation == SHARED_PROMPT_FLEX
    rng = np.random.default_rng(0)
    pairs = [PairIds(*(rng.integers(0, VOCABULARY, n).astype(np.int32) for n in (5, 9, 3))) for _ in range(3)]
    with torch.no_grad():
        found = wrapped(to_device(collate(pairs, wrapped.layout), torch.device("cpu")))
        torch.testing.assert_close(found, naive(make(config), pairs), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("cuda_attentions")
def test_flex_attention_is_tried_on_a_row_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of one block is compiled apart, and says little about longer ones. On a CPU a few tokens do."""
    tokens: list[int] = []
    original = ResponseLogps.forward

    def counted(self: ResponseLogps, batch: Any) -> torch.Tensor:
        tokens.append(batch.input_ids.numel())
        return original(self, batch)

    monkeypatch.setattr(ResponseLogps, "forward", counted)
    ResponseLogps(llama().requires_grad_(False))
    assert min(tokens) > 2 * flex.BLOCK
    tokens.clear()
    monkeypatch.setattr(logps, "_attentions", lambda _: [SHARED_PROMPT])
    ResponseLogps(llama().requires_grad_(False))
    assert max(tokens) < flex.BLOCK / 2


@pytest.mark.usefixtures("cuda_attentions")
def test_without_a_backward_flex_attention_is_not_trained_with(capsys: pytest.CaptureFixture[str]) -> None:
    """It has none on a CPU."""
    wrapped = ResponseLogps(llama())
    assert wrapped.layout == "packed"
    assert wrapped.model.config._attn_implementation == SHARED_PROMPT
    assert "FlexAttention does not run here" in capsys.readouterr().err


def test_padded_rows_that_were_asked_for_are_no_fallback() -> None:
    wrapped = ResponseLogps(llama(), "padded")
    assert (wrapped.layout, wrapped.fallbacks) == ("padded", [])


@settings(deadline=None, max_examples=40)
@given(pairs_strategy)
def test_padded_pairs_score_as_one_sequence_at_a_time(pairs: list[PairIds]) -> None:
    with torch.no_grad():
        torch.testing.assert_close(forward(MODEL, pairs, "padded"), naive(MODEL, pairs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", PACKED_CONFIGS, ids=shown)
@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_gradients(config: Any, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through blocks and slices of any size, for every parameter."""
    monkeypatch.setattr(head, "CPU_BLOCK_BYTES", 4 * rows * VOCABULARY)
    monkeypatch.setattr(head, "CPU_SLICE_BYTES", 4 * 2 * VOCABULARY)
    rng = np.random.default_rng(0)
    pairs = [PairIds(*(rng.integers(0, VOCABULARY, n).astype(np.int32) for n in (5, 7, 3))) for _ in range(3)]
    gradients = []
    for compute in (forward, naive):
        model = make(config)
        (compute(model, pairs) * torch.linspace(-1, 1, 30)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[1].items():
        if expected is None:
            continue
        assert (gradients[0][name] - expected).norm() <= 1e-5 * expected.norm() + 1e-7, name


def test_an_adapter_on_body_and_head() -> None:
    model = peft.get_peft_model(
        llama(), peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    )
    pairs = [PairIds(*(np.arange(n, dtype=np.int32) for n in (4, 6, 5)))]
    wrapped = ResponseLogps(model)
    assert wrapped.runs_head_apart
    with torch.no_grad():
        batch = to_device(collate(pairs, wrapped.layout), torch.device("cpu"))
        adapted = wrapped(batch)
        with model.disable_adapter():
            assert not torch.allclose(wrapped(batch), adapted, atol=1e-3)
        model.get_base_model().set_attn_implementation("sdpa")
        torch.testing.assert_close(adapted, naive(model, pairs), atol=1e-5, rtol=0)


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
        found = wrapped(to_device(collate(pairs, wrapped.layout), torch.device("cpu")))
        expected = naive(lambda ids: model(input_ids=ids), pairs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_half_precision_has_a_float32_log_softmax() -> None:
    pairs = [PairIds(*(np.arange(n, dtype=np.int32) for n in (4, 6, 5)))]
    model = llama().to(torch.bfloat16)
    with torch.no_grad():
        found = forward(llama().to(torch.bfloat16), pairs)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, naive(model, pairs), atol=2e-2, rtol=0)
    # More digits than bfloat16 has.
    assert not torch.equal(found, found.bfloat16().float())
