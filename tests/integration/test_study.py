"""The smoke form of benchmarks/study, as a user starts it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from processes import start_server
from scripts import run_script

pytest.importorskip("matplotlib", reason="the study's own dependencies, tgdpo[study], are not installed")

STUDY = Path(__file__).parents[2] / "benchmarks" / "study"


SMOKE = ("--smoke", "--workers", "1")


def study(output: Path, *options: object) -> str:
    """Another start, in this process; returns the tables."""
    start_server()  # else the study's own would be that of the tests thereafter
    run_script(STUDY, "--output", output, *SMOKE, *options)
    return (output / "smoke" / "report.md").read_text()


@pytest.fixture
def report(tmp_path: Path) -> str:
    """The tables of a study that a user starts, in `tmp_path`."""
    done = subprocess.run([sys.executable, str(STUDY), "--output", str(tmp_path), *SMOKE], capture_output=True,
                          text=True, timeout=1800, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return (tmp_path / "smoke" / "report.md").read_text()


def test_smoke_resumes_to_the_same_tables(report: str, tmp_path: Path) -> None:
    for heading in ("Methods", "To convergence", "Alpha", "Guides", "Every learning rate"):
        assert f"### {heading}" in report
    folder = tmp_path / "smoke"
    assert {path.name for path in folder.glob("*.png")} == {"frontier.png", "curves.png"}
    results = pd.read_parquet(folder / "results.parquet")
    runs = results.groupby(["part", "method", "guide", "alpha", "learning_rate", "seed"])
    assert (runs.size() == 40).all()
    assert set(results.method) == {"dpo", "weak-dpo", "tdpo2", "tgdpo"}
    assert results.kl.ge(-1e-4).all()
    assert results.score.isin([0, 1]).all()
    base = pd.read_parquet(folder / "base.parquet").merge(results, on=["prompt", "seed"])
    assert (base.score_x == base.base_score).all()
    assert len(base) == len(results)
    assert pd.read_parquet(folder / "prompts.parquet").prompt.tolist() == list(range(40))

    lost = "main-tgdpo-dpo-0.5-lr0.001-s1"
    kept = (folder / "results" / "main-dpo-lr0.001-s0.parquet").stat().st_mtime_ns
    (folder / "results" / f"{lost}.parquet").unlink()
    shutil.rmtree(folder / "runs" / lost)
    assert study(tmp_path) == report
    assert (folder / "results" / "main-dpo-lr0.001-s0.parquet").stat().st_mtime_ns == kept
    assert study(tmp_path / "again", "--tables-from", tmp_path) == report
    assert {path.suffix for path in (tmp_path / "again" / "smoke").iterdir()} == {".md", ".png"}


def test_raw_results_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^study: \S+smoke has no study.json"):
        study(tmp_path, "--tables-from", tmp_path)
