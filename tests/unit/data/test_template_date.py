"""A chat template's clock stopped at a day."""

import re
from datetime import datetime
from typing import Any

import pytest
from support import make_tokenizer

from tgdpo.data.template_date import DatedTemplate, parsed_day, reads_clock
from tgdpo.errors import CacheError, ModelError

LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}Today Date: {{ date_string }}\n{{ messages[0].content }}"
)
"""As the templates of Llama 3.2 begin."""
MESSAGES = [{"role": "user", "content": "Hello"}]


def rendered(template: Any, day: str | None = "2024-02-29", **options: Any) -> str:
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = template
    return str(DatedTemplate(tokenizer, day).apply_chat_template(MESSAGES, tokenize=False, **options))


def test_the_day_is_the_one_given() -> None:
    assert rendered(LLAMA) == "Today Date: 29 Feb 2024\nHello"
    assert rendered(LLAMA, date_string="1 Jan 2000") == "Today Date: 1 Jan 2000\nHello"


def test_the_time_is_midnight() -> None:
    """Two renderings of one run never differ in a minute either."""
    assert rendered("{{ strftime_now('%Y-%m-%dT%H:%M:%S.%f') }}") == "2024-02-29T00:00:00.000000"


def test_one_of_several_templates() -> None:
    templates = {"default": LLAMA, "tool_use": "tools on {{ strftime_now('%A') }}"}
    assert reads_clock(templates)
    assert rendered(templates, tools=[{"type": "function"}]) == "tools on Thursday"


def test_a_template_without_a_clock_needs_no_day() -> None:
    assert not reads_clock("{{ messages[0].content }}")
    assert not reads_clock(None)
    assert rendered("{{ messages[0].content }}", None) == "Hello"


def test_an_unknown_day_is_never_guessed() -> None:
    with pytest.raises(CacheError, match="did not record its day"):
        rendered(LLAMA, None)


@pytest.mark.parametrize(
    "drawn", ["{{ [1, 2] | random }}", "{% set a = ['x'] %}{{ (a | random).x }}", "{{ lipsum() }}"]
)
def test_text_that_is_drawn_is_refused(drawn: str) -> None:
    with pytest.raises(ModelError, match="draws text at random"):
        rendered("{% generation %}" + drawn + "{% endgeneration %}{{ messages[0].content }}")


def test_words_about_chance_are_no_chance() -> None:
    assert rendered("a | random lipsum {{ messages[0].random }}") == "a | random lipsum "


@pytest.mark.parametrize(
    "text", ["20240229", "2024-W09-4", "2024-02-30", "24-02-29", "2024-2-29", "", "today", 5, None, "٢٠٢٤-02-29"]
)
def test_what_is_no_day(text: Any) -> None:
    assert parsed_day(text) is None


def test_what_transformers_would_write() -> None:
    """The name by which transformers gives its clock to templates is still this one."""
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = LLAMA
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert re.fullmatch(r"Today Date: \d\d \w+ \d{4}\nHello", text)
    assert datetime.strptime(text.splitlines()[0], "Today Date: %d %b %Y").year > 2024


def test_a_clock_that_does_not_stop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = LLAMA
    monkeypatch.setattr(type(tokenizer), "apply_chat_template", lambda *_, **__: "2030-01-01")
    with pytest.raises(ModelError, match="gives it 2030-01-01, not 2024-02-29"):
        DatedTemplate(tokenizer, "2024-02-29")
