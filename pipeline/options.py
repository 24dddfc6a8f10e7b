"""Command-line options made from a configuration's fields, so that flag, YAML key and Python name are one thing."""

import functools
import inspect
import os
import types
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from ..stages.settings import Settings, panel_of

DEBUG = "TGDPO_DEBUG"
"""Environment variable: error lines come with the traceback behind them."""
Debug = Annotated[bool, typer.Option("--debug", help=f"Show the traceback behind an error line, as {DEBUG}=1 does.")]


def with_debug(command: Callable[..., None]) -> Callable[..., None]:
    """The command with --debug, which sets `DEBUG`."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)

    @functools.wraps(command)
    def wrapped(*, debug: bool, **values: Any) -> None:
        if debug:
            os.environ[DEBUG] = "1"
        command(**values)

    _give_parameters(wrapped, [*own, debug])
    return wrapped


def _give_parameters(command: Callable[..., None], parameters: list[inspect.Parameter]) -> None:
    """Makes them the keyword parameters that Typer sees."""
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def options_of(kind: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a Typer command one option per field of `kind`.

    The command's first parameter gets a dict of the options that were given; its further parameters stay options of
    their own.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        fields = [_parameter(name, field) for name, field in kind.model_fields.items()]

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            given = {name: values.pop(name) for name in kind.model_fields}
            command({name: value for name, value in given.items() if value not in (None, [])}, **values)

        _give_parameters(wrapped, own + fields)
        return wrapped

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    value_type = _without_none(field.annotation)
    declaration = f"{flag}/--no-{flag[2:]}" if value_type is bool else flag
    option = typer.Option(
        declaration,
        help=" ".join((field.description or "").split()) + (" Required." if field.is_required() else ""),
        show_default=_shown_default(field),
        rich_help_panel=panel_of(field),
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[value_type | None, option]
    )


def _without_none(annotation: Any) -> Any:
    """X of `X | None`; a tuple becomes a list of text, which Typer reads as a repeatable option."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is tuple:
        return list[str]
    return annotation


def _shown_default(field: FieldInfo) -> str | bool:
    if field.is_required() or field.default is None or field.default == ():
        return False
    if isinstance(field.default, tuple):
        return " ".join(field.default)
    if isinstance(field.default, bool):
        return "yes" if field.default else "no"
    return str(field.default)
