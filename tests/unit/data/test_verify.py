"""`verify` finds every change to a cache."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgdpo.data.cache import RewardCache
from tgdpo.data.files import sha256_file
from tgdpo.data.schema import MANIFEST_NAME, SET_ASIDE_NAME, shard_metadata, write_parquet
from tgdpo.data.verify import verify
from tgdpo.errors import CacheError

SHARD = "part-00001-of-00003.parquet"


def read_all(cache: RewardCache) -> None:
    """As training does."""
    for group in cache.row_groups:
        cache.read_pairs(group)


def problems(folder: Path) -> list[str]:
    return verify(RewardCache(folder))


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / MANIFEST_NAME).read_text())
    edit(content)
    (folder / MANIFEST_NAME).write_text(json.dumps(content))


def rewrite_shard(folder: Path, table: pa.Table, **options: Any) -> None:
    """Puts `table` in the place of a shard, with a manifest that agrees on its bytes: only its rows can tell."""
    path = folder / SHARD
    path.unlink()
    if options:
        pq.write_table(table, path, **options)
    else:
        write_parquet(table, path)

    def agree(manifest: dict[str, Any]) -> None:
        manifest["shards"][1] |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}

    edit_manifest(folder, agree)


def replaced(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    field = table.schema.field(column)
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))


def test_an_untouched_cache_has_no_problem(finished: Path) -> None:
    assert problems(finished) == []


@given(shard=st.integers(0, 2), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_every_flipped_bit_is_found(
    shard: int, place: float, bit: int, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    for path in finished.iterdir():
        (folder / path.name).hardlink_to(path)
    path = folder / f"part-0000{shard}-of-00003.parquet"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.unlink()
    path.write_bytes(content)
    assert problems(folder) == [f"{path.name} has changed (its SHA-256 is not the manifest's)"]
    with pytest.raises(CacheError, match=path.name):
        read_all(RewardCache(folder))


class TestFiles:
    """Shards that are not those of the manifest."""

    def test_cut(self, folder: Path) -> None:
        path = folder / SHARD
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[:-1])
        assert problems(folder) == [f"{SHARD} has {size - 1} bytes, the manifest says {size}"]

    def test_gone(self, folder: Path) -> None:
        (folder / SHARD).unlink()
        assert problems(folder) == [f"{SHARD} is missing"]

    def test_links_to_blobs_are_read(self, folder: Path, tmp_path: Path) -> None:
        """As the hub's cache, DVC and git-annex lay out a folder."""
        expected = RewardCache(folder).to_arrow()
        (tmp_path / "blobs").mkdir()
        for number, path in enumerate(sorted(folder.iterdir())):
            path.rename(tmp_path / "blobs" / str(number))
            path.symlink_to(Path("..", "blobs", str(number)))
        assert problems(folder) == []
        assert RewardCache(folder).to_arrow() == expected
        RewardCache(folder).require_complete()
        read_all(RewardCache(folder))

    @pytest.mark.parametrize("target", ["part-00000-of-00003.parquet", "gone", SHARD, "/dev/zero", "."])
    def test_a_link_to_something_else(self, target: str, folder: Path) -> None:
        (folder / SHARD).unlink()
        (folder / SHARD).symlink_to(target)
        assert len(problems(folder)) == 1
        with pytest.raises(CacheError, match=f"{SHARD}.*score again into another --output"):
            RewardCache(folder).require_complete()

    def test_one_too_many(self, folder: Path) -> None:
        """Readers of the folder would take its rows for the cache's."""
        (folder / "more.parquet").write_bytes((folder / SHARD).read_bytes())
        assert problems(folder) == ["more.parquet is not in the manifest"]

    def test_two_that_changed_places(self, folder: Path) -> None:
        first, second = (folder / f"part-0000{n}-of-00003.parquet" for n in (0, 1))
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
        assert len(problems(folder)) == 2

    def test_one_that_is_listed_twice(self, folder: Path) -> None:
        edit_manifest(folder, lambda manifest: manifest["shards"].append(manifest["shards"][1]))
        assert f"the manifest lists {SHARD} twice" in problems(folder)


class TestCounts:
    """Rows read are rows scored and rows set aside."""

    @pytest.mark.parametrize("name", ["read", "scored", "set_aside"])
    def test_that_do_not_add_up(self, name: str, folder: Path) -> None:
        edit_manifest(folder, lambda manifest: manifest["counts"].update({name: manifest["counts"][name] + 1}))
        assert problems(folder)

    def test_of_rows_set_aside(self, folder: Path) -> None:
        (folder / SET_ASIDE_NAME).unlink()
        assert problems(folder) == [f"{SET_ASIDE_NAME} has 0 rows, the manifest counts 1"]

    @pytest.mark.parametrize("name", ["rows", "prompt_tokens", "chosen_tokens", "rejected_tokens"])
    def test_of_a_shard(self, name: str, folder: Path) -> None:
        edit_manifest(folder, lambda manifest: manifest["shards"][1].update({name: 3}))
        assert any(SHARD in problem for problem in problems(folder))

    @pytest.mark.parametrize("size", [3, 100])
    def test_of_a_row_group(self, size: int, folder: Path) -> None:
        """Training finds its rows by it."""
        table = pq.read_table(folder / SHARD)
        rewrite_shard(folder, table, row_group_size=3, use_dictionary=False)
        edit_manifest(folder, lambda manifest: manifest.update(row_group_pairs=size))
        assert problems(folder)


