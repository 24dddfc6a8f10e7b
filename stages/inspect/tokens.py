"""One pair in the terminal, each response token coloured by its reward."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Group
from rich.text import Text

from ...data.cache import pairs_of
from ..console import printable

_FULL_COLOUR_QUANTILE = 0.95


def token_texts(tokenizer: Any, ids: npt.NDArray[np.int32]) -> list[str]:
    """The text of each token as it stands in the response; a token that ends inside a character has none, the token
    that completes the character has all of it."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    backend = tokenizer.backend_tokenizer
    return [stream.step(backend, int(token)) or "" for token in ids]


def coloured_pair(table: pa.Table, tokenizer: Any) -> Group:
    """One row of the cache: prompt, chosen and rejected, and their summed rewards.

    Green tokens are those that the guide likes better than the reference, red the other way; the 95 % quantile of the
    pair's absolute rewards has the full colour.
    """
    pair = pairs_of(table)[0]
    rewards = np.concatenate([pair.chosen_rewards, pair.rejected_rewards])
    full = float(np.quantile(np.abs(rewards), _FULL_COLOUR_QUANTILE)) or 1.0
    parts = [
        Text(f"pair {pair.pair_id}, source row {table['source_row'][0]}", style="bold"),
        Text("\nprompt", style="bold"),
        Text(printable(table["prompt"][0].as_py()), style="dim"),
    ]
    for side, ids, values in (
        ("chosen", pair.ids.chosen, pair.chosen_rewards),
        ("rejected", pair.ids.rejected, pair.rejected_rewards),
    ):
        heading = f"\n{side}  sum {values.sum():+.3f}, mean {values.mean():+.4f}, {len(values)} tokens"
        parts.append(Text(heading, style="bold"))
        response = Text()
        for text, reward in zip(token_texts(tokenizer, ids), values, strict=True):
            response.append(printable(text), style=_style(float(reward), full))
        parts.append(response)
    parts.append(Text(f"\ngreen: guidance > reference, red: below; full colour at {full:.3f} nats", style="dim"))
    return Group(*parts)


def _style(reward: float, full: float) -> str:
    strength = min(1.0, abs(reward) / full)
    if strength < 0.05:
        return ""
    # From the faintest to the full colour; black on it is readable throughout.
    fade = round(235 - 125 * strength)
    red, green = (fade, 235) if reward > 0 else (235, fade)
    return f"rgb(0,0,0) on rgb({red},{green},{fade})"
