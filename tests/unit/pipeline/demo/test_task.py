"""The checker and the slips against computations of another kind."""

from collections import Counter
from itertools import islice, pairwise, permutations
from random import Random

import pytest

from tgdpo.pipeline.demo.task import demonstrations, is_right, make_split, right_answer, slip


def in_order_with_the_letters_of(prompt: str, answer: str) -> bool:
    """What it means to sort, without sorting."""
    return Counter(answer + ">") == Counter(prompt) and all(a <= b for a, b in pairwise(answer))


def test_one_order_of_the_letters_is_right() -> None:
    orders = ["".join(order) for order in permutations("tiger")]
    assert [order for order in orders if is_right("tiger>", order)] == ["egirt"]
    assert all(is_right("tiger>", order) == in_order_with_the_letters_of("tiger>", order) for order in orders)


@pytest.mark.parametrize("answer", ["", "egir", "eggirt", "egirtt", "egirt ", "egirt>", "EGIRT", "egirt</s>", "egirs"])
def test_anything_else_is_wrong(answer: str) -> None:
    assert not is_right("tiger>", answer)


def test_prompts_have_letters_once_and_answers_once() -> None:
    split = make_split(Random(0), train=300, held_out=200, lengths=(3, 5))
    assert (len(split.train), len(split.held_out)) == (300, 200)
    words = [prompt.removesuffix(">") for prompt in split.train + split.held_out]
    assert {len(word) for word in words} == {3, 4, 5}
    assert all(len(set(word)) == len(word) for word in words)
    assert len(set(map(frozenset, words))) == 500
    assert split == make_split(Random(0), train=300, held_out=200, lengths=(3, 5))
    assert split != make_split(Random(1), train=300, held_out=200, lengths=(3, 5))


def test_a_slip_is_wrong_and_as_long() -> None:
    for seed in range(200):
        slipped = slip("egirt", Random(seed))
        assert not in_order_with_the_letters_of("tiger>", slipped)
        assert Counter(slipped) == Counter("tiger")


def test_demonstrations_slip_at_the_rate_and_leave_the_held_out_answers_out() -> None:
    held_out = make_split(Random(0), train=0, held_out=2000, lengths=(3, 3)).held_out
    drawn = list(islice(demonstrations(Random(1), held_out=held_out, lengths=(3, 3), slip_rate=0.25), 4000))
    assert not {frozenset(prompt) for prompt, _ in drawn} & {frozenset(prompt) for prompt in held_out}
    right = sum(in_order_with_the_letters_of(prompt, answer) for prompt, answer in drawn)
    # Four standard errors: 4 * sqrt(0.25 * 0.75 / 4000).
    assert abs(right / 4000 - 0.75) < 0.028


def test_the_right_answer_is_right() -> None:
    for prompt in make_split(Random(3), train=100, held_out=0, lengths=(6, 10)).train:
        assert in_order_with_the_letters_of(prompt, right_answer(prompt))
