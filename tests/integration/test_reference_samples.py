"""`tgdpo score --reference-samples`, and TDPO from them without the reference."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from support import STANDARD_ROWS, Cli, Models, records_of, write_rows

from tgdpo.data.cache import RewardCache
from tgdpo.data.manifest import Manifest
from tgdpo.data.verify import verify

Score = Callable[..., Path]
COLUMNS = [f"{side}_sampled_{what}" for side in ("chosen", "rejected") for what in ("ids", "ref_logps")]


@pytest.fixture
def score(ok: Cli, models: Models, tmp_path: Path) -> Score:
    """Scores twenty pairs to a folder of this name."""
    rows = write_rows(tmp_path / "pairs.jsonl", STANDARD_ROWS)

    def call(name: str, *options: object) -> Path:
        given = ["--dataset", rows, "--reference", models.reference, "--guidance", models.guidance]
        ok("score", *given, "--output", tmp_path / name, *options)
        return tmp_path / name

    return call


def same(one: Path, other: Path, columns: list[str]) -> bool:
    frames = [pd.read_parquet(cache).sort_values("source_row") for cache in (one, other)]
    return all(np.array_equal(a, b) for name in columns for a, b in zip(*(f[name] for f in frames), strict=True))


def test_they_are_the_references(score: Score, ok: Cli, models: Models) -> None:
    cache = score("cache", "--reference-samples", 3)
    assert "all as the manifest says" in ok("verify", cache).stdout
    frame = pd.read_parquet(cache)
    model = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
    for row in frame.head(4).itertuples():
        for side in ("chosen", "rejected"):
            ids = np.concatenate([row.prompt_ids, getattr(row, f"{side}_ids")])  # type: ignore[arg-type]
            with torch.no_grad():
                logps = model(torch.from_numpy(ids).long()[None]).logits[0].log_softmax(-1)
            at_tokens = logps[len(row.prompt_ids) - 1 : -1].numpy()  # type: ignore[arg-type]
            sampled = getattr(row, f"{side}_sampled_ids").reshape(-1, 3)
            found = getattr(row, f"{side}_sampled_ref_logps").reshape(-1, 3)
            assert len(sampled) == len(getattr(row, f"{side}_ids"))
            np.testing.assert_allclose(found, np.take_along_axis(at_tokens, sampled, 1), atol=1e-4)


def test_they_are_drawn_as_often_as_they_are_likely(score: Score, models: Models) -> None:
    frame = pd.read_parquet(score("cache", "--reference-samples", 256))
    row = frame.iloc[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
    ids = torch.from_numpy(np.concatenate([row.prompt_ids, row.chosen_ids])).long()[None]
    with torch.no_grad():
        expected = model(ids).logits[0, len(row.prompt_ids) - 1 : -1].softmax(-1).numpy().mean(0)
    found = np.bincount(row.chosen_sampled_ids, minlength=len(expected)) / len(row.chosen_sampled_ids)
    noise = np.sqrt(expected / len(row.chosen_sampled_ids))
    assert (np.abs(found - expected) < 5 * noise + 1e-3).all()


def test_they_depend_on_the_pair_alone(ok: Cli, score: Score, models: Models, tmp_path: Path) -> None:
    """Not on packing, on shards, on when they are drawn, nor on what is scored beside."""
    cache = score("cache", "--reference-samples", 2)
    assert same(
        cache, score("other", "--reference-samples", 2, "--batch-tokens", 64, "--pairs-per-shard", 7), COLUMNS[::2]
    )
    ok("score", "--reuse", score("plain"), "--reference-samples", 2, "--output", tmp_path / "later")
    for shard in cache.glob("part-*"):
        assert (tmp_path / "later" / shard.name).read_bytes() == shard.read_bytes()
    ok("score", "--reuse", tmp_path / "later", "--guidance", models.reference, "--output", tmp_path / "kept")
    assert same(cache, tmp_path / "kept", COLUMNS)
    assert Manifest.read(tmp_path / "kept").reference_samples == 2
    assert not verify(RewardCache(tmp_path / "kept"))


def test_bad_calls(run_cli: Cli, score: Score, tmp_path: Path) -> None:
    cache = score("cache", "--reference-samples", 2)
    again = run_cli("score", "--reuse", cache, "--reference-samples", 3, "--output", tmp_path / "new")
    assert "has 2 for each token" in again.error
    call = ["--dataset", tmp_path / "pairs.jsonl", "--reference", Manifest.read(cache).reference, "--engine", "dummy"]
    refused = run_cli("score", *call, "--reference-samples", 3, "--output", tmp_path / "new")
    assert "--engine dummy draws no tokens" in refused.error
    assert not (tmp_path / "new").exists()


def test_verify_counts_them(score: Score) -> None:
    cache = score("cache", "--reference-samples", 2)
    manifest = Manifest.read(cache)
    manifest.model_copy(update={"reference_samples": 3}).write(cache)
    problems = "\n".join(verify(RewardCache(cache)))
    assert "chosen_sampled_ids and chosen_ids differ in length by another factor than 3" in problems
    assert "rejected_sampled_ref_logps and rejected_ids differ" in problems
    assert pq.read_schema(next(cache.glob("part-*"))).equals(RewardCache(cache).schema)


@pytest.mark.parametrize("loss", ["tdpo1", "tdpo2"])
def test_tdpo_without_the_reference_is_near_the_exact_one(
    loss: str, ok: Cli, score: Score, models: Models, tmp_path: Path
) -> None:
    caches = {count: score(f"cache-{count}", "--reference-samples", count) for count in (2, 256)}
    train = ["train", "--loss", loss, "--model", models.reference, "--learning-rate", 3e-3, "--batch-size", 4,
             "--logging-steps", 1, "--eval-fraction", 0.4, "--batch-tokens", 128]  # fmt: skip
    exact = ok(*train, "--cache", caches[2], "--reference", models.reference, "--output", tmp_path / "exact")
    assert "stays in memory" in exact.stderr
    records = {"exact": records_of(tmp_path / "exact")}
    for count, cache in caches.items():
        estimated = ok(*train, "--cache", cache, "--output", tmp_path / str(count))
        assert "stays in memory" not in estimated.stderr
        records[str(count)] = records_of(tmp_path / str(count))
    assert records["256"][0]["eval_loss"] == pytest.approx(np.log(2), abs=1e-5)
    last = {name: lines[-1]["eval_loss"] for name, lines in records.items()}
    assert abs(last["256"] - last["exact"]) < 0.01 * (np.log(2) - last["exact"])


def test_an_adapter_is_trained_from_them(ok: Cli, score: Score, models: Models, tmp_path: Path) -> None:
    """Also one on the head itself, which makes its logits in another way."""
    cache = score("cache", "--reference-samples", 4)
    options = ["--lora-rank", 2, "--lora-target-modules", "lm_head", "--learning-rate", 1e-2, "--batch-size", 4]
    ok("train", "--loss", "tdpo1", "--kl", "estimate", "--cache", cache, "--model", models.reference, "--output",
       tmp_path / "run", *options, "--logging-steps", 1, "--epochs", 3)  # fmt: skip
    records = records_of(tmp_path / "run")
    assert records[-1]["loss"] < 0.9 * records[0]["loss"]


def test_what_is_chosen_is_said(ok: Cli, score: Score, models: Models, tmp_path: Path) -> None:
    cache = score("cache", "--reference-samples", 2)
    train = ["train", "--loss", "tdpo2", "--cache", cache, "--model", models.reference, "--max-steps", 1]
    given = ok(*train, "--kl", "estimate", "--reference", models.reference, "--output", tmp_path / "run")
    assert "--reference does nothing with --kl estimate" in given.stderr
    plans = [ok(*train, "--output", tmp_path / "none", "--plan", *more).stdout for more in ([], ["--reference", "r"])]
    assert ["reference" in plan for plan in plans] == [False, True]
