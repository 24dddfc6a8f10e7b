"""`tgdpo inspect`: what a cache holds, on stdout; with --html as a page."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from ...data.cache import RewardCache
from ...errors import CacheError, TgdpoError
from ..console import log, stdout
from .compare import Comparison, compare
from .config import InspectConfig
from .modulation import Modulation
from .pairs import ShownPair, ranked, read_numbered, shown_pair
from .sample import draw
from .statistics import Statistics, gather
from .summary import comparison_report, facts, overview, report
from .tokens import marked_pair
from .vocabulary import Vocabulary


def inspect(folder: str, config: InspectConfig, *, as_json: bool = False) -> None:
    """Prints the cache's summary and pairs, as text or as one JSON object.

    Raises:
        CacheError: there is no such cache or pair.
        ModelError: the tokenizer is not at hand (only where a pair or tokenizer was asked for).
    """
    cache = RewardCache(folder)
    statistics = gather(cache, draw(cache, full=config.full))
    vocabulary = find_vocabulary(cache, config) if statistics else None
    modulation = Modulation.of(config)
    comparison = _compared(cache, config, statistics)
    pairs = _shown_pairs(cache, config, statistics, vocabulary, as_json=as_json) if statistics else []
    if config.html:
        message = _write_html(config, cache, statistics, vocabulary, comparison)
        if not as_json:
            stdout().print(message, markup=False)
            return
        log(message)
    if as_json:
        content = _to_json(cache, statistics, modulation, pairs)
        print_json(content | {"comparison": comparison.to_json() if comparison else None})
        return
    console = stdout()
    parts: list[RenderableType] = [overview(cache)]
    if statistics:
        parts.append(report(statistics, modulation, vocabulary))
    if comparison:
        parts.append(comparison_report(comparison, (folder, config.compare or ""), vocabulary))
    for part in [*parts, *(marked_pair(pair, console) for pair in pairs)]:
        # A file or another program gets lines as long as they are.
        console.print(part, "", sep="\n", soft_wrap=not console.is_terminal)


def _compared(cache: RewardCache, config: InspectConfig, statistics: Statistics | None) -> Comparison | None:
    if config.compare is None or statistics is None:
        return None
    return compare(cache, RewardCache(config.compare), statistics.sample)


def _write_html(
    config: InspectConfig,
    cache: RewardCache,
    statistics: Statistics | None,
    vocabulary: Vocabulary | None,
    comparison: Comparison | None,
) -> str:
    from .page import write_cache_page

    if statistics is None:
        raise CacheError(f"{cache.storage} holds no pair", fix="look at its _set_aside.jsonl for the reasons")
    path = Path(config.html or "").expanduser()
    count = write_cache_page(path, cache, config, statistics, vocabulary, comparison)
    return f"{path}: {count:,} pairs, {path.stat().st_size / 1e6:.1f} MB; open it in a browser"


def print_json(content: dict[str, Any]) -> None:
    """One JSON object in ASCII, so that no text of the data reaches the terminal as it is."""
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False) + "\n")


def find_vocabulary(cache: RewardCache, config: InspectConfig) -> Vocabulary | None:
    """The cache's tokenizer, or None where it is not at hand and nobody asked for it."""
    manifest = cache.manifest
    try:
        return Vocabulary(config.tokenizer or manifest.tokenizer, manifest.tokenizer_vocabulary_sha256)
    except TgdpoError as error:
        if config.tokenizer:
            raise
        log(f"tokens are shown by their ids: {error.problem}; name the cache's tokenizer with --tokenizer")
        return None


def _shown_pairs(
    cache: RewardCache,
    config: InspectConfig,
    statistics: Statistics,
    vocabulary: Vocabulary | None,
    *,
    as_json: bool,
) -> list[ShownPair]:
    """The pairs named; else the first ones, in the order asked for. JSON has none unless they were asked for."""
    if config.pair:
        tables = [cache.find_numbered(pair) for pair in config.pair]
    else:
        asked = config.sort is not None or config.limit is not None
        limit = (0 if as_json and not asked else 1) if config.limit is None else config.limit
        numbers = ranked(statistics.pairs, config.sort)[:limit].tolist() if config.sort else range(limit)
        rows = read_numbered(cache, numbers)
        tables = [(number, rows[number]) for number in numbers if number in rows]
    return [shown_pair(table, number, vocabulary) for number, table in tables]


def _to_json(
    cache: RewardCache, statistics: Statistics | None, modulation: Modulation, pairs: list[ShownPair]
) -> dict[str, Any]:
    content: dict[str, Any] = {"cache": facts(cache), "statistics": None, "f": None, "pairs": []}
    if statistics:
        content["statistics"] = statistics.to_json()
        content["f"] = statistics.f_to_json(modulation)
    is_log_ratio = cache.manifest.reward_kind == "log-ratio"
    content["pairs"] = [pair.to_json(modulation, is_log_ratio=is_log_ratio) for pair in pairs]
    return content
