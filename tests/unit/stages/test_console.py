"""Progress on a terminal and in a log: one line, no wider than 80 columns, and an honest time left."""

import io
import os
import pty
import subprocess
import sys

import pytest
import torch

from tgdpo.stages import console
from tgdpo.stages.train.progress import status

RECORD = {"loss": 12.3456, "rewards/accuracies": 0.4567, "rewards/margins": -12.3456, "tokens_per_second": 123_456.7}
CPU = torch.device("cpu")


@pytest.mark.parametrize("scale", [1e-3, 1, 1e2])
def test_a_step_in_words(scale: float) -> None:
    text = status(RECORD | {"tokens_per_second": 12_345.6 * scale}, CPU)
    assert "loss 12.346 acc 0.46 margin -12.3" in text
    assert {1e-3: " 12 tok/s", 1: " 12k tok/s", 1e2: " 1235k tok/s"}[scale] in text
    assert text.endswith("GiB")


class Clock:
    """Time that passes when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In place of the machine's."""
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    return clock


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is logged."""
    stream = io.StringIO()
    # Not `file`: that is a property, whose value of now, this test's own stderr, would come back in its place.
    monkeypatch.setattr(console.stderr, "_file", stream)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    return stream


def test_a_log_line_fits_80_columns(clock: Clock, lines: io.StringIO) -> None:
    record = {"loss": 0.6931, "rewards/accuracies": 0.5, "rewards/margins": -1.2345, "tokens_per_second": 12_345.6}
    with console.meter("training", 9999, done=1000) as progress:
        clock.now += 600
        progress.advance(200, status(record, CPU))
    (line,) = lines.getvalue().splitlines()
    assert line.startswith("training 1200/9999 7.3 h left loss 0.693 acc 0.50 margin -1.23 12k tok/s ")
    assert len(line) <= 80


def test_steps_of_an_earlier_start_do_not_count_as_speed(clock: Clock, lines: io.StringIO) -> None:
    with console.meter("training", 1000, done=900) as progress:
        clock.now += 40
        progress.advance(10)
    assert lines.getvalue() == "training 910/1000 6 min left\n"


def test_on_a_terminal_of_80_columns_nothing_is_cut() -> None:
    """A real terminal: the last frame holds every number."""
    script = """
import torch
from tgdpo.stages import console
from tgdpo.stages.train.progress import status
record = {"loss": 0.6931, "rewards/accuracies": 0.5, "rewards/margins": 0.0123, "tokens_per_second": 12345.6}
with console.meter("training", 5000, done=1000) as progress:
    progress.advance(200, status(record, torch.device("cpu")))
"""
    parent, child = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", script], stderr=child, env=environment, timeout=120, check=True)
    os.close(child)
    shown = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert "1200/5000" in shown
    assert "loss 0.693 acc 0.50 margin 0.0123 12k tok/s" in shown
    assert "GiB" in shown
