"""The manifest: written last, read strictly."""

import json
from pathlib import Path
from typing import Any

import pytest

from tgdpo.data.cache import RewardCache
from tgdpo.data.manifest import Manifest, differing_fields
from tgdpo.data.schema import MANIFEST_NAME
from tgdpo.errors import CacheError


def edit(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_shard(folder: Path, **changes: Any) -> None:
    shards = json.loads((folder / MANIFEST_NAME).read_text())["shards"]
    edit(folder, shards=[shards[0] | changes, *shards[1:]])


def test_what_it_says(cache: RewardCache) -> None:
    manifest = cache.manifest
    assert [shard.name for shard in manifest.shards] == [f"part-0000{n}-of-00003.parquet" for n in range(3)]
    assert [shard.rows for shard in manifest.shards] == [7, 8, 5]
    assert manifest.rows == len(cache) == manifest.counts.scored == 20
    assert manifest.counts.read == 21
    assert manifest.set_aside_reasons == {"empty response": 1}
    assert manifest.reward_kind == "log-ratio"
    assert not manifest.conversational
    assert {"dataset_sha256", "tokenizer_sha256", "reference_sha256", "guidance_sha256", "dtype", "torch"} <= set(
        manifest.fingerprint
    )


def test_writing_and_reading_gives_the_same(cache: RewardCache, tmp_path: Path) -> None:
    cache.manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == cache.manifest


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_another_format_version_is_refused(version: Any, folder: Path) -> None:
    edit(folder, format_version=version)
    with pytest.raises(CacheError, match="format version"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff\xfe", b"{}", b"[]", b"null", b'{"format_version": 1}', b"[" * 100_000),
    ],
)
def test_damage_is_one_cache_error(content: bytes, folder: Path) -> None:
    (folder / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(CacheError, match=MANIFEST_NAME):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"unknown": 1},
        {"counts": None},
        {"reward_kind": "other"},
        {"row_group_pairs": 0},
        {"row_group_pairs": -1},
    ],
)
def test_fields_it_does_not_know_are_refused(changes: dict[str, Any], folder: Path) -> None:
    edit(folder, **changes)
    with pytest.raises(CacheError, match="damaged"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../part-00000-of-00001.parquet",
        "x/part-00000-of-00001.parquet",
        "part-00000-of-00001.parquet\n",
        "s3://bucket/part-00000-of-00001.parquet",
        "part-0-of-1.parquet",
        "",
    ],
)
def test_shards_with_other_names_are_refused(name: str, folder: Path) -> None:
    """A manifest cannot make a reader open any other file."""
    edit_shard(folder, name=name)
    with pytest.raises(CacheError, match="damaged"):
        Manifest.read(folder)


@pytest.mark.parametrize("changes", [{"rows": -1}, {"bytes": 0}, {"sha256": "0"}, {"rows": 1.5}, {"rows": None}])
def test_shards_with_impossible_values_are_refused(changes: dict[str, Any], folder: Path) -> None:
    edit_shard(folder, **changes)
    with pytest.raises(CacheError, match="damaged"):
        Manifest.read(folder)


@pytest.mark.parametrize("rows", [10**6, 10**12, 10**30])
def test_no_more_rows_than_the_bytes_can_hold(rows: int, folder: Path) -> None:
    """Readers list the row groups: the count in a file of anybody's is not to decide how much memory that takes."""
    edit_shard(folder, rows=rows)
    with pytest.raises(CacheError, match="counts more rows than its bytes can hold"):
        Manifest.read(folder)
    edit_shard(folder, rows=rows, bytes=rows * 1000)
    cache = RewardCache(folder)
    with pytest.raises(CacheError, match=r"has \d+ bytes, the manifest says"):
        cache.row_groups  # noqa: B018


def test_two_added_guides_of_one_name_are_refused(folder: Path) -> None:
    """Whose rewards a column holds could not be told."""
    guides = [{"name": name, "guidance": name, "reward_kind": "log-ratio"} for name in ("good", "bad")]
    edit(folder, added_guides=guides)
    assert [guide.name for guide in Manifest.read(folder).added_guides] == ["good", "bad"]
    edit(folder, added_guides=[*guides, guides[0]])
    with pytest.raises(CacheError, match="two added guides have one name"):
        Manifest.read(folder)


def test_a_folder_without_one_is_not_finished(folder: Path, tmp_path: Path) -> None:
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(CacheError, match="not finished"):
        RewardCache(folder)
    with pytest.raises(CacheError, match="no folder"):
        RewardCache(tmp_path / "nothing")


def test_differing_fields() -> None:
    ours = {"a": 1, "b": 2, "c": None, "e": 5}
    theirs = {"a": 1, "b": 3, "d": 4, "e": 6}
    assert differing_fields(ours, theirs) == ["b", "d", "e"]
    assert differing_fields(ours, theirs, ignore=("e",)) == ["b", "d"]
