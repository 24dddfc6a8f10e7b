"""Answers sampled from a saved model: temperature 1, nothing cut off, so they are draws from the model itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from ...stages.console import Meter, meter

BATCH = 512
"""Answers sampled at a time."""


class Answer(NamedTuple):
    """What a model wrote. `ended` says whether it ended with </s> (which is not in `text`)."""

    text: str
    ended: bool


class Sampler:
    """A saved model that answers prompts.

    Args:
        folder: model and tokenizer, as `save_pretrained` left them.
        max_tokens: where an answer is cut.
    """

    def __init__(self, folder: Path, *, max_tokens: int) -> None:
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self._max_tokens = max_tokens
        self._name = folder.name

    def answers(self, prompts: Sequence[str], *, seed: int) -> list[Answer]:
        """One answer per prompt, in order."""
        torch.manual_seed(seed)
        with meter(f"answers of {self._name}", len(prompts)) as progress:
            batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
            return [answer for batch in batches for answer in self._batch(list(batch), progress)]

    @torch.inference_mode()
    def _batch(self, prompts: list[str], progress: Meter) -> list[Answer]:
        inputs = self._tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        output = self._model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=self._max_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
        )
        progress.advance(len(prompts))
        return [self._answer(ids) for ids in output[:, inputs.input_ids.shape[1] :].tolist()]

    def _answer(self, ids: list[int]) -> Answer:
        end = self._tokenizer.eos_token_id
        ended = end in ids
        # Special tokens stay visible: an answer with one in it is not the text without it.
        return Answer(self._tokenizer.decode(ids[: ids.index(end)] if ended else ids), ended)
