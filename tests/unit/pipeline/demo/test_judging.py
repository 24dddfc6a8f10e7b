"""Accuracies and their standard errors."""

import statistics
from pathlib import Path

import pytest

from tgdpo.pipeline.demo.judging import Accuracy, judge, write_answers


def test_the_standard_error_is_that_of_the_mean_of_zeros_and_ones() -> None:
    accuracy = Accuracy(right=13, count=40)
    verdicts = [1.0] * 13 + [0.0] * 27
    assert accuracy.share == statistics.fmean(verdicts)
    assert accuracy.standard_error == pytest.approx(statistics.pstdev(verdicts) / 40**0.5)


def test_judges_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    write_answers(file, ["cab>", "tiger>"], {"base": ["abc", "tiger"], "dpo": ["abc", "egirt"]})
    assert judge(file) == {"base": Accuracy(1, 2), "dpo": Accuracy(2, 2)}
