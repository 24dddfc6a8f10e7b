"""The lock of an output folder: shared by the processes at work in it, so that none can give it other settings."""

from ...data.lock import Lock, NoLocksError
from ...data.store import Store
from ...errors import CacheError
from ..console import log

SECONDS = 30.0
"""How long a process waits for another that starts an unscored folder over, which takes a moment."""


class FolderLock:
    """The lock file `name` of a store, in `folder`, which is made. In object stores, and on file systems without locks,
    everybody gets the lock: there only the files themselves tell runs apart.

    Not pickled: the process that took it holds it for the workers that it started.
    """

    def __init__(self, store: Store, folder: str, name: str) -> None:
        self._store, self._folder, self._name = store, folder, f"{folder}/{name}"
        self._lock: Lock | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_lock": None}

    def share(self) -> None:
        """Takes the lock together with the other processes at work; also instead of `own`.

        Raises:
            CacheError: another process owns it for too long.
        """
        while True:
            self._store.make_folder(self._folder)
            self._lock = self._lock or self._store.lock(self._name)
            if self._lock is None or not self._try(self._lock) or self._lock.is_at_its_path:
                return
            self.release()  # a run that ended meanwhile has removed the file, and others now lock a new one

    def _try(self, lock: Lock) -> bool:
        """Returns whether there is a lock to be had."""
        try:
            if not lock.acquire(shared=True, seconds=SECONDS):
                raise CacheError(
                    f"--output {self._store} is locked by another tgdpo score", fix="run the same command again later"
                )
        except NoLocksError:
            log(f"{self._store}: no locks on its file system, runs with other settings are told apart by their files")
            self.release()
            return False
        return True

    def own(self) -> bool:
        """Takes the lock alone. Returns False where another process has it; then it is lost."""
        return self._lock is None or self._lock.acquire()

    def release(self) -> None:
        """Gives it up."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
