"""The reward cache: a contract that other tools read without this package."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from support import STANDARD_ROWS, make_tokenizer

import tgdpo
from tgdpo.data.cache import RewardCache
from tgdpo.data.schema import METADATA_KEY, SHARD_SCHEMA
from tgdpo.errors import CacheError, UsageError

Rows = list[dict[str, Any]]


def rows_of(cache: RewardCache) -> Rows:
    """All rows, by the cache's own reader."""
    rows: Rows = [row for group in cache.row_groups for row in cache.read_row_group(group).to_pylist()]
    return rows


def by_pandas(folder: Path) -> Rows:
    records = pandas.read_parquet(folder).to_dict("records")
    return [{str(k): v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in records]


def by_datasets(folder: Path, **options: Any) -> Rows:
    cache_dir = folder.parent / "datasets"
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(cache_dir), **options)
    return list(loaded)


def by_datasets_files(folder: Path) -> Rows:
    cache_dir = folder.parent / "datasets"
    files = f"{folder}/*.parquet"
    return list(datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache_dir)))


def by_duckdb(folder: Path) -> Rows:
    rows: Rows = duckdb.sql(f"select * from '{folder}/*.parquet' order by source_row").arrow().read_all().to_pylist()
    return rows


READERS: dict[str, Callable[[Path], Rows]] = {
    "pandas": by_pandas,
    "pyarrow": lambda folder: pyarrow.dataset.dataset(folder).to_table().to_pylist(),
    "datasets": by_datasets,
    "datasets by glob": by_datasets_files,
    "datasets streaming": lambda folder: by_datasets(folder, streaming=True),
    "polars": lambda folder: polars.read_parquet(f"{folder}/*.parquet").to_dicts(),
    "duckdb": by_duckdb,
}


@pytest.mark.parametrize("reader", READERS)
def test_other_readers_give_the_same_rows(reader: str, folder: Path) -> None:
    assert READERS[reader](folder) == rows_of(RewardCache(folder))


class TestRows:
    """What a row holds."""

    @pytest.fixture(scope="class")
    def rows(self, finished: Path) -> Rows:
        return rows_of(RewardCache(finished))

    def test_columns(self, cache: RewardCache) -> None:
        for number in range(3):
            with cache.open_shard(number) as file:
                schema = file.schema_arrow
            assert schema.equals(SHARD_SCHEMA)
            metadata = json.loads(schema.metadata[METADATA_KEY])
            assert metadata == {"format_version": 1, "fingerprint": cache.manifest.fingerprint}

    def test_keep_the_order_of_the_source(self, rows: Rows) -> None:
        # Row 3 was set aside.
        assert [row["source_row"] for row in rows] == [n for n in range(21) if n != 3]
        assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [
            (row["prompt"], row["chosen"], row["rejected"]) for row in STANDARD_ROWS
        ]

    def test_ids_are_those_of_the_text(self, rows: Rows) -> None:
        tokenizer = make_tokenizer(chat=False)
        for row in rows:
            for side in ("chosen", "rejected"):
                expected = [*tokenizer(row["prompt"] + row[side]).input_ids, tokenizer.eos_token_id]
                assert row["prompt_ids"] + row[f"{side}_ids"] == expected

    def test_every_response_token_has_its_scores(self, rows: Rows) -> None:
        for row in rows:
            for side in ("chosen", "rejected"):
                scores = row[f"{side}_ref_logps"], row[f"{side}_rewards"]
                assert [len(each) for each in scores] == [len(row[f"{side}_ids"])] * 2
                assert np.isfinite(scores).all()
                assert max(scores[0]) <= 0

    def test_names_are_unique_and_stable(self, rows: Rows) -> None:
        names = [row["pair_id"] for row in rows]
        assert len(set(names)) == 20
        assert {len(name) for name in names} == {32}

    def test_as_pairs(self, cache: RewardCache, rows: Rows) -> None:
        pairs = [pair for group in cache.row_groups for pair in cache.read_pairs(group)]
        for pair, row in zip(pairs, rows, strict=True):
            assert pair.pair_id == row["pair_id"]
            assert [ids.tolist() for ids in pair.ids] == [row[f"{n}_ids"] for n in ("prompt", "chosen", "rejected")]
            for name in ("chosen_ref_logps", "rejected_ref_logps", "chosen_rewards", "rejected_rewards"):
                assert getattr(pair, name).dtype == np.float32
                assert getattr(pair, name).tolist() == row[name]


