"""A chat template at work on the conversations of rows: what it is given, and what it may do."""

import inspect
import json
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cached_property
from typing import Any, Protocol

from ..errors import ModelError
from .messages import strings_in, with_plain_text
from .set_aside import Reason, SetAside

MAX_GROWTH = 16
"""How many times the characters of its messages a chat template may write, beside a million."""
MIN_OWN_WORDS = 8
"""Characters of a template's own sentence; with fewer it says nothing."""

TOOLS, OPTIONS = "tools", "chat_template_kwargs"
TEMPLATE_COLUMNS = (TOOLS, OPTIONS)
"""Columns that go to the template, as in TRL: a list of tools, and a mapping of the template's further variables."""


REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of one field, each of which transformers gives to the template under the others, too."""


class HasChatTemplate(Protocol):
    """What rendering needs of a tokenizer."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, /, **options: Any) -> Any: ...


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: its tokenizer.
    """

    def __init__(self, tokenizer: HasChatTemplate) -> None:
        self._tokenizer = tokenizer

    def __bool__(self) -> bool:
        return bool(self._tokenizer.chat_template)

    @cached_property
    def _source(self) -> str:
        template = self._tokenizer.chat_template or ""
        return template if isinstance(template, str) else "\n".join(strings_in(template))

    def render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """The text of a conversation.

        Args:
            messages: checked messages.
            options: the row's (`options_of`), and add_generation_prompt.

        Raises:
            SetAside: the template refuses the conversation, in its own words where it has some.
            ModelError: it writes without end.
        """
        if any(isinstance(message.get("content"), list) for message in messages) and not self._takes_parts:
            messages = with_plain_text(messages)
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except _template_errors() as error:
            raise SetAside(Reason.TEMPLATE, self._own_words(error) or type(error).__name__) from error
        if len(text) > 1_000_000 + MAX_GROWTH * sum(map(len, strings_in([messages, options]))):
            raise endless_template(f"{len(text)} characters")
        return str(text)

    def _own_words(self, error: Exception) -> str:
        """What of an error's text is the template's own, and not a row's."""
        sentence = str(error).strip().splitlines()[0] if str(error).strip() else ""
        names = re.findall(r"'([^']*)'", sentence)
        if type(error).__name__ == "UndefinedError" and all(
            name.endswith(" object") or name in self._source for name in names
        ):
            return sentence  # 'dict object' has no attribute 'name': jinja's words, with a name from the template
        while len(sentence) >= MIN_OWN_WORDS and sentence not in self._source:
            sentence = sentence[:-1]
        return sentence.strip() if len(sentence) >= MIN_OWN_WORDS else ""

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template reads lists of text parts; one that does not would write the list itself."""
        parts = [{"type": "text", "text": "first part"}, {"type": "text", "text": "second part"}]
        with suppress(*_template_errors()):
            text = str(self._tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False))
            return "first part" in text and "second part" in text and "'text'" not in text and '"text"' not in text
        return False

    def options_of(self, row: dict[str, Any], check_text: Callable[[str, str], None]) -> dict[str, Any]:
        """What a row's columns `tools` and `chat_template_kwargs` give to the template, as in TRL; empty without them.

        Raises:
            SetAside: they are not what their names say, or hold a text that cannot be used.
        """
        options: dict[str, Any] = {}
        tools, others = (_parsed(row.get(name), name) for name in TEMPLATE_COLUMNS)
        if tools:  # Llama 3.1 writes a heading for an empty list; trl.data_utils gives none, too
            if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
                raise SetAside(Reason.BAD_MESSAGE, f"{TOOLS} is not a list of JSON schemas")
            options["tools"] = tools
        if others is not None and not isinstance(others, dict):
            raise SetAside(Reason.BAD_MESSAGE, f"{OPTIONS} is {type(others).__name__}, not a mapping")
        if taken := self._reserved.intersection(others or {}):
            raise SetAside(Reason.BAD_MESSAGE, f"{OPTIONS} sets {min(taken)}, which is no variable of the template")
        options |= others or {}
        for text in strings_in(options):
            check_text(text, TOOLS if tools else OPTIONS)
        return options

    @cached_property
    def _reserved(self) -> frozenset[str]:
        own = inspect.signature(self._tokenizer.apply_chat_template).parameters.keys()
        return frozenset(own) - {"tools", "documents", "kwargs"} | {"messages"}

    def reads(self, field: str) -> bool:
        """Whether the template may write a field of messages: its source names it, or another name of it."""
        return any(name in self._source for name in (REASONING if field in REASONING else (field,)))

    def unread(self, columns: Collection[str]) -> list[str]:
        """Columns that are called like a variable of the template, and are not given to it."""
        return sorted(self._variables.intersection(columns) - {"messages", *TEMPLATE_COLUMNS})

    @cached_property
    def _variables(self) -> set[str]:
        import jinja2.meta
        import jinja2.sandbox

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
        source = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", self._source)  # a tag that transformers knows
        with suppress(jinja2.TemplateError, RecursionError):
            return set(jinja2.meta.find_undeclared_variables(environment.parse(source)))
        return set()


def _template_errors() -> tuple[type[Exception], ...]:
    """What another person's template may raise."""
    import jinja2

    return (
        *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError),
        *(RecursionError, TypeError, ValueError),
    )


def endless_template(what: str) -> ModelError:
    """The error of a template that takes too much."""
    return ModelError(
        f"the chat template takes {what} for one conversation",
        fix="use a tokenizer with a working one (--tokenizer)",
    )


def _parsed(value: Any, name: str) -> Any:
    """A column's value, also where it is stored as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        raise SetAside(Reason.BAD_MESSAGE, f"{name} is text that is not JSON") from None
