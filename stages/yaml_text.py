"""YAML as option files are read and written: each key once, plain values as YAML 1.2 reads them.

PyYAML reads YAML 1.1, where `010` is 8, `1:30` is 90, `1e-5` is text, `yes` is a truth value and 2026-01-01 a date.
Here, as in YAML 1.2's core schema, 010 is 10, 1e-5 a number, and the others are text, which an option takes or refuses
by its own type. Merge keys (<<) are kept.
"""

import re
from typing import Any

import yaml

TRUTH_WORDS = {"yes": True, "on": True, "no": False, "off": False}
"""Truth values of YAML 1.1 that are text in 1.2; options that are true or false take them all the same."""

_INT, _FLOAT, _BOOL, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
_PLAIN = {
    _NULL: re.compile(r"~|null|Null|NULL|"),
    _BOOL: re.compile(r"true|True|TRUE|false|False|FALSE"),
    _INT: re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    _FLOAT: re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
}
"""What plain text is something else than text (YAML 1.2.2, section 10.3.2), in the order in which it is tried."""
_MERGE = "tag:yaml.org,2002:merge"


class _DuplicateKeyError(yaml.MarkedYAMLError):
    """One key, or two spellings of one option, in one mapping."""


class _Loader(yaml.SafeLoader):
    """Text to values."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping as it is written, before merge keys are filled in: these may be overridden."""
        node = super().compose_mapping_node(anchor)
        seen: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = key.value.replace("-", "_")
            if name in seen:
                raise _DuplicateKeyError(
                    problem=f"sets '{key.value}' again, after line {seen[name].line + 1}", problem_mark=key.start_mark
                )
            seen[name] = key.start_mark
        return node

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The tag of a node that has none."""
        if kind is yaml.ScalarNode and implicit[0]:
            if value == "<<":
                return _MERGE
            return next((tag for tag, form in _PLAIN.items() if form.fullmatch(value)), self.DEFAULT_SCALAR_TAG)
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return tag


def _int(_: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor(_INT, _int)


class _Dumper(yaml.SafeDumper):
    """Values to text that YAML 1.1 and 1.2 read alike: text that either takes for something else is quoted."""


for _tag in (_INT, _FLOAT):
    _Dumper.add_implicit_resolver(_tag, re.compile(f"({_PLAIN[_tag].pattern})\\Z"), list("-+.0123456789"))


def parse_yaml(content: str | bytes) -> Any:
    """The value that `content` holds.

    Raises:
        ValueError: it is not valid YAML, or sets a key twice. Its text completes the sentence "X is …".
    """
    try:
        return _Loader(content).get_single_data()
    # Beside its own errors: bad UTF-8, impossible dates and code points, deep nesting.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = f" {error.problem}" if isinstance(error, _DuplicateKeyError) else ""
        raise ValueError(f"not valid YAML{where}{what}") from error


def dump_yaml(values: Any) -> str:
    """`values`, mappings in their own order, as ASCII text that `parse_yaml` reads back."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False)
    return text
