"""Base of the stages' configurations: typed, frozen, unknown keys refused, a docstring per field.

The field docstrings are the help texts of the command line; `panel` groups them there.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from ..data.addresses import is_url, why_not_writable
from .yaml_text import dump_yaml


class Settings(BaseModel):
    """A configuration; every field is an option of the command line and a key of the YAML file.

    Work that an earlier version recorded may lack an option, or have one that is gone: see `option` and `gone`.
    """

    gone: ClassVar[Mapping[str, Any]] = {}
    """Options of earlier versions that no longer exist, with their defaults; at these values they are ignored."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    def to_yaml(self) -> str:
        """All options with their values, in the form that --config reads."""
        return dump_yaml(self.model_dump(mode="json"))

    @classmethod
    def superseded(cls, written: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, str]:  # noqa: ARG003
        """Options that a file wrote down as defaults of a choice that is made differently now.

        Args:
            written: the options of the file.
            given: the options that win over them.

        Returns:
            Names of options in `written` to treat as not set, with the reason.
        """
        return {}

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses what pydantic would take: truth values as numbers, names of files that are no valid text."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {annotation, *get_args(annotation)} & {int, float}:
            raise ValueError("should be a number, not a truth value")
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError("is not valid UTF-8; rename it, or set PYTHONUTF8=1 if the locale is another")
        return value

    @model_validator(mode="before")
    @classmethod
    def _ignore_gone(cls, given: Any) -> Any:
        return cls._without_gone(given) if isinstance(given, dict) else given

    @classmethod
    def _without_gone(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name not in cls.gone or value != cls.gone[name]}

    @classmethod
    def completed(cls, recorded: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, Any]:
        """Recorded options as this version would have recorded them, as JSON values.

        Args:
            recorded: what an earlier version recorded.
            names: the options that are recorded, all by default.
        """
        completed: dict[str, Any] = to_jsonable_python(cls._before(names)) | cls._without_gone(recorded)
        return completed

    def as_begun(self, recorded: Mapping[str, Any], names: Iterable[str] | None = None) -> Self:
        """These options for work that an earlier version began: one that it did not know, and that is not set here,
        has the value that says what that version did. Arguments as in `completed`."""
        known = recorded.keys() | self.model_fields_set
        unknown = {name: value for name, value in self._before(names).items() if name not in known}
        return self.model_copy(update=unknown) if unknown else self

    @classmethod
    def _before(cls, names: Iterable[str] | None) -> dict[str, Any]:
        """What versions did that had no such options; nothing of required ones, which all versions had."""
        fields = {name: cls.model_fields[name] for name in names or cls.model_fields}
        extras = {name: field.json_schema_extra for name, field in fields.items() if not field.is_required()}
        return {
            name: extra.get("before", fields[name].default) if isinstance(extra, dict) else fields[name].default
            for name, extra in extras.items()
        }


def writable(output: str) -> str:
    """A folder, or a URL in a store that can be written to. Raises ValueError for another URL."""
    problem = why_not_writable(output) if is_url(output) else None
    if problem:
        raise ValueError(problem)
    return output


def option(panel: str, default: Any = ..., *, before: Any = ..., **constraints: Any) -> Any:
    """A field of a configuration.

    Args:
        panel: where the help shows it.
        default: its default; without one it is required.
        before: the value that says what versions did that had no such option. By default, the default.
        constraints: pydantic's (gt, ge, le …).
    """
    extra: dict[str, Any] = {"panel": panel} if before is ... else {"panel": panel, "before": before}
    return Field(default, json_schema_extra=extra, **constraints)


def panel_of(field: FieldInfo) -> str | None:
    """The panel that a field was given by `option`."""
    extra = field.json_schema_extra
    return str(extra["panel"]) if isinstance(extra, dict) else None
