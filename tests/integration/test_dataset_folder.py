"""A folder as the preference set: what a run writes below it is no data."""

from pathlib import Path

import pandas as pd
import pytest
from support import CHAT_ROWS, STANDARD_ROWS, Cli, Models, write_rows

from tgdpo.data.manifest import Manifest


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file of twenty pairs, in the present one."""
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data/pairs.jsonl", STANDARD_ROWS)
    monkeypatch.chdir(tmp_path)
    return Path("data")


def test_outputs_below_it_are_not_read(data: Path, ok: Cli, models: Models) -> None:
    score = ["score", "--dataset", data, "--reference", models.reference]
    first = ok(*score, "--output", "data/first")
    assert "data: 1 file (pairs.jsonl), split train\n" in first.stderr
    assert "finished already" in ok(*score, "--output", "data/first").stderr
    ok("train", "--cache", "data/first", "--model", models.reference, "--output", "data/run", "--max-steps", 1,
       "--loss", "dpo")  # fmt: skip
    second = ok(*score, "--guidance", models.guidance, "--output", "data/second")
    assert "not read in data: first (a finished output of tgdpo), run (a training run)\n" in second.stderr
    assert len(pd.read_parquet("data/second")) == len(STANDARD_ROWS)
    assert Manifest.read(data / "second").counts.read == len(STANDARD_ROWS)


def test_an_unfinished_cache_below_it_is_finished(data: Path, ok: Cli, models: Models) -> None:
    score = ["score", "--dataset", data, "--reference", models.reference, "--pairs-per-shard", 5]
    ok(*score, "--output", "data/cache", "--worker", "0/2")
    assert (data / "cache/_work").is_dir()
    ok(*score, "--output", "data/cache", "--worker", "1/2")
    ok(*score, "--output", "elsewhere")
    below, elsewhere = (Manifest.read(Path(folder)) for folder in ("data/cache", "elsewhere"))
    assert below.shards == elsewhere.shards
    assert below.fingerprint == elsewhere.fingerprint


def test_what_is_read_is_said_with_the_plan(data: Path, ok: Cli, models: Models) -> None:
    write_rows(data / "more.jsonl", STANDARD_ROWS)
    planned = ok("score", "--dataset", data, "--reference", models.reference, "--output", "cache", "--plan")
    assert "data: 2 files (more.jsonl, pairs.jsonl), split train\n" in planned.stderr


def test_columns_for_the_template_are_named_once(tmp_path: Path, ok: Cli, chat_models: Models) -> None:
    rows = write_rows(tmp_path / "a.jsonl", [row | {"tools": [], "messages": []} for row in CHAT_ROWS])
    scored = ok("score", "--dataset", rows, "--reference", chat_models.reference, "--output", tmp_path / "cache",
                "--pairs-per-shard", 4)  # fmt: skip
    assert scored.stderr.count("column tools: given to the chat template\n") == 1
    assert "variables of these names" not in scored.stderr
