"""Scores against a naive forward: one sequence at a time, all logits, float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from support import Cli, Models, make_model, make_tokenizer, write_rows


def naive_logps(model: Any, prompt: np.ndarray, response: np.ndarray) -> np.ndarray:
    """log pi(y_t | x, y_<t) of every response token."""
    ids = torch.from_numpy(np.concatenate([prompt, response])).long()[None]
    with torch.no_grad():
        logps = model(ids).logits[0].float().log_softmax(-1)
    picked = logps[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1)
    return picked[len(prompt) - 1 :].numpy()


def assert_scores_are_naive(cache: Path, reference: Path, guidance: Path, *, tolerance: float) -> pd.DataFrame:
    frame = pd.read_parquet(cache)
    ref, guide = (transformers.AutoModelForCausalLM.from_pretrained(path) for path in (reference, guidance))
    for row in frame.itertuples():
        for side in ("chosen", "rejected"):
            ids = getattr(row, f"{side}_ids")
            expected_ref = naive_logps(ref, row.prompt_ids, ids)  # type: ignore[arg-type]
            expected_guide = naive_logps(guide, row.prompt_ids, ids)  # type: ignore[arg-type]
            np.testing.assert_allclose(getattr(row, f"{side}_ref_logps"), expected_ref, atol=tolerance)
            np.testing.assert_allclose(
                getattr(row, f"{side}_rewards"), expected_guide - expected_ref, atol=2 * tolerance
            )
    return frame


def test_small_models(ok: Cli, models: Models, pairs_file: Path, tmp_path: Path) -> None:
    ok("score", "--dataset", pairs_file, "--reference", models.reference, "--guidance", models.guidance,
       "--output", tmp_path / "cache", "--batch-tokens", 100)  # fmt: skip
    assert_scores_are_naive(tmp_path / "cache", models.reference, models.guidance, tolerance=1e-5)


def test_real_pairs_on_a_pretrained_model(ok: Cli, shared: Path, tmp_path: Path) -> None:
    reference = shared / "models" / "stories260K"
    model = transformers.AutoModelForCausalLM.from_pretrained(reference)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.02 * parameter.std() * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "guidance")
    ok("score", "--dataset", shared / "data" / "stories_test.jsonl", "--reference", reference,
       "--guidance", tmp_path / "guidance", "--output", tmp_path / "cache")  # fmt: skip
    frame = assert_scores_are_naive(tmp_path / "cache", reference, tmp_path / "guidance", tolerance=1e-4)
    assert len(frame) == 401
    assert all(ids[-1] == 2 for ids in frame.chosen_ids)
    assert all(ids[0] == 1 for ids in frame.prompt_ids)


@pytest.mark.parametrize(
    "config",
    [
        transformers.Gemma2Config(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, final_logit_softcapping=5.0, sliding_window=8, query_pre_attn_scalar=8,
        ),
        transformers.CohereConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, logit_scale=0.3
        ),
        transformers.GraniteConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, logits_scaling=3.0
        ),
        transformers.Qwen2Config(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
        transformers.GPTNeoXConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4),
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_architectures(config: Any, ok: Cli, pairs_file: Path, tmp_path: Path) -> None:
    """Logit caps and scales, tied heads, sliding windows, learned positions."""
    tokenizer = make_tokenizer(chat=False)
    config.update({"vocab_size": len(tokenizer), "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2})
    for seed, name in enumerate(("reference", "guidance")):
        torch.manual_seed(seed)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    result = ok("score", "--dataset", pairs_file, "--reference", tmp_path / "reference",
                "--guidance", tmp_path / "guidance", "--output", tmp_path / "cache")  # fmt: skip
    assert "full logits" not in result.stderr
    assert_scores_are_naive(tmp_path / "cache", tmp_path / "reference", tmp_path / "guidance", tolerance=1e-5)


def test_a_token_classifier_gives_its_output_as_reward(
    ok: Cli, models: Models, pairs_file: Path, tmp_path: Path
) -> None:
    config = transformers.AutoConfig.from_pretrained(models.reference, num_labels=1)
    torch.manual_seed(0)
    reward_model = transformers.LlamaForTokenClassification(config).eval()
    reward_model.save_pretrained(tmp_path / "rewards")
    ok("score", "--dataset", pairs_file, "--reference", models.reference, "--guidance", tmp_path / "rewards",
       "--output", tmp_path / "cache")  # fmt: skip
    frame = pd.read_parquet(tmp_path / "cache")
    for row in frame.itertuples():
        ids = np.concatenate([row.prompt_ids, row.rejected_ids])  # type: ignore[arg-type]
        with torch.no_grad():
            rewards = reward_model(torch.from_numpy(ids).long()[None]).logits[0, :, 0].numpy()
        np.testing.assert_allclose(row.rejected_rewards, rewards[len(row.prompt_ids) :], atol=1e-5)  # type: ignore[arg-type]


def test_no_guidance_gives_zero_rewards(ok: Cli, models: Models, pairs_file: Path, tmp_path: Path) -> None:
    ok("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "cache")
    frame = pd.read_parquet(tmp_path / "cache")
    assert all((rewards == 0).all() for rewards in frame.chosen_rewards)
    assert all((logps < 0).all() for logps in frame.chosen_ref_logps)


def test_shards_and_budget_do_not_change_scores(ok: Cli, models: Models, pairs_file: Path, tmp_path: Path) -> None:
    frames = []
    for name, options in (("one", ["--batch-tokens", 4096]), ("many", ["--batch-tokens", 1, "--pairs-per-shard", 7])):
        ok("score", "--dataset", pairs_file, "--reference", models.reference, "--guidance", models.guidance,
           "--output", tmp_path / name, *options)  # fmt: skip
        frames.append(pd.read_parquet(tmp_path / name))
    assert len(list((tmp_path / "many").glob("part-*-of-00003.parquet"))) == 3
    assert list(frames[0].pair_id) == list(frames[1].pair_id)
    for column in ("chosen_ref_logps", "chosen_rewards", "rejected_ref_logps", "rejected_rewards"):
        np.testing.assert_allclose(np.concatenate(frames[0][column]), np.concatenate(frames[1][column]), atol=1e-5)


def test_scores_that_are_not_finite_in_half_precision_are_computed_again(
    ok: Cli, pairs_file: Path, tmp_path: Path
) -> None:
    """float16 overflows inside this model; its scores come out as in float32."""
    tokenizer = make_tokenizer(chat=False)
    folder = make_model(tmp_path / "model", tokenizer, seed=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.model.layers[0].mlp.up_proj.weight.data *= 3e3
    model.model.layers[0].mlp.down_proj.weight.data *= 3e3
    model.save_pretrained(folder)
    frames = []
    for dtype in ("float16", "float32"):
        ok("score", "--dataset", pairs_file, "--reference", folder, "--output", tmp_path / dtype, "--dtype", dtype)
        frames.append(pd.read_parquet(tmp_path / dtype))
    half, full = (np.concatenate(frame.chosen_ref_logps) for frame in frames)
    assert len(half) == len(full)
    np.testing.assert_allclose(half, full, atol=0.1)


def test_pairs_without_a_finite_score_are_set_aside(ok: Cli, run_cli: Cli, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat=False)
    folder = make_model(tmp_path / "model", tokenizer, seed=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.model.embed_tokens.weight.data[tokenizer("Q", add_special_tokens=False).input_ids[0]] = float("nan")
    model.save_pretrained(folder)
    rows = [{"prompt": "x:", "chosen": f"{n} Q" if n == 3 else f"{n} a", "rejected": f"{n} b"} for n in range(10)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    call = ("score", "--dataset", data, "--reference", folder, "--output", tmp_path / "cache")
    refused = run_cli(*call)
    assert refused.code == 1
    assert "1 of 10 rows" in refused.error
    assert "non-finite score" in refused.error
    assert "--max-set-aside 0.1" in refused.error
    ok(*call, "--max-set-aside", 0.1)
    assert list(pd.read_parquet(tmp_path / "cache").source_row) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert '"source_row":3' in (tmp_path / "cache" / "_set_aside.jsonl").read_text()
    ok("verify", tmp_path / "cache")
