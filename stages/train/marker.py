"""The marker that makes a checkpoint whole, trainer_state.json, written last: the loop's own numbers, and the size and
SHA-256 of every other file.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ...data.files import sha256_file, sync
from ...errors import TrainingError

MARKER = "trainer_state.json"
NO_MARKER = f"it has no {MARKER}"
_VERSION = 3
_READERS = min(8, os.cpu_count() or 1)
"""Files read at a time; hashing takes most of a core for each."""


class Digest(NamedTuple):
    """What a file's content is known by."""

    size: int
    """Bytes."""
    sha256: str


class State(NamedTuple):
    """The content of a marker."""

    values: dict[str, Any]
    """JSON values of the training loop."""
    files: dict[str, Digest]
    """Every other file by its name relative to the checkpoint, with slashes."""


def digests(folder: Path, part: int = 0, parts: int = 1) -> dict[str, Digest]:
    """Waits until files of `folder` are on disk, and hashes them.

    Args:
        folder: what is in it.
        part: which share of the files, of so many `parts`.
        parts: in how many the work is shared out.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())[part::parts]
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(_synced, paths)
        return {path.relative_to(folder).as_posix(): digest for path, digest in zip(paths, found, strict=True)}


def _synced(path: Path) -> Digest:
    sync(path)
    return _digest(path)


def _digest(path: Path) -> Digest:
    return Digest(path.stat().st_size, sha256_file(path))


def mark(folder: Path, state: State) -> None:
    """Writes the marker; then the checkpoint is whole."""
    marker = folder / MARKER
    content = {"state_version": _VERSION} | state.values | {"files": state.files}
    # A learning rate may be a tensor.
    marker.write_text(json.dumps(content, indent=1, default=float), encoding="utf-8")
    for path in (marker, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)


def read_state(checkpoint: Path) -> State:
    """The marker's content.

    Raises:
        FileNotFoundError: there is no marker.
        ValueError: it is damaged.
        TrainingError: it is of another version of tgdpo.
    """
    return parse_state((checkpoint / MARKER).read_bytes(), checkpoint)


def parse_state(content: bytes, checkpoint: object) -> State:
    """As `read_state`, of a marker's bytes."""
    values = json.loads(content)
    if not isinstance(values, dict):
        raise ValueError("no object")
    if values.get("state_version") != _VERSION:
        raise TrainingError(
            f"{checkpoint} has state version {values.get('state_version')}, this tgdpo reads {_VERSION}",
            fix="use the tgdpo that wrote it, or start in another --output",
        )
    try:
        files = {_inside(name): Digest(*digest) for name, digest in values.pop("files").items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no list of files") from error
    return State(values, files)


def settings_in(checkpoint: Path) -> dict[str, Any] | None:
    """The settings of the run that a checkpoint is of; None if there is none, or it is damaged."""
    with suppress(OSError, ValueError, RecursionError, TrainingError):
        settings = read_state(checkpoint).values.get("settings")
        return settings if isinstance(settings, dict) else None
    return None


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("a file elsewhere")
    return name


def problem_of(checkpoint: Path) -> str | None:
    """Why a checkpoint is not whole, or None; all of it is read. Raises TrainingError for one of another version."""
    try:
        files = read_state(checkpoint).files
    except FileNotFoundError:
        return NO_MARKER
    except (ValueError, RecursionError):
        return f"its {MARKER} is damaged"
    for name, noted in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != noted.size:
            return f"{name} has {path.stat().st_size} bytes, not {noted.size}"
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(_digest, [checkpoint / name for name in files])
        changed = [name for (name, noted), digest in zip(files.items(), found, strict=True) if digest != noted]
    return f"{changed[0]} has changed since it was written" if changed else None
