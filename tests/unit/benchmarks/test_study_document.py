"""docs/study.md says what the raw results say: every table, made again from them, and every figure of its text."""

import re
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tgdpo.pipeline.demo.task import is_right

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "study.md").read_text()
SECTIONS = {"stories": "## Results: stories\n", "sorting": "## A test of the harness: sorting\n"}
BY_HAND = ("| task |", "| claim of the paper |")
"""Beginnings of tables that are text."""

tasks = pytest.mark.parametrize("task", SECTIONS)


def section(task: str) -> str:
    """The page's part about a task."""
    return PAGE.split(SECTIONS[task])[1].split("\n## ")[0]


@lru_cache
def raw(task: str) -> Any:
    """Raw results that are kept."""
    return import_module("raw").Raw.read(ROOT / "benchmarks" / "study" / "results" / task)


@lru_cache
def tables(task: str) -> dict[str, str]:
    """By heading."""
    found: dict[str, str] = import_module("report").tables(raw(task))
    return found


def one_line(text: str) -> str:
    return " ".join(text.split())


@tasks
def test_tables_are_those_of_the_raw_results(task: str) -> None:
    shown = dict(re.findall(r"^### (.+)\n\n((?:\|.*\n)+)", section(task), re.MULTILINE))
    assert list(shown) == list(tables(task))
    for heading, table in tables(task).items():
        assert shown[heading] == f"{table}\n", heading


def test_no_other_table() -> None:
    made = {table for task in SECTIONS for table in tables(task).values()}
    for table in re.findall(r"^(?:\|.*\n)+", PAGE, re.MULTILINE):
        assert table.rstrip("\n") in made or table.startswith(BY_HAND), table


@tasks
def test_counts_are_those_of_the_raw_results(task: str) -> None:
    report = import_module("report")
    assert report.counts(raw(task)) in one_line(section(task))
    assert report.LEGEND in one_line(PAGE)


@tasks
def test_figures_of_the_text_are_in_the_tables(task: str) -> None:
    """Those with an interval, and those of three decimals or more: scores and p."""
    made = "\n".join(tables(task).values())
    text = section(task)
    for table in tables(task).values():
        text = text.replace(table, "")
    figures = re.findall(r"[+-]?\d+\.\d+ \[[^]]*\](?: ± \d+\.\d+)?|[+-]?\d\.\d{3,}", text)
    assert figures
    assert [figure for figure in figures if figure not in made] == []


@tasks
def test_raw_results_hold_together(task: str) -> None:
    """Prompts are numbered without a gap, and the base's scores are those that answers were held against."""
    kept = raw(task)
    assert kept.prompts.prompt.tolist() == list(range(len(kept.prompts))) == sorted(kept.results.prompt.unique())
    assert kept.prompts.text.is_unique
    both = kept.results.merge(kept.base, on=["prompt", "seed"], validate="many_to_one", suffixes=("", "_of_base"))
    assert len(both) == len(kept.results)
    assert (both.base_score == both.score_of_base).all()


def test_scores_of_the_kept_base_answers() -> None:
    sentiment = pytest.importorskip("vaderSentiment.vaderSentiment", reason="tgdpo[study] is not installed")
    base, vader = raw("stories").base, sentiment.SentimentIntensityAnalyzer()
    assert [vader.polarity_scores(answer)["compound"] for answer in base.answer] == base.score.tolist()


def test_scores_of_the_kept_sorting_answers() -> None:
    kept = raw("sorting")
    asked = kept.results.merge(kept.prompts, on="prompt")
    right = [is_right(prompt, answer) for prompt, answer in zip(asked.text, asked.answer, strict=True)]
    assert right == asked.score.astype(bool).tolist()
