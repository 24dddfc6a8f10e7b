"""Scores and first steps beside those kept when their numbers in data/versions.py were last raised.

Where one of these fails although the change was meant: raise the number, and make the values anew with
`python tests/fixtures/golden.py`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures import golden

from tgdpo.data.versions import SCORE_VERSION, STEP_VERSION

STORED = {kind: json.loads((golden.GOLDEN / f"{kind}.json").read_text()) for kind in ("scores", "steps")}
CLOSE = {"rel": 1e-5, "abs": 1e-5}
CLOSE_IN_BFLOAT16 = {"rel": 0.03, "abs": 0.03}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    golden.workplace(folder)
    return folder


def require_close(found: Any, stored: Any, where: str, tolerance: dict[str, float]) -> None:
    """Compares JSON values; numbers need only be close."""
    if isinstance(stored, dict):
        assert found.keys() == stored.keys(), where
        for name, value in stored.items():
            require_close(found[name], value, f"{where}, {name}", tolerance)
    elif isinstance(stored, list) and stored and not isinstance(stored[0], int | float):
        assert len(found) == len(stored), where
        for number, value in enumerate(stored):
            require_close(found[number], value, f"{where}, {number}", tolerance)
    else:
        assert found == pytest.approx(stored, **tolerance), where


def test_the_values_are_those_of_the_present_numbers() -> None:
    assert {kind: stored["version"] for kind, stored in STORED.items()} == {
        "scores": SCORE_VERSION,
        "steps": STEP_VERSION,
    }
    assert (STORED["scores"]["cases"].keys(), STORED["steps"]["cases"].keys()) == (
        golden.SCORES.keys(),
        golden.STEPS.keys(),
    )


@pytest.mark.parametrize("name", golden.SCORES)
def test_scores(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found = golden.scores_of(golden.SCORES[name], place / f"score {name}")
    require_close(found, STORED["scores"]["cases"][name], name, CLOSE_IN_BFLOAT16 if "bfloat16" in name else CLOSE)


@pytest.mark.parametrize("name", golden.STEPS)
def test_first_steps(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found = golden.steps_of(golden.STEPS[name], place / f"train {name}")
    require_close(found, STORED["steps"]["cases"][name], name, CLOSE_IN_BFLOAT16 if "bf" in name else CLOSE)
