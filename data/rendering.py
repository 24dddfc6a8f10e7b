"""Turns a row of a preference set into the rendered text of prompt, chosen and rejected, or says why it cannot be.

The four forms of TRL: standard (strings) or conversational (lists of messages), with an explicit or an implicit prompt.
"""

import difflib
import os
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from ..errors import DataError, ModelError
from .limits import OverLimitError, limited
from .preferences import Row

MAX_CHARACTERS = 10_000_000
"""Of one field or message: some millions of tokens, more than any model reads."""
MAX_GROWTH = 16
"""How many times the characters of its messages a chat template may write, beside a million."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython"})


class Columns(NamedTuple):
    """Names of the source's columns."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"


class Rendered(NamedTuple):
    """The text that a model sees. `prompt + chosen` and `prompt + rejected` are each tokenised in one piece.

    `add_bos` and `add_eos` say which special tokens are still to be put around the text, as ids.
    """

    prompt: str
    chosen: str
    rejected: str
    add_bos: bool
    add_eos: bool


class Form(NamedTuple):
    """Whether a row is conversational or plain text."""

    row: int
    conversational: bool

    def __str__(self) -> str:
        return f"row {self.row} is {'conversational' if self.conversational else 'standard (plain text)'}"


def require_one_form(first: Form, other: Form) -> None:
    """Raises DataError where the two rows differ in form."""
    if first.conversational != other.conversational:
        raise DataError(f"{first}, {other}", fix="bring all rows into one form")


class Reason(StrEnum):
    """Why a row is set aside."""

    UNREADABLE = "unreadable row"
    MISSING_FIELD = "missing field"
    NOT_TEXT = "null or not text"
    BAD_MESSAGE = "bad message"
    EMPTY_RESPONSE = "empty response"
    EMPTY_PROMPT = "empty prompt"
    NO_COMMON_PREFIX = "no common prefix"
    SAME_RESPONSES = "chosen equals rejected"
    LONE_SURROGATE = "lone surrogate"
    CONTROL_TOKEN = "control token in the text"
    TEMPLATE = "chat template failed"
    PROMPT_TOO_LONG = "prompt too long"
    TOO_LONG = "too long"
    NON_FINITE = "non-finite score"


class SetAside(Exception):  # noqa: N818  (a verdict on one row, not an error of the run)
    """Raised inside the preparation of one row; caught there and written to `_set_aside.jsonl`."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class ChatTemplate(Protocol):
    """What rendering needs of a tokenizer."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, /, **options: Any) -> Any: ...


