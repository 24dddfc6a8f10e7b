"""The preference set: the base's own answers to the training prompts, judged by the checker.

Chosen is a right answer, rejected a wrong one; a prompt whose answers are all right or all wrong gives no pair.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...data.files import publish
from .sampling import Answer, Sampler
from .task import is_right


def make_pairs(file: Path, sampler: Sampler, prompts: Sequence[str], *, answers_per_prompt: int, seed: int) -> None:
    """Writes one JSON object per pair with `prompt`, `chosen` and `rejected`, TRL's standard form."""
    repeated = [prompt for prompt in prompts for _ in range(answers_per_prompt)]
    answers = sampler.answers(repeated, seed=seed)
    lines = [json.dumps(pair) + "\n" for pair in pairs_of(prompts, answers)]
    publish(file, lambda path: path.write_text("".join(lines), encoding="utf-8"))


def pairs_of(prompts: Sequence[str], answers: Sequence[Answer]) -> Iterator[dict[str, str]]:
    """The pairs from the same number of answers per prompt: the first right one against the first wrong one."""
    count = len(answers) // len(prompts)
    for number, prompt in enumerate(prompts):
        own = answers[number * count : (number + 1) * count]
        right = [answer.text for answer in own if is_right(prompt, answer.text)]
        wrong = [answer.text for answer in own if _may_be_rejected(answer) and not is_right(prompt, answer.text)]
        if right and wrong:
            yield {"prompt": prompt, "chosen": right[0], "rejected": wrong[0]}


def _may_be_rejected(answer: Answer) -> bool:
    """Whether tokenising the text gives back what was sampled: it ended by itself and is all letters."""
    return answer.ended and answer.text.isalpha()