class TestRows:
    """Contents that no writer of this format leaves, behind bytes that agree with the manifest."""

    @pytest.fixture
    def table(self, folder: Path) -> pa.Table:
        return pq.read_table(folder / SHARD)

    def test_the_same_rows_are_fine(self, folder: Path, table: pa.Table) -> None:
        rewrite_shard(folder, table)
        assert problems(folder) == []

    def test_a_negative_token_id(self, folder: Path, table: pa.Table) -> None:
        ids = table["rejected_ids"].to_pylist()
        ids[2][1] = -7
        rewrite_shard(folder, replaced(table, "rejected_ids", ids))
        assert problems(folder) == [f"{SHARD}, row group 0: rejected_ids holds the token id -7"]
        with pytest.raises(CacheError, match="rejected_ids holds the token id -7"):
            read_all(RewardCache(folder))

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_scores_that_are_not_finite(self, value: float, folder: Path, table: pa.Table) -> None:
        rewards = table["chosen_rewards"].to_pylist()
        rewards[2][1] = value
        rewrite_shard(folder, replaced(table, "chosen_rewards", rewards))
        assert problems(folder) == [f"{SHARD}, row group 0: chosen_rewards holds a value that is not finite"]

    @pytest.mark.parametrize("column", ["chosen_ref_logps", "rejected_ref_logps", "chosen_rewards", "rejected_rewards"])
    def test_scores_of_another_length(self, column: str, folder: Path, table: pa.Table) -> None:
        scores = table[column].to_pylist()
        scores[0], scores[1] = scores[0] + scores[1][:1], scores[1][1:]  # the sum stays
        rewrite_shard(folder, replaced(table, column, scores))
        ids = f"{column.split('_')[0]}_ids"
        assert problems(folder) == [f"{SHARD}, row group 0: {column} and {ids} differ in length"]

    def test_a_row_that_is_lost(self, folder: Path, table: pa.Table) -> None:
        rewrite_shard(folder, table.slice(1))
        assert problems(folder) == [f"{SHARD} has 7 rows, the manifest says 8"]

    @pytest.mark.parametrize("other", [SHARD, "part-00000-of-00003.parquet"])
    def test_a_name_that_is_not_unique(self, other: str, folder: Path, table: pa.Table) -> None:
        names = table["pair_id"].to_pylist()
        names[3] = pq.read_table(folder / other)["pair_id"].to_pylist()[0]
        rewrite_shard(folder, replaced(table, "pair_id", names))
        assert problems(folder) == [f"{SHARD}, row group 0: 1 pair_id not unique"]

    def test_other_columns(self, folder: Path, table: pa.Table) -> None:
        rewrite_shard(folder, table.drop_columns(["chosen_rewards"]))
        assert problems(folder) == [f"{SHARD} has other columns than the format"]
        with pytest.raises(CacheError, match="has other columns than the format"):
            read_all(RewardCache(folder))

    def test_another_type(self, folder: Path, table: pa.Table) -> None:
        values = pa.array([np.zeros(1, np.float64)] * len(table), pa.list_(pa.float64()))
        place = table.schema.get_field_index("chosen_rewards")
        rewrite_shard(folder, table.set_column(place, "chosen_rewards", values))
        assert problems(folder) == [f"{SHARD} has other columns than the format"]

    def test_a_value_that_stands_for_many(self, folder: Path, table: pa.Table) -> None:
        """A dictionary lets a few bytes decode to gigabytes; nothing of it is decoded."""
        ids = table["prompt_ids"].to_pylist()
        rewrite_shard(folder, replaced(table, "prompt_ids", [[7] * 200_000] * len(ids)), use_dictionary=True)
        (problem,) = problems(folder)
        assert f"{SHARD} holds dictionaries" in problem
        rewrite_shard(folder, replaced(table, "prompt_ids", [[7] * 200_000] * len(ids)))
        (problem,) = problems(folder)
        assert f"{SHARD} holds more values than the manifest says" in problem
        with pytest.raises(CacheError, match=SHARD):
            read_all(RewardCache(folder))

    @pytest.mark.parametrize("metadata", [None, shard_metadata({"reference_sha256": "1" * 64})])
    def test_of_a_run_with_other_settings(
        self, folder: Path, table: pa.Table, metadata: dict[bytes, bytes] | None
    ) -> None:
        rewrite_shard(folder, table.replace_schema_metadata(metadata))
        assert problems(folder) == [f"{SHARD} was made with other settings than the manifest's"]
        with pytest.raises(CacheError, match="made with other settings"):
            read_all(RewardCache(folder))