class TestFind:
    """One pair, by its number or its name."""

    def test_by_number_and_by_name(self, cache: RewardCache) -> None:
        for number, row in enumerate(rows_of(cache)):
            assert cache.find(str(number)).to_pylist() == [row]
            assert cache.find(row["pair_id"]).to_pylist() == [row]

    @pytest.mark.parametrize("pair", ["20", "-1", "", "x", "1.0", "²", "9" * 19, "0" * 32])
    def test_another_is_an_error_that_says_what_there_is(self, pair: str, cache: RewardCache) -> None:
        with pytest.raises(CacheError, match="0 to 19"):
            cache.find(pair)


class TestBytes:
    """How a shard is stored."""

    def test_encodings_that_every_reader_knows(self, finished: Path) -> None:
        metadata = pq.read_metadata(finished / "part-00000-of-00003.parquet")
        for number in range(metadata.num_columns):
            column = metadata.row_group(0).column(number)
            assert column.compression == "ZSTD"
            encodings = set(column.encodings)
            assert not any("DICTIONARY" in encoding for encoding in encodings)
            is_score = column.path_in_schema.split(".")[0].endswith(("logps", "rewards"))
            assert is_score == ("BYTE_STREAM_SPLIT" in encodings)

    def test_a_flipped_byte_in_a_page_is_noticed_on_reading(self, folder: Path) -> None:
        """Without the manifest's hashes, which training compares when it first reads a shard."""
        cache = RewardCache(folder)
        path = folder / "part-00001-of-00003.parquet"
        column = pq.read_metadata(path).row_group(0).column(SHARD_SCHEMA.get_field_index("chosen_rewards"))
        content = bytearray(path.read_bytes())
        content[column.data_page_offset + column.total_compressed_size - 1] ^= 1
        path.write_bytes(content)
        with pytest.raises(CacheError, match=r"part-00001.*damaged"):
            cache.read_row_group(cache.row_groups[1])

    def test_content_hash_is_that_of_the_content(self, cache: RewardCache, folder: Path) -> None:
        assert RewardCache(folder).content_hash == cache.content_hash
        text = (folder / "_manifest.json").read_text()
        sha256 = cache.manifest.shards[0].sha256
        (folder / "_manifest.json").write_text(text.replace(sha256, sha256[::-1]))
        assert RewardCache(folder).content_hash != cache.content_hash

    def test_a_cache_may_be_moved(self, folder: Path, tmp_path: Path) -> None:
        moved = RewardCache(shutil.move(folder, tmp_path / "elsewhere"))
        moved.require_complete()
        assert pa.concat_tables(moved.read_row_group(group) for group in moved.row_groups).num_rows == 20


class TestViews:
    """All of it, as other libraries hold it."""

    @pytest.mark.parametrize(
        "rows",
        [
            lambda cache: cache.to_arrow().to_pylist(),
            lambda cache: list(cache.to_dataset()),
            lambda cache: [
                {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}
                for row in cache.to_pandas().to_dict("records")
            ],
        ],
        ids=["arrow", "datasets", "pandas"],
    )
    def test_rows(self, rows: Callable[[RewardCache], Rows], finished: Path) -> None:
        cache = tgdpo.load_cache(finished)
        assert rows(cache) == rows_of(cache)

    def test_columns_in_the_order_asked_for(self, cache: RewardCache) -> None:
        assert cache.to_arrow(["prompt", "chosen_rewards"]).column_names == ["prompt", "chosen_rewards"]
        assert cache.to_dataset(["rejected"]).column_names == ["rejected"]
        assert list(cache.to_pandas(["pair_id"]).columns) == ["pair_id"]

    def test_another_column_is_an_error_that_says_what_there_is(self, cache: RewardCache) -> None:
        with pytest.raises(UsageError, match="no column reward: there are pair_id"):
            cache.to_arrow(["reward"])

    def test_damage_is_named(self, folder: Path) -> None:
        (folder / "part-00001-of-00003.parquet").write_bytes(b"PAR1")
        with pytest.raises(CacheError, match="part-00001"):
            tgdpo.load_cache(folder).to_pandas()

    def test_no_cache(self, tmp_path: Path) -> None:
        with pytest.raises(CacheError, match="not finished"):
            tgdpo.load_cache(tmp_path)
