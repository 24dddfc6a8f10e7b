"""A cache in an S3 bucket, at a server that runs here."""

from pathlib import Path
from typing import Any

import pytest
from support import STANDARD_ROWS, Cli, Models, write_rows

import tgdpo

FAST = ("--learning-rate", 1e-2, "--batch-size", 4, "--logging-steps", 1)


@pytest.fixture(scope="module")
def local(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty scored pairs in three shards, on disk."""
    folder = tmp_path_factory.mktemp("remote")
    pairs = write_rows(folder / "pairs.jsonl", STANDARD_ROWS)
    tgdpo.score(tgdpo.ScoreConfig(dataset=str(pairs), reference=str(models.reference), guidance=str(models.guidance),
                                  output=str(folder / "cache"), pairs_per_shard=8))  # fmt: skip
    return folder / "cache"


@pytest.fixture
def remote(bucket: Any, local: Path, request: pytest.FixtureRequest) -> str:
    """A copy in the bucket, the test's own."""
    folder = f"caches/{request.node.name}"
    bucket.put(str(local) + "/", folder, recursive=True)
    bucket.invalidate_cache()
    return f"s3://{folder}"


def change(bucket: Any, cache: str) -> str:
    """Flips a bit in a page of a shard; returns the shard's name."""
    name = "part-00001-of-00003.parquet"
    content = bytearray(bucket.cat_file(f"{cache}/{name}"))
    content[len(content) // 2] ^= 1
    bucket.pipe_file(f"{cache}/{name}", bytes(content))
    return name


def test_the_run_is_that_from_the_local_copy(ok: Cli, local: Path, remote: str, models: Models, tmp_path: Path) -> None:
    for name, cache in (("local", local), ("remote", remote)):
        ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / name, *FAST,
           "--eval-fraction", 0.2)  # fmt: skip
    ours, theirs = (tmp_path / name / "model.safetensors" for name in ("remote", "local"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_verify_and_inspect(ok: Cli, remote: str, local: Path) -> None:
    assert "20 pairs in 3 shards" in ok("verify", remote).stdout
    assert ok("inspect", remote).stdout == ok("inspect", local).stdout


def test_a_changed_shard_is_refused(run_cli: Cli, bucket: Any, remote: str, models: Models, tmp_path: Path) -> None:
    name = change(bucket, remote)
    verified = run_cli("verify", remote)
    assert verified.code == 1
    assert f"{name} has changed" in verified.stdout
    trained = run_cli("train", "--cache", remote, "--model", models.reference, "--output", tmp_path / "run", *FAST)
    assert trained.code == 1
    assert f"{remote}: {name} has changed" in trained.error


def test_a_shard_that_is_gone_is_refused_before_anything_is_loaded(
    run_cli: Cli, bucket: Any, remote: str, models: Models, tmp_path: Path
) -> None:
    bucket.rm(f"{remote}/part-00002-of-00003.parquet")
    result = run_cli("train", "--cache", remote, "--model", models.reference, "--output", tmp_path / "run", *FAST)
    assert "part-00002-of-00003.parquet is missing" in result.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("s3://caches/nothing", "s3://caches/nothing"),
        ("s3://no-such-bucket/cache", "s3://no-such-bucket/cache"),
        ("s3://id:secret@caches/cache", "the URL holds credentials"),
        ("nosuch://caches/cache", "nosuch"),
    ],
)
def test_an_address_that_leads_nowhere(address: str, says: str, bucket: Any, run_cli: Cli) -> None:
    result = run_cli("verify", address)
    assert result.code in (1, 2)
    assert says in result.error
    assert "secret" not in result.stderr


def test_without_the_library_of_the_url(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert "pip install s3fs" in run_cli("verify", "s3://caches/cache").error
