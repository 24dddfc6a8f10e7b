"""The day that a chat template writes: one for a whole run, whenever and wherever its rows are rendered."""

import datetime
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from ..errors import CacheError, ModelError

CLOCK = "strftime_now"
"""The function that transformers gives to templates: those of Llama 3.1 and 3.2, Granite and gpt-oss write the date."""


def sources_of(chat_template: Any) -> list[str]:
    """The texts of a tokenizer's chat template, of which some have several by name."""
    if isinstance(chat_template, dict):
        return [source for each in chat_template.values() for source in sources_of(each)]
    return [chat_template] if isinstance(chat_template, str) else []


def reads_clock(chat_template: Any) -> bool:
    """Whether it can write the date or the time."""
    return any(CLOCK in source for source in sources_of(chat_template))


def parsed_day(text: Any) -> str | None:
    """YYYY-MM-DD as it is, None for anything else."""
    if isinstance(text, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
        with suppress(ValueError):
            return datetime.date.fromisoformat(text).isoformat()
    return None


class DatedTemplate:
    """A tokenizer's chat template with its clock stopped at midnight of a day.

    Args:
        tokenizer: its tokenizer.
        day: YYYY-MM-DD; None where the run's is not known, and then a template that reads the clock renders nothing.

    Raises:
        ModelError: the clock cannot be stopped.
    """

    def __init__(self, tokenizer: Any, day: str | None) -> None:
        self.chat_template = tokenizer.chat_template
        self.apply_chat_template: Callable[..., Any] = tokenizer.apply_chat_template
        if drawn := next(filter(None, map(_drawn, sources_of(self.chat_template))), None):
            self.apply_chat_template = partial(_refuse_chance, drawn)
        elif reads_clock(self.chat_template):
            self.apply_chat_template = _with_clock(tokenizer.apply_chat_template, day)
            _require_stopped(self.apply_chat_template, day)


def _with_clock(render: Callable[..., Any], day: str | None) -> Callable[..., Any]:
    """`render`, in which the time is midnight of the day. transformers takes no function as a template's variable."""
    from transformers.utils import chat_template_utils

    def now() -> datetime.datetime:
        if day is None:
            raise CacheError(
                "the chat template writes the date, and the run in --output was begun by a tgdpo that did not record "
                "its day",
                fix="use another --output; --template-date YYYY-MM-DD sets the day",
            )
        return datetime.datetime.fromisoformat(day)

    @wraps(render)
    def stopped(*arguments: Any, **options: Any) -> Any:
        with patch.object(chat_template_utils, "datetime", SimpleNamespace(now=now)):
            return render(*arguments, **options)

    return stopped


def _require_stopped(render: Callable[..., Any], day: str | None) -> None:
    template = "{{ " + CLOCK + "('%Y-%m-%d') }}"
    if day and (shown := render([{"role": "user", "content": ""}], chat_template=template, tokenize=False)) != day:
        raise ModelError(
            f"the chat template writes the date, and this version of transformers gives it {shown}, not {day}",
            fix="use a version that constraints.txt names",
        )


def _drawn(source: str) -> str | None:
    """What in a template differs from call to call, whatever the day."""
    import jinja2.nodes
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    with suppress(jinja2.TemplateError, RecursionError):
        parsed = environment.parse(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source))  # transformers' own tag
        if any(each.name == "random" for each in parsed.find_all(jinja2.nodes.Filter)):
            return "random"
        if any(each.name == "lipsum" for each in parsed.find_all(jinja2.nodes.Name)):
            return "lipsum"
    return None


def _refuse_chance(drawn: str, *_: Any, **__: Any) -> Any:
    raise ModelError(
        f"the chat template draws text at random ({drawn}), so that no two runs would score the same",
        fix="use a tokenizer with another one (--tokenizer)",
    )
