"""What the fault tests share: a scoring run to disturb, and counts of what was tried."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scoring import Scoring, Tried
from support import STANDARD_ROWS, Models, write_rows


@pytest.fixture(scope="session")
def scoring(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Scoring:
    """Four shards; the engine needs no model, so that a run is over in half a second."""
    return undisturbed(models, tmp_path_factory.mktemp("faults"), "--pairs-per-shard", 10)


@pytest.fixture(scope="session")
def small_scoring(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Scoring:
    """Two shards."""
    return undisturbed(models, tmp_path_factory.mktemp("faults"), "--pairs-per-shard", 10, "--limit", 20)


def undisturbed(models: Models, folder: Path, *options: object) -> Scoring:
    """A run on forty rows, two of which are set aside."""
    rows = [{**row, "prompt": f"{n}. {row['prompt']}"} for n, row in enumerate(STANDARD_ROWS * 2)]
    rows[17]["chosen"] = " "
    rows[31]["prompt"] = ""
    words = ("score", "--dataset", write_rows(folder / "rows.jsonl", rows), "--reference", models.reference,
             "--guidance", models.guidance, "--max-set-aside", 0.1, "--engine", "dummy",
             "--engine-arg", "seconds_per_token=5e-5", *options)  # fmt: skip
    for output in (folder / "first", folder / "whole"):  # the first starts the server of processes too
        start = time.monotonic()
        run = Scoring(words, folder / "log", output, 0)
        done = run.start(output)
        assert done.wait() == [0], done.output
    return replace(run, seconds=time.monotonic() - start)


@pytest.fixture
def copy(scoring: Scoring, tmp_path: Path) -> Path:
    """A copy of the finished cache, to be damaged."""
    return shutil.copytree(scoring.whole, tmp_path / "copy")


@pytest.fixture
def chance() -> random.Random:
    """The same numbers in every run of a test."""
    return random.Random(0)


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Tried:
    """Notes how often something was tried; the counts stand at the end of pytest's output."""
    return lambda what, count: record_property("tried", (what, count))
