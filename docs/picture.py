"""Draws a pair's coloured tokens as SVG, the picture of the README: `python docs/picture.py CACHE PAIR OUTPUT.svg`."""

import io
import sys

from rich.console import Console

from tgdpo.data.cache import RewardCache
from tgdpo.stages.inspect.tokens import coloured_pair
from tgdpo.stages.models import load_tokenizer, tokenizer_source


def main(folder: str, pair: str, output: str) -> None:
    cache = RewardCache(folder)
    console = Console(record=True, width=88, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    console.print(coloured_pair(cache.find(pair), load_tokenizer(tokenizer_source(cache.manifest.tokenizer))))
    console.save_svg(output, title="tgdpo inspect scored --pair " + pair)


if __name__ == "__main__":
    main(*sys.argv[1:])
