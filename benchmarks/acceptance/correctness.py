"""Stage A: `pytest -m gpu`, a file of tests an item, so that one that breaks the card's context breaks no other."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .bare import ROOT
from .item import Context, Figures, Item, ItemError
from .training import Job, measured

TESTS = ROOT / "tests" / "gpu"
GROUP = "Correctness"


def tests_of(context: Context, file: str) -> Figures:
    """Runs a file; each test leaves a line as it ends."""
    import pytest

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    recorder = _Recorder(context, file)
    code = pytest.main(
        ["-m", "gpu", str(TESTS / file), f"--confcutdir={TESTS}", f"--rootdir={ROOT}", "-q", "-p", "no:cacheprovider",
         f"--basetemp={context.folder / 'pytest'}"],
        plugins=[recorder],
    )  # fmt: skip
    counts = Counter(recorder.outcomes.values())
    figures: Figures = {outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")}
    if counts["failed"] or code not in (0, pytest.ExitCode.OK):
        raise ItemError(f"{counts['failed']} tests failed, pytest ended with {int(code)}", figures)
    return figures


class _Recorder:
    """A plugin of pytest: a line for each test."""

    def __init__(self, context: Context, file: str) -> None:
        self._context = context
        self._file = file
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Of a test's set-up, call and tear-down, what is not passing counts, else the call."""
        if report.when != "call" and report.outcome == "passed":
            return
        name = report.nodeid.partition("::")[2]
        self.outcomes[name] = report.outcome
        line = {"item": self._file, "test": name, "status": report.outcome, "seconds": round(report.duration, 1)}
        if report.skipped:
            line["reason"] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            line["reason"] = _last_line(report)
        self._context.write({"stage": "A", "group": GROUP} | line)


def _last_line(report: Any) -> str:
    """The line that pytest would end its summary with."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message).split("\n", 1)[0] if crash else str(report.longreprtext)[-200:]


def waits(context: Context) -> Figures:
    """How often the host waits for the card in a pass of the trainer, and where."""
    import torch

    where: Counter[str] = Counter()

    @contextmanager
    def counted(step: int) -> Iterator[None]:
        if step == 0:
            yield
            return
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for warning in caught:
            if "synchroniz" in str(warning.message):
                where[f"{Path(warning.filename).name}:{warning.lineno}"] += 1

    job = Job(model="Llama-3-1B", pairs=16, warm=1, steps=4)
    figures = measured(context, job, counted)
    passes = figures["passes_a_step"] * job.steps
    rows = [{"where": place, "a pass": count / passes} for place, count in where.most_common()]
    return {"waits_a_pass": sum(where.values()) / passes, "rows": rows}


def _tests(name: str, seconds: float) -> Item:
    return Item(name, partial(tests_of, file=f"test_{name}.py"), seconds, GROUP)


ITEMS = [
    _tests("scores", 150),
    _tests("training", 120),
    _tests("head", 60),
    _tests("memory", 90),
    _tests("flex", 270),
    Item("waits", waits, 90, GROUP, needs=("cuda",)),
    _tests("graphs", 150),
    _tests("compiler", 120),
]
