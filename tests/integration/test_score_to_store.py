"""`tgdpo score --output s3://…` as a user types it, at a server that runs here; then the cache is used."""

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from object_store import Proxy, Request, fetched
from support import STANDARD_ROWS, Cli, Models, published, write_rows

from tgdpo.data.store import open_store
from tgdpo.pipeline.run import run
from tgdpo.stages.score.config import ScoreConfig
from tgdpo.stages.train.config import TrainConfig


@pytest.fixture
def url(bucket: Any, request: pytest.FixtureRequest) -> str:
    """A place of the test's own."""
    return f"s3://caches/{request.node.name}"


@pytest.fixture
def words(models: Models, pairs_file: Path) -> tuple[object, ...]:
    return ("score", "--dataset", pairs_file, "--reference", models.reference, "--guidance", models.guidance,
            "--pairs-per-shard", 8)  # fmt: skip


def test_verify_inspect_and_train_take_what_was_written(
    ok: Cli, bucket: Any, url: str, words: tuple[object, ...], models: Models, tmp_path: Path
) -> None:
    ok(*words, "--output", tmp_path / "local")
    result = ok(*words, "--output", url)
    assert result.stdout == f"{url}: 20 pairs scored, 0 set aside\n"
    assert published(fetched(bucket, url, tmp_path / "copy")) == published(tmp_path / "local")
    assert "20 pairs in 3 shards" in ok("verify", url).stdout
    assert ok("inspect", url).stdout == ok("inspect", tmp_path / "copy").stdout
    for name, cache in (("a", url), ("b", tmp_path / "local")):
        ok("train", "--cache", cache, "--model", models.reference, "--output", tmp_path / name, "--batch-size", 4)
    ours, theirs = (tmp_path / name / "model.safetensors" for name in ("a", "b"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert len(pandas.read_parquet(url)) == 20


def test_both_stages_in_one_process(bucket: Any, url: str, models: Models, pairs_file: Path, tmp_path: Path) -> None:
    """Training finds the cache though scoring has listed the place while it was empty."""
    scored = ScoreConfig(dataset=str(pairs_file), reference=str(models.reference), output=url)
    trained = TrainConfig(cache=url, model=str(models.reference), output=str(tmp_path / "run"), loss="dpo")
    assert run(scored, trained).summary["step"] > 0


def test_an_engine_check_of_a_finished_cache(ok: Cli, bucket: Any, url: str, words: tuple[object, ...]) -> None:
    ok(*words, "--output", url)
    ok(*words, "--output", url, "--check-against", "dummy:4", "--check-bound", 1000)
    assert json.loads(bucket.cat_file(f"{url}/_manifest.json"))["engine_check"]["pairs"] == 4
    assert "all as the manifest says" in ok("verify", url).stdout


def test_a_folder_of_something_else(run_cli: Cli, bucket: Any, url: str, words: tuple[object, ...]) -> None:
    bucket.pipe_file(f"{url}/notes.txt", b"mine")
    result = run_cli(*words, "--output", url)
    assert result.code == 1
    assert f"--output {url} exists and is no reward cache" in result.error
    assert bucket.find(url) == [f"{url[5:]}/notes.txt"]


def test_a_folder_that_a_console_has_made(ok: Cli, bucket: Any, url: str, words: tuple[object, ...]) -> None:
    """Those are objects of no bytes whose names end in a slash."""
    bucket.call_s3("put_object", Bucket="caches", Key=f"{url[12:]}/", Body=b"")
    ok(*words, "--output", url)
    assert "all as the manifest says" in ok("verify", url).stdout


def test_rows_that_cannot_be_used_leave_nothing(
    run_cli: Cli, bucket: Any, url: str, models: Models, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{**row, "chosen": ""} for row in STANDARD_ROWS])
    result = run_cli("score", "--dataset", rows, "--reference", models.reference, "--output", url)
    assert "20 of 20 rows cannot be used" in result.error
    assert bucket.find(url) == []


def test_other_settings_before_anything_is_scored(
    ok: Cli, run_cli: Cli, bucket: Any, url: str, words: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run starts over with the new ones, and --plan knows what was prepared."""

    def no_engine(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tgdpo.stages.score.run.engine_class", no_engine)
        assert run_cli(*words, "--output", url).code == 130
    assert "all prepared" in ok(*words, "--output", url, "--plan").stdout
    result = ok(*words, "--max-length", 30, "--output", url)
    assert "20 pairs scored" in result.stdout
    assert not bucket.exists(f"{url}/_work")


@pytest.mark.parametrize(
    ("address", "variables", "says"),
    [
        (
            "s3://no-such-bucket/cache",
            {},
            "The specified bucket does not exist): check the address, or make the bucket",
        ),
        ("s3://caches/cache", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect"),
    ],
)
def test_addresses_that_lead_nowhere(
    address: str,
    variables: dict[str, str],
    says: str,
    bucket: Any,
    run_cli: Cli,
    words: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (variables | {"AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    type(bucket).clear_instance_cache()
    result = run_cli(*words, "--output", address)
    type(bucket).clear_instance_cache()
    assert result.code == 1
    assert address in result.error
    assert says in result.error
    assert "Traceback" not in result.stderr


def test_without_the_library_of_the_url(
    run_cli: Cli, words: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tgdpo.data.addresses.importlib.util.find_spec", lambda *_: None)
    result = run_cli(*words, "--output", "s3://caches/cache")
    assert result.code == 2
    assert "pip install s3fs" in result.error


def test_a_lost_answer_to_a_put_in_parts(
    server: tuple[Any, tuple[str, int]], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above 100 MB a file goes in parts, and the request that joins them cannot be made twice."""
    proxy = Proxy(server[1])
    for name, value in proxy.environment.items():
        monkeypatch.setenv(name, value)
    type(server[0]).clear_instance_cache()
    lost: list[Request] = []

    def loses(request: Request) -> bool:
        if request.method == "POST" and "uploadId" in request.path and not lost:
            lost.append(request)
            return True
        return False

    proxy.loses = loses
    store, size = open_store(url), 101 * 2**20
    assert store.publish("large", lambda path: path.write_bytes(bytes(size)))
    assert [request.status for request in lost] == [200]
    assert not store.publish("large", lambda path: path.write_bytes(b"\1" * size))
    assert server[0].info(f"{url}/large")["size"] == size
    type(server[0]).clear_instance_cache()
    proxy.close()
