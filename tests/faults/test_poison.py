"""A pair that ends the process of an engine which has none of its own."""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from processes import launch
from support import STANDARD_ROWS, Models, write_rows

from tgdpo.data.cache import load_cache

ENGINE = ("--engine", "slow_engine.SlowEngine", "--pairs-per-shard", 5, "--max-set-aside", 0.2)


@pytest.mark.parametrize("guided", [False, True], ids=["reference", "with guidance"])
def test_is_found_at_the_third_start_and_set_aside(guided: bool, models: Models, tmp_path: Path) -> None:
    settings, log = tmp_path / "settings.json", tmp_path / "log"
    call = ("score", "--dataset", write_rows(tmp_path / "rows.jsonl", STANDARD_ROWS), "--reference", models.reference,
            *(("--guidance", models.guidance) if guided else ()), *ENGINE)  # fmt: skip

    def run(output: str) -> int:
        environment = {"SLOW_ENGINE_SETTINGS": str(settings)}
        return launch(*call, "--output", tmp_path / output, log=log, environment=environment).wait()[0]

    settings.write_text("{}")
    assert run("whole") == 0, log.read_text()
    whole = load_cache(tmp_path / "whole").to_pandas()
    lengths = whole.chosen_ids.map(len)
    poison = next(length for length, count in Counter(lengths).items() if count == 1)

    settings.write_text(json.dumps({"poison": poison}))
    assert [run("cache"), run("cache")] == [-signal.SIGKILL] * 2
    assert run("cache") == 0, log.read_text()
    assert "2 processes died at one shard" in log.read_text()
    cache = load_cache(tmp_path / "cache")
    assert cache.manifest.counts.set_aside == 1
    left = whole[lengths != poison].reset_index(drop=True)
    assert cache.to_pandas().to_json() == left.to_json()
