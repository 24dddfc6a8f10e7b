"""A pair in terminals of every kind."""

import io
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tgdpo.stages.inspect.pairs import ShownPair, ShownSide
from tgdpo.stages.inspect.tokens import marked_pair

HOSTILE = ["\x1b[31mred", "\x9b2J", "\u202eevil\u2066", "[bold]markup[/bold]", "\x07\x00", "line\nbreak", "tab\t"]


def side(texts: list[str] | None, rewards: list[float]) -> ShownSide:
    values = np.array(rewards, np.float32)
    return ShownSide(texts=texts, ids=np.arange(len(values), dtype=np.int32), ref_logps=-abs(values), rewards=values)


def pair(**changes: Any) -> ShownPair:
    chosen = side(["The", " sky", " is", " blue", "\n"], [0.0, 0.3, 1.0, -1.0, -0.2])
    fields: dict[str, Any] = {
        "number": 3,
        "pair_id": "ab" * 16,
        "source_row": 5,
        "prompt": "Say something.",
        "chosen": chosen,
        "rejected": side([" no"], [0.02]),
    }
    return ShownPair(**(fields | changes))


def shown(pair: ShownPair, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=100, **options)
    console.print(marked_pair(pair, console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_signs_and_brackets_where_there_is_no_colour() -> None:
    text = shown(pair())
    assert "The [+sky] [++is] [--blue][-⏎]" in text
    assert "[+ ] guidance > reference" in text
    assert "\x1b" not in text


def test_no_color_is_respected_on_a_terminal() -> None:
    text = shown(pair(), force_terminal=True, color_system="truecolor", no_color=True)
    assert "[++is]" in text
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9]", text)


def test_sixteen_colours() -> None:
    text = shown(pair(), force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[32m sky" in text
    assert "\x1b[30;42m is" in text
    assert "\x1b[30;41m blue" in text
    assert "38;" not in text


def test_full_colour() -> None:
    text = shown(pair(), force_terminal=True, color_system="truecolor", no_color=False)
    assert "\x1b[38;2;0;0;0;48;2;110;235;110m is" in text
    assert "\x1b[38;2;0;0;0;48;2;235;110;110m blue" in text


@pytest.mark.parametrize("colours", [None, "standard", "truecolor"])
def test_data_cannot_control_the_terminal(colours: str | None) -> None:
    rewards = np.linspace(-1, 1, len(HOSTILE)).tolist()
    hostile = pair(prompt="".join(HOSTILE), pair_id="\x1b[2J", chosen=side(HOSTILE, rewards))
    text = shown(hostile, force_terminal=colours is not None, color_system=colours)
    # Colours are all that rich writes.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text) if colours else text
    assert all(c.isprintable() or c == "\n" for c in plain)
    assert "[bold]markup[/bold]" in plain
    if colours:
        assert "\x1b[31mred" not in text


def test_without_a_tokenizer_tokens_are_shown_by_their_ids() -> None:
    assert "\n<0>[++<1>]\n" in shown(pair(chosen=side(None, [0.0, 1.0])))


def test_a_long_prompt_is_cut_at_its_start() -> None:
    text = shown(pair(prompt="x" * 5000 + "the end"))
    assert "(… 4,007 characters)" in text
    assert "the end" in text


def test_rewards_of_zero_are_not_marked() -> None:
    assert "\nThe sky\n" in shown(pair(chosen=side(["The", " sky"], [0.0, 0.0]), rejected=side([" a"], [0.0])))
