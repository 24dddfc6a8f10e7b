"""`tgdpo score` with processes that are killed, ended, and at work side by side on one output folder.

Whatever happens, the same command ends in the bytes of a run that was never disturbed.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from processes import Launch
from scoring import Scoring, Tried
from support import published

KILLS = int(os.environ.get("TGDPO_SCORE_KILLS", "8"))


def strike(started: Launch, number: int, chance: random.Random, seconds: float) -> bool:
    """Sends the signal at a random moment; returns whether the run was still at work."""
    (process,) = started.processes
    process.join(chance.uniform(0, seconds))
    if not process.is_alive():
        return False
    started.send(number)
    process.join(60)
    return process.exitcode != 0


def test_killed_at_random_moments_and_started_again(
    scoring: Scoring, tmp_path: Path, chance: random.Random, tried: Tried
) -> None:
    kills, caches, output = 0, 0, tmp_path / "cache"
    while kills < KILLS:
        if strike(scoring.start(output), signal.SIGKILL, chance, scoring.seconds):
            kills += 1
            continue
        scoring.finish(output)
        caches += 1
        shutil.rmtree(output)
    scoring.finish(output)
    tried("kill -9 of tgdpo score", kills)
    tried("caches finished after kills", caches + 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended_at_random_moments(
    number: int, code: int, scoring: Scoring, tmp_path: Path, chance: random.Random, tried: Tried
) -> None:
    """One line and the exit code of the signal, or the run was just finished."""
    signals, output = 0, tmp_path / "cache"
    while signals < max(2, KILLS // 4):
        scoring.log.write_text("")
        started = scoring.start(output)
        if not strike(started, number, chance, scoring.seconds):
            shutil.rmtree(output)
            continue
        (process,) = started.processes
        # Before Python has set its handlers, a signal ends the process as the system does.
        assert process.exitcode in (code, -number)
        assert "Traceback" not in started.output
        assert process.exitcode < 0 or "the same command goes on from there" in started.output
        signals += 1
    scoring.finish(output)
    tried(f"{signal.Signals(number).name} to tgdpo score", signals)


@pytest.mark.parametrize("writers", [2, 3])
def test_several_at_once_on_one_output(writers: int, scoring: Scoring, tmp_path: Path, tried: Tried) -> None:
    """Each of them does the whole run; every file is published once, whoever was first."""
    rounds = max(1, KILLS // 10)
    for number in range(rounds):
        output = tmp_path / str(number)
        started = [scoring.start(output) for _ in range(writers)]
        assert [each.wait() for each in started] == [[0]] * writers, started[0].output
        scoring.finish(output)
    tried(f"runs with {writers} writers on one output", rounds)


def test_several_at_once_of_which_some_are_killed(
    scoring: Scoring, tmp_path: Path, chance: random.Random, tried: Tried
) -> None:
    output, kills = tmp_path / "cache", 0
    for _ in range(max(2, KILLS // 4)):
        started = [scoring.start(output) for _ in range(3)]
        for each in started[:2]:
            kills += strike(each, signal.SIGKILL, chance, scoring.seconds)
        assert started[2].wait() == [0], started[2].output
        scoring.finish(output)
        shutil.rmtree(output)
    tried("kill -9 of one of three writers", kills)


def test_shares_of_three_workers(scoring: Scoring, tmp_path: Path) -> None:
    output = tmp_path / "cache"
    started = [scoring.start(output, "--worker", f"{n}/3") for n in range(3)]
    assert [each.wait() for each in started] == [[0]] * 3, started[0].output
    scoring.require_whole(output)


def test_a_restart_leaves_no_temporary_files(scoring: Scoring, tmp_path: Path, chance: random.Random) -> None:
    """Those of killed runs go when the next one starts, so that they do not fill the disk."""
    output = tmp_path / "cache"
    for _ in range(4):
        strike(scoring.start(output), signal.SIGKILL, chance, scoring.seconds)
    time.sleep(0.05)
    scoring.finish(output)
    assert not list(output.rglob("*.tmp"))
    assert set(published(output)) == set(published(scoring.whole))
