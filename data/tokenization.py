"""Token ids of a pair: prompt and response are tokenised in one piece and split on a token boundary.

Tokenising them apart gives other ids than the model would see (trl#2054); adding special tokens to text that a chat
template has rendered doubles BOS (trl#1885). Neither happens here.
"""

import bisect
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from .rendering import Reason, Rendered, SetAside

Ids = npt.NDArray[np.int32]
Overlong = Literal["truncate", "set-aside"]


class PairIds(NamedTuple):
    """Token ids of one pair, int32. Responses end with the end-of-turn token unless they were cut."""

    prompt: Ids
    chosen: Ids
    rejected: Ids

    @property
    def tokens(self) -> int:
        """Tokens of both rows that a model sees: the prompt counts twice."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


class TokenizedPair(NamedTuple):
    """A rendered pair with its ids; `truncated` says whether prompt or a response was cut."""

    text: Rendered
    ids: PairIds
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class LengthLimits:
    """Lengths in tokens; None means no limit.

    `max_length` bounds prompt and response together: responses are cut on the right (and then have no end-of-turn
    token). `max_prompt_length` cuts prompts on the left and keeps BOS. `context` is what the models can read: a longer
    row is set aside. With `overlong="set-aside"` nothing is cut: rows over a limit are set aside.
    """

    max_length: int | None = None
    max_prompt_length: int | None = None
    context: int | None = None
    overlong: Overlong = "truncate"


def control_tokens(tokenizer: Any) -> list[str]:
    """Strings that the tokenizer reads as control tokens wherever they stand in a text."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(tokenizer.all_special_tokens))


def begin_of_text(tokenizer: Any) -> list[int] | None:
    """The ids that the tokenizer puts in front of plain text by itself: BOS, nothing, or others ([gMASK]<sop>).

    None where that cannot be told.
    """
    whole, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return [int(each) for each in whole[:start]]
    return None


def begin_of_text_string(tokenizer: Any) -> str:
    """Those tokens as text, "" for none."""
    return "".join(tokenizer.convert_ids_to_tokens(begin_of_text(tokenizer) or []))


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts BOS in front of plain text by itself."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id


def require_usable(tokenizer: Any, name: str) -> None:
    """Raises ModelError for a tokenizer that gives no character offsets or has no end-of-turn token."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {name} has no fast (Rust) form, and only that gives character offsets",
            fix="save one with a tokenizer.json",
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {name} has no EOS token, so responses could not end",
            fix="set eos_token in its tokenizer_config.json",
        )


def vocabulary_hash(tokenizer: Any) -> str:
    """SHA-256 of the mapping from token to id, added tokens included: equal where ids mean the same."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of everything that decides the ids of a text: vocabulary, merges, normalisation, special tokens."""
    bos, begin = tokenizer.bos_token_id, begin_of_text(tokenizer)
    # Whether BOS comes first is what 0.1.0 knew; of other beginnings the ids are named.
    known = adds_bos(tokenizer) if begin in ([], [bos]) else begin
    parts = [tokenizer.backend_tokenizer.to_str(), bos, tokenizer.eos_token_id, known]
    if getattr(tokenizer, "split_special_tokens", False):
        parts.append("split_special_tokens")  # the backend does not write it down
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def chat_template_hash(tokenizer: Any) -> str | None:
    """SHA-256 of the chat template, or None without one."""
    if not tokenizer.chat_template:
        return None
    return hashlib.sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode()).hexdigest()


