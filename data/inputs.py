"""Files that a run has hashed, and whether they are still what they were then."""

import os
from pathlib import Path
from typing import NamedTuple

from .files import sha256_file


class Stamp(NamedTuple):
    """By what a file is known without reading it."""

    size: int
    """Bytes."""
    modified: int
    """Time of the last change of its content, ns."""
    inode: int


def stamp_of(path: Path) -> Stamp | None:
    """The file's stamp, of what a link leads to; None where there is no file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


class Inputs:
    """The files of one input as they were when they were hashed.

    Looking is cheap: only a file whose stamp differs is hashed again, such as a copy on another machine.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Stamp | None, str]] = {}

    def sha256(self, path: Path) -> str:
        """Hexadecimal SHA-256 of a file's bytes, which are those of this input from now on."""
        stamp = stamp_of(path)  # before reading, so that a change meanwhile is seen
        self._known[path] = stamp, sha256_file(path)
        return self._known[path][1]

    def changed(self) -> Path | None:
        """A file that has other bytes now, or is gone; None where there is none."""
        return next((path for path in list(self._known) if self._is_changed(path)), None)

    def _is_changed(self, path: Path) -> bool:
        noted, sha256 = self._known[path]
        stamp = stamp_of(path)
        if stamp == noted:
            return False
        if stamp is None or sha256_file(path) != sha256:
            return True
        self._known[path] = stamp, sha256
        return False
