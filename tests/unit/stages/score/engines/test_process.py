"""An engine in a process of its own: progress, errors, deaths, and that nothing outlives it."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from odd_engine import InItsOwnProcess
from support import Models

from tgdpo.data.tokenization import PairIds
from tgdpo.errors import ModelError, UsageError
from tgdpo.stages.models import resolve
from tgdpo.stages.score.engines import Engine, EngineSpec
from tgdpo.stages.score.engines.dummy import DummyEngine

PAIRS = [PairIds(*(np.arange(5, 5 + n + i, dtype=np.int32) for n in (4, 6, 5))) for i in range(7)]


@pytest.fixture
def spec(models: Models) -> Any:
    """A spec for `OddEngine`."""
    source = resolve(str(models.reference), "--reference")

    def make(**arguments: Any) -> EngineSpec:
        return EngineSpec(
            source=source, dtype=torch.float32, device=torch.device("cpu"), batch_tokens=1, arguments=arguments
        )

    return make


def test_scores_and_progress_are_the_inner_engines(spec: Any, capfd: pytest.CaptureFixture[str]) -> None:
    expected = DummyEngine(spec()).score(PAIRS, lambda *_: None)
    engine: Engine = InItsOwnProcess(spec())
    counted: list[tuple[int, int]] = []
    found = engine.score(PAIRS, lambda *batch: counted.append(batch))
    assert tuple(map(sum, zip(*counted, strict=True))) == (len(PAIRS), sum(pair.tokens for pair in PAIRS))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.chosen, theirs.chosen)
        np.testing.assert_array_equal(ours.rejected, theirs.rejected)
    engine.close()
    engine.close()
    captured = capfd.readouterr()
    assert "a line for people" in captured.err
    assert "noise" not in captured.out + captured.err


def test_expected_errors_come_back_as_they_are(spec: Any) -> None:
    with pytest.raises(UsageError) as refused:
        InItsOwnProcess(spec(then="refuse"))
    assert str(refused.value) == "the option cannot work: leave it out"
    engine = InItsOwnProcess(spec(then="model-error"))
    with pytest.raises(ModelError, match=r"the model cannot: take another; its log is .*\.log$") as failed:
        engine.score(PAIRS, lambda *_: None)
    log = Path(str(failed.value).rpartition(" ")[2])
    assert "noise on stdout" in log.read_text()
    log.unlink()


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("raise", r"failed \(ZeroDivisionError: division of something\)"),
        ("killed", r"died \(signal SIGKILL, most likely by the system, for want of memory\)"),
        ("exit", r"died \(exit code 3\)"),
    ],
)
def test_what_nobody_expected_is_one_line_with_the_log(spec: Any, then: str, message: str) -> None:
    engine = InItsOwnProcess(spec(then=then))
    with pytest.raises(ModelError, match=message) as failed:
        engine.score(PAIRS[:1], lambda *_: None)
    assert "\n" not in str(failed.value)
    log = Path(str(failed.value).rpartition(" ")[2])
    assert "noise on stdout" in log.read_text()
    log.unlink()
    engine.close()


def test_a_pair_that_kills_the_process_costs_itself_alone(spec: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pairs = PAIRS[2:5]
    expected = DummyEngine(spec()).score(pairs, lambda *_: None)
    engine = InItsOwnProcess(spec(then="killed-over-one"))
    found = engine.score(pairs, lambda *_: None)
    assert [scores.finite for scores in found] == [True, False, True]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.chosen.shape, ours.rejected.shape) == (theirs.chosen.shape, theirs.rejected.shape)
        if ours.finite:
            np.testing.assert_array_equal(ours.chosen, theirs.chosen)
    told = capfd.readouterr().err
    assert "scoring the 3 pairs in halves" in told
    assert "ended the process twice by itself and is set aside" in told
    engine.close()


def ended(pids: Path) -> bool:
    """Whether the child and what it started are gone."""
    numbers = [int(pid) for pid in pids.read_text().split()]
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        alive = [pid for pid in numbers if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not alive:
            return True
        time.sleep(0.05)
    return False


def test_the_child_and_its_children_end_on_close(spec: Any, tmp_path: Path) -> None:
    engine = InItsOwnProcess(spec(pids=str(tmp_path / "pids")))
    assert not (tmp_path / "log").exists()
    engine.close()
    assert ended(tmp_path / "pids")


def test_the_child_ends_when_the_call_is_interrupted(spec: Any, tmp_path: Path) -> None:
    engine = InItsOwnProcess(spec(pids=str(tmp_path / "pids"), then="hang"))

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.score(PAIRS, interrupt)
    assert ended(tmp_path / "pids")


def test_the_child_ends_when_the_parent_is_killed(models: Models, tmp_path: Path) -> None:
    script = f"""
import numpy, torch
from odd_engine import InItsOwnProcess
from tgdpo.data.tokenization import PairIds
from tgdpo.stages.models import resolve
from tgdpo.stages.score.engines import EngineSpec
spec = EngineSpec(source=resolve({str(models.reference)!r}, ""), dtype=torch.float32, device=torch.device("cpu"),
                  batch_tokens=1, arguments={{"pids": {str(tmp_path / "pids")!r}, "then": "hang"}})
engine = InItsOwnProcess(spec)
print("loaded", flush=True)
engine.score([PairIds(*[numpy.arange(5, dtype=numpy.int32)] * 3)], lambda *_: None)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "loaded\n"
    parent.kill()
    parent.communicate()
    assert ended(tmp_path / "pids")
