"""What makes a checkpoint whole, and what is seen of damage to it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tgdpo.errors import TrainingError
from tgdpo.stages.train.marker import MARKER, State, digests, mark, parse_state, problem_of, read_state


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """With a file in a folder and one beside it."""
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "part").write_bytes(b"weights")
    (tmp_path / "optimizer").write_bytes(b"")
    mark(tmp_path, State({"step": 3}, digests(tmp_path)))
    return tmp_path


def test_is_read_as_it_was_written(checkpoint: Path) -> None:
    values, files = read_state(checkpoint)
    assert values["step"] == 3
    assert {name: digest.size for name, digest in files.items()} == {"sharded/part": 7, "optimizer": 0}
    assert problem_of(checkpoint) is None


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: (path / MARKER).unlink(), "it has no trainer_state.json"),
        (lambda path: (path / MARKER).write_bytes(b"\xff"), "its trainer_state.json is damaged"),
        (lambda path: (path / "optimizer").unlink(), "optimizer is missing"),
        (lambda path: (path / "optimizer").write_bytes(b"1"), "optimizer has 1 bytes, not 0"),
        (lambda path: (path / "sharded" / "part").write_bytes(b"weightz"), "sharded/part has changed since"),
    ],
)
def test_damage_is_named(damage: Callable[[Path], object], problem: str, checkpoint: Path) -> None:
    damage(checkpoint)
    assert str(problem_of(checkpoint)).startswith(problem)


@pytest.mark.parametrize(
    "files",
    [None, 3, [], "a", {"a": 1}, {"a": [1]}, {"a": [1, "b", 2]}, {"/etc/passwd": [1, "b"]}, {"b/../../a": [1, "b"]}],
)
def test_a_list_of_files_that_is_none(files: object) -> None:
    with pytest.raises(ValueError, match=r"no list of files|a file elsewhere"):
        parse_state(json.dumps({"state_version": 3, "files": files}).encode(), "checkpoint")


def test_of_another_version() -> None:
    with pytest.raises(TrainingError, match="run/step-3 has state version 1, this tgdpo reads 3"):
        parse_state(b'{"state_version": 1}', "run/step-3")
