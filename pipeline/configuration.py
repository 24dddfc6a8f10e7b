"""Configurations from YAML files and command-line options; options win, unknown keys are refused."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import ValidationError

from ..errors import UsageError
from ..stages.console import log
from ..stages.settings import Settings
from ..stages.yaml_text import parse_yaml

MAX_BYTES = 1_000_000
"""A configuration is a page of text; a larger file is something else."""

SomeSettings = TypeVar("SomeSettings", bound=Settings)


def read_yaml(path: Path) -> dict[str, Any]:
    """The file's mapping. Raises UsageError where it is missing, too large or no mapping."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file", fix="name a YAML file")
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path} has {path.stat().st_size} bytes", fix=f"a configuration has at most {MAX_BYTES}")
    try:
        content = parse_yaml(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} is {error}", fix="correct the file") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path} holds no mapping of option names to values", fix="write lines like 'beta: 0.1'")
    return content


def section(content: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """The part of a file that configures one stage: the section of that name, or the whole of a flat file."""
    if name not in content and not ({"score", "train"} & content.keys()):
        return content
    require_keys(content, ("score", "train"), path)
    part = content.get(name) or {}
    if not isinstance(part, dict):
        raise UsageError(f"{path}: '{name}' holds no mapping", fix="indent its options under it")
    return part


def require_keys(content: Iterable[str], known: Iterable[str], path: Path) -> None:
    """Raises UsageError for a key that is not known, with the nearest that is."""
    known = list(known)
    for key in content:
        if key not in known:
            raise UsageError(f"{path}: unknown key '{key}'", fix=_nearest(key, known))


def build(kind: type[SomeSettings], *layers: dict[str, Any]) -> SomeSettings:
    """A configuration from mappings, later ones winning; one line says which of an earlier one are left out as
    defaults that were only written down (see `Settings.superseded`).

    Raises:
        UsageError: an unknown key, a missing one, or a value that its field does not take.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        given = {key.replace("-", "_"): value for key, value in layer.items()}
        for name, why in kind.superseded(values, given).items():
            log(f"--{name.replace('_', '-')} {values.pop(name)} in the file counts as not set: {why}")
        values |= given
    for name, field in kind.model_fields.items():
        # One value may stand alone where several may be given.
        if get_origin(field.annotation) is tuple and isinstance(values.get(name), str):
            values[name] = (values[name],)
    try:
        return kind(**values)
    except ValidationError as error:
        problem, fix = _explain(kind, error)
        raise UsageError(problem, fix=fix) from error


def _explain(kind: type[Settings], error: ValidationError) -> tuple[str, str]:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not first["loc"]:  # options that do not go together: "problem; fix"
        problem, _, fix = message.partition("; ")
        return problem, fix
    name = str(first["loc"][0])
    option = "--" + name.replace("_", "-")
    if first["type"] == "extra_forbidden":
        return f"unknown key '{name}'", _nearest(name, kind.model_fields)
    if first["type"] == "missing":
        return f"{option} is missing", kind.model_fields[name].description or "give it a value"
    # Lists and mappings are not written out: YAML's aliases make much of little.
    given = first["input"]
    if isinstance(given, list | tuple | dict):
        given = "{…}" if isinstance(given, dict) else "[…]"
    return f"{option} {given}", message


def _nearest(key: str, known: Iterable[str]) -> str:
    known = list(known)
    nearest = difflib.get_close_matches(key, known, n=1)
    return f"did you mean '{nearest[0]}'?" if nearest else f"known are: {', '.join(known)}"
