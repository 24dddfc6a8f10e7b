"""What a plan reckons, against real forwards, real parameters and real files."""

from pathlib import Path

import pytest
import torch
import transformers
from support import STANDARD_ROWS, Models, make_tokenizer, write_rows
from torch.utils.flop_counter import FlopCounterMode

from tgdpo.pipeline.configuration import build
from tgdpo.stages.hardware import GPUS, size_of
from tgdpo.stages.models import resolve
from tgdpo.stages.score.config import ScoreConfig
from tgdpo.stages.score.estimate import Load, Scorer, describe, estimate, gpu_hours, scorer
from tgdpo.stages.score.run import score

SMALL = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def load(**numbers: int) -> Load:
    fields = ("pairs", "prompt_tokens", "chosen_tokens", "rejected_tokens", "attended", "cache_bytes", "work_bytes")
    return Load(**(dict.fromkeys(fields, 0) | numbers), source="")


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**SMALL),
        transformers.Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True),
        transformers.GPTNeoXConfig(**{name: value for name, value in SMALL.items() if "key_value" not in name}),
    ],
    ids=lambda config: config.model_type,
)
def test_flops_are_those_of_a_forward(config: transformers.PretrainedConfig) -> None:
    """torch counts every pair of tokens in attention, also those that the causal mask hides."""
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    T = 20
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, T, dtype=torch.long), use_cache=False)
    biases_and_norms = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    expected = Scorer("a", size_of(model), torch.float32).flops(load(chosen_tokens=T, attended=T * T))
    assert counter.get_total_flops() == pytest.approx(expected - 2 * T * biases_and_norms, rel=0.002)


def test_a_size_without_weights(models: Models) -> None:
    source = resolve(str(models.reference), "--reference")
    real = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
    found = scorer(source, torch.bfloat16)
    assert found == Scorer(source.name, size_of(real), torch.bfloat16)
    assert found.weight_bytes == 2 * sum(parameter.numel() for parameter in real.parameters())


def test_hours_and_cost() -> None:
    """8e9 parameters, 1e9 tokens: 1.6e19 FLOPs, at 40 % of 989e12 FLOP/s 11.2 hours of one GPU."""
    real = transformers.LlamaConfig(**SMALL)
    size = size_of(transformers.AutoModelForCausalLM.from_config(real))
    guide = Scorer("guide", size._replace(active_parameters=8 * 10**9, head=0, attention_width=0), torch.bfloat16)
    hours = gpu_hours(guide.flops(load(prompt_tokens=10**9)), GPUS["H100"], 0.4)
    assert hours == pytest.approx(1.6e19 / (989e12 * 0.4) / 3600)
    config = build(ScoreConfig, {"dataset": "d", "output": "o", "plan": True, "gpu": "h100", "gpus": 4, "gpu_price": 2})
    text = describe(load(prompt_tokens=10**9, pairs=9000), {"reference": guide}, config)
    assert "2.8 hours on 4 x H100" in text
    assert f"{2 * hours:,.2f} at 2 a GPU hour" in text
    assert "2 of 8,192 rows" in text


@pytest.fixture
def config(models: Models, tmp_path: Path) -> ScoreConfig:
    rows = [{**row, "prompt": f"{n}. {row['prompt']}"} for n, row in enumerate(STANDARD_ROWS * 10)]
    return build(
        ScoreConfig,
        {"dataset": str(write_rows(tmp_path / "rows.jsonl", rows)), "reference": str(models.reference),
         "guidance": str(models.guidance), "output": str(tmp_path / "cache"), "pairs_per_shard": 50},
    )  # fmt: skip


def test_a_plan_is_what_the_run_becomes(config: ScoreConfig, tmp_path: Path) -> None:
    text = estimate(config.model_copy(update={"plan": True}))
    assert not Path(config.output).exists()
    manifest = score(config)
    assert manifest is not None
    prompt, chosen, rejected = (
        sum(getattr(shard, f"{part}_tokens") for shard in manifest.shards) for part in ("prompt", "chosen", "rejected")
    )
    assert f"{prompt:,} prompt, {chosen:,} chosen, {rejected:,} rejected" in text
    assert "4 of 50 rows" in text
    assert "200 (200 rows)" in text


def test_a_sample_stands_for_all(config: ScoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from tgdpo.stages.score import estimate as module

    whole = module._sampled_load(module.plan_score(config, weights=False))
    monkeypatch.setattr(module, "SAMPLE", 100)
    sampled = module._sampled_load(module.plan_score(config, weights=False))
    assert sampled.pairs == whole.pairs == 200
    assert sampled.chosen_tokens == pytest.approx(whole.chosen_tokens, rel=0.1)
    assert sampled.cache_bytes == pytest.approx(whole.cache_bytes, rel=0.3)
    assert "tokens from 100 of 200 rows" in sampled.source


def test_prepared_tokens_are_taken_as_they_are(
    config: ScoreConfig, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has prepared and not finished; with other lengths the set is sampled anew."""
    score(config.model_copy(update={"worker": "0/4"}))
    assert "200 (all prepared)" in estimate(config)
    assert "200 (200 rows)" in estimate(config.model_copy(update={"max_length": 30}))


def test_the_tokenizer_is_all_that_is_read(config: ScoreConfig, models: Models, tmp_path: Path) -> None:
    """A folder without weights is enough."""
    for name in ("reference", "guidance"):
        transformers.AutoConfig.from_pretrained(models.reference).save_pretrained(tmp_path / name)
        make_tokenizer(chat=False).save_pretrained(tmp_path / name)
    update = {"reference": str(tmp_path / "reference"), "guidance": str(tmp_path / "guidance")}
    assert "parameters a token" in estimate(config.model_copy(update=update))
