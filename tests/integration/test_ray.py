"""`tgdpo score --launcher ray` with the real Ray; `make test-ray` runs these."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import STANDARD_ROWS, Cli, Models, write_rows

from tgdpo.stages.console import warn  # noqa: F401

ray = pytest.importorskip("ray", reason="ray is not installed; make test-ray sets it up")

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two CPUs for all tests, found by its address."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    yield


class Run:
    """`tgdpo score --launcher ray` as a process of its own, with the engine that needs no model."""

    def __init__(self, tmp_path: Path, models: Models, pairs_per_shard: int) -> None:
        rows = [{**row, "prompt": f"{n}. {row['prompt']}"} for n, row in enumerate(STANDARD_ROWS * 3)]
        self.call = ["score", "--dataset", str(write_rows(tmp_path / "rows.jsonl", rows)), "--reference",
                     str(models.reference), "--guidance", str(models.guidance), "--engine", "slow_engine.SlowEngine",
                     "--pairs-per-shard", str(pairs_per_shard)]  # fmt: skip
        self.log = tmp_path / "engine.log"

    def start(self, cache: Path, *options: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "tgdpo", *self.call, "--output", str(cache), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
                "OMP_NUM_THREADS": "1",
                "SLOW_ENGINE_LOG": str(self.log),
                **environment,
            },
        )

    def events(self) -> list[tuple[int, str, str]]:
        """Process, event and model of everything that the engines noted."""
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [(int(line.split()[0]), *line.split()[1:]) for line in lines]  # type: ignore[misc]


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def published(cache: Path) -> dict[str, Any]:
    """Every byte of a finished cache but the time in its manifest."""
    files: dict[str, Any] = {path.name: path.read_bytes() for path in cache.iterdir() if path.name != "_manifest.json"}
    manifest = json.loads((cache / "_manifest.json").read_text())
    manifest.pop("created")
    return files | {"_manifest.json": manifest}


def test_a_worker_killed_in_the_middle_of_a_shard(ok: Cli, models: Models, tmp_path: Path) -> None:
    """24 shards over two workers: every shard is there once, with the bytes of a run without Ray."""
    run = Run(tmp_path, models, 3)
    rows = STANDARD_ROWS * 3 + STANDARD_ROWS[:12]
    write_rows(tmp_path / "rows.jsonl", [{**row, "prompt": f"{n}. {row['prompt']}"} for n, row in enumerate(rows)])
    assert finish(run.start(tmp_path / "alone"))[0] == 0
    run.log.unlink()
    process = run.start(tmp_path / "cache", "--launcher", "ray", "--workers", "2", SLOW_ENGINE_SECONDS="0.3")
    deadline = time.monotonic() + 120
    while len(run.events()) < 12:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim = run.events()[-1][0]
    os.kill(victim, signal.SIGKILL)
    code, stdout, stderr = finish(process)
    assert code == 0, stderr
    assert "72 pairs scored, 0 set aside" in stdout
    assert "death 1 of 3" in stderr or "died without a shard" in stderr
    assert published(tmp_path / "cache") == published(tmp_path / "alone")
    ok("verify", tmp_path / "cache")
    scored = Counter(model for _, event, model in run.events() if event == "scored")
    assert 24 <= scored["reference"] <= 25
    assert 24 <= scored["guidance"] <= 25
    first = {model: [event[1:] for event in run.events()].index(("score", model)) for model in scored}
    last_reference = max(i for i, event in enumerate(run.events()) if event[1:] == ("scored", "reference"))
    assert first["guidance"] < last_reference, "the passes did not overlap"


def test_a_poison_shard_is_named_and_the_rest_is_kept(models: Models, tmp_path: Path) -> None:
    run = Run(tmp_path, models, 10)
    rows = [{**row, "prompt": f"{n}. {row['prompt']}"} for n, row in enumerate(STANDARD_ROWS * 2)]
    rows[25]["chosen"] = " one two three four five six seven eight nine ten"
    write_rows(tmp_path / "rows.jsonl", rows)
    tokens = 0
    process = run.start(tmp_path / "cache", "--launcher", "ray", "--workers", "1", "--limit", "30")
    assert finish(process)[0] == 0
    import pyarrow.parquet as pq

    for path in (tmp_path / "cache").glob("part-*"):
        table = pq.read_table(path, columns=["source_row", "chosen_ids"]).to_pydict()
        for row, ids in zip(table["source_row"], table["chosen_ids"], strict=True):
            tokens = len(ids) if row == 25 else tokens
    process = run.start(tmp_path / "other", "--launcher", "ray", "--workers", "2", SLOW_ENGINE_POISON=str(tokens))
    code, _, stderr = finish(process)
    assert code == 1
    assert "shard 2 (source rows 20 to 29) let 3 workers die" in stderr.splitlines()[-1]
    assert finish(run.start(tmp_path / "other"))[0] == 0
