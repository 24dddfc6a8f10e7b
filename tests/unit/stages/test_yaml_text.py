"""YAML as people write options: numbers as they read them, no key twice, and what is written is read back."""

import math
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tgdpo.stages.yaml_text import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),  # 8 in YAML 1.1
        ("08", 8),
        ("+5", 5),
        ("-3", -3),
        ("0o10", 8),
        ("0x1F", 31),
        ("1e-5", 1e-5),  # text in YAML 1.1
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("1_000", "1_000"),  # 1000 in YAML 1.1
        ("0b11", "0b11"),  # 3 in YAML 1.1
        ("1e", "1e"),
        ("inf", "inf"),
        ("yes", "yes"),  # true in YAML 1.1, like the next three
        ("No", "No"),
        ("on", "on"),
        ("off", "off"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("2026-01-01", "2026-01-01"),  # a date in YAML 1.1
        ("=", "="),
        ("'010'", "010"),
        ("!!int 010", 10),
        ("[010, {a: no}]", [10, {"a": "no"}]),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert parse_yaml(f"key: {text}") == {"key": value}
    assert type(parse_yaml(f"key: {text}")["key"]) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "line 3 sets 'a' again, after line 1"),
        ("a: 1\na: 1", "line 2 sets 'a' again, after line 1"),
        ("a-b: 1\na_b: 2", "line 2 sets 'a_b' again, after line 1"),
        ("a_b: 1\n'a-b': 2", "line 2 sets 'a-b' again, after line 1"),
        ("x:\n  a: 1\n  a: 2", "line 3 sets 'a' again, after line 2"),
        ("train: {}\nscore: {}\ntrain: {}", "line 3 sets 'train' again, after line 1"),
        ("- {a: 1, a: 2}", "line 1 sets 'a' again, after line 1"),
        ('{"a": 1, "a": 2}', "line 1 sets 'a' again, after line 1"),
        ("base: &b {a: 1, a: 2}\nx: {<<: *b}", "line 1 sets 'a' again"),
        ("<<: {a: 1}\n<<: {b: 2}", "line 2 sets '<<' again"),
    ],
)
def test_a_key_that_is_set_twice_is_named_with_its_lines(text: str, says: str) -> None:
    for content in (text, text.encode(), b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):
        with pytest.raises(ValueError, match=says):
            parse_yaml(content)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("base: &b {a: 1, c: 1}\nx:\n  <<: *b\n  a: 2", {"a": 2, "c": 1}),
        ("base: &b {<<: {a: 0}, a: 1}\nx: {<<: *b, a: 2}", {"a": 2}),
        ("x: {<<: &b {<<: {a: 0}, a: 1}, c: 3}\ny: *b", {"a": 1, "c": 3}),
        ("x: {<<: [{a: 1}, {a: 2}]}", {"a": 1}),
    ],
)
def test_merge_keys_are_overridden_as_ever(text: str, value: Any) -> None:
    assert parse_yaml(text)["x"] == value


@pytest.mark.parametrize("text", ["a: 1\n---\nb: 2", "a: !!int 1:30", f"a: {'9' * 5000}", "a: !!float x"])
def test_what_has_no_one_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not valid YAML"):
        parse_yaml(text)


WORDS = st.sampled_from(["1e-5", "08", "010", "1:30", "yes", "off", "2020-01-01", "0o7", "1_0", "~", "<<", "=", ".5e3"])
SCALARS = WORDS | st.text() | st.booleans() | st.none() | st.integers() | st.floats(allow_nan=False)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), SCALARS | st.lists(SCALARS, max_size=3)))
def test_what_is_written_is_read_back_by_either_version(values: dict[str, Any]) -> None:
    written = dump_yaml(values)
    assert written.isascii()
    assert parse_yaml(written) == values == yaml.safe_load(written)
