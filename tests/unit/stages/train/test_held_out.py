"""What is held out: whole prompts, by the seed alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import random_rows, write_cache
from support import make_tokenizer

from tgdpo.data.cache import RewardCache
from tgdpo.data.schema import ROW_GROUP_PAIRS
from tgdpo.stages.train.held_out import Split, held_out
from tgdpo.stages.train.order import PairOrder

ROWS = 1300
"""Three row groups, in two shards."""


def make(folder: Path, prompts: list[str]) -> RewardCache:
    rows = [{**row, "prompt": prompt} for row, prompt in zip(random_rows(len(prompts)), prompts, strict=True)]
    return RewardCache(write_cache(folder, rows, make_tokenizer(chat=False), pairs_per_shard=2 * ROW_GROUP_PAIRS))


@pytest.fixture(scope="module")
def unique(tmp_path_factory: pytest.TempPathFactory) -> RewardCache:
    """Every prompt once."""
    return make(tmp_path_factory.mktemp("unique") / "cache", [f"prompt {n}" for n in range(ROWS)])


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> RewardCache:
    """200 prompts, one to a few dozen times, all over the row groups."""
    numbers = np.random.default_rng(0).geometric(0.02, ROWS) % 200
    return make(tmp_path_factory.mktemp("repeated") / "cache", [f"prompt {n}" for n in numbers])


def rows_of(cache: RewardCache, seed: int = 3, fraction: float = 0.1, split: Split = "prompt") -> np.ndarray[Any, Any]:
    """Numbers of the held-out rows."""
    return np.flatnonzero(np.concatenate(held_out(cache, seed=seed, fraction=fraction, split=split).rows))


def prompts_of(cache: RewardCache) -> np.ndarray[Any, Any]:
    return np.array(cache.to_arrow(["prompt"])["prompt"].to_pylist())


@pytest.mark.parametrize("fraction", [0.001, 0.02, 0.1, 0.5, 0.95])
def test_a_prompt_is_on_one_side_with_all_its_pairs(repeated: RewardCache, fraction: float) -> None:
    prompts = prompts_of(repeated)
    held = rows_of(repeated, fraction=fraction)
    sides = set(prompts[held]), set(np.delete(prompts, held))
    assert not sides[0] & sides[1]
    assert len(sides[0]) == max(1, round(fraction * len(set(prompts))))
    assert held_out(repeated, seed=3, fraction=fraction, split="prompt").prompts == len(sides[0])
    if fraction == 0.1:
        by_row = rows_of(repeated, split="row")
        assert set(prompts[by_row]) & set(np.delete(prompts, by_row)), "the fixture must be one where rows overlap"


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5])
def test_without_repeated_prompts_it_is_the_split_of_0_1_0(unique: RewardCache, fraction: float) -> None:
    expected, start, held_before = [], 0, 0
    for number, group in enumerate(unique.row_groups):
        until = int(np.round((start + group.rows) * fraction))
        permuted = np.random.default_rng([3, 0, number]).permutation(group.rows)
        expected += sorted(start + permuted[: until - held_before])
        start, held_before = start + group.rows, until
    assert rows_of(unique, fraction=fraction).tolist() == expected
    assert rows_of(unique, fraction=fraction, split="row").tolist() == expected


def test_the_seed_decides(repeated: RewardCache) -> None:
    assert rows_of(repeated, seed=1).tolist() == rows_of(repeated, seed=1).tolist()
    assert rows_of(repeated, seed=1).tolist() != rows_of(repeated, seed=2).tolist()
    chosen = Counter(prompt for seed in range(60) for prompt in set(prompts_of(repeated)[rows_of(repeated, seed=seed)]))
    assert len(chosen) > 150, "any prompt may be held out"


def test_at_least_one_prompt(tmp_path: Path, unique: RewardCache) -> None:
    assert len(rows_of(unique, fraction=1e-9)) == 1
    assert len(rows_of(unique, fraction=1e-9, split="row")) == 0
    # The last row groups bring no prompt that is new.
    late = make(tmp_path / "late", [f"prompt {n % 40}" for n in range(ROWS)])
    held = rows_of(late, fraction=0.001)
    assert len(set(prompts_of(late)[held])) == 1
    assert len(held) in (ROWS // 40, ROWS // 40 + 1)


def test_nothing_is_held_out_or_read_without_a_share(repeated: RewardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewardCache, "open_shard", None)
    assert PairOrder(repeated, seed=0, eval_fraction=0).eval_pairs == 0
    assert PairOrder(repeated, seed=0, eval_fraction=0.1, eval_split="row").eval_pairs == 130


@pytest.mark.parametrize("split", ["prompt", "row"])
def test_the_order_trains_on_one_side_and_evaluates_the_other(repeated: RewardCache, split: Split) -> None:
    order = PairOrder(repeated, seed=3, eval_fraction=0.2, eval_split=split)
    ids = np.array(repeated.to_arrow(["pair_id"])["pair_id"].to_pylist())
    held = rows_of(repeated, fraction=0.2, split=split)
    assert [pair.pair_id for pair in order.held_out()] == ids[held].tolist()
    for epoch in (0, 1):
        assert sorted(pair.pair_id for pair in order.epoch(epoch)) == sorted(np.delete(ids, held))
    assert (order.eval_pairs, order.train_pairs) == (len(held), ROWS - len(held))
