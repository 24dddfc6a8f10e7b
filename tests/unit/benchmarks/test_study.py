"""Selection, differences and names of the study."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tgdpo.errors import UsageError


def frame(**columns: Any) -> pd.DataFrame:
    settings = {"part": "main", "method": "dpo", "guide": "", "alpha": 0.0, "seed": 0, "answer": "", "kl": 0.0,
                "tokens": 1, "base_score": 0.0, "learning_rate": 1e-4}  # fmt: skip
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


def test_a_difference_is_taken_prompt_by_prompt() -> None:
    """Prompts may be as different as they like: what one setting is always better by has no interval."""
    scores = np.arange(10.0)
    some, other = frame(prompt=range(10), score=scores + 0.25), frame(prompt=range(9, -1, -1), score=scores[::-1])
    assert f"{import_module('tables').minus(some, other):+.3f}" == "+0.250 [+0.250, +0.250]"


def test_p_of_a_table_are_corrected_over_it() -> None:
    """TGDPO's p is half of its corrected one where a second comparison is made beside it, and DPO has none."""
    tables, generator = import_module("tables"), np.random.default_rng(0)

    def answers(method: str, more: float) -> pd.DataFrame:
        scores = generator.normal(more, 1, (3, 40))
        frames = [frame(prompt=range(40), seed=seed, score=row, method=method) for seed, row in enumerate(scores)]
        return pd.concat(frames, ignore_index=True)

    results = pd.concat([answers("dpo", 0), answers("tgdpo", 1.0), answers("sft", 0)])
    base = frame(prompt=range(40), score=np.zeros(40)).drop(columns="base_score")
    rows = {row["method"]: row for row in tables.methods(results.replace({"alpha": {0.0: 0.5}}), base)}
    odd = tables.selected(results)
    plain = tables.minus(odd[odd.method == "tgdpo"], odd[odd.method == "dpo"])
    assert rows["TGDPO, guide , alpha 0.5"]["p, Holm"] == f"{2 * plain.p:.4f}"
    assert rows["TGDPO, guide , alpha 0.5"]["score minus DPO's"] == f"{plain:+.3f}"
    assert "p, Holm" not in rows["DPO"]


def test_counts_are_those_of_the_results() -> None:
    """Five prompts have three even ones; one of two settings chooses the larger learning rate."""
    raw, report = import_module("raw"), import_module("report")

    def answers(method: str, rate: float, score: float) -> list[pd.DataFrame]:
        return [frame(prompt=range(5), score=score, seed=seed, method=method, learning_rate=rate) for seed in (0, 1)]

    results = pd.concat(
        [*answers("dpo", 1e-4, 0), *answers("dpo", 3e-4, 1), *answers("sft", 1e-4, 1), *answers("sft", 3e-4, 0)]
    )
    nothing = pd.DataFrame()
    assert report.counts(raw.Raw(raw.About("task", "score", 2048), nothing, nothing, nothing, results, nothing)) == (
        "8 runs with 2 seeds on 2,048 pairs. Of 5 held-out prompts, 3 choose the learning rates and the other 2 make "
        "the tables: 4 answers per setting. 1 of 2 settings choose the largest learning rate."
    )


def test_equal_scores_are_half_a_win() -> None:
    found = import_module("tables").wins(frame(prompt=[0, 1, 2], score=[0.5, 0.0, -0.5]))
    assert found.tolist() == [100, 50, 0]


def test_distinct() -> None:
    assert import_module("tables").distinct(["a b a b", "a b"]) == pytest.approx(2 / 4)


def test_what_was_not_kept_is_empty() -> None:
    kept = frame(prompt=[0, 1], score=[0.0, 1.0]).assign(answer=None, tokens=np.nan, kl=np.nan)
    summary = import_module("tables").summary(kept)
    assert [summary[name] for name in ("KL to base", "tokens", "distinct-2")] == ["", "", ""]


def test_raw_results_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no study.json, prompts.parquet, base.parquet, guides.parquet"):
        import_module("raw").Raw.read(tmp_path)


def test_a_task_is_made_with_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the base of sorting, which is trained on the spot, depends on how many cores there are."""
    runs, threads = import_module("runs"), []

    def sorting(folder: Path, sizes: Any) -> None:
        threads.append(torch.get_num_threads())
        raise InterruptedError

    monkeypatch.setattr(runs, "sorting", sorting)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(InterruptedError):
            runs.Study("smoke", tmp_path, import_module("grid").SMOKE, tmp_path).finish(1)
    finally:
        torch.set_num_threads(before)
    assert threads == [1]


@pytest.mark.parametrize("name", ["STORIES", "SORTING", "SMOKE"])
def test_every_run_has_a_name_of_its_own(name: str) -> None:
    grid = getattr(import_module("grid"), name)
    names = [spec.name for spec in (*grid.guide_specs(), *grid.specs())]
    assert len(set(names)) == len(names)
    assert grid.seeds >= (2 if name == "SMOKE" else 5)
