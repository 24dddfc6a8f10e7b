"""What a person sees on stderr while a stage works: log lines, and a progress bar on a terminal.

Without a terminal (a log file, a batch job) the bar becomes a line now and then. Results go to stdout, elsewhere.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0
WIDTH_FOR_A_BAR = 100
"""On narrower terminals the numbers take the bar's place."""


def is_main_process() -> bool:
    """Whether this is the process that speaks, of those that accelerate launch or torchrun started."""
    return os.environ.get("RANK", "0") == "0"


stderr = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not is_main_process())


def log(message: str) -> None:
    """One line on stderr."""
    stderr.print(printable(message), markup=False)


def warn(message: str) -> None:
    """One line on stderr, marked as a warning."""
    stderr.print(f"warning: {printable(message)}", style="yellow", markup=False)


def degrade_stdout() -> None:
    """Makes a character that stdout's encoding lacks a question mark, whoever prints it; on stderr Python itself
    writes its number."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def stdout() -> Console:
    """Where results go; a file or another program gets tables as wide as they are."""
    degrade_stdout()
    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


def printable(text: str) -> str:
    """Data as a terminal may show it: line breaks stay, escape codes and other control characters do not."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def quiet_libraries() -> None:
    """Keeps transformers' and datasets' own bars and advice out of the way; errors still come as exceptions."""
    import datasets
    import transformers

    # What they say to one another about names that will change.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels that it did not find
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()


class Meter:
    """A progress bar with a free text beside it; `done` steps were done before and say nothing about the speed."""

    def __init__(self, description: str, total: int | None, bar: Progress | None, done: int = 0) -> None:
        self._description = description
        self._total = total
        self._bar = bar
        self._task: TaskID | None = bar.add_task(description, total=total, completed=done, text="") if bar else None
        self._done = self._done_before = done
        self._start = self._last_line = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the meter started."""
        return time.monotonic() - self._start

    def advance(self, steps: int, text: str = "") -> None:
        """`steps` more are done; `text` stands beside the bar."""
        self._done += steps
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=steps, text=text)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            of_total = f"/{self._total} {self._time_left()} left" if self._total else ""
            log(f"{self._description} {self._done}{of_total} {text}".rstrip())

    def _time_left(self) -> str:
        left = self.seconds / max(1, self._done - self._done_before) * ((self._total or 0) - self._done)
        if left < 90:
            return f"{left:.0f} s"
        return f"{left / 60:.0f} min" if left < 5400 else f"{left / 3600:.1f} h"


@contextmanager
def meter(description: str, total: int | None, done: int = 0) -> Iterator[Meter]:
    """A `Meter` shown until the block ends."""
    if not sys.stderr.isatty():
        yield Meter(description, total, None, done)
        return
    columns = (
        TextColumn("{task.description}"),
        *([BarColumn(bar_width=30)] if stderr.width >= WIDTH_FOR_A_BAR else []),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=stderr) as bar:
        yield Meter(description, total, bar, done)
