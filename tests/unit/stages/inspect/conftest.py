"""A cache of random rows that is larger than the sample."""

from pathlib import Path
from typing import Any

import pytest
from caches import Row, random_rows, write_cache
from support import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer of 400 ids."""
    return make_tokenizer(chat=False)


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    """More than 32 row groups of 512."""
    return random_rows(40 * 512 - 100)


@pytest.fixture(scope="session")
def folder(rows: list[Row], tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of `rows`."""
    return write_cache(tmp_path_factory.mktemp("large") / "cache", rows, tokenizer)
