"""The command line itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support import Cli, Models

import tgdpo


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["train", "-h"], ["--version"]])
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    """What makes it answer at once."""
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]; from tgdpo import cli\n"
        "try: cli.main()\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'pandas', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_version(run_process: Cli) -> None:
    result = run_process("--version")
    assert (result.code, result.stdout) == (0, f"tgdpo {tgdpo.__version__}\n")


def test_every_option_of_the_configurations_is_in_the_help(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command, config in (("score", tgdpo.ScoreConfig), ("train", tgdpo.TrainConfig)):
        shown = run_cli(command, "--help").stdout
        for name in config.model_fields:
            assert f"--{name.replace('_', '-')}" in shown


def test_an_error_is_one_line_without_a_traceback(run_process: Cli, tmp_path: Path) -> None:
    result = run_process("verify", tmp_path / "nothing")
    assert result.code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("tgdpo: ")


def test_run_does_both_stages_and_skips_what_is_done(ok: Cli, models: Models, pairs_file: Path, tmp_path: Path) -> None:
    config = {
        "score": {
            "dataset": str(pairs_file),
            "reference": str(models.reference),
            "guidance": str(models.guidance),
            "output": str(tmp_path / "cache"),
        },
        "train": {"output": str(tmp_path / "run"), "batch-size": 4, "learning_rate": 1e-3},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    first = ok("run", path)
    assert first.stdout.startswith(f"{tmp_path / 'run'}: step 5")
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"] == str(models.reference)
    assert saved["cache"] == str(tmp_path / "cache")
    again = ok("run", path)
    assert again.stdout == first.stdout
    assert again.stderr.count("finished already") == 2
    # Other settings of stage two need no new scoring.
    config["train"] |= {"output": str(tmp_path / "other"), "loss": "dpo"}
    path.write_text(yaml.safe_dump(config))
    assert ok("run", path).stderr.count("finished already") == 1


def test_the_resolved_configuration_is_a_configuration(
    ok: Cli, models: Models, pairs_file: Path, tmp_path: Path
) -> None:
    ok("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "cache")
    ok("train", "--cache", tmp_path / "cache", "--model", models.reference, "--output", tmp_path / "a",
       "--loss", "dpo", "--batch-size", 8)  # fmt: skip
    ok("train", "--config", tmp_path / "a" / "config.yaml", "--output", tmp_path / "b")
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_env_says_what_a_bug_report_needs(ok: Cli) -> None:
    lines = dict(line.split(": ", 1) for line in ok("env").stdout.splitlines())
    assert lines["tgdpo"] == tgdpo.__version__
    assert lines["torch"] == torch.__version__
    assert {"Python", "platform", "transformers", "accelerate", "peft", "GPUs", "GPU driver"} <= lines.keys()


@pytest.mark.parametrize("words", [["verify", "nothing", "--debug"], ["--debug", "verify", "nothing"]])
def test_debug_shows_the_traceback_before_the_error_line(
    words: list[str], run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TGDPO_DEBUG", "0")
    plain = run_cli("verify", "nothing")
    assert "Traceback" not in plain.stderr
    debugged = run_cli(*words)
    assert debugged.code == plain.code
    assert debugged.stderr.startswith("Traceback")
    assert debugged.stderr.splitlines()[-1] == plain.stderr.strip()
    assert debugged.error == plain.error
    monkeypatch.setenv("TGDPO_DEBUG", "1")
    assert "Traceback" in run_cli("verify", "nothing").stderr
