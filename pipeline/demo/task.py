"""The made task: sort the letters of a word, in which no letter stands twice. The answer has a token per letter, and a
checker knows the right one.

The functions are pure: their randomness is the `Random` that they are given.
"""

from collections.abc import Iterator
from random import Random
from string import ascii_lowercase
from typing import NamedTuple

MARK = ">"
"""Ends a prompt: `kqzeb>` asks for `bekqz`."""


class Split(NamedTuple):
    """Prompts by use. No two of them have the same answer, so a held-out answer was never trained on either."""

    train: list[str]
    held_out: list[str]


class Demonstration(NamedTuple):
    """A prompt and an answer to learn from, right or not."""

    prompt: str
    answer: str


def right_answer(prompt: str) -> str:
    """The letters of the prompt's word in alphabetical order."""
    return "".join(sorted(prompt.removesuffix(MARK)))


def is_right(prompt: str, answer: str) -> bool:
    """The exact checker: every letter in its place, and nothing else."""
    return answer == right_answer(prompt)


def make_split(rng: Random, *, train: int, held_out: int, lengths: tuple[int, int]) -> Split:
    """Prompts for training and for judging; there must be that many sets of letters of these lengths."""
    prompts: dict[str, str] = {}
    while len(prompts) < train + held_out:
        prompt = _make_prompt(rng, lengths)
        prompts.setdefault(right_answer(prompt), prompt)
    drawn = list(prompts.values())
    return Split(drawn[:train], drawn[train:])


def demonstrations(
    rng: Random, *, held_out: list[str], lengths: tuple[int, int], slip_rate: float
) -> Iterator[Demonstration]:
    """Endless demonstrations, a share of them with a slip; never with a held-out prompt's answer."""
    kept_out = set(map(right_answer, held_out))
    while True:
        prompt = _make_prompt(rng, lengths)
        answer = right_answer(prompt)
        if answer not in kept_out:
            yield Demonstration(prompt, slip(answer, rng) if rng.random() < slip_rate else answer)


def slip(answer: str, rng: Random) -> str:
    """The answer with two neighbours swapped: always wrong, and as long as the right one, so length teaches nothing."""
    at = rng.randrange(len(answer) - 1)
    return answer[:at] + answer[at + 1] + answer[at] + answer[at + 2 :]


def _make_prompt(rng: Random, lengths: tuple[int, int]) -> str:
    return "".join(rng.sample(ascii_lowercase, rng.randint(*lengths))) + MARK
