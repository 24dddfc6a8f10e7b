"""Conversations as rows hold them: lists of messages, also written as text, in the shapes that TRL takes."""

import ast
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from .set_aside import Reason, SetAside

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython"})

Field = str | list[Any]
"""A prompt or a response: text, or a list of messages."""

_STARTS_LIKE_MESSAGES = re.compile(r"\s*(array\(\s*)?\[\s*\{.{0,1000}?['\"]role['\"]\s*:\s*['\"]", re.DOTALL)


def stored_messages(prompt: Field | None, chosen: str, rejected: str) -> tuple[Field | None, Field, Field]:
    """Reads conversations that are stored as text, as JSON or as Python writes a list (a CSV file holds nothing else).

    Text that is no conversation is returned as it is.

    Raises:
        SetAside: it begins like a conversation and cannot be read as one, or one response alone is a conversation.
    """
    read = [_read_messages(text) for text in (chosen, rejected)]
    told = [bool(_STARTS_LIKE_MESSAGES.match(text)) for text in (chosen, rejected)]
    before = _read_messages(prompt) if isinstance(prompt, str) else None
    if not (all(told) or (before is not None and any(told))):
        return prompt, chosen, rejected
    if read[0] is None or read[1] is None:
        raise SetAside(Reason.BAD_MESSAGE, "messages are stored as text that is neither JSON nor a Python list")
    return before if before is not None else prompt, read[0], read[1]


def _read_messages(text: str) -> list[Any] | None:
    """The list of messages that a text holds, None where it holds something else."""
    if not _STARTS_LIKE_MESSAGES.match(text):
        return None
    value = None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text.strip())
            break
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    is_conversation = isinstance(value, list) and all(
        isinstance(message, dict) and message.get("role") in tuple(ROLES) for message in value
    )
    return value if is_conversation and value else None


def checked_messages(messages: list[Any], name: str, check_text: Callable[[str, str], None]) -> list[dict[str, Any]]:
    """The messages, fields that are null left out.

    Args:
        messages: as the row holds them.
        name: of their column.
        check_text: raises SetAside for a text that cannot be used; gets the text and where it stands.

    Raises:
        SetAside: one is no message with a role and with text, text parts or tool calls.
    """
    if not messages:
        raise SetAside(Reason.EMPTY_RESPONSE, f"{name} has no message")
    return [_checked(message, f"{name}[{place}]", check_text) for place, message in enumerate(messages)]


def _checked(message: Any, where: str, check_text: Callable[[str, str], None]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise SetAside(Reason.BAD_MESSAGE, f"{where} is {type(message).__name__}, not a message")
    if "role" not in message:
        raise SetAside(Reason.BAD_MESSAGE, f"{where} has no role or no content{_share_gpt(message)}")
    if not isinstance(message["role"], str) or message["role"] not in ROLES:
        raise SetAside(Reason.BAD_MESSAGE, f"{where} has an unknown role")
    # What transformers does, too: APIs and Arrow write null where a message has no such field.
    kept = {name: value for name, value in message.items() if value is not None}
    if "content" not in kept and not calls(kept):
        if "content" in message:
            raise SetAside(Reason.NOT_TEXT, f"{where} content is NoneType")
        raise SetAside(Reason.BAD_MESSAGE, f"{where} has no role or no content")
    for text in _texts(kept, where):
        check_text(text, where)
    return kept


def _share_gpt(message: dict[str, Any]) -> str:
    return " but from and value (ShareGPT)" if {"from", "value"} <= message.keys() else ""


def _texts(message: dict[str, Any], where: str) -> list[str]:
    content = message.get("content", "")
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list) or not content:
        raise SetAside(Reason.NOT_TEXT, f"{where} content is {type(content).__name__}")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise SetAside(Reason.NOT_TEXT, f"{where} content has a part that is not text" + _kind(kind))
    return [part["text"] for part in content]


def _kind(kind: Any) -> str:
    known = ("image", "image_url", "audio", "input_audio", "video", "file", "tool_use", "tool_result", "thinking")
    return f" ({kind})" if kind in known else ""


def calls(message: dict[str, Any]) -> bool:
    """Whether a message is the assistant's and calls tools."""
    return (
        message["role"] == "assistant" and isinstance(message.get("tool_calls"), list) and bool(message["tool_calls"])
    )


def text_of(message: dict[str, Any]) -> str:
    """The text of a checked message, its parts one after the other."""
    content = message.get("content", "")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def with_plain_text(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with text instead of text parts, for templates that know text alone."""
    return [
        message | {"content": text_of(message)} if isinstance(message.get("content"), list) else message
        for message in messages
    ]


def strings_in(value: Any) -> Iterator[str]:
    """Every string of a JSON value, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from strings_in(name)
            yield from strings_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings_in(inner)
