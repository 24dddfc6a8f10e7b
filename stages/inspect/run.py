"""`tgdpo inspect`: summary and one coloured pair, on stdout."""

from rich.console import Console

from ...data.cache import RewardCache
from ...errors import TgdpoError
from ..console import log, quiet_libraries
from ..models import load_tokenizer, tokenizer_source
from .summary import overview, reward_table, summarize
from .tokens import coloured_pair


def inspect(folder: str, *, pair: str | None, tokenizer: str | None) -> None:
    """Prints the cache's summary and the pair (the first by default).

    Raises:
        CacheError: there is no such cache or pair.
        ModelError: the tokenizer is not at hand (only where a pair or tokenizer was asked for).
    """
    cache = RewardCache(folder)
    console = Console()
    summary = summarize(cache)
    console.print(overview(cache))
    if summary is None:
        return
    console.print()
    console.print(reward_table(summary))
    if cache.manifest.reward_kind != "none":
        console.print(f"\nsummed rewards prefer chosen in {summary.accuracy:.1%} of the pairs\n")
    row = cache.find(pair or "0")
    try:
        quiet_libraries()
        loaded = load_tokenizer(tokenizer_source(tokenizer or cache.manifest.tokenizer))
    except TgdpoError as error:
        if pair or tokenizer:
            raise
        log(
            f"no pair is shown, since the cache's tokenizer is not at hand ({error.problem}); name one with --tokenizer"
        )
        return
    console.print(coloured_pair(row, loaded))
