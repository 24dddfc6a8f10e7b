"""A lock that the system holds for a process and releases when the process ends, however it ends."""

import errno
import fcntl
import os
import time
from pathlib import Path

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
SECONDS_BETWEEN_TRIES = 0.05


class NoLocksError(Exception):
    """The file system has no locks."""


class Lock:
    """A lock on a file (flock): held by one process exclusively, or shared by any number. On network disks it reaches
    the machines that the file system tells of locks.

    Args:
        path: the file, made where it is missing, in a folder that is there.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def acquire(self, *, shared: bool = False, seconds: float = 0.0) -> bool:
        """Takes the lock, or changes the one that is held; while that is done another process may take it.

        Args:
            shared: with others that share it.
            seconds: how long to wait for those that hold it.

        Returns:
            Whether it is held now. A lock that was held before is lost where it is not.

        Raises:
            NoLocksError: the file system has none.
        """
        until = time.monotonic() + seconds
        kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        while True:
            try:
                fcntl.flock(self._descriptor, kind)
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                time.sleep(SECONDS_BETWEEN_TRIES)
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    raise NoLocksError(str(self.path)) from error
                raise
            else:
                return True

    @property
    def is_at_its_path(self) -> bool:
        """Whether the file is still the one of its path: who removes it lets others lock a new one."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def read(self) -> str:
        """The file's text."""
        return os.pread(self._descriptor, 4096, 0).decode(errors="replace")

    def write(self, text: str) -> None:
        """Replaces the file's text."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def remove(self) -> None:
        """Removes the file, if it is still there, and gives the lock up. Who locks a new one of that name afterward has
        to look whether it is at its path."""
        if self.is_at_its_path:
            self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Gives the lock up."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
