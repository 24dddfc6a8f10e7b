"""Disks that are full: a small file system that grows until the run is through."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from scoring import Scoring, Tried

KILOBYTES = 8
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
