"""Files that are whole or not there: written under a temporary name, synced, then published.

Order: write the temporary file, fsync it, link it to the final name, unlink the temporary name, fsync the folder.
"""

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(final: Path, write: Callable[[Path], object], *, mode: int = 0o644) -> bool:
    """Makes `final` with `write(temporary path)`; the first writer wins.

    Returns:
        Whether this call's file was published; False if another one stood there already (it is left alone).
    """
    temporary = _write_temporary(final, write, mode)
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
        sync(final.parent)
    return True


def replace(final: Path, write: Callable[[Path], object], *, mode: int = 0o644) -> None:
    """Makes or replaces `final` with `write(temporary path)`; a reader sees the old file or the new one, whole."""
    temporary = _write_temporary(final, write, mode)
    try:
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
        sync(final.parent)


def remove_temporaries(folder: Path) -> None:
    """Removes what killed writers left in `folder`."""
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _write_temporary(final: Path, write: Callable[[Path], object], mode: int) -> Path:
    # Readers of Parquet folders skip names that begin with a dot.
    temporary = final.with_name(f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        write(temporary)
        os.chmod(temporary, mode)
        sync(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def sync(path: Path) -> None:
    """Waits until a file's or a folder's entries are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
