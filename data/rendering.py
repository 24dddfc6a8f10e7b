"""Turns a row of a preference set into the rendered text of prompt, chosen and rejected, or says why it cannot be.

The four forms of TRL: standard (strings) or conversational (lists of messages), with an explicit or an implicit prompt.
"""

import difflib
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import DataError
from .chat_template import TEMPLATE_COLUMNS, ChatTemplate, HasChatTemplate, endless_template
from .limits import OverLimitError, limited
from .messages import Field, calls, checked_messages, stored_messages, strings_in, text_of
from .preferences import Row
from .set_aside import FORMS
from .set_aside import Reason as Reason
from .set_aside import SetAside as SetAside

MAX_CHARACTERS = 10_000_000
"""Of one field or message: some millions of tokens, more than any model reads."""


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
        tokenizer: HasChatTemplate,
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
        self._template = ChatTemplate(tokenizer)
        self._names: list[str] | None = None
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
        if isinstance(chosen, str) and isinstance(rejected, str):
            prompt, chosen, rejected = stored_messages(prompt, chosen, rejected)
        if isinstance(chosen, list) and isinstance(rejected, list):
            self._require_one_form(row.number, conversational=True)
            options = self._template.options_of(row.value, self._check_text)
            return self._conversation(prompt, chosen, rejected, options)
        if isinstance(chosen, str) and isinstance(rejected, str):
            self._require_one_form(row.number, conversational=False)
            return self._standard(prompt, chosen, rejected)
        raise SetAside(Reason.NOT_TEXT, "one response is text, the other a list of messages")

    def require_columns(self, value: dict[str, Any]) -> None:
        """Takes the columns from the set's first readable row; later calls do nothing.

        Raises:
            DataError: chosen, rejected, or a prompt column that was named is missing.
        """
        if self._names is not None:
            return
        for option, name in zip(("chosen", "rejected"), self.columns[1:], strict=True):
            if name not in value:
                raise DataError(
                    f"column '{name}' is missing; the columns are: {', '.join(value) or 'none'}",
                    fix=self._where_it_may_be(name, option, value),
                )
        if self.columns.prompt != Columns().prompt and self.columns.prompt not in value:
            raise DataError(
                f"--prompt-column {self.columns.prompt}: the columns are: {', '.join(value)}",
                fix="name one of these, or leave the option out where the prompt is part of the responses",
            )
        self._names = list(value)
        self._explicit_prompt = self.columns.prompt in value

    def _where_it_may_be(self, name: str, option: str, value: dict[str, Any]) -> str:
        inside = [key for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
        inside = [key for key in inside if name in value[key][0]]
        if inside:
            return f"the rows lie in the list '{inside[0]}': save that list as the file"
        nearest = difflib.get_close_matches(name, value, n=1, cutoff=0.4)
        suggestion = f"name the right one with --{option}-column{f' {nearest[0]}' if nearest else ' NAME'}"
        return suggestion if nearest else f"{suggestion}, or convert the rows: {FORMS}"

    @property
    def notes(self) -> list[str]:
        """Columns that go to the chat template or could be meant for it, for people; none before the first usable
        row."""
        if self._first is None or self._names is None:
            return []
        given = [name for name in TEMPLATE_COLUMNS if name in self._names]
        listed = f"column{'s' * (len(given) > 1)} {', '.join(given)}"
        if not self._first.conversational:
            return [f"{listed}: not used, the rows are plain text"] if given else []
        notes = [f"{listed}: given to the chat template"] if given else []
        others = self._template.unread([name for name in self._names if name not in self.columns])
        if others:
            notes.append(
                f"not given to the chat template, which has variables of these names: column{'s' * (len(others) > 1)} "
                f"{', '.join(others)} (a column {TEMPLATE_COLUMNS[1]} with a mapping would be)"
            )
        return notes

    def _require_one_form(self, number: int, *, conversational: bool) -> None:
        if self._first is None:
            if conversational and not self._template:
                raise DataError(
                    "the rows hold lists of messages, but the reference's tokenizer has no chat template",
                    fix="use the instruction-tuned model's tokenizer (--tokenizer) or rows of plain text",
                )
            self._first = Form(number, conversational)
        require_one_form(self._first, Form(number, conversational))

    def _prompt(self, value: dict[str, Any]) -> Field | None:
        """None where the prompt is what the responses begin with, which a row that lost its prompt is not."""
        if self._explicit_prompt or self.columns.prompt in value:
            return self._field(value, self.columns.prompt)
        return None

    @staticmethod
    def _field(value: dict[str, Any], name: str) -> Field:
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

    def _standard(self, prompt: Field | None, chosen: str, rejected: str) -> Rendered:
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

    def _conversation(
        self, prompt: Field | None, chosen: list[Any], rejected: list[Any], options: dict[str, Any]
    ) -> Rendered:
        chosen = self._messages(chosen, self.columns.chosen)
        rejected = self._messages(rejected, self.columns.rejected)
        if isinstance(prompt, list):
            prompt = self._messages(prompt, self.columns.prompt) if prompt else prompt
        else:
            # A text prompt beside whole conversations repeats their first message, as in UltraFeedback binarized.
            prompt, chosen, rejected = _split_common_messages(chosen, rejected)
        _require_responses(*(_said(messages) for messages in (chosen, rejected)))
        if not prompt:
            raise SetAside(Reason.EMPTY_PROMPT)
        if chosen == rejected:
            raise SetAside(Reason.SAME_RESPONSES)
        for name, messages in ((self.columns.chosen, chosen), (self.columns.rejected, rejected)):
            if messages[-1]["role"] != "assistant":
                raise SetAside(Reason.BAD_MESSAGE, f"{name} ends with role {messages[-1]['role']}, not assistant")
        try:
            with limited():
                prompt_text = self._apply_template(prompt, options | {"add_generation_prompt": True})
                chosen_text = self._end_turn(self._apply_template(prompt + chosen, options))
                rejected_text = self._end_turn(self._apply_template(prompt + rejected, options))
        except OverLimitError as error:
            raise endless_template(str(error)) from error
        # A template that writes a past turn otherwise than a turn to come: responses start where the texts part.
        start = _common_length(prompt_text, chosen_text, rejected_text)
        return Rendered(prompt_text[:start], chosen_text[start:], rejected_text[start:], add_bos=False, add_eos=False)

    def _messages(self, messages: list[Any], name: str) -> list[dict[str, Any]]:
        checked = checked_messages(messages, name, self._check_text)
        for message in checked:
            for field in message.keys() - {"role", "content"}:
                if self._template.reads(str(field)):
                    for text in strings_in(message[field]):
                        self._check_text(text, f"{field} of {name}")
        return checked

    def _apply_template(self, messages: list[Any], options: dict[str, Any]) -> str:
        text = self._template.render(messages, **options)
        # Templates may write more of a message than what was checked.
        _require_encodable(text, "a message")
        return text

    def _end_turn(self, text: str) -> str:
        """Cuts white space after the end-of-turn token (ChatML writes a line break there), or appends the token."""
        stripped = text.rstrip()
        return stripped if stripped.endswith(self.control_tokens) else text + self.end_of_turn


def _require_encodable(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SetAside(Reason.LONE_SURROGATE, name) from None


def _said(messages: list[dict[str, Any]]) -> str:
    """What a response holds: text, or calls of tools."""
    return "".join(map(text_of, messages)).strip() or "call" * any(map(calls, messages))


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
