"""Two guides on the same pairs, against sums over the rows one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import Row, random_rows, write_cache

from tgdpo import RewardCache
from tgdpo.errors import CacheError, UsageError
from tgdpo.stages.inspect.compare import Comparison, compare
from tgdpo.stages.inspect.sample import draw

SIDES = ("chosen", "rejected")


def judged_again(rows: list[Row], seed: int = 1) -> list[Row]:
    """The same pairs with other rewards."""
    rng = np.random.default_rng(seed)
    again = []
    for row in rows:
        rewards = {
            f"{side}_rewards": (
                0.5 * np.array(row[f"{side}_rewards"]) + rng.normal(0, 0.5, len(row[f"{side}_ids"]))
            ).astype(np.float32).tolist()
            for side in SIDES
        }  # fmt: skip
        again.append(row | rewards)
    return again


def compared(tmp_path: Path, tokenizer: Any, rows: list[Row], others: list[Row], **options: Any) -> Comparison:
    ours = RewardCache(write_cache(tmp_path / "ours", rows, tokenizer))
    theirs = RewardCache(write_cache(tmp_path / "theirs", others, tokenizer, **options))
    return compare(ours, theirs, draw(ours, full=True))


def margins(rows: list[Row]) -> np.ndarray:
    return np.array([sum(row["chosen_rewards"]) - sum(row["rejected_rewards"]) for row in rows])


def test_what_two_guides_say(tmp_path: Path, tokenizer: Any) -> None:
    rows = random_rows(1200)
    others = judged_again(rows)
    found = compared(tmp_path, tokenizer, rows, others, pairs_per_shard=500)
    ours, theirs = margins(rows), margins(others)
    assert (found.pairs, found.unmatched) == (1200, 0)
    assert found.agreement == ((ours > 0) == (theirs > 0)).mean()
    assert (found.ours.share, found.theirs.share) == ((ours > 0).mean(), (theirs > 0).mean())
    assert found.margin_correlation == pytest.approx(np.corrcoef(ours, theirs)[0, 1])
    flat = [np.concatenate([row[f"{s}_rewards"] for row in each for s in SIDES]) for each in (rows, others)]
    assert found.token_correlation == pytest.approx(np.corrcoef(*flat)[0, 1])
    assert (found.ours_std, found.theirs_std) == pytest.approx((flat[0].std(), flat[1].std()))
    assert found.difference == pytest.approx(np.abs(flat[0] - flat[1]).mean())
    apart = np.abs(ours / ours.std() - theirs / theirs.std())
    assert found.most_differing[0].number == apart.argmax()
    assert found.most_differing[0].ours == pytest.approx(ours[apart.argmax()], abs=1e-5)


def test_tokens(tmp_path: Path, tokenizer: Any) -> None:
    rows = random_rows(300)
    others = [
        row
        | {
            f"{side}_rewards": [
                reward + 3 * (token == 77)
                for reward, token in zip(row[f"{side}_rewards"], row[f"{side}_ids"], strict=True)
            ]
            for side in SIDES
        }
        for row in rows
    ]
    found = compared(tmp_path, tokenizer, rows, others).tokens
    assert found[0].id == 77
    assert found[0].theirs - found[0].ours == pytest.approx(3, abs=1e-5)
    assert found[0].count == sum(row[f"{s}_ids"].count(77) for row in rows for s in SIDES)


def test_pairs_that_one_cache_lacks(tmp_path: Path, tokenizer: Any) -> None:
    rows = random_rows(1500)
    others = [row for n, row in enumerate(judged_again(rows)) if n % 3]
    found = compared(tmp_path, tokenizer, rows, others, pairs_per_shard=333)
    assert (found.pairs, found.unmatched) == (1000, 500)
    np.testing.assert_allclose(found.margins[0], margins([row for n, row in enumerate(rows) if n % 3]), atol=1e-5)
    np.testing.assert_allclose(found.margins[1], margins(others), atol=1e-5)


def test_a_cache_with_itself(tmp_path: Path, tokenizer: Any) -> None:
    rows = random_rows(20)
    found = compared(tmp_path, tokenizer, rows, rows)
    assert found.agreement == 1
    assert found.token_correlation == pytest.approx(1)
    assert found.difference == 0


def test_other_pairs_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    rows = random_rows(20)
    with pytest.raises(CacheError, match="no pair in common"):
        compared(tmp_path, tokenizer, rows, [row | {"pair_id": f"other {n}"} for n, row in enumerate(rows)])
    other = [row | {"source_row": row["source_row"] + 10**6} for row in rows]
    (tmp_path / "again").mkdir()
    with pytest.raises(CacheError, match="no pair in common"):
        compared(tmp_path / "again", tokenizer, rows, other)


def test_other_ids_under_one_name_are_damage(tmp_path: Path, tokenizer: Any) -> None:
    rows = random_rows(20)
    others = [row | {"chosen_ids": row["chosen_ids"][::-1]} for row in rows]
    with pytest.raises(CacheError, match="other chosen ids"):
        compared(tmp_path, tokenizer, rows, others)


def test_without_rewards_there_is_nothing_to_compare(tmp_path: Path, tokenizer: Any) -> None:
    folder = write_cache(tmp_path / "refs", random_rows(5), tokenizer)
    manifest = folder / "_manifest.json"
    manifest.write_text(manifest.read_text().replace('"log-ratio"', '"none"'))
    cache = RewardCache(folder)
    with pytest.raises(UsageError, match="without guidance"):
        compare(cache, cache, draw(cache, full=True))
