"""Chat templates are code that comes with a model: none of them takes a machine down."""

import sys
import time

import jinja2.sandbox
import pytest

from tgdpo.data.limits import OverLimitError, limited

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HUGE = [
    "{{ 'a' * 10**10 }}",
    "{{ 'a' | center(10**10) }}",
    "{% for i in range(99999) %}{{ 'a' * 10**6 }}{% endfor %}",
    "{% set all = namespace(s='a') %}{% for i in range(99) %}{% set all.s = all.s + all.s %}{% endfor %}",
]


def render(template: str) -> str:
    """As transformers does."""
    return jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(template).render()


def test_an_endless_loop_is_ended() -> None:
    start = time.process_time()
    with pytest.raises(OverLimitError, match=r"more than 0\.2 s"), limited(seconds=0.2):
        render(LOOPS)
    assert time.process_time() - start < 5


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory")
@pytest.mark.parametrize("template", HUGE)
def test_a_huge_string_is_not_made(template: str) -> None:
    with pytest.raises(OverLimitError, match=r"0\.25 GiB of memory"), limited(size=2**28):
        render(template)


def test_afterwards_nothing_is_limited() -> None:
    for _ in range(2):
        with limited(seconds=0.1, size=2**26):
            assert render("{{ 'a' * 3 }}") == "aaa"
    start = time.process_time()
    assert len(bytes(2**28)) == 2**28
    while time.process_time() - start < 0.2:
        pass


def test_what_the_block_raises_comes_through() -> None:
    with pytest.raises(jinja2.UndefinedError), limited():
        render("{{ nothing.at.all }}")
