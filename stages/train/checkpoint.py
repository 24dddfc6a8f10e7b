"""Checkpoints, whole or not there: written under a temporary name, the marker last, and renamed when all is on disk.

The marker is trainer_state.json: the loop's own numbers, and the names and sizes of the other files.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ...data.files import sync
from ...errors import TrainingError
from .parallel import Parallel

STATE_VERSION = 2
MARKER = "trainer_state.json"
_NAME = "step-"


class Found(NamedTuple):
    """The newest whole checkpoint, and those newer that are not whole: name and reason."""

    newest: Path | None
    skipped: list[str]


def find_checkpoint(folder: Path) -> Found:
    """The newest checkpoint in `folder` that is whole."""
    skipped: list[str] = []
    for path in reversed(_checkpoints(folder)):
        problem = problem_of(path)
        if problem is None:
            return Found(path, skipped)
        skipped.append(f"{path.name} ({problem})")
    return Found(None, skipped)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob(f"{_NAME}*") if step_of(path) >= 0), key=step_of)


def problem_of(path: Path) -> str | None:
    """Why a checkpoint is not whole, or None. Raises TrainingError for one of another version."""
    try:
        files: dict[str, int] = read_state(path)["files"]
    except FileNotFoundError:
        return f"it has no {MARKER}"
    except (ValueError, KeyError, TypeError):
        return f"its {MARKER} is damaged"
    for name, size in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
    return None


def step_of(path: Path) -> int:
    """N of step-N; -1 of any other name."""
    number = path.name.removeprefix(_NAME)
    return int(number) if number.isdecimal() else -1


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The marker's content. Raises TrainingError for another version, ValueError where it is no JSON object."""
    state = json.loads((checkpoint / MARKER).read_text())
    if not isinstance(state, dict):
        raise ValueError("no object")
    if state.get("state_version") != STATE_VERSION:
        raise TrainingError(
            f"{checkpoint} has state version {state.get('state_version')}, this tgdpo reads {STATE_VERSION}",
            fix="use the tgdpo that wrote it, or start in another --output",
        )
    return state


def save_checkpoint(
    folder: Path, step: int, *, write: Callable[[Path], dict[str, Any]], parallel: Parallel, keep: int
) -> None:
    """Makes `folder/step-N` and removes all but the newest `keep`. All processes must call it.

    Args:
        write: writes weights and optimizer into the folder it gets, and returns the JSON values of the loop.
    """
    temporary, final = folder / f".{_NAME}{step}.tmp", folder / f"{_NAME}{step}"
    if parallel.is_main:
        remove_leftovers(folder)
        temporary.mkdir(parents=True)
    parallel.wait()
    state = write(temporary)
    parallel.wait()
    if parallel.is_main:
        _mark(temporary, state)
        _remove(final)
        os.rename(temporary, final)
        sync(folder)
        _remove_others(folder, step, keep)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed runs left: checkpoints half written or half removed."""
    for leftover in folder.glob(f".{_NAME}*.tmp"):
        shutil.rmtree(leftover)


def _remove_others(folder: Path, step: int, keep: int) -> None:
    # One of a later step was skipped when this run went on from an earlier one: it is not whole.
    later = [path for path in _checkpoints(folder) if step_of(path) > step]
    older = [path for path in _checkpoints(folder) if step_of(path) <= step][:-keep]
    for path in later + older:
        _remove(path)


def _mark(folder: Path, state: dict[str, Any]) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        sync(path)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in paths}
    marker = folder / MARKER
    content = {"state_version": STATE_VERSION} | state | {"files": files}
    # A learning rate may be a tensor.
    marker.write_text(json.dumps(content, indent=1, default=float))
    for path in (marker, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)


def _remove(path: Path) -> None:
    """Under another name first, so that a kill leaves no half checkpoint that looks like a whole one."""
    if path.exists():
        doomed = path.with_name(f".{path.name}.old.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed)