class Renderer:
    """Renders rows one by one and holds the whole set to one form.

    Args:
        tokenizer: its chat template renders conversational rows.
        columns: names of the three columns.
        control_tokens: strings that the tokenizer would read as control tokens; a row whose text holds one is set
            aside (transformers#29279).
        end_of_turn: string appended to a rendered response that does not end in a control token.
        begin_of_text: string that the tokenizer puts in front of plain text, "" for none.
        allow_control_tokens: keep such rows (text that was rendered with a chat template beforehand).
    """

    def __init__(
        self,
        tokenizer: ChatTemplate,
        columns: Columns,
        *,
        control_tokens: Sequence[str],
        end_of_turn: str,
        begin_of_text: str = "",
        allow_control_tokens: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.columns = columns
        self.control_tokens = tuple(control_tokens)
        self.end_of_turn = end_of_turn
        self.begin_of_text = begin_of_text
        self.allow_control_tokens = allow_control_tokens
        self._control = None
        if control_tokens and not allow_control_tokens:
            self._control = re.compile("|".join(re.escape(token) for token in control_tokens))
        self._columns_checked = False
        self._explicit_prompt = False
        self._first: Form | None = None

    @property
    def form(self) -> Form | None:
        """The form that the first usable row has set, None before it."""
        return self._first

    def render(self, row: Row) -> Rendered:
        """Raises SetAside for a row that cannot be used, DataError where the whole set cannot."""
        if row.problem:
            raise SetAside(Reason.UNREADABLE, row.problem)
        self.require_columns(row.value)
        prompt = self._prompt(row.value)
        chosen = self._field(row.value, self.columns.chosen)
        rejected = self._field(row.value, self.columns.rejected)
        if isinstance(chosen, list) and isinstance(rejected, list):
            self._require_one_form(row.number, conversational=True)
            return self._conversation(prompt, chosen, rejected)
        if isinstance(chosen, str) and isinstance(rejected, str):
            self._require_one_form(row.number, conversational=False)
            return self._standard(prompt, chosen, rejected)
        raise SetAside(Reason.NOT_TEXT, "one response is text, the other a list of messages")

    def require_columns(self, value: dict[str, Any]) -> None:
        """Takes the columns from the set's first readable row; later calls do nothing.

        Raises:
            DataError: chosen, rejected, or a prompt column that was named is missing.
        """
        if self._columns_checked:
            return
        for option, name in zip(("chosen", "rejected"), self.columns[1:], strict=True):
            if name not in value:
                nearest = difflib.get_close_matches(name, value, n=1, cutoff=0.4)
                suggestion = f" {nearest[0]}" if nearest else " NAME"
                raise DataError(
                    f"column '{name}' is missing; the columns are: {', '.join(value) or 'none'}",
                    fix=f"name the right one with --{option}-column{suggestion}",
                )
        if self.columns.prompt != Columns().prompt and self.columns.prompt not in value:
            raise DataError(
                f"--prompt-column {self.columns.prompt}: the columns are: {', '.join(value)}",
                fix="name one of these, or leave the option out where the prompt is part of the responses",
            )
        self._columns_checked = True
        self._explicit_prompt = self.columns.prompt in value

    def _require_one_form(self, number: int, *, conversational: bool) -> None:
        if self._first is None:
            if conversational and not self.tokenizer.chat_template:
                raise DataError(
                    "the rows hold lists of messages, but the reference's tokenizer has no chat template",
                    fix="use the instruction-tuned model's tokenizer (--tokenizer) or rows of plain text",
                )
            self._first = Form(number, conversational)
        require_one_form(self._first, Form(number, conversational))

    def _prompt(self, value: dict[str, Any]) -> str | list[Any] | None:
        """None where the prompt is what the responses begin with, which a row that lost its prompt is not."""
        if self._explicit_prompt or self.columns.prompt in value:
            return self._field(value, self.columns.prompt)
        return None

    @staticmethod
    def _field(value: dict[str, Any], name: str) -> str | list[Any]:
        if name not in value:
            raise SetAside(Reason.MISSING_FIELD, name)
        field = value[name]
        if not isinstance(field, str | list):
            raise SetAside(Reason.NOT_TEXT, f"{name} is {'null' if field is None else type(field).__name__}")
        return field

    def _check_text(self, text: str, name: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise SetAside(Reason.TOO_LONG, f"{len(text)} characters in {name}")
        _require_encodable(text, name)
        if self._control and (found := self._control.search(text)):
            raise SetAside(Reason.CONTROL_TOKEN, f"{found[0]} in {name}")

    # Standard form

    def _standard(self, prompt: str | list[Any] | None, chosen: str, rejected: str) -> Rendered:
        if isinstance(prompt, list):
            raise SetAside(Reason.NOT_TEXT, f"{self.columns.prompt} is list")
        # BOS and EOS are added as ids; those that are already typed there must not make two.
        chosen, rejected = (text.removesuffix(self.end_of_turn) for text in (chosen, rejected))
        if prompt is None:
            prompt, chosen, rejected = _split_common_text(chosen, rejected)
        prompt = prompt.removeprefix(self.begin_of_text)
        for name, text in zip(self.columns, (prompt, chosen, rejected), strict=True):
            self._check_text(text, name)
        _require_responses(chosen.strip(), rejected.strip())
        if not prompt.strip():
            raise SetAside(Reason.EMPTY_PROMPT)
        if chosen == rejected:
            raise SetAside(Reason.SAME_RESPONSES)
        if self.allow_control_tokens:
            chosen, rejected = self._end_turn(chosen), self._end_turn(rejected)
        return Rendered(prompt, chosen, rejected, add_bos=True, add_eos=not self.allow_control_tokens)

    # Conversational form

    def _conversation(self, prompt: str | list[Any] | None, chosen: list[Any], rejected: list[Any]) -> Rendered:
        self._check_messages(chosen, self.columns.chosen)
        self._check_messages(rejected, self.columns.rejected)
        if isinstance(prompt, list):
            if prompt:
                self._check_messages(prompt, self.columns.prompt)
        else:
            # A text prompt beside whole conversations repeats their first message, as in UltraFeedback binarized.
            prompt, chosen, rejected = _split_common_messages(chosen, rejected)
        _require_responses("".join(map(_content, chosen)).strip(), "".join(map(_content, rejected)).strip())
        if not prompt:
            raise SetAside(Reason.EMPTY_PROMPT)
        if chosen == rejected:
            raise SetAside(Reason.SAME_RESPONSES)
        for name, messages in ((self.columns.chosen, chosen), (self.columns.rejected, rejected)):
            if messages[-1]["role"] != "assistant":
                raise SetAside(Reason.BAD_MESSAGE, f"{name} ends with role {messages[-1]['role']}, not assistant")
        try:
            with limited():
                prompt_text = self._apply_template(prompt, add_generation_prompt=True)
                chosen_text = self._end_turn(self._apply_template(prompt + chosen))
                rejected_text = self._end_turn(self._apply_template(prompt + rejected))
        except OverLimitError as error:
            raise _endless_template(str(error)) from error
        # A template that writes a past turn otherwise than a turn to come: responses start where the texts part.
        start = _common_length(prompt_text, chosen_text, rejected_text)
        return Rendered(prompt_text[:start], chosen_text[start:], rejected_text[start:], add_bos=False, add_eos=False)

    def _check_messages(self, messages: list[Any], name: str) -> None:
        if not messages:
            raise SetAside(Reason.EMPTY_RESPONSE, f"{name} has no message")
        for place, message in enumerate(messages):
            where = f"{name}[{place}]"
            if not isinstance(message, dict) or "role" not in message or "content" not in message:
                raise SetAside(Reason.BAD_MESSAGE, f"{where} has no role or no content")
            if not isinstance(message["role"], str) or message["role"] not in ROLES:
                raise SetAside(Reason.BAD_MESSAGE, f"{where} has an unknown role")
            if not isinstance(message["content"], str):
                raise SetAside(Reason.NOT_TEXT, f"{where} content is {type(message['content']).__name__}")
            self._check_text(message["content"], where)

    def _apply_template(self, messages: list[Any], **options: Any) -> str:
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise SetAside(Reason.TEMPLATE, type(error).__name__) from error
        if len(text) > 1_000_000 + MAX_GROWTH * sum(len(_content(message)) for message in messages):
            raise _endless_template(f"{len(text)} characters")
        # Templates may write more of a message than the content that was checked.
        _require_encodable(text, "a message")
        return str(text)

    def _end_turn(self, text: str) -> str:
        """Cuts white space after the end-of-turn token (ChatML writes a line break there), or appends the token."""
        stripped = text.rstrip()
        return stripped if stripped.endswith(self.control_tokens) else text + self.end_of_turn


def _endless_template(what: str) -> ModelError:
    return ModelError(
        f"the chat template takes {what} for one conversation",
        fix="use a tokenizer with a working one (--tokenizer)",
    )


def _require_encodable(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SetAside(Reason.LONE_SURROGATE, name) from None


def _content(message: dict[str, Any]) -> str:
    return str(message["content"])


def _require_responses(chosen: str, rejected: str) -> None:
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text:
            raise SetAside(Reason.EMPTY_RESPONSE, name)


def _split_common_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    if chosen == rejected:
        raise SetAside(Reason.SAME_RESPONSES)
    start = _common_length(chosen, rejected)
    # As TRL: a space before the point where the texts part belongs to the responses.
    if start and chosen[start - 1] == " ":
        start -= 1
    if not chosen[:start].strip():
        raise SetAside(Reason.NO_COMMON_PREFIX, "there is no prompt column, and the responses begin differently")
    return chosen[:start], chosen[start:], rejected[start:]


def _common_length(*texts: str) -> int:
    """Number of characters that all texts begin with."""
    # commonprefix compares character by character, which is wrong for paths and right here.
    return len(os.path.commonprefix(texts))  # noqa: RUF071


def _split_common_messages(chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    if chosen == rejected:
        raise SetAside(Reason.SAME_RESPONSES)
    start = 0
    while start < min(len(chosen), len(rejected)) and chosen[start] == rejected[start]:
        start += 1
    if start == 0:
        raise SetAside(Reason.NO_COMMON_PREFIX, "the conversations begin with different messages")
    return chosen[:start], chosen[start:], rejected[start:]
