"""`tgdpo score --launcher ray` with the real Ray; `make test-ray` runs these."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from support import STANDARD_ROWS, Cli, Models, write_rows

pytest.importorskip("ray", reason="ray is not installed; make test-ray sets it up")

TESTS = Path(__file__).parents[1]
PORT = 6391


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the cluster and of the calls: where the engine without a model is, and where it finds its settings."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "token").write_text(secrets.token_hex(32))
    return os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "SLOW_ENGINE_SETTINGS": str(folder / "settings.json"),
    }


@pytest.fixture(scope="module")
def address(environment: dict[str, str]) -> Iterator[str]:
    """A running cluster of two CPUs."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2",
               f"--port={PORT}", "--include-dashboard=false"]  # fmt: skip
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    for line in process.stdout:
        if "--block" in line:
            break
    assert process.poll() is None
    yield f"127.0.0.1:{PORT}"
    process.terminate()
    process.wait(30)


class Calls:
    """`tgdpo score` with the engine without a model, as processes of their own."""

    def __init__(self, folder: Path, models: Models, environment: dict[str, str]) -> None:
        self._environment = environment
        self._call = [sys.executable, "-m", "tgdpo", "score", "--dataset", str(folder / "rows.jsonl"), "--reference",
                      str(models.reference), "--guidance", str(models.guidance), "--pairs-per-shard", "3",
                      "--engine", "slow_engine.SlowEngine"]  # fmt: skip
        self._log = folder / "engine.log"
        self.settings()

    def settings(self, **settings: Any) -> None:
        """What the engine does from now on."""
        self._log.unlink(missing_ok=True)
        content = json.dumps({"log": str(self._log)} | settings)
        Path(self._environment["SLOW_ENGINE_SETTINGS"]).write_text(content)

    def start(self, cache: Path, *options: object) -> "subprocess.Popen[str]":
        """A call."""
        command = [*self._call, "--output", str(cache), *map(str, options)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._environment
        )

    def run(self, cache: Path, *options: object) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a call."""
        return finish(self.start(cache, *options))

    def events(self) -> list[tuple[int, str, str]]:
        """Process, event and model of everything that the engines noted."""
        lines = self._log.read_text().splitlines() if self._log.is_file() else []
        return [(int(process), event, model) for process, event, model, _ in map(str.split, lines)]


@pytest.fixture
def calls(models: Models, environment: dict[str, str], tmp_path: Path) -> Calls:
    """72 pairs in 24 shards; the sixteenth pair's chosen response is the longest."""
    rows = [{**row, "prompt": f"{n}. {row['prompt']}"} for n, row in enumerate((STANDARD_ROWS * 4)[:72])]
    rows[15]["chosen"] = " one two three four five six seven eight nine ten" * 3
    write_rows(tmp_path / "rows.jsonl", rows)
    return Calls(tmp_path, models, environment)


@pytest.fixture
def alone(calls: Calls, tmp_path: Path) -> dict[str, Any]:
    """What a run without Ray publishes."""
    assert calls.run(tmp_path / "alone")[0] == 0
    calls.settings()
    return published(tmp_path / "alone")


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def published(cache: Path) -> dict[str, Any]:
    """Every byte of a finished cache but the time in its manifest."""
    files: dict[str, Any] = {path.name: path.read_bytes() for path in cache.iterdir() if path.name != "_manifest.json"}
    manifest = json.loads((cache / "_manifest.json").read_text())
    manifest.pop("created")
    return files | {"_manifest.json": manifest}


