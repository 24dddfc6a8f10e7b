"""Statistics against sums over the rows one by one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import Row, random_rows, write_cache

from tgdpo import RewardCache
from tgdpo.errors import CacheError
from tgdpo.stages.inspect.config import InspectConfig
from tgdpo.stages.inspect.modulation import Modulation
from tgdpo.stages.inspect.pairs import ranked
from tgdpo.stages.inspect.sample import SAMPLE_PAIRS, draw
from tgdpo.stages.inspect.statistics import RARE, Statistics, gather

SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module")
def full(folder: Path) -> Statistics:
    cache = RewardCache(folder)
    found = gather(cache, draw(cache, full=True))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def sampled(folder: Path) -> Statistics:
    cache = RewardCache(folder)
    found = gather(cache, draw(cache, full=False))
    assert found is not None
    return found


def margins(rows: list[Row]) -> np.ndarray:
    return np.array([sum(row["chosen_rewards"]) - sum(row["rejected_rewards"]) for row in rows])


def test_accuracy_and_margin(full: Statistics, rows: list[Row]) -> None:
    expected = margins(rows)
    assert full.accuracy.share == (expected > 0).mean()
    assert full.accuracy.standard_error == pytest.approx(np.std(expected > 0) / len(rows) ** 0.5)
    np.testing.assert_allclose(full.pairs.margin, expected, rtol=1e-6, atol=1e-5)
    assert full.margin.quantiles["0.95"] == pytest.approx(np.quantile(expected, 0.95))
    difference = [len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in rows]
    assert full.length_correlation == pytest.approx(np.corrcoef(expected, difference)[0, 1])


@pytest.mark.parametrize("side", SIDES)
def test_rewards(full: Statistics, rows: list[Row], side: str) -> None:
    values = np.concatenate([row[f"{side}_rewards"] for row in rows])
    found = getattr(full, side)
    assert found.count == len(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.std == pytest.approx(values.std())
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert found.positive == (values > 0).mean()
    assert found.last == pytest.approx(np.mean([row[f"{side}_rewards"][-1] for row in rows]))
    for name, value in found.quantiles.items():
        assert value == pytest.approx(np.quantile(values, float(name)))


def test_positions(full: Statistics, rows: list[Row]) -> None:
    assert [(each.start, each.end) for each in full.positions] == [
        (0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 64)
    ]  # fmt: skip
    for each in full.positions:
        for side in SIDES:
            values = [reward for row in rows for reward in row[f"{side}_rewards"][each.start : each.end]]
            assert getattr(each, side) == pytest.approx(np.mean(values))


def test_vocabulary(full: Statistics, rows: list[Row]) -> None:
    rewards: dict[int, list[float]] = {}
    for row in rows:
        for side in SIDES:
            for token, reward in zip(row[f"{side}_ids"], row[f"{side}_rewards"], strict=True):
                rewards.setdefault(token, []).append(reward)
    expected = {token: np.mean(values) for token, values in rewards.items() if len(values) >= RARE}
    assert {each.id: each.mean for each in full.vocabulary} == pytest.approx(expected)
    means = [each.mean for each in full.vocabulary]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize("side", [*SIDES, "all"])
def test_f(full: Statistics, rows: list[Row], side: str) -> None:
    modulation = Modulation.of(InspectConfig(alpha=2, beta_r=0.5))
    signs = {"chosen": 1, "rejected": -1}
    parts = [s * np.concatenate([row[f"{n}_rewards"] for row in rows]) for n, s in signs.items() if side in (n, "all")]
    f = 1 + 2 * 0.5 * np.concatenate(parts)
    found = full.f(modulation)[side]
    assert found.mean == pytest.approx(f.mean())
    assert found.negative == pytest.approx((f < 0).mean())
    assert found.quantiles["0.05"] == pytest.approx(np.quantile(f, 0.05))


class TestSample:
    """A large cache is not read as a whole."""

    def test_its_size_is_said(self, sampled: Statistics, rows: list[Row]) -> None:
        assert not sampled.sample.is_whole
        assert SAMPLE_PAIRS - 512 < sampled.sample.pairs <= SAMPLE_PAIRS
        assert str(sampled.sample) == f"a sample of {sampled.sample.pairs:,} of {len(rows):,} pairs"

    def test_pairs_keep_their_numbers(self, sampled: Statistics, rows: list[Row]) -> None:
        numbers = sampled.pairs.number
        assert len(set(numbers.tolist())) == sampled.sample.pairs
        np.testing.assert_allclose(sampled.pairs.margin, margins(rows)[numbers], rtol=1e-6, atol=1e-5)

    def test_extremes_are_those_of_all_pairs(self, sampled: Statistics, full: Statistics) -> None:
        for side in SIDES:
            ours, theirs = getattr(sampled, side), getattr(full, side)
            assert (ours.minimum, ours.maximum) == (theirs.minimum, theirs.maximum)

    def test_it_is_the_same_every_time_and_near_the_whole(self, sampled: Statistics, full: Statistics) -> None:
        assert draw_numbers(sampled) == draw_numbers(sampled)
        error = sampled.accuracy.standard_error
        assert abs(sampled.accuracy.share - full.accuracy.share) < 4 * error
        assert sampled.chosen.mean == pytest.approx(full.chosen.mean, abs=0.02)


def draw_numbers(statistics: Statistics) -> list[int]:
    return [start for start, _ in statistics.sample.groups]


def test_ranked(full: Statistics, rows: list[Row]) -> None:
    expected = margins(rows)
    assert ranked(full.pairs, "accuracy")[0] == expected.argmin()
    assert ranked(full.pairs, "margin")[0] == expected.argmax()
    extreme = [max(map(abs, row["chosen_rewards"] + row["rejected_rewards"])) for row in rows]
    assert ranked(full.pairs, "extreme")[0] == int(np.argmax(extreme))
    tied = replace(full.pairs, margin=np.zeros(len(rows)))
    assert ranked(tied, "margin")[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chosen_rewards": [1.0]}, "differ in length"),
        ({"rejected_ids": [], "rejected_rewards": [], "rejected_ref_logps": []}, "a response is empty"),
        ({"chosen_ids": [1, -1], "chosen_rewards": [0.0, 0.0], "chosen_ref_logps": [0.0, 0.0]}, "out of range"),
        ({"chosen_ids": [2**31 - 1], "chosen_rewards": [0.0], "chosen_ref_logps": [0.0]}, "out of range"),
        ({"chosen_ids": [7], "chosen_rewards": [float("nan")], "chosen_ref_logps": [0.0]}, "not finite"),
        ({"chosen_ids": [7], "chosen_rewards": [0.0], "chosen_ref_logps": [float("-inf")]}, "not finite"),
    ],
)
def test_damage_is_named(change: Row, says: str, tokenizer: Any, tmp_path: Path) -> None:
    rows = random_rows(3)
    rows[1] |= {"chosen_ids": [7, 8], "chosen_rewards": [0.0, 0.0], "chosen_ref_logps": [0.0, 0.0]} | change
    cache = RewardCache(write_cache(tmp_path / "cache", rows, tokenizer))
    with pytest.raises(CacheError, match=says):
        gather(cache, draw(cache, full=False))


def test_one_pair_has_statistics(tokenizer: Any, tmp_path: Path) -> None:
    cache = RewardCache(write_cache(tmp_path / "cache", random_rows(1), tokenizer))
    found = gather(cache, draw(cache, full=False))
    assert found is not None
    assert found.length_correlation is None
    assert found.accuracy.pairs == 1
    assert found.f(Modulation.of(InspectConfig()))["all"].negative == 0
