"""tgdpo push against a small hub of our own on 127.0.0.1."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import yaml
from caches import random_rows, write_cache
from hub import TOKEN, Hub, served
from support import Cli, make_tokenizer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running one, with a user who is logged in."""
    with served() as made:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", made.url)
        yield made


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Sixty random pairs in three shards."""
    return write_cache(tmp_path / "cache", random_rows(60), make_tokenizer(chat=False), pairs_per_shard=20)


def downloaded(hub: Hub, folder: Path) -> Path:
    """What is on the hub, as load_dataset gets it."""
    folder.mkdir()
    for name, content in hub.files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_dataset_that_load_dataset_reads(ok: Cli, hub: Hub, cache: Path, tmp_path: Path) -> None:
    result = ok("push", cache, "rewards", "--license", "apache-2.0")
    assert result.stdout == f"{hub.url}/datasets/me/rewards\n"
    assert hub.repositories["me/rewards"]["type"] == "dataset"
    assert hub.commits == 1
    folder = downloaded(hub, tmp_path / "hub")
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "hf"))
    assert [row["pair_id"] for row in loaded] == [row["pair_id"] for row in random_rows(60)]
    assert "60 pairs in 3 shards" in ok("verify", folder).stdout


def test_the_card(ok: Cli, hub: Hub, cache: Path) -> None:
    manifest = cache / "_manifest.json"
    manifest.write_text(manifest.read_text().replace('"made"', '"a`b | <script>c"'))
    ok("push", cache, "org/rewards", "--license", "cc-by-4.0")
    _, header, text = hub.files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "cc-by-4.0"
    assert yaml.safe_load(header)["size_categories"] == ["n<1K"]
    for part in ('load_dataset("org/rewards"', "| chosen_ref_logps | `list<", "accuracy of the guide", "zhu2025tgdpo"):
        assert part in text
    assert "| dataset | `a'b \\| <script>c` |" in text
    assert f"| guidance_sha256 | `{'0' * 64}` |" in text


def test_without_a_licence_the_card_names_none(ok: Cli, hub: Hub, cache: Path) -> None:
    ok("push", cache, "rewards", "--private")
    assert "license" not in yaml.safe_load(hub.files["README.md"].decode().split("---\n", 2)[1])
    assert hub.repositories["me/rewards"]["visibility"] == "private"


def test_a_changed_cache_is_not_published(run_cli: Cli, hub: Hub, cache: Path) -> None:
    path = cache / "part-00002-of-00003.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    result = run_cli("push", cache, "rewards")
    assert result.code == 1
    assert "part-00002-of-00003.parquet has changed" in result.error
    assert hub.repositories == {}


def test_an_unfinished_cache_is_not_published(run_cli: Cli, hub: Hub, cache: Path) -> None:
    (cache / "_manifest.json").unlink()
    assert "not finished" in run_cli("push", cache, "rewards").error
    shutil.rmtree(cache)
    assert "no folder" in run_cli("push", cache, "rewards").error
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [({"takes_repositories": False}, 2, "cannot be made"), ({"takes_commits": False}, 1, "did not take")],
)
def test_a_hub_that_refuses(run_cli: Cli, hub: Hub, cache: Path, change: dict[str, Any], code: int, says: str) -> None:
    for name, value in change.items():
        setattr(hub, name, value)
    result = run_cli("push", cache, "others/rewards")
    assert result.code == code
    assert says in result.error
    assert TOKEN not in result.stderr


def test_without_a_login(run_cli: Cli, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    result = run_cli("push", cache, "rewards")
    assert result.code == 2
    assert "hf auth login" in result.error
