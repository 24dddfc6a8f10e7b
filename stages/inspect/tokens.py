"""A pair in the terminal, each response token marked by its reward: by colour, or by sign and brackets."""

from collections.abc import Callable

import numpy as np
from rich.console import Console, Group
from rich.text import Text

from ..console import printable
from .pairs import ShownPair, ShownSide
from .sample import SIDES

_FULL_QUANTILE = 0.95
_SHOWN_PROMPT = 1000

Mark = Callable[[str, float], Text]
"""A token's text and its strength, -1 to 1, as it is shown."""


def marked_pair(pair: ShownPair, console: Console) -> Group:
    """Prompt, chosen and rejected with marked tokens, and their summed rewards.

    Green tokens are those that the guide likes better than the reference, red the other way; the 95 % quantile of the
    pair's absolute rewards has the full colour.
    """
    rewards = np.concatenate([pair.chosen.rewards, pair.rejected.rewards])
    full = float(np.quantile(np.abs(rewards), _FULL_QUANTILE)) or 1.0
    mark, legend = _marking(console)
    heading = f"pair {pair.number}, {pair.pair_id}, source row {pair.source_row}, margin {pair.margin:+.3f}"
    parts = [
        Text(printable(heading), style="bold"),
        Text("\nprompt", style="bold"),
        Text(printable(_end_of(pair.prompt)), style="dim"),
    ]
    for name in SIDES:
        side: ShownSide = getattr(pair, name)
        parts.append(Text(f"\n{name}  {_sums(side)}", style="bold"))
        parts.append(_response(side, mark, full))
    parts.append(Text(f"\n{legend}; full at {full:.3f} nats", style="dim"))
    return Group(*parts)


def _end_of(prompt: str) -> str:
    cut = len(prompt) - _SHOWN_PROMPT
    return prompt if cut <= 0 else f"(… {cut:,} characters)\n{prompt[cut:]}"


def _sums(side: ShownSide) -> str:
    return f"sum {side.rewards.sum():+.3f}, mean {side.rewards.mean():+.4f}, {len(side.rewards)} tokens"


def _response(side: ShownSide, mark: Mark, full: float) -> Text:
    response = Text()
    texts = side.texts or [f"<{token}>" for token in side.ids.tolist()]
    for text, reward in zip(texts, side.rewards, strict=True):
        response.append_text(mark(token_text(text), float(np.clip(reward / full, -1, 1))))
    return response


def token_text(text: str) -> str:
    """A token as it is shown: line breaks and tabs are seen, nothing controls the terminal or the page."""
    shown = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\N{RETURN SYMBOL}\n")
    return printable(shown.replace("\t", "\N{RIGHTWARDS ARROW TO BAR}"))


def _marking(console: Console) -> tuple[Mark, str]:
    """How tokens are marked on this console, and what that means."""
    if console.no_color or console.color_system is None:
        return _brackets, "[+ ] guidance > reference, [- ] below, [++ ] and [-- ] strongly"
    if console.color_system in ("standard", "windows"):
        return _sixteen_colours, "green: guidance > reference, red: below; on green or red: strongly"
    return _shades, "green: guidance > reference, red: below"


def _brackets(text: str, strength: float) -> Text:
    if abs(strength) < 0.1:
        return Text(text)
    sign = ("+" if strength > 0 else "-") * (1 if abs(strength) < 0.5 else 2)
    # The space before a word and the line break after it stay outside.
    word = text.strip() or text.rstrip("\n")
    before, _, after = text.partition(word) if word else (text, "", "")
    return Text(f"{before}[{sign}{word}]{after}")


def _sixteen_colours(text: str, strength: float) -> Text:
    colour = "green" if strength > 0 else "red"
    if abs(strength) < 0.1:
        return Text(text)
    return Text(text, style=colour if abs(strength) < 0.5 else f"black on {colour}")


def _shades(text: str, strength: float) -> Text:
    if abs(strength) < 0.05:
        return Text(text)
    # From the faintest to the full colour; black on it is readable throughout.
    fade = round(235 - 125 * abs(strength))
    red, green = (fade, 235) if strength > 0 else (235, fade)
    return Text(text, style=f"rgb(0,0,0) on rgb({red},{green},{fade})")
