"""`tgdpo score` that is stopped and started again."""

import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from processes import launch
from support import STANDARD_ROWS, Cli, Models, write_rows

from tgdpo.stages.score.engines.transformers import TransformersEngine
from tgdpo.stages.score.prepare import ShardBuilder


@pytest.fixture
def many_pairs(tmp_path: Path) -> Path:
    """Two hundred pairs."""
    rows = [{**row, "prompt": f"{n}. {row['prompt']}"} for n, row in enumerate(STANDARD_ROWS * 10)]
    return write_rows(tmp_path / "many.jsonl", rows)


def shard_bytes(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(cache.glob("part-*"))}


def test_killed_and_started_again_gives_the_same_bytes(
    ok: Cli, models: Models, many_pairs: Path, tmp_path: Path
) -> None:
    call = ["score", "--dataset", str(many_pairs), "--reference", str(models.reference), "--guidance",
            str(models.guidance), "--pairs-per-shard", "10", "--batch-tokens", "256"]  # fmt: skip
    ok(*call, "--output", tmp_path / "whole")
    killed = tmp_path / "killed"
    started = launch(*call, "--output", killed, log=tmp_path / "log")
    started.wait_for(lambda: any(killed.glob("part-*")))
    started.kill()
    assert not (killed / "_manifest.json").exists()
    finished = len(list(killed.glob("part-*")))
    assert 0 < finished <= 20
    before = {path: path.stat().st_mtime_ns for path in killed.glob("part-*")}
    result = ok(*call, "--output", killed)
    assert "going on" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished shard was written again"
    assert shard_bytes(killed) == shard_bytes(tmp_path / "whole")
    assert sorted(path.name for path in killed.iterdir()) == sorted(
        ["_manifest.json", "_set_aside.jsonl", *shard_bytes(killed)]
    )
    ok("verify", killed)


def test_nothing_that_is_there_is_scored_again(
    ok: Cli, run_cli: Cli, models: Models, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the third shard of the guidance pass: the restart loads guidance alone, for the rest."""
    call = ("score", "--dataset", pairs_file, "--reference", models.reference, "--guidance", models.guidance,
            "--output", tmp_path / "cache", "--pairs-per-shard", 4)  # fmt: skip
    original = TransformersEngine.score
    calls: list[str] = []
    stopped: list[bool] = []

    def counted(self: TransformersEngine, *arguments: object) -> object:
        if len(calls) == 7 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        calls.append(self.name)
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformersEngine, "score", counted)
    assert run_cli(*call).code == 130
    assert calls == [str(models.reference)] * 5 + [str(models.guidance)] * 2
    ok(*call)
    assert calls[7:] == [str(models.guidance)] * 3


def test_a_smaller_token_budget_may_finish_a_run(
    ok: Cli, run_cli: Cli, models: Models, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "cache",
            "--pairs-per-shard", 10)  # fmt: skip
    original = TransformersEngine.score
    calls: list[object] = []

    def interrupted_later(self: TransformersEngine, *arguments: object) -> object:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "score", interrupted_later)
        assert run_cli(*call).code == 130
    other = run_cli(*call, "--max-length", 20)
    assert other.code == 1
    assert "max_length (None, now 20)" in other.error
    ok(*call, "--batch-tokens", 64)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


class FailingWrites:
    """Lets the first shard's scores fail to be written, and counts the batches computed after that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None]) -> None:
        self.batches, self.batches_after = 0, 0
        self._fail = fail
        self._failing = False
        score, score_batch = TransformersEngine.score, TransformersEngine._in_parts
        monkeypatch.setattr(TransformersEngine, "score", lambda *arguments: self._after(score(*arguments)))
        monkeypatch.setattr(TransformersEngine, "_in_parts", lambda *arguments: self._slow(score_batch, *arguments))

    def _after(self, scores: Any) -> Any:
        if not self._failing:
            self._failing = True
            self._fail()
        return scores

    def _slow(self, score_batch: Any, *arguments: Any) -> Any:
        self.batches += 1
        if self._failing:
            self.batches_after += 1
            time.sleep(0.1)
        return score_batch(*arguments)


def test_a_full_disk_stops_the_run_at_once(
    ok: Cli, run_cli: Cli, models: Models, many_pairs: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second shard has some seventy batches; the run ends within a few of them, and goes on from there."""
    call = ("score", "--dataset", many_pairs, "--reference", models.reference, "--output", small_disk / "cache",
            "--pairs-per-shard", 100, "--batch-tokens", 64)  # fmt: skip
    filler = small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass

    with monkeypatch.context() as patch:
        writes = FailingWrites(patch, fill)
        result = run_cli(*call)
    assert result.code == 1
    assert "no space left" in result.error
    assert writes.batches > writes.batches_after < 10
    filler.unlink()
    monkeypatch.delattr(ShardBuilder, "add")  # what was tokenised is kept
    ok(*call)
    ok("verify", small_disk / "cache")


def test_any_failing_write_stops_the_run_at_once(
    ok: Cli, run_cli: Cli, models: Models, many_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system refuses files of more than a thousand bytes from the first shard's scores on."""
    call = ("score", "--dataset", many_pairs, "--reference", models.reference, "--output", tmp_path / "cache",
            "--pairs-per-shard", 100, "--batch-tokens", 64)  # fmt: skip
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        writes = FailingWrites(patch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1])))
        result = run_cli(*call)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.code == 1
    assert "File too large" in result.error
    assert writes.batches > writes.batches_after < 10
    ok(*call)
    ok("verify", tmp_path / "cache")


@pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ended_by_a_signal(number: int, code: int, how: str, models: Models, many_pairs: Path, tmp_path: Path) -> None:
    """Ctrl-C or kill in the middle of a pass: one line, the usual exit code, and what was computed is written."""
    call = ["score", "--dataset", str(many_pairs), "--reference", str(models.reference), "--guidance",
            str(models.guidance), "--pairs-per-shard", "10", "--output", str(tmp_path / "cache")]  # fmt: skip
    started = launch(*call, log=tmp_path / "log")
    started.wait_for(lambda: any((tmp_path / "cache").glob("part-*")))
    started.send(number)
    assert started.wait(60) == [code]
    last = started.output.splitlines()[-1]
    assert last == f"tgdpo: {how}; what is finished stays, the same command goes on from there"
    assert not list((tmp_path / "cache").rglob(".*.tmp"))


def test_a_run_that_scored_nothing_gives_its_folder_up(
    ok: Cli, run_cli: Cli, models: Models, pairs_file: Path, tmp_path: Path
) -> None:
    """Missing weights, found when the model is loaded; the whole model is another one by its hash."""
    model = shutil.copytree(models.reference, tmp_path / "model")
    safetensors.torch.save_file({}, model / "model.safetensors")
    call = ("score", "--dataset", pairs_file, "--reference", model, "--output", tmp_path / "cache")
    assert "lacks weights for" in run_cli(*call).error
    shutil.copy(models.reference / "model.safetensors", model)
    ok(*call)


def test_killed_before_its_settings_were_written(ok: Cli, models: Models, pairs_file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache" / "_work").mkdir(parents=True)
    ok("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "cache")


def test_a_work_folder_of_somebody_elses_is_left_alone(
    run_cli: Cli, models: Models, pairs_file: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "cache" / "_work" / "thesis.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("years of work")
    refused = run_cli("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "cache")
    assert "is no reward cache" in refused.error
    assert theirs.read_text() == "years of work"
