"""A finished cache to read."""

import shutil
from pathlib import Path

import pytest
from support import STANDARD_ROWS, Models, write_rows

from tgdpo import RewardCache, ScoreConfig, score


@pytest.fixture(scope="session")
def finished(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pairs in shards of 8, 8 and 4, one row set aside. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [*STANDARD_ROWS[:3], STANDARD_ROWS[0] | {"chosen": ""}, *STANDARD_ROWS[3:]]
    config = ScoreConfig(
        dataset=str(write_rows(folder / "pairs.jsonl", rows)),
        reference=str(models.reference),
        guidance=str(models.guidance),
        output=str(folder / "cache"),
        pairs_per_shard=8,
        max_set_aside=0.1,
    )
    score(config)
    return folder / "cache"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the cache, to do anything to."""
    return shutil.copytree(finished, tmp_path / "cache")


@pytest.fixture
def cache(finished: Path) -> RewardCache:
    """The cache, to read."""
    return RewardCache(finished)
