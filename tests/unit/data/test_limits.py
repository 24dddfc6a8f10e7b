"""Chat templates are code that comes with a model: none of them takes a machine down."""

import sys
import time

import jinja2.sandbox
import pytest

from tgdpo.data.limits import OverLimitError, limited

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
LONG = {
    "a loop": LOOPS,
    "a power": "{% set n = 9 %}{{ (9**(9**n)) is odd }}",
    "a constant power, which Jinja folds while it compiles": "{% set x = 9**(9**9) %}",
    "a constant power among others": "{% if 0 %}{{ 9**(9**8) }}{% endif %}" * 3,
    "a quotient": "{% set n = 7 %}{% set x = 9**(9**n) // 7**(9**n - 3) %}",
    "a sort": "{% set x = namespace(l=[]) %}{% for i in range(99999) %}"
    "{% set x.l = (range(99999) | list * 10) | sort %}{% endfor %}",
}
DEEP = {
    "a macro that calls itself": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "filters": "{{ 1" + " | abs" * 20000 + " }}",
}
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


@pytest.mark.parametrize("template", LONG)
def test_the_time_is_limited_whatever_a_template_does(template: str) -> None:
    start = time.process_time()
    with pytest.raises(OverLimitError, match=r"more than 0\.2 s|memory"), limited(seconds=0.2):
        render(LONG[template])
    assert time.process_time() - start < 5


@pytest.mark.parametrize("template", DEEP)
def test_a_template_that_nests_without_end(template: str) -> None:
    with pytest.raises(OverLimitError, match="nested calls"), limited():
        render(DEEP[template])


def swallow(times: int) -> None:
    """Runs until it was stopped so many times."""
    while times:
        try:
            while True:
                pass
        except BaseException:
            times -= 1


def test_a_block_that_catches_everything_is_late_all_the_same() -> None:
    with pytest.raises(OverLimitError, match=r"more than 0\.1 s"), limited(seconds=0.1):
        swallow(2)


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
