"""benchmarks/gpu_check.py with tiny models on this machine: everything runs but what a CPU cannot do."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"
Line = dict[str, Any]

SKIPPED_ITEMS = {
    "waits": "needs CUDA",
    "trl-liger": "needs CUDA",
    "head-liger": ("needs CUDA", "liger_kernel is not installed"),
    "head-cce": ("cut_cross_entropy is not installed", "compiles for minutes on a CPU"),
    "head-torch": "has no linear_cross_entropy",
    "8b-stochastic-rounding": "needs CUDA",
    "ray": "ray is not installed",
}
"""Items that may skip without a card, with the reason."""
SKIPPED_TESTS = {
    "test_a_step_is_repeated_in_smaller_passes": "needs CUDA",
    "test_a_scoring_batch_is_halved": "needs CUDA",
    "test_training_and_evaluation": "needs CUDA",
    "test_scoring": "needs CUDA",
    "test_trains_without_one": "needs CUDA",
    "test_gradients": "FlexAttention has no backward on a CPU",
    "test_values": "FlexAttention takes no mixed dtypes on a CPU",
}
"""Tests of tests/gpu that may, with the reason; of the last two only those of FlexAttention."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four stages, one after the other."""
    folder = tmp_path_factory.mktemp("gpu-check") / "results"
    command = [sys.executable, SCRIPT, "--stage", *"ABCD", "--small", "--out", folder, "--seconds", 600]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900)
    failed = [line for line in lines_of(folder) if line["status"] in ("failed", "timeout")]
    assert not failed, json.dumps(failed, indent=1)
    assert done.returncode == 0, done.stderr
    return folder


def lines_of(folder: Path) -> list[Line]:
    return [json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]


def test_a_file_a_stage(results: Path) -> None:
    assert [path.name for path in sorted(results.iterdir())] == [f"stage-{stage}.jsonl" for stage in "ABCD"]
    for path in results.iterdir():
        first = json.loads(path.read_text().splitlines()[0])
        assert first["item"] == "card"
        assert {"torch", "transformers"} <= set(first["versions"])
        assert first["matmul_tflops"] > 0


def test_every_item_leaves_a_line(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    stages = import_module("acceptance.stages").STAGES
    found = [(line["stage"], line["item"]) for line in lines_of(results) if "test" not in line]
    expected = [(stage, name) for stage in stages for name in ("card", *(item.name for item in stages[stage]))]
    assert found == expected


def test_what_skips_without_a_card(results: Path) -> None:
    for line in lines_of(results):
        if line["status"] != "skipped":
            continue
        if "test" in line:
            name = line["test"].partition("[")[0]
            assert line["reason"] == SKIPPED_TESTS.get(name), line
            assert not name.startswith(("test_values", "test_gradients")) or line["test"].endswith("-flex]")
        else:
            allowed = SKIPPED_ITEMS.get(line["item"], ())
            reasons = (allowed,) if isinstance(allowed, str) else allowed
            assert line["reason"].endswith(reasons), line


def test_tables_of_the_lines(results: Path) -> None:
    command = [sys.executable, SCRIPT, "--tables", results]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=60)
    assert [line for line in done.stdout.splitlines() if line.startswith("## ")] == [
        f"## Stage {stage}: CPU" for stage in "ABCD"
    ]
    assert "| trainer-master |" in done.stdout
    assert "ours is times as fast" in done.stdout
