"""Draws a pair's coloured tokens as SVG, the picture of the README: `python docs/picture.py CACHE PAIR OUTPUT.svg`."""

import io
import sys

from rich.console import Console

from tgdpo import load_cache
from tgdpo.stages.inspect.pairs import shown_pair
from tgdpo.stages.inspect.tokens import marked_pair
from tgdpo.stages.inspect.vocabulary import Vocabulary


def main(folder: str, pair: str, output: str) -> None:
    cache = load_cache(folder)
    vocabulary = Vocabulary(cache.manifest.tokenizer, cache.manifest.tokenizer_vocabulary_sha256)
    number, row = cache.find_numbered(pair)
    # A colour system of its own: NO_COLOR and the like are about terminals.
    console = Console(
        record=True, width=88, file=io.StringIO(), color_system="truecolor", force_terminal=True, no_color=False
    )
    console.print(marked_pair(shown_pair(row, number, vocabulary), console))
    console.save_svg(output, title=f"tgdpo inspect cache --pair {pair}")


if __name__ == "__main__":
    main(*sys.argv[1:])
