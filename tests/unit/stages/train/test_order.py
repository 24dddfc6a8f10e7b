"""The order of pairs: every pair once an epoch, seeded, and resumable at any place."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import STANDARD_ROWS, Models, write_rows

import tgdpo
from tgdpo.data import schema
from tgdpo.data.cache import RewardCache
from tgdpo.errors import CacheError
from tgdpo.stages.score import finish
from tgdpo.stages.train.order import PairOrder


@pytest.fixture(scope="module")
def cache(models: Models, tmp_path_factory: pytest.TempPathFactory) -> RewardCache:
    """200 pairs in 5 shards with row groups of 16."""
    folder = tmp_path_factory.mktemp("order")
    rows = [{**row, "prompt": f"{n}. {row['prompt']}"} for n, row in enumerate(STANDARD_ROWS * 10)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "ROW_GROUP_PAIRS", 16)
        patch.setattr(finish, "ROW_GROUP_PAIRS", 16)
        tgdpo.score(
            tgdpo.ScoreConfig(
                dataset=str(write_rows(folder / "pairs.jsonl", rows)),
                reference=str(models.reference),
                output=str(folder / "cache"),
                pairs_per_shard=44,
            )
        )
    opened = RewardCache(folder / "cache")
    assert [group.rows for group in opened.row_groups] == [16, 16, 12] * 4 + [16, 8]
    return opened


def names(order: PairOrder, epoch: int, skip: int = 0) -> list[str]:
    return [pair.pair_id for pair in order.epoch(epoch, skip)]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), fraction=st.floats(0, 0.9), skip=st.integers(0, 220), epoch=st.integers(0, 3))
def test_every_pair_once(cache: RewardCache, seed: int, fraction: float, skip: int, epoch: int) -> None:
    order = PairOrder(cache, seed=seed, eval_fraction=fraction)
    trained, held_out = names(order, epoch), [pair.pair_id for pair in order.held_out()]
    everything = [pair.pair_id for group in cache.row_groups for pair in cache.read_pairs(group)]
    assert sorted(trained + held_out) == sorted(everything)
    assert (len(trained), len(held_out)) == (order.train_pairs, order.eval_pairs)
    assert abs(order.eval_pairs - fraction * 200) <= 1
    assert names(order, epoch, skip) == trained[skip:]


def test_seed_and_epoch_decide_the_order(cache: RewardCache) -> None:
    make: Callable[[int], PairOrder] = lambda seed: PairOrder(cache, seed=seed, eval_fraction=0.1)  # noqa: E731
    assert names(make(1), 0) == names(make(1), 0)
    assert names(make(1), 0) != names(make(1), 1)
    assert names(make(1), 0) != names(make(2), 0)
    assert sorted(names(make(1), 0)) == sorted(names(make(1), 1)), "the held-out pairs are the same in every epoch"


def test_each_epoch_has_an_order_of_its_own_inside_every_row_group(cache: RewardCache) -> None:
    order = PairOrder(cache, seed=1, eval_fraction=0)
    epochs = [names(order, epoch) for epoch in range(3)]
    for group in cache.row_groups:
        members = {pair.pair_id for pair in cache.read_pairs(group)}
        orders = {tuple(name for name in epoch if name in members) for epoch in epochs}
        assert len(orders) == 3


def test_skipping_reads_one_row_group_and_the_next(cache: RewardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    order = PairOrder(cache, seed=0, eval_fraction=0)
    reads = []
    original = RewardCache.read_pairs

    def counted(self: RewardCache, group: object, *further: object) -> object:
        reads.append(group)
        return original(self, group, *further)  # type: ignore[arg-type]

    monkeypatch.setattr(RewardCache, "read_pairs", counted)
    pairs = order.epoch(0, skip=150)
    next(pairs)
    pairs.close()  # type: ignore[attr-defined]
    assert len(reads) == 2


def test_ids_that_the_policy_does_not_know(cache: RewardCache) -> None:
    ids = [pair.ids for group in cache.row_groups for pair in cache.read_pairs(group)]
    most = max(int(part.max()) for pair in ids for part in pair)
    make: Callable[[int], PairOrder] = lambda known: PairOrder(cache, seed=0, eval_fraction=0, vocabulary=known)  # noqa: E731
    assert len(names(make(most + 1), 0)) == 200
    with pytest.raises(CacheError, match=f"holds the token id {most}, and the model knows {most}"):
        names(make(most), 0)
