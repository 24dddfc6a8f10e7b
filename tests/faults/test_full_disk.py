"""Disks that are full: a small file system that grows until the run is through."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
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


def test_a_training_run_on_a_disk_that_grows(scoring: Scoring, models: Models, disk: Path, tried: Tried) -> None:
    """Checkpoints and the trained policy: a run that stopped again and again ends in the same weights."""
    call = ("train", "--cache", scoring.whole, "--model", models.reference, "--loss", "dpo", "--learning-rate", 1e-3,
            "--epochs", 2, "--batch-size", 8, "--save-steps", 2, "--keep-checkpoints", 2)  # fmt: skip
    whole = disk.parent / "whole"
    done = launch(*call, "--output", whole, log=scoring.log)
    assert done.wait() == [0], done.output
    step, size, full = 320, 160, 0
    while True:
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
        scoring.log.write_text("")
        started = launch(*call, "--output", disk / "run", log=scoring.log)
        (code,) = started.wait()
        if code == 0:
            break
        full += 1
        assert "Traceback" not in started.output
        (line,) = [line for line in started.output.splitlines() if line.startswith("tgdpo: ")]
        assert "no space left on the disk" in line
        assert "run the same command again, it goes on" in line
        size += step
        assert size < 5000, "so small a model never needs so much"
    assert (disk / "run" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    ours, theirs = ([record["step"] for record in records_of(run)] for run in (disk / "run", whole))
    assert ours == theirs
    assert full > 3
    tried("runs of tgdpo train that met a full disk", full)
