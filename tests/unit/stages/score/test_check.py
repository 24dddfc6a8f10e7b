"""`--check-against`: what is compared, stored and warned of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support import Cli, Models

from tgdpo.data.manifest import Manifest
from tgdpo.stages.score.engines.transformers import TransformersEngine


@pytest.fixture
def call(models: Models, pairs_file: Path, tmp_path: Path) -> list[Any]:
    return ["score", "--dataset", pairs_file, "--reference", models.reference, "--guidance", models.guidance,
            "--output", tmp_path / "cache", "--pairs-per-shard", 6]  # fmt: skip


@pytest.fixture
def transformers_as_another() -> str:
    """The same engine under a name of its own."""
    return f"{TransformersEngine.__module__}.TransformersEngine"


def test_the_same_scores_differ_by_nothing(
    ok: Cli, call: list[Any], transformers_as_another: str, tmp_path: Path
) -> None:
    result = ok(*call, "--check-against", f"{transformers_as_another}:9")
    check = Manifest.read(tmp_path / "cache").engine_check
    assert check is not None
    assert check.guidance is not None
    assert check.rewards is not None
    assert (check.against, check.pairs) == (transformers_as_another, 9)
    assert max(check.reference.max, check.guidance.max, check.rewards.max) < 1e-5
    assert "9 pairs" in result.stderr
    assert "warning" not in result.stderr


def test_differences_are_those_of_the_cache(
    ok: Cli, call: list[Any], transformers_as_another: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pairs, with guidance off by 0.25 everywhere and by 2 at one place in the check alone."""
    ok(*call)
    original = TransformersEngine.score

    def shifted(self: TransformersEngine, *arguments: Any) -> Any:
        scores = original(self, *arguments)
        if self.name.endswith("guidance"):
            for pair in scores:
                for side in pair:
                    side += 0.25
            scores[3].chosen[0] += 1.75
        return scores

    monkeypatch.setattr(TransformersEngine, "score", shifted)
    result = ok(*call, "--check-against", f"{transformers_as_another}:1000")
    check = Manifest.read(tmp_path / "cache").engine_check
    frame = pd.read_parquet(tmp_path / "cache")
    rewards = np.concatenate([*frame.chosen_rewards, *frame.rejected_rewards])
    assert check is not None
    assert check.guidance is not None
    assert check.rewards is not None
    assert (check.pairs, check.tokens) == (20, len(rewards))
    assert check.reference.max < 1e-5
    assert check.guidance.max == pytest.approx(2.0, abs=1e-5)
    assert check.rewards.mean == pytest.approx(0.25 + 1.75 / len(rewards), abs=1e-5)
    assert check.reward_size == pytest.approx(np.abs(rewards).mean())
    assert "warning: the engines differ by more than 0.001 nats per token in guidance and rewards" in result.stderr
    ok("verify", tmp_path / "cache")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_a_difference(
    value: float, ok: Cli, call: list[Any], transformers_as_another: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One token's, with the other engine."""
    ok(*call)
    original = TransformersEngine.score

    def spoiled(self: TransformersEngine, *arguments: Any) -> Any:
        scores = original(self, *arguments)
        if self.name.endswith("guidance"):
            scores[3].chosen[0] = value
        return scores

    monkeypatch.setattr(TransformersEngine, "score", spoiled)
    result = ok(*call, "--check-against", transformers_as_another)
    check = Manifest.read(tmp_path / "cache").engine_check
    assert check is not None
    assert check.guidance is not None
    assert check.rewards is not None
    assert (check.guidance.max, check.rewards.max) == (1e9, 1e9)
    assert check.reference.max < 1e-5
    assert "warning: the engines differ by more than 0.001 nats per token in guidance and rewards" in result.stderr


def test_a_finished_cache_is_checked_once(ok: Cli, call: list[Any], tmp_path: Path) -> None:
    ok(*call)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("part-*")}
    assert "also scored with dummy" in ok(*call, "--check-against", "dummy").stderr
    assert "nothing to do" in ok(*call, "--check-against", "dummy").stderr
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("part-*")} == before


def test_a_bound_of_ones_own(ok: Cli, call: list[Any]) -> None:
    result = ok(*call, "--check-against", "dummy", "--check-bound", 100)
    assert "also scored with dummy" in result.stderr
    assert "warning" not in result.stderr


def test_without_guidance_the_reference_alone(
    ok: Cli, models: Models, pairs_file: Path, tmp_path: Path, transformers_as_another: str
) -> None:
    ok("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "cache",
       "--check-against", transformers_as_another)  # fmt: skip
    check = Manifest.read(tmp_path / "cache").engine_check
    assert check is not None
    assert check.reference.max < 1e-5
    assert (check.guidance, check.rewards, check.reward_size) == (None, None, None)


def test_manifests_without_a_check_are_read(ok: Cli, call: list[Any], tmp_path: Path) -> None:
    ok(*call)
    path = tmp_path / "cache" / "_manifest.json"
    content = json.loads(path.read_text())
    del content["engine_check"]
    path.write_text(json.dumps(content))
    assert Manifest.read(tmp_path / "cache").engine_check is None
