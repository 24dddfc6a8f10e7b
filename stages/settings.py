"""Base of the stages' configurations: typed, frozen, unknown keys refused, a docstring per field.

The field docstrings are the help texts of the command line; `panel` groups them there.
"""

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from ..data.addresses import is_url, why_not_writable


def parse_yaml(content: str | bytes) -> Any:
    """The value that `content` holds. Raises ValueError, whose text goes on "X is …", where it is not valid YAML."""
    try:
        return yaml.safe_load(content)
    # Beside its own errors: bad UTF-8, impossible dates and code points, deep nesting.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError("not valid YAML" + (f", line {mark.line + 1}" if mark else "")) from error


class Settings(BaseModel):
    """A configuration; every field is an option of the command line and a key of the YAML file."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    def to_yaml(self) -> str:
        """All options with their values, in the form that --config reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def writable(output: str) -> str:
    """A folder, or a URL in a store that can be written to. Raises ValueError for another URL."""
    problem = why_not_writable(output) if is_url(output) else None
    if problem:
        raise ValueError(problem)
    return output


def option(panel: str, default: Any = ..., **constraints: Any) -> Any:
    """A field shown under `panel` in the help; `constraints` are pydantic's (gt, ge, le …)."""
    return Field(default, json_schema_extra={"panel": panel}, **constraints)


def panel_of(field: FieldInfo) -> str | None:
    """The panel that a field was given by `option`."""
    extra = field.json_schema_extra
    return str(extra["panel"]) if isinstance(extra, dict) else None
