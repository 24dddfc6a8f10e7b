"""Preparation as later steps read it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tgdpo.stages.score.folder import OutputFolder
from tgdpo.stages.score.prepare import count_duplicates, read_prepared


@pytest.mark.parametrize(
    "read", [read_prepared, lambda folder: count_duplicates(folder, 3)], ids=["records", "duplicates"]
)
def test_what_another_worker_has_removed_is_not_nothing(read: Callable[[OutputFolder], object], tmp_path: Path) -> None:
    """A run that has ended meanwhile must not look like one without shards, whose manifest would be empty."""
    with pytest.raises(FileNotFoundError):
        read(OutputFolder(tmp_path))
