"""From a preference file to a trained policy through the command line."""

import json
from pathlib import Path

import transformers
from support import Cli, Models


def test_scores_then_trains(ok: Cli, models: Models, pairs_file: Path, tmp_path: Path) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    scored = ok(
        "score", "--dataset", pairs_file, "--reference", models.reference, "--guidance", models.guidance,
        "--output", cache,
    )  # fmt: skip
    assert scored.stdout == f"{cache}: 20 pairs scored, 0 set aside\n"
    ok("verify", cache)
    ok("train", "--cache", cache, "--model", models.reference, "--output", run, "--batch-size", 4)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 5]
    assert abs(records[0]["loss"] - 0.6931471805599453) < 1e-5
    transformers.AutoModelForCausalLM.from_pretrained(run)
    transformers.AutoTokenizer.from_pretrained(run)
