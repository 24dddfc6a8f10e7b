"""The card of a reward cache on the hub: what load_dataset needs, and what a person wants to know."""

from typing import Any

import yaml

from ...data.cache import RewardCache
from ...data.manifest import Manifest, RewardKind
from ...data.schema import rewards_columns
from ..hub import CITATION
from ..inspect.sample import draw
from ..inspect.statistics import Statistics, gather
from ..inspect.summary import fact_lines

_MEANING = {
    "pair_id": "hash of the pair's token ids and its place in the source",
    "source_row": "row number in the source data, from 0",
    "ids": "token ids",
    "sampled_ids": "tokens drawn from the reference, equally many for each response token",
    "sampled_ref_logps": "their log pi_ref, nats",
    "ref_logps": "log pi_ref of each response token, nats",
}
_REWARDS: dict[RewardKind, str] = {
    "log-ratio": "log pi_guide - log pi_ref of each response token, nats",
    "token-classification": "the reward model's output at each response token",
    "none": "zeros: scored without guidance",
}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def card(cache: RewardCache, name: str, licence: str | None) -> str:
    """The text of README.md."""
    statistics = gather(cache, draw(cache, full=False))
    parts = [
        f"---\n{yaml.safe_dump(_header(cache, licence), sort_keys=False)}---\n",
        f"# {name.rpartition('/')[2]}\n",
        "Per-token rewards of preference pairs for TGDPO, made by [tgdpo](https://arxiv.org/abs/2506.14574): "
        "reference and guidance model have been run once, training needs the policy alone.\n",
        _reading(name),
        _table(("cache", ""), [(key, _code(value)) for key, value in fact_lines(cache).items()]),
        _table(
            ("column", "type", "meaning"),
            [(f.name, _code(str(f.type)), _meaning(f.name, cache.manifest)) for f in cache.schema],
        ),
        _statistics(statistics),
        _table(("made from", ""), [(key, _code(value)) for key, value in cache.manifest.fingerprint.items()]),
        CITATION + "\n",
    ]
    return "\n".join(part for part in parts if part)


def _header(cache: RewardCache, licence: str | None) -> dict[str, Any]:
    size = next((name for limit, name in _SIZES if len(cache) < limit), "n>10M")
    header: dict[str, Any] = {"license": licence} if licence else {}
    return header | {
        "tags": ["tgdpo", "preference-optimization", "token-rewards"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "part-*.parquet"}]}],
    }


def _reading(name: str) -> str:
    return (
        "```python\n"
        "import datasets\n\n"
        f'pairs = datasets.load_dataset("{name}", split="train")\n'
        "```\n\n"
        f"    tgdpo inspect hf://datasets/{name}\n"
        f"    tgdpo train --cache hf://datasets/{name} --model POLICY --output RUN\n"
    )


def _meaning(column: str, manifest: Manifest) -> str:
    part = column.partition("_")[2]
    if part == "rewards":
        return _REWARDS[manifest.reward_kind]
    for guide in manifest.added_guides:
        if column in rewards_columns(guide.name):
            return f"the same of {_code(guide.guidance)}: {_REWARDS[guide.reward_kind]}"
    return _MEANING.get(column) or _MEANING.get(part, "rendered text")


def _statistics(statistics: Statistics | None) -> str:
    if statistics is None or statistics.reward_kind == "none":
        return ""
    accuracy = statistics.accuracy
    rows: list[tuple[str, ...]] = [
        ("accuracy of the guide", f"{accuracy.share:.1%} (standard error {accuracy.standard_error:.1%})", "")
    ]
    for name, get in (("mean", "mean"), ("standard deviation", "std"), ("minimum", "minimum"), ("maximum", "maximum")):
        rows.append((name, *(f"{getattr(side, get):.4f}" for side in (statistics.chosen, statistics.rejected))))
    return _table((f"token rewards, {statistics.sample}", "chosen", "rejected"), rows)


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _code(value: Any) -> str:
    """A value as code: nothing of it is markup."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return f"`{text}`" if text else ""
