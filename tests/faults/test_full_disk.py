"""Disks that are full: a small file system that grows until the run is through."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import BUCKET, aws_environment, fetched
from processes import launch
from scoring import Scoring, Tried
from support import Models, records_of

KILOBYTES = 12
"""How much a disk grows by."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of as good as no room."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={KILOBYTES}k", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_cache_on_a_disk_that_grows(scoring: Scoring, disk: Path, tried: Tried) -> None:
    """Each time one line that names the file, and the next run goes on from there."""
    size, full, output = KILOBYTES, 0, disk / "cache"
    while True:
        scoring.log.write_text("")
        started = scoring.start(output)
        (code,) = started.wait()
        if code == 0:
            break
        full += 1
        (line,) = [line for line in started.output.splitlines() if line.startswith("tgdpo: ")]
        assert f"no space left on the disk of {disk}" in line
        assert "free some and run the same command again, it goes on" in line
        assert "Traceback" not in started.output
        size += KILOBYTES
        assert size < 1000, "a run of forty pairs never needs so much"
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
    scoring.require_whole(output)
    assert full > 3
    tried("runs of tgdpo score that met a full disk", full)


def train_until_done(
    call: tuple[object, ...], disk: Path, scoring: Scoring, *, step: int, environment: dict[str, str] | None = None
) -> int:
    """Trains on a disk that grows by `step` kilobytes after each run that found it full. Returns how many did."""
    size, full = 160, 0
    while True:
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
        scoring.log.write_text("")
        started = launch(*call, log=scoring.log, environment=environment)
        (code,) = started.wait()
        if code == 0:
            return full
        full += 1
        assert "Traceback" not in started.output
        (line,) = [line for line in started.output.splitlines() if line.startswith("tgdpo: ")]
        assert "no space left on the disk" in line
        assert "run the same command again, it goes on" in line
        size += step
        assert size < 5000, "so small a model never needs so much"


@pytest.fixture
def training(scoring: Scoring, models: Models) -> tuple[object, ...]:
    """The command without its --output."""
    return ("train", "--cache", scoring.whole, "--model", models.reference, "--loss", "dpo", "--learning-rate", 1e-3,
            "--epochs", 2, "--batch-size", 8, "--save-steps", 2, "--keep-checkpoints", 2)  # fmt: skip


@pytest.fixture
def trained(training: tuple[object, ...], scoring: Scoring, tmp_path: Path) -> Path:
    """The run undisturbed."""
    done = launch(*training, "--output", tmp_path / "whole", log=scoring.log)
    assert done.wait() == [0], done.output
    return tmp_path / "whole"


def require_same(ours: Path, theirs: Path) -> None:
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert [record["step"] for record in records_of(ours)] == [record["step"] for record in records_of(theirs)]


def test_a_training_run_on_a_disk_that_grows(
    scoring: Scoring, training: tuple[object, ...], trained: Path, disk: Path, tried: Tried
) -> None:
    """Checkpoints and the trained policy: a run that stopped again and again ends in the same weights."""
    full = train_until_done((*training, "--output", disk / "run"), disk, scoring, step=320)
    require_same(disk / "run", trained)
    assert full > 3
    tried("runs of tgdpo train that met a full disk", full)


def test_a_training_run_into_a_bucket_with_a_disk_that_grows(
    scoring: Scoring,
    training: tuple[object, ...],
    trained: Path,
    disk: Path,
    tmp_path: Path,
    tried: Tried,
    server: tuple[Any, tuple[str, int]],
) -> None:
    """The folder that it works in is on the disk."""
    (files, address), url = server, f"s3://{BUCKET}/full-disk"
    environment = {"TMPDIR": str(disk), **aws_environment(*address)}
    full = train_until_done((*training, "--output", url), disk, scoring, step=100, environment=environment)
    require_same(fetched(files, url, tmp_path / "copy"), trained)
    assert full > 3
    tried("runs of tgdpo train into a bucket that met a full disk", full)
