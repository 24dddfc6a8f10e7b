"""Files that are whole or not there: written under a temporary name, synced, then published.

Order: write the temporary file, fsync it, link it to the final name, unlink the temporary name, fsync the folder. Where
the file system refuses hard links, `renameat2` with RENAME_NOREPLACE takes the place of link and unlink; where it
refuses that as well, a plain rename does, and then only one process at a time may write there.

A writer holds a lock on its temporary file, which ends with the process, so that what a killed one left can be told
from what is being written. Locks may not reach other machines, so the name says which machine it is.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"
_OURS = f".{socket.gethostname()}-{{}}{TEMPORARY_SUFFIX}"

_NO_SUCH_CALL = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(final: Path, write: Callable[[Path], object]) -> bool:
    """Makes `final` with `write(temporary path)`; the first writer wins.

    Returns:
        Whether this call's file was published; False if another one stood there already (it is left alone).

    Raises:
        OSError: the disk is full, say; its `filename` is `final`.
    """
    with _written(final, write) as temporary:
        return _name_if_free(temporary, final)


def replace(final: Path, write: Callable[[Path], object]) -> None:
    """Makes or replaces `final` with `write(temporary path)`; a reader sees the old file or the new one, whole.

    Raises:
        OSError: as `publish`.
    """
    with _written(final, write) as temporary:
        os.replace(temporary, final)


def remove_temporaries(folder: Path, *, of_the_living: bool = False) -> None:
    """Removes what killed writers of this machine left in `folder`; or all that anybody is writing there as well."""
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX if of_the_living else _OURS.format('*')}"):
        # For writing, since network disks lock nothing else.
        with suppress(OSError), leftover.open("r+b") as file:
            if not of_the_living:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def follow_umask(folder: Path) -> None:
    """Gives the files below `folder` the mode that a new file has: some libraries make theirs for the owner alone."""
    probe = folder / f".mode{TEMPORARY_SUFFIX}"
    descriptor = os.open(probe, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def sync(path: Path) -> None:
    """Waits until a file's or a folder's entries are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _written(final: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """The temporary file, whole and on disk, to be given its name in the block."""
    descriptor, temporary = _locked_temporary(final)
    try:
        try:
            write(temporary)
            sync(temporary)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
        sync(final.parent)
    except OSError as error:
        # Several libraries leave out which file it was.
        error.filename = error.filename or str(final)
        raise
    finally:
        os.close(descriptor)


def _locked_temporary(final: Path) -> tuple[int, Path]:
    """A new file beside `final`, locked where the file system has locks."""
    while True:
        # Readers of Parquet folders skip names that begin with a dot.
        temporary = final.with_name(f".{final.name}{_OURS.format(secrets.token_hex(6))}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Before the lock was there, somebody may have taken the file for a dead one's.
        if os.fstat(descriptor).st_nlink:
            return descriptor, temporary
        os.close(descriptor)


def _name_if_free(temporary: Path, final: Path) -> bool:
    """Gives `temporary` the name `final` unless that is taken; returns whether it has it."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        # Of a network disk the first answer may be lost, and the call made again then finds its own file.
        return os.path.samefile(temporary, final)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise
        return _rename_if_free(temporary, final)
    return True


def _rename_if_free(temporary: Path, final: Path) -> bool:
    try:
        _rename_without_replacing(temporary, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise
        if final.exists():
            return False
        os.rename(temporary, final)
    return True


def _rename_without_replacing(old: Path, new: Path) -> None:
    """Linux's renameat2 with RENAME_NOREPLACE; OSError with ENOSYS elsewhere."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(new))
