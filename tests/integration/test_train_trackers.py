"""`--report-to`: the trackers' own files hold the metrics, under the project and name that were asked for."""

import importlib.util
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support import Cli, Models, records_of

FAST = ("--learning-rate", 1e-2, "--batch-size", 4, "--logging-steps", 1)


def installed(package: str) -> Any:
    return pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"{package} is not installed")


@pytest.fixture
def call(scored: Path, models: Models, tmp_path: Path) -> tuple[object, ...]:
    """A training run."""
    return ("train", "--cache", scored, "--model", models.reference, "--output", tmp_path / "run", *FAST)


def test_tensorboard_lies_in_the_run_folder_under_the_project(call: Any, ok: Cli, tmp_path: Path) -> None:
    ok(*call, "--report-to", "tensorboard", "--project", "mine")
    assert list((tmp_path / "run" / "logs" / "mine").rglob("events.*"))


def test_none_is_what_nothing_is(call: Any, ok: Cli, tmp_path: Path) -> None:
    ok(*call, "--report-to", "none")
    assert not (tmp_path / "run" / "logs").exists()
    assert "report_to: []" in (tmp_path / "run" / "config.yaml").read_text()


def test_none_with_another_is_refused(call: Any, run_cli: Cli) -> None:
    result = run_cli(*call, "--report-to", "none", "--report-to", "tensorboard")
    assert (result.code, "none goes with no other" in result.error) == (2, True)


def test_names_without_a_tracker_do_nothing_and_say_so(call: Any, ok: Cli) -> None:
    result = ok(*call, "--max-steps", 1, "--project", "mine", "--run-name", "first")
    assert "--project does nothing with no --report-to" in result.stderr


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_missing_package(
    tracker: str, call: Any, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    result = run_cli(*call, "--report-to", tracker)
    assert (result.code, (tmp_path / "run").exists()) == (2, False)
    assert f"pip install 'tgdpo[{tracker}]'" in result.error


@installed("trackio")
def test_trackio(call: Any, run_process: Any, tmp_path: Path) -> None:
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = run_process(*call, "--report-to", "trackio", "--project", "mine", "--run-name", "first", env=environment)
    assert done.code == 0, done.stderr
    database = next((tmp_path / "trackio").glob("mine*.db"))
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {row[0] for row in rows} == {"first"}
    assert [row[1] for row in rows if b"loss" in bytes(row[2])] == [r["step"] for r in records_of(tmp_path / "run")]


@installed("wandb")
class TestWandb:
    """Offline, as on a machine without a network."""

    def test_the_run_has_the_names(self, call: Any, run_process: Any, tmp_path: Path) -> None:
        environment = os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
        done = run_process(*call, "--report-to", "wandb", "--project", "mine", "--run-name", "first", env=environment)
        assert done.code == 0, done.stderr
        run_id = (tmp_path / "run" / "logs" / "tracker_id").read_text()
        (file,) = (tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")
        content = file.read_bytes()
        for part in (b"mine", b"first", b"rewards/margins"):
            assert part in content

    def test_without_a_login_it_says_so_in_one_line(self, call: Any, run_process: Any, tmp_path: Path) -> None:
        environment = os.environ | {"WANDB_MODE": "online", "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path)}
        environment.pop("WANDB_API_KEY", None)
        done = run_process(*call, "--report-to", "wandb", env=environment)
        assert done.code == 2
        assert "--report-to wandb does not start" in done.error
