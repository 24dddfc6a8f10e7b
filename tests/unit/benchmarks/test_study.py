"""Selection, intervals and names of the study."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks" / "study"


@pytest.fixture(autouse=True)
def study_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the study's modules importable."""
    monkeypatch.syspath_prepend(str(FOLDER))


def frame(**columns: Any) -> pd.DataFrame:
    settings = {"part": "main", "method": "dpo", "guide": "", "alpha": 0.0, "seed": 0, "answer": "", "kl": 0.0,
                "tokens": 1, "base_score": 0.0}  # fmt: skip
    return pd.DataFrame(settings | columns)


def test_even_prompts_choose_and_odd_ones_are_shown() -> None:
    """The learning rate that looks best on the shown prompts is not the one that is chosen."""
    results = pd.concat(
        [
            frame(prompt=[0, 1, 2, 3], score=[1.0, 0.0, 1.0, 0.0], learning_rate=1e-4),
            frame(prompt=[0, 1, 2, 3], score=[0.0, 1.0, 0.0, 1.0], learning_rate=3e-4),
        ]
    )
    chosen = import_module("tables").selected(results)
    assert chosen.learning_rate.unique().tolist() == [1e-4]
    assert chosen.prompt.tolist() == [1, 3]


def test_answers_to_one_prompt_are_no_further_evidence() -> None:
    """The same answers under five seeds leave the interval as it is."""
    tables = import_module("tables")
    scores, prompts = pd.Series(np.tile([0.0, 1.0], 50)), pd.Series(range(100))
    once = tables.interval(scores, prompts)
    five = tables.interval(pd.concat([scores] * 5), pd.concat([prompts] * 5))
    assert five == pytest.approx(once)
    assert once == pytest.approx((0.5, 1.96 * np.sqrt(0.25 * 100 / 99) / 10))


def test_a_difference_is_taken_prompt_by_prompt() -> None:
    """Prompts may be as different as they like: what one setting is always better by has no interval."""
    scores = np.arange(10.0)
    some, other = frame(prompt=range(10), score=scores + 0.25), frame(prompt=range(9, -1, -1), score=scores[::-1])
    assert import_module("tables").minus(some, other) == "+0.250 ± 0.000"


def test_equal_scores_are_half_a_win() -> None:
    found = import_module("tables").wins(frame(prompt=[0, 1, 2], score=[0.5, 0.0, -0.5]))
    assert found.tolist() == [100, 50, 0]


def test_distinct() -> None:
    assert import_module("tables").distinct(["a b a b", "a b"]) == pytest.approx(2 / 4)


@pytest.mark.parametrize("name", ["STORIES", "SORTING", "SMOKE"])
def test_every_run_has_a_name_of_its_own(name: str) -> None:
    grid = getattr(import_module("grid"), name)
    names = [spec.name for spec in (*grid.guide_specs(), *grid.specs())]
    assert len(set(names)) == len(names)
    assert grid.seeds >= (2 if name == "SMOKE" else 5)
