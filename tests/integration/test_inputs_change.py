"""Inputs that are replaced by others of the same size after they were hashed: before they are loaded, or in a pass."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from support import STANDARD_ROWS, Cli, Models, make_models, write_rows

from tgdpo.stages.score.engines import transformers as engine
from tgdpo.stages.score.folder import OutputFolder
from tgdpo.stages.score.passes import Pass
from tgdpo.stages.score.prepare import ShardBuilder
from tgdpo.stages.train.folder import RunFolder
from tgdpo.stages.train.loop import TrainRun

SAID = "has changed while it was in use: "


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, a reference, a guide, an adapter; to be copied."""
    folder = tmp_path_factory.mktemp("inputs")
    models = make_models(folder, chat=False)
    base = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear"))
    adapted.save_pretrained(folder / "adapter")
    write_rows(folder / "pairs.jsonl", STANDARD_ROWS[:6])
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, and the present folder."""
    shutil.copytree(made, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


SCORE = ("score", "--dataset", "pairs.jsonl", "--reference", "reference", "--pairs-per-shard", 3, "--output", "cache")


def change(path: str) -> None:
    """Puts a file of the same size and time in its place, with one byte changed."""
    old = Path(path)
    content = bytearray(old.read_bytes())
    if old.suffix == ".json":
        content[content.index(b"\n")] = ord(" ")  # still JSON
    else:
        content[-2] ^= 1
    new = old.with_name("new")
    new.write_bytes(content)
    os.utime(new, ns=(old.stat().st_atime_ns, old.stat().st_mtime_ns))
    os.replace(new, old)


def once_before(owner: Any, name: str, path: str, monkeypatch: pytest.MonkeyPatch, *, when: Any = None) -> None:
    """The file is changed when the function is called for the first time."""
    original, state = getattr(owner, name), {"done": False}

    def changed_first(*arguments: Any, **options: Any) -> Any:
        if not state["done"] and (when is None or when(*arguments)):
            state["done"] = True
            change(path)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, changed_first)


@pytest.mark.parametrize(
    ("guide", "path"),
    [
        (None, "reference/model.safetensors"),
        ("guidance", "guidance/model.safetensors"),
        ("adapter", "adapter/adapter_model.safetensors"),
        (None, "reference/config.json"),
    ],
)
@pytest.mark.parametrize("moment", ["before it is loaded", "during a pass"])
def test_a_model(
    guide: str | None, path: str, moment: str, place: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    if moment == "before it is loaded":
        once_before(OutputFolder, "claim", path, monkeypatch)
    else:
        # Of the shared model of an adapter, the pass that has it on.
        role = "guidance" if guide else "reference"
        once_before(Pass, "compute", path, monkeypatch, when=lambda work, *_: work.role == role)
    command = (*SCORE, *(["--guidance", guide] if guide else []))
    refused = run_cli(*command)
    assert refused.code == 1
    assert SAID in refused.error
    assert not (place / "cache/_manifest.json").exists()
    assert not list((place / "cache").glob("part-*"))


def test_a_dataset_between_hash_and_reading(place: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    once_before(OutputFolder, "claim", "pairs.jsonl", monkeypatch)
    assert f"--dataset pairs.jsonl {SAID}" in run_cli(*SCORE).error


def test_a_dataset_while_it_is_read(place: Path, run_cli: Cli, ok: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of the other file is not there when the first one is back."""
    ok(*SCORE[:-1], "whole")
    before = (place / "pairs.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        once_before(ShardBuilder, "add", "pairs.jsonl", patch)
        assert f"--dataset pairs.jsonl {SAID}" in run_cli(*SCORE).error
    (place / "pairs.jsonl").write_bytes(before)
    ok(*SCORE)
    for part in (place / "whole").glob("part-*"):
        assert (place / "cache" / part.name).read_bytes() == part.read_bytes()


def test_a_tokenizer_is_the_one_that_was_hashed(place: Path, ok: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded once, and hashed as it was loaded."""
    ok(*SCORE[:-1], "whole")
    once_before(OutputFolder, "claim", "reference/tokenizer.json", monkeypatch)
    ok(*SCORE)
    for part in (place / "whole").glob("part-*"):
        assert (place / "cache" / part.name).read_bytes() == part.read_bytes()


def test_a_cache_that_another_is_made_from(place: Path, run_cli: Cli, ok: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(*SCORE, "--guidance", "guidance")
    (part, *_) = sorted((place / "cache").glob("part-*"))
    once_before(OutputFolder, "claim", str(part), monkeypatch)
    refused = run_cli("score", "--reuse", "cache", "--guidance", "adapter", "--output", "new")
    assert f"{part.name} has changed" in refused.error


TRAIN = ("train", "--cache", "cache", "--model", "reference", "--batch-size", 2, "--epochs", 3, "--output", "run")


def test_the_policy_that_a_run_starts_from(place: Path, run_cli: Cli, ok: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(*SCORE, "--guidance", "guidance")
    once_before(RunFolder, "checkpoint", "reference/model.safetensors", monkeypatch)
    assert f"reference {SAID}" in run_cli(*TRAIN).error


def test_the_cache_of_a_training_run(place: Path, run_cli: Cli, ok: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(*SCORE, "--guidance", "guidance")
    (part, *_) = sorted((place / "cache").glob("part-*"))
    once_before(TrainRun, "_train_step", str(part), monkeypatch)
    assert f"{part.name} has changed" in run_cli(*TRAIN).error


def test_a_shape_of_ones_own(place: Path, run_cli: Cli, ok: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module is imported once; a run that is resumed knows its file."""
    ok(*SCORE, "--guidance", "guidance")
    (place / "shapes_of_mine.py").write_text("def shape(rewards):\n    return rewards * 2\n# \n")
    words = (*TRAIN, "--f-shape", "shapes_of_mine.shape", "--save-steps", 2)
    step: Callable[..., None] = TrainRun._train_step

    def killed(self: TrainRun, *arguments: Any) -> None:
        if self.step == 4:
            raise KeyboardInterrupt
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainRun, "_train_step", killed)
        assert run_cli(*words).code == 130
    change("shapes_of_mine.py")
    assert "f_shape_sha256 (" in run_cli(*words).error
    change("shapes_of_mine.py")
    ok(*words)


def test_other_models_are_left_alone(models: Models, place: Path, ok: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes in a new file are no change."""
    compute = engine.TransformersEngine.score

    def touched(*arguments: Any) -> Any:
        Path("reference/model.safetensors").touch()
        return compute(*arguments)

    monkeypatch.setattr(engine.TransformersEngine, "score", touched)
    ok(*SCORE)