class PairTokenizer:
    """Tokenises rendered pairs in batches.

    A token that reaches over the end of the prompt's text belongs to the response, so `prompt + response` is always
    exactly what the tokenizer gives for the whole text. One that was added to the vocabulary and takes the white space
    after it (`rstrip`; Phi-3's marks of turns) ends with its own text: white space of the response does not make it the
    response's.
    """

    def __init__(self, tokenizer: Any, limits: LengthLimits) -> None:
        self.tokenizer = tokenizer
        self.limits = limits
        self.eos = int(tokenizer.eos_token_id)
        self.begin = begin_of_text(tokenizer)
        self._marks = {
            number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.rstrip
        }

    def encode(self, pairs: Sequence[Rendered]) -> list[TokenizedPair | SetAside]:
        """One result per pair, in order."""
        if not pairs:
            return []
        texts = [pair.prompt + response for pair in pairs for response in (pair.chosen, pair.rejected)]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        rows = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        results: list[TokenizedPair | SetAside] = []
        for pair, chosen, rejected in zip(pairs, rows[::2], rows[1::2], strict=True):
            try:
                results.append(self._pair(pair, chosen, rejected))
            except SetAside as verdict:
                results.append(verdict)
        return results

    def _pair(self, text: Rendered, chosen: Any, rejected: Any) -> TokenizedPair:
        chosen_ids, rejected_ids = chosen[0], rejected[0]
        start = min(self._tokens_inside(ids, offsets, text.prompt) for ids, offsets in (chosen, rejected))
        while chosen_ids[:start] != rejected_ids[:start]:
            start -= 1
        prompt, chosen_ids, rejected_ids = chosen_ids[:start], chosen_ids[start:], rejected_ids[start:]
        if text.add_bos:
            prompt = self._required_begin() + prompt
        if text.add_eos:
            chosen_ids, rejected_ids = [*chosen_ids, self.eos], [*rejected_ids, self.eos]
        if not prompt:
            raise SetAside(Reason.EMPTY_PROMPT, "no token before the responses")
        fitted = self._fit(prompt, chosen_ids, rejected_ids)
        if np.array_equal(fitted.chosen, fitted.rejected):
            raise SetAside(Reason.SAME_RESPONSES, "the same tokens")
        truncated = fitted.tokens < 2 * len(prompt) + len(chosen_ids) + len(rejected_ids)
        return TokenizedPair(text, fitted, truncated)

    def _fit(self, prompt: list[int], chosen: list[int], rejected: list[int]) -> PairIds:
        limits = self.limits
        longest = len(prompt) + max(len(chosen), len(rejected))
        if limits.overlong == "set-aside":
            if limits.max_prompt_length is not None and len(prompt) > limits.max_prompt_length:
                raise SetAside(Reason.PROMPT_TOO_LONG, f"{len(prompt)} tokens > {limits.max_prompt_length}")
            if limits.max_length is not None and longest > limits.max_length:
                raise SetAside(Reason.TOO_LONG, f"{longest} tokens > {limits.max_length}")
        if limits.max_prompt_length is not None and len(prompt) > limits.max_prompt_length:
            begin = self._begin_of(prompt)
            kept = limits.max_prompt_length - begin
            if kept < 0:
                raise SetAside(Reason.PROMPT_TOO_LONG, f"{begin} tokens begin every text > {limits.max_prompt_length}")
            prompt = prompt[:begin] + prompt[len(prompt) - kept :]
        if limits.max_length is not None:
            room = limits.max_length - len(prompt)
            if room < 1:
                raise SetAside(Reason.PROMPT_TOO_LONG, f"{len(prompt)} tokens leave no room in {limits.max_length}")
            chosen, rejected = chosen[:room], rejected[:room]
        longest = len(prompt) + max(len(chosen), len(rejected))
        if limits.context is not None and longest > limits.context:
            raise SetAside(Reason.TOO_LONG, f"{longest} tokens > the model's context of {limits.context}")
        return PairIds(*(np.asarray(ids, np.int32) for ids in (prompt, chosen, rejected)))

    def _begin_of(self, prompt: list[int]) -> int:
        """The number of tokens that begin the text and are kept where its start is cut."""
        if self.begin and prompt[: len(self.begin)] == self.begin:
            return len(self.begin)
        return int(prompt[0] == self.tokenizer.bos_token_id)

    def _required_begin(self) -> list[int]:
        if self.begin is None:
            raise ModelError(
                "how the tokenizer begins a text cannot be told: with its special tokens the text's own ids are others",
                fix="use a tokenizer that puts its special tokens around the text (--tokenizer)",
            )
        return self.begin

    def _tokens_inside(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], prompt: str) -> int:
        """Number of leading tokens whose text ends inside the prompt's."""
        inside = bisect.bisect_right(offsets, len(prompt), key=lambda offset: offset[1])
        if inside < len(ids) and ids[inside] in self._marks:
            inside += self._marks[ids[inside]] in prompt[offsets[inside][0] :]
        return inside
