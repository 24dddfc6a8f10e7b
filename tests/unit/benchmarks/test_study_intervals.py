"""The study's intervals and p-values: against plain loops, textbook values, and how often they hold the truth."""

from importlib import import_module

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

Values = NDArray[np.float64]


def sample(
    generator: np.random.Generator, seeds: int, prompts: int, of_seeds: float, of_prompts: float, rest: float
) -> Values:
    """Values of mean 0, [S, P], from standard deviations of seeds, of prompts, and of the rest."""
    return np.asarray(
        generator.normal(0, of_seeds, (seeds, 1))
        + generator.normal(0, of_prompts, (1, prompts))
        + generator.normal(0, rest, (seeds, prompts))
    )


def test_bootstrap_is_that_of_plain_loops() -> None:
    generator = np.random.default_rng(1)
    values = sample(generator, 4, 9, of_seeds=1, of_prompts=2, rest=1)
    found = import_module("intervals").bootstrap_means(values)
    drawn = []
    for _ in range(10_000):
        seeds, prompts = generator.integers(4, size=4), generator.integers(9, size=9)
        drawn.append(np.mean([[values[seed, prompt] for prompt in prompts] for seed in seeds]))
    for quantile in (0.025, 0.25, 0.5, 0.75, 0.975):
        assert np.quantile(found, quantile) == pytest.approx(np.quantile(drawn, quantile), abs=0.05 * np.std(drawn))


def coverage(of_seeds: float, of_prompts: float, rest: float) -> dict[str, float]:
    """How often the intervals of 200 samples of 5 seeds and 40 prompts hold their mean, 0."""
    estimate, generator = import_module("intervals").estimate, np.random.default_rng(2)
    found = [estimate(sample(generator, 5, 40, of_seeds, of_prompts, rest)) for _ in range(200)]
    return {
        "bootstrap": float(np.mean([one.low <= 0 <= one.high for one in found])),
        "t": float(np.mean([abs(one.mean) <= one.half_t for one in found])),
        "p": float(np.mean([one.p >= 0.05 for one in found])),
    }


def test_coverage_where_prompts_dominate() -> None:
    """The bootstrap is right; t over seeds knows nothing of other prompts."""
    held = coverage(of_seeds=0.1, of_prompts=1, rest=0.5)
    assert 0.92 <= held["bootstrap"] <= 0.98
    assert held["p"] == pytest.approx(held["bootstrap"], abs=0.01)
    assert held["t"] < 0.8


def test_coverage_where_seeds_dominate() -> None:
    """t over seeds is right; the bootstrap of five seeds is known to be too narrow, though not by far."""
    held = coverage(of_seeds=1, of_prompts=0.2, rest=0.5)
    assert 0.92 <= held["t"] <= 0.98
    assert 0.8 <= held["bootstrap"] < 0.92


def test_answers_under_more_seeds_are_no_further_evidence_about_prompts() -> None:
    """The same answers under five seeds leave the bootstrap's interval as wide as it is under one."""
    estimate = import_module("intervals").estimate
    one = np.tile([0.0, 1.0], 50)[None]
    five = estimate(np.repeat(one, 5, axis=0))
    once = estimate(one)
    assert five.high - five.low == pytest.approx(once.high - once.low, rel=0.05)
    assert five.half_t == 0
    assert np.isnan(once.half_t)


def test_p_says_what_the_interval_says() -> None:
    estimate = import_module("intervals").estimate
    values = sample(np.random.default_rng(3), 5, 40, of_seeds=0.1, of_prompts=0.1, rest=1)
    edge = estimate(values).low
    assert estimate(values - edge + 0.01).p < 0.05 < estimate(values - edge - 0.01).p
    assert estimate(np.zeros((5, 40))).p == 1
    assert estimate(values + 10).p == pytest.approx(2 / 10_001)
    assert estimate(values - 10).p == pytest.approx(2 / 10_001)


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980)]
)
def test_t_is_that_of_printed_tables(degrees: int, t: float) -> None:
    assert import_module("intervals").t_quantile(degrees) == pytest.approx(t, abs=5e-4)


def test_t_interval_of_five_means() -> None:
    """Mean 3, standard deviation sqrt(2.5): 2.776 sqrt(2.5 / 5)."""
    assert import_module("intervals").half_t(np.arange(1.0, 6.0)) == pytest.approx(1.963, abs=1e-3)


def test_holm_of_a_known_example() -> None:
    """R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert import_module("intervals").holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(1e-4, 1), max_size=8), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_procedure_rejects(ps: list[float], level: float) -> None:
    """Step by step from the smallest p: stop where p is above level / (number that are left)."""
    corrected = import_module("intervals").holm(ps)
    rejected: set[int] = set()
    for place in sorted(range(len(ps)), key=ps.__getitem__):
        if (len(ps) - len(rejected)) * ps[place] > level:
            break
        rejected.add(place)
    assert {place for place, p in enumerate(corrected) if p <= level} == rejected


def test_an_answer_that_is_missing() -> None:
    frame = pd.DataFrame({"seed": [0, 0, 1], "prompt": [1, 3, 1]})
    with pytest.raises(ValueError, match="every seed needs one answer"):
        import_module("intervals").crossed(pd.Series([0.0, 1.0, 2.0]), frame)
    full = import_module("intervals").crossed(pd.Series([0.0, 1.0, 2.0, 3.0]), pd.DataFrame(
        {"seed": [1, 0, 1, 0], "prompt": [1, 3, 3, 1]}
    ))  # fmt: skip
    assert full.tolist() == [[3, 1], [0, 2]]
