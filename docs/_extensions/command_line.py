"""A directive that shows a command's arguments and options as `tgdpo COMMAND --help` does, from the program itself.

    ```{command} train
    ```

Every option becomes a link target, `` {option}`tgdpo train --alpha` ``.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tgdpo.cli import app

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


class Command(SphinxDirective):
    """What a command does, how it is called, its options by panel."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in COMMANDS:
            raise self.error(f"tgdpo has no command {name}")
        return self.parse_text_to_nodes("\n".join(described(name, COMMANDS[name])))


def described(name: str, command: Any) -> Iterator[str]:
    """As MyST Markdown."""
    context = command.make_context(f"tgdpo {name}", [], resilient_parsing=True)
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield from (command.help, "", "```text", usage, "```", "", f"```{{program}} tgdpo {name}", "```", "")
    for panel, parameters in groupby(sorted(command.params, key=order_in(command)), key=panel_of):
        yield from (f"```{{rubric}} {panel}", "```", "")
        for parameter in parameters:
            yield from described_parameter(*parameter.get_help_record(context))


def described_parameter(names: str, text: str) -> Iterator[str]:
    """`text` ends with what is said in brackets of default and range."""
    text, _, details = text.partition("  [")
    said = re.sub(r"default: \(?(.+?)\)?(?=;|$)", r"default `\1`", details.removesuffix("]"))
    yield from (f"````{{option}} {names}", f"{text} [{said}]" if said else text, "````", "")


def panel_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    return str(parameter.rich_help_panel or "Options")


def order_in(command: Any) -> Any:
    """Arguments first, then the panels in the order in which they appear, options without a panel last."""
    panels = [panel_of(parameter) for parameter in command.params]
    return lambda one: (panel_of(one) != "Arguments", panel_of(one) == "Options", panels.index(panel_of(one)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("command", Command)
    return {"parallel_read_safe": True}
