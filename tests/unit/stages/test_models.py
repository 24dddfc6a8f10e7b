"""Models by name: what identifies them, what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
from support import Models

from tgdpo.errors import ModelError, UsageError
from tgdpo.stages.models import resolve


def test_a_copy_has_the_same_hash_wherever_it_lies(models: Models, tmp_path: Path) -> None:
    copy = shutil.copytree(models.reference, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"_name_or_path": "elsewhere", "transformers_version": "9"}))
    original, copied = resolve(str(models.reference), "--model"), resolve(str(copy), "--model")
    assert original.content_hash == copied.content_hash


@pytest.mark.parametrize("part", ["weights", "config"])
def test_another_model_has_another_hash(part: str, models: Models, tmp_path: Path) -> None:
    copy = shutil.copytree(models.reference, tmp_path / "copy")
    if part == "weights":
        weights = safetensors.torch.load_file(copy / "model.safetensors")
        weights["model.norm.weight"][0] += 1e-3
        safetensors.torch.save_file(weights, copy / "model.safetensors", {"format": "pt"})
    else:
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    original, changed = resolve(str(models.reference), "--model"), resolve(str(copy), "--model")
    assert original.content_hash != changed.content_hash


def test_the_hubs_cache_of_links_has_the_hash_of_the_files(models: Models, tmp_path: Path) -> None:
    """In the hub's cache, snapshots/… links to blobs/<sha256>."""
    import hashlib

    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    for path in models.reference.iterdir():
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    assert resolve(str(snapshot), "--model").content_hash == resolve(str(models.reference), "--model").content_hash


def test_sharded_weights_are_hashed_file_by_file(models: Models, tmp_path: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    source = resolve(str(tmp_path / "sharded"), "--model")
    assert len(source.weight_files()) > 1
    before = source.content_hash
    last = source.weight_files()[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"\x01")
    assert resolve(source.name, "--model").content_hash != before


def test_remote_code_needs_a_pinned_commit() -> None:
    with pytest.raises(UsageError, match="pin it with NAME@REVISION"):
        resolve("somebody/something", "--reference", trust_remote_code=True)
    with pytest.raises(UsageError, match="pin it"):
        resolve("somebody/something@main", "--reference", trust_remote_code=True)


def test_a_hub_model_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="could not be had"):
        resolve("somebody/something", "--reference")
