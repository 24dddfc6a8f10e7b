"""Two commands into one --output, the second started at a random moment of the first: equal ones and different ones,
with locks and on a file system that has none.

Three rounds of each; TGDPO_COMMANDS=40 (make faults) for more.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import NO_LOCKS, Launch, launch
from scoring import Scoring, Tried
from support import Models, published

from tgdpo.data.cache import RewardCache
from tgdpo.data.verify import verify

ROUNDS = int(os.environ.get("TGDPO_COMMANDS", "3"))
LOCKS = [pytest.param({}, id="locks"), pytest.param({NO_LOCKS: "1"}, id="no locks")]
Words = tuple[object, ...]


def both(
    first: Words, second: Words, output: Path, environment: dict[str, str], chance: random.Random, seconds: float
) -> tuple[Launch, Launch]:
    """Two commands that have ended; the second began at a random moment of the first."""
    launches = []
    for number, words in enumerate((first, second)):
        log = output.with_name(f"{output.name}.{number}.log")
        launches.append(launch(*words, "--output", output, log=log, environment=environment))
        if not number:
            time.sleep(chance.uniform(0, seconds))
    one, two = launches
    for each in (one, two):
        each.wait()
        assert "Traceback" not in each.output, each.output
    return one, two


def codes(*launches: Launch) -> list[int | None]:
    return [process.exitcode for each in launches for process in each.processes]


class TestScore:
    @pytest.fixture(scope="class")
    def other(self, scoring: Scoring, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Scoring:
        """The same rows with another reference, in slower scores so that moments meet."""
        words = tuple(models.guidance if word == models.reference else word for word in scoring.words)
        folder = tmp_path_factory.mktemp("other")
        other = Scoring(words, folder / "log", folder / "whole", scoring.seconds)
        assert other.start(other.whole).wait() == [0]
        return other

    @pytest.mark.parametrize("environment", LOCKS)
    def test_different_settings(
        self,
        environment: dict[str, str],
        scoring: Scoring,
        other: Scoring,
        tmp_path: Path,
        chance: random.Random,
        tried: Tried,
    ) -> None:
        """A finished cache is that of the run that its manifest names, byte for byte."""
        finished = 0
        for number in range(ROUNDS):
            output = tmp_path / str(number)
            one, two = both(scoring.words, other.words, output, environment, chance, scoring.seconds)
            assert set(codes(one, two)) <= {0, 1}
            assert environment or 0 in codes(one, two), one.output + two.output
            if (output / "_manifest.json").exists():
                assert verify(RewardCache(output)) == []
                assert published(output) in (published(scoring.whole), published(other.whole))
                finished += 1
            for each in (one, two):
                if codes(each) == [1]:
                    assert "other settings" in each.output, each.output
        tried("pairs of different tgdpo score at random moments", ROUNDS)
        tried("of these ended in a finished cache", finished)

    def test_equal_settings_without_locks(
        self, scoring: Scoring, tmp_path: Path, chance: random.Random, tried: Tried
    ) -> None:
        for number in range(ROUNDS):
            output = tmp_path / str(number)
            ended = both(scoring.words, scoring.words, output, {NO_LOCKS: "1"}, chance, scoring.seconds)
            assert codes(*ended) == [0, 0], ended[0].output + ended[1].output
            scoring.require_whole(output)
        tried("pairs of equal tgdpo score at random moments", ROUNDS)


class TestTrain:
    @pytest.fixture(scope="class")
    def words(self, scored: Path, models: Models) -> Words:
        return ("train", "--cache", scored, "--model", models.reference, "--learning-rate", 1e-3, "--epochs", 6,
                "--batch-size", 4, "--save-steps", 2, "--logging-steps", 1, "--log-pairs")  # fmt: skip

    @pytest.fixture(scope="class")
    def alone(self, words: Words, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, float]]:
        """What the command makes undisturbed, and how long it takes."""
        run = tmp_path_factory.mktemp("alone") / "run"
        start = time.monotonic()
        done = launch(*words, "--output", run, log=run.with_name("log"))
        assert done.wait() == [0], done.output
        yield run, time.monotonic() - start
        shutil.rmtree(run)

    @pytest.mark.parametrize("environment", LOCKS)
    @pytest.mark.parametrize("rate", [1e-3, 2e-3])
    def test_two_of_them(
        self,
        rate: float,
        environment: dict[str, str],
        words: Words,
        alone: tuple[Path, float],
        tmp_path: Path,
        chance: random.Random,
        tried: Tried,
    ) -> None:
        whole, seconds = alone
        second = tuple(rate if word == 1e-3 else word for word in words)
        for number in range(ROUNDS):
            output = tmp_path / str(number)
            one, two = both(words, second, output, environment, chance, seconds)
            assert set(codes(one, two)) <= {0, 1}
            for each in (one, two):
                assert codes(each) == [0] or "another tgdpo train" in each.output or "other settings" in each.output
            if not environment:
                assert 0 in codes(one, two), one.output + two.output
            if json.loads((output / "run.json").read_text())["finished"]:
                require_one_run(output, whole)
            else:  # both have noticed one another: the first command ends it
                done = launch(*words, "--output", output, log=tmp_path / f"{number}.log")
                codes_then = done.wait()
                assert codes_then == [0] or "other settings" in done.output, done.output
        tried(f"pairs of {'equal' if rate == 1e-3 else 'different'} tgdpo train at random moments", ROUNDS)


def require_one_run(output: Path, whole: Path) -> None:
    """A finished run has each step once, and the weights of its configuration."""
    logged: list[Any] = [json.loads(line)["step"] for line in (output / "pairs.jsonl").read_text().splitlines()]
    assert logged == sorted(set(logged))
    if (output / "config.yaml").read_text().splitlines()[3:] == (whole / "config.yaml").read_text().splitlines()[3:]:
        assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    else:
        assert (output / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()
