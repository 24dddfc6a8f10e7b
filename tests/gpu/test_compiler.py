"""A machine without a C compiler, which Triton needs to launch what it compiles."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu


def test_trains_without_one(cache: Path, policy: Path, cuda: torch.device, tmp_path: Path) -> None:
    """Pairs then go through attention one by one, and a warning says so."""
    (tmp_path / "bin").mkdir()
    caches = {name: str(tmp_path / name) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    command = [sys.executable, "-m", "tgdpo", "train", "--cache", cache, "--model", policy, "--max-steps", 2,
               "--save-steps", 0, "--batch-size", 8, "--output", tmp_path / "run"]  # fmt: skip
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=240,
        env=environment | caches | {"PATH": str(tmp_path / "bin"), "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert "FlexAttention does not run here" in done.stderr
