"""What is said of software and hardware."""

import subprocess
from pathlib import Path

import pytest
import torch

from tgdpo import __version__
from tgdpo.stages import provenance


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@b.example", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_revision_of_a_checkout_and_whether_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    assert provenance.git_revision() is None
    git(tmp_path, "init")
    assert provenance.git_revision() is None  # no commit yet
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    revision = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.git_revision() == revision
    (tmp_path / "untracked").write_text("")
    assert provenance.git_revision() == revision
    (tmp_path / "file").write_text("two")
    assert provenance.git_revision() == revision + "+changes"


def test_without_git_and_without_a_driver_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.git_revision() is None
    assert provenance.driver() is None


def test_the_driver_is_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 580.65.06\necho 580.65.06\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert provenance.driver() == "580.65.06"


def test_a_run_records_what_it_runs_on() -> None:
    found = provenance.made_with(torch.device("cpu"), 2)
    assert found["tgdpo"] == __version__
    assert found["torch"] == torch.__version__
    assert found["processes"] == 2
    assert found["device"].startswith("cpu ")
    assert found["driver"] is None


def test_missing_packages_have_no_version() -> None:
    assert provenance.versions(["torch", "no-such-package"]) == {"torch": torch.__version__, "no-such-package": None}
