"""Which sampled answers become a pair."""

from tgdpo.pipeline.demo.pairs import pairs_of
from tgdpo.pipeline.demo.sampling import Answer

RIGHT, WRONG = Answer("egirt", ended=True), Answer("egrit", ended=True)


def pairs(*answers: Answer) -> list[dict[str, str]]:
    return list(pairs_of(["tiger>"], answers))


def test_the_first_right_one_against_the_first_wrong_one() -> None:
    expected = [{"prompt": "tiger>", "chosen": "egirt", "rejected": "egrit"}]
    assert pairs(WRONG, RIGHT, Answer("geirt", ended=True), RIGHT) == expected
    assert pairs(RIGHT, WRONG) == expected


def test_no_pair_without_a_right_and_a_wrong_one() -> None:
    assert pairs(RIGHT, RIGHT) == []
    assert pairs(WRONG, WRONG) == []


def test_an_answer_that_would_not_come_back_from_its_text_is_not_rejected() -> None:
    assert pairs(RIGHT, Answer("egirtegirt", ended=False)) == []
    assert pairs(RIGHT, Answer("", ended=True)) == []
    assert pairs(RIGHT, Answer("eg<pad>irt", ended=True)) == []


def test_every_prompt_gets_its_own_answers() -> None:
    made = list(pairs_of(["tiger>", "cab>"], [RIGHT, WRONG, Answer("abc", ended=True), Answer("acb", ended=True)]))
    assert [(pair["prompt"], pair["chosen"]) for pair in made] == [("tiger>", "egirt"), ("cab>", "abc")]
