"""The smoke form of benchmarks/study, as a user starts it."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="the study's own dependencies, tgdpo[study], are not installed")

STUDY = Path(__file__).parents[2] / "benchmarks" / "study"


def study(output: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(STUDY), "--output", str(output), "--smoke", "--workers", "1"],
        capture_output=True, text=True, timeout=1800, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return (output / "smoke" / "report.md").read_text()


def test_smoke_goes_on_to_the_same_tables(tmp_path: Path) -> None:
    report = study(tmp_path)
    for heading in ("Methods", "To convergence", "Alpha", "Guides"):
        assert f"## {heading}" in report
    folder = tmp_path / "smoke"
    assert {path.name for path in folder.glob("*.png")} == {"frontier.png", "curves.png"}
    results = pd.read_parquet(folder / "results.parquet")
    runs = results.groupby(["part", "method", "guide", "alpha", "learning_rate", "seed"])
    assert (runs.size() == 40).all()
    assert set(results.method) == {"dpo", "weak-dpo", "tdpo2", "tgdpo"}
    assert results.kl.ge(-1e-4).all()
    assert results.score.isin([0, 1]).all()
    assert results.base_score.notna().all()

    lost = "main-tgdpo-dpo-0.5-lr0.001-s1"
    kept = (folder / "results" / "main-dpo-lr0.001-s0.parquet").stat().st_mtime_ns
    (folder / "results" / f"{lost}.parquet").unlink()
    shutil.rmtree(folder / "runs" / lost)
    assert study(tmp_path) == report
    assert (folder / "results" / "main-dpo-lr0.001-s0.parquet").stat().st_mtime_ns == kept


def test_differences_at_the_same_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers whose score is log KL plus something of their method's."""
    monkeypatch.syspath_prepend(str(STUDY))
    from tables import equal_kl

    def answers(method: str, rate: float, kl: float, more: float) -> pd.DataFrame:
        frame = pd.DataFrame([(prompt, seed) for prompt in range(6) for seed in range(2)], columns=["prompt", "seed"])
        of_prompt = frame.prompt / 10 + frame.seed / 100
        return frame.assign(part="main", method=method, guide="", alpha=0.0, learning_rate=rate, kl=kl,
                            score=math.log(kl) + of_prompt + more)  # fmt: skip

    results = pd.concat(
        [answers("dpo", rate, kl, 0) for rate, kl in ((1e-5, 0.1), (1e-4, 2.0), (1e-3, 9.0))]
        + [answers("better", rate, kl, 0.5) for rate, kl in ((1e-5, 0.3), (1e-4, 4.0), (1e-3, 20.0))]
        + [answers("alike", 1e-4, 2.0, 0)]
    )
    assert equal_kl(results) == [
        {"method": "BETTER", "1e-05": "+0.500 ± 0.000 (KL 0.3)", "0.0001": "+0.500 ± 0.000 (KL 4)", "0.001": ""},
        {"method": "ALIKE", "0.0001": "+0.000 ± 0.000 (KL 2)"},
    ]
