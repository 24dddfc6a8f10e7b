"""`tgdpo train` killed with SIGKILL at random moments, saves included, and started again by the same command.

Three kills a test; TGDPO_KILLS=20 (make faults) for more.
"""

import json
import os
import random
import signal
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from processes import Launch, launch
from support import STANDARD_ROWS, Models, write_rows

KILLS = int(os.environ.get("TGDPO_KILLS", "3"))
SEED = int(os.environ.get("TGDPO_KILL_SEED", "0"))
PAIRS, BATCH = 40, 7
STEPS_PER_EPOCH = -(-PAIRS // BATCH)
EPOCHS = 4 + 4 * KILLS


@pytest.fixture(scope="module")
def call(models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """The command on forty pairs in three shards, without its --output."""
    import tgdpo

    folder = tmp_path_factory.mktemp("kill")
    rows = [{**row, "prompt": f"{n}. {row['prompt']}"} for n, row in enumerate(STANDARD_ROWS * (PAIRS // 20))]
    pairs = write_rows(folder / "pairs.jsonl", rows)
    tgdpo.score(tgdpo.ScoreConfig(dataset=str(pairs), reference=str(models.reference), guidance=str(models.guidance),
                                  output=str(folder / "cache"), pairs_per_shard=15))  # fmt: skip
    return ("train", "--cache", folder / "cache", "--model", models.reference, "--learning-rate", 1e-3, "--epochs",
            EPOCHS, "--batch-size", BATCH, "--batch-tokens", 100, "--save-steps", 3, "--keep-checkpoints", 2,
            "--logging-steps", 2, "--log-pairs")  # fmt: skip


class Killer:
    """Ends launches at random moments."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._random = random.Random(SEED)
        self.moments: list[str] = []

    def strike(self, started: Launch, kind: str) -> bool:
        """Waits for a moment and kills; False where the run was finished before it came."""
        until = time.monotonic() + (self._random.uniform(0, 2.5) if kind == "any time" else 60)
        while time.monotonic() < until and not self._is_seen(kind):
            if not any(process.is_alive() for process in started.processes):
                return False
        if kind != "any time":
            time.sleep(self._random.uniform(0, 0.03))
        first = self._random.choice(started.processes)
        first.kill()
        first.join()
        is_struck = first.exitcode == -signal.SIGKILL
        started.kill()
        self.moments += [kind] * is_struck
        return is_struck

    def _is_seen(self, kind: str) -> bool:
        if kind == "save":
            return any(self._run.glob("checkpoints/.step-*"))
        return kind == "publish" and (self._run / ".model.tmp").exists()


def finish_with_kills(call: tuple[object, ...], run: Path, processes: list[int]) -> None:
    """The same command again and again, with `processes[i % len]` processes at the i-th start.

    One kill more is tried while the policy is being published, a moment that is not always met.
    """
    killer = Killer(run)
    for number, kind in enumerate(["save", "any time"] * KILLS):
        if len(killer.moments) == KILLS:
            break
        killer.strike(start(call, run, processes[number % len(processes)]), kind)
    assert len(killer.moments) == KILLS, f"finished after {killer.moments}"
    killer.strike(start(call, run, processes[0]), "publish")
    finish(call, run, processes=processes[-1])


def start(call: tuple[object, ...], run: Path, processes: int) -> Launch:
    return launch(*call, "--output", run, processes=processes, log=run.parent / f"{run.name}.log")


def finish(call: tuple[object, ...], run: Path, *, processes: int) -> None:
    started = start(call, run, processes)
    assert set(started.wait()) == {0}, started.output


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def require_every_pair_once_an_epoch(run: Path) -> None:
    steps = lines_of(run / "pairs.jsonl")
    assert [step["step"] for step in steps] == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    for start in range(0, len(steps), STEPS_PER_EPOCH):
        epoch = list(chain.from_iterable(step["pairs"] for step in steps[start : start + STEPS_PER_EPOCH]))
        assert len(epoch) == len(set(epoch)) == PAIRS


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (1, []),
        (2, []),
        pytest.param(
            2, ["--parallel", "fsdp"], marks=pytest.mark.skipif(KILLS <= 3, reason="make faults kills FSDP too")
        ),
    ],
    ids=["one process", "two with ddp", "two with fsdp"],
)
def test_the_weights_are_those_of_a_run_that_was_never_killed(
    processes: int, options: list[str], call: tuple[object, ...], tmp_path: Path
) -> None:
    """Bit for bit, and with them the optimizer, the log of pairs and the metrics."""
    finish((*call, *options), tmp_path / "whole", processes=processes)
    finish_with_kills((*call, *options), tmp_path / "killed", [processes])
    last = max((tmp_path / "whole" / "checkpoints").iterdir(), key=lambda path: int(path.name[5:])).name
    for name in ("model.safetensors", "pairs.jsonl", f"checkpoints/{last}/optimizer.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    require_every_pair_once_an_epoch(tmp_path / "killed")
    killed, whole = (lines_of(tmp_path / name / "metrics.jsonl") for name in ("killed", "whole"))
    assert [r | {"tokens_per_second": 0} for r in killed] == [r | {"tokens_per_second": 0} for r in whole]


def test_with_two_processes_and_one_in_turn(call: tuple[object, ...], tmp_path: Path) -> None:
    finish(call, tmp_path / "whole", processes=1)
    finish_with_kills(call, tmp_path / "killed", [2, 1])
    require_every_pair_once_an_epoch(tmp_path / "killed")
    assert (tmp_path / "killed" / "pairs.jsonl").read_bytes() == (tmp_path / "whole" / "pairs.jsonl").read_bytes()
    killed, whole = (lines_of(tmp_path / name / "metrics.jsonl")[-1] for name in ("killed", "whole"))
    assert killed["loss"] == pytest.approx(whole["loss"], abs=1e-4)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended_by_a_signal(number: int, code: int, call: tuple[object, ...], tmp_path: Path) -> None:
    """Ctrl-C or kill in the middle of training: one line and the usual exit code; the checkpoints stay."""
    run = tmp_path / "run"
    started = start((*call, "--epochs", 1000), run, 1)  # far more than it gets to
    (process,) = started.processes
    until = time.monotonic() + 60
    while time.monotonic() < until and not any(run.glob("checkpoints/step-*")):
        time.sleep(0.005)
    started.send(number)
    process.join(60)
    assert process.exitcode == code
    assert "what is finished stays, the same command goes on from there" in started.output
    assert "Traceback" not in started.output
    assert any(run.glob("checkpoints/step-*"))