def wait_for(condition: Any, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_killed_in_the_middle_of_a_shard(
    ok: Cli, calls: Calls, address: str, alone: dict[str, Any], tmp_path: Path
) -> None:
    """24 shards over two workers: every shard is there once, with the bytes of a run without Ray."""
    calls.settings(seconds=0.3)
    process = calls.start(tmp_path / "cache", "--launcher", "ray", "--workers", 2, "--address", address)
    wait_for(lambda: len(calls.events()) > 12 and calls.events()[-1][1] == "score", process)
    os.kill(calls.events()[-1][0], signal.SIGKILL)
    code, stdout, stderr = finish(process)
    assert code == 0, stderr
    assert "72 pairs scored, 0 set aside" in stdout
    assert "death 1 of 3" in stderr
    assert published(tmp_path / "cache") == alone
    ok("verify", tmp_path / "cache")
    events = [event[1:] for event in calls.events()]
    scored = Counter(model for event, model in events if event == "scored")
    assert 48 <= scored.total() <= 49, "only what the killed worker had in hand is scored again"
    assert scored.keys() == {"reference", "guidance"}
    last_reference = max(i for i, event in enumerate(events) if event == ("scored", "reference"))
    assert events.index(("score", "guidance")) < last_reference, "the passes did not overlap"


@pytest.fixture
def longest(alone: dict[str, Any], tmp_path: Path) -> int:
    """The length of the longest chosen response, which is in shard 5."""
    import pyarrow.parquet as pq

    return max(map(len, pq.read_table(tmp_path / "alone" / "part-00005-of-00024.parquet")["chosen_ids"].to_pylist()))


def test_a_pair_that_kills_workers_is_found_and_set_aside(
    ok: Cli, calls: Calls, address: str, alone: dict[str, Any], longest: int, tmp_path: Path
) -> None:
    """Two die, and the third has its engine in a process of its own."""
    calls.settings(poison=longest)
    cache = tmp_path / "cache"
    ray = ("--launcher", "ray", "--workers", 2, "--address", address)
    code, stdout, stderr = calls.run(cache, *ray, "--max-set-aside", 0.02)
    assert code == 0, stderr
    assert "71 pairs scored, 1 set aside" in stdout
    assert "death 2 of 3" in stderr
    assert "death 3 of 3" not in stderr
    (row,) = map(json.loads, (cache / "_set_aside.jsonl").read_text().splitlines())
    assert row["source_row"] == 15
    ok("verify", cache)
    others = {name: content for name, content in alone.items() if name.startswith("part-") and "part-00005" not in name}
    assert {name: published(cache)[name] for name in others} == others


def test_a_shard_that_kills_every_worker_is_named_and_what_is_scored_is_kept(
    calls: Calls, address: str, alone: dict[str, Any], longest: int, tmp_path: Path
) -> None:
    calls.settings(deadly=longest)
    ray = ("--launcher", "ray", "--workers", 2, "--address", address)
    code, _, stderr = calls.run(tmp_path / "cache", *ray)
    assert code == 1
    assert "shard 5 (source rows 15 to 17) let 3 workers die" in stderr.splitlines()[-1]
    scored = {model for _, event, model in calls.events() if event == "scored"}
    assert "reference" in scored
    calls.settings()
    assert calls.run(tmp_path / "cache", *ray)[0] == 0
    assert 0 < sum(event[1:] == ("scored", "reference") for event in calls.events()) < 24
    assert published(tmp_path / "cache") == alone


def test_errors_of_workers_arrive_as_they_are(calls: Calls, models: Models, address: str, tmp_path: Path) -> None:
    """The last --engine and --reference win; the weights are found missing where they are loaded."""
    model = shutil.copytree(models.reference, tmp_path / "model")
    safetensors.torch.save_file({}, model / "model.safetensors")
    code, _, stderr = calls.run(
        *(tmp_path / "cache", "--engine", "transformers", "--reference", model),
        *("--launcher", "ray", "--workers", 1, "--address", address),
    )
    assert code == 1
    assert "lacks weights for" in stderr.splitlines()[-1]


def test_a_cluster_of_its_own_with_the_real_engine(ok: Cli, calls: Calls, tmp_path: Path) -> None:
    """Started for the run, with a worker for the machine."""
    real = ("--engine", "transformers", "--pairs-per-shard", 40)
    code, _, stderr = calls.run(tmp_path / "cache", *real, "--launcher", "ray", "--address", "local", "--device", "cpu")
    assert code == 0, stderr
    assert "ray: 1 workers with 0 GPUs" in stderr
    assert calls.run(tmp_path / "alone", *real, "--device", "cpu")[0] == 0
    assert published(tmp_path / "cache") == published(tmp_path / "alone")


def test_nobody_at_the_address(calls: Calls, tmp_path: Path) -> None:
    code, _, stderr = calls.run(tmp_path / "cache", "--launcher", "ray", "--address", "127.0.0.1:9")
    assert code == 2
    assert "no cluster answers at 127.0.0.1:9" in stderr.splitlines()[-1]
    assert not (tmp_path / "cache").exists()
