"""A run in an object store (--output s3://…), and the folder of this machine that it works in.

All is made in the folder first and then put into the store, the marker of a checkpoint and the record of the run last.
What the store did not take stays in the folder, and the same command on the same machine goes on from there; on another
one it goes on from what the store has.
"""

import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ...data.addresses import is_url, local_path
from ...data.object_store import ObjectStore
from ...errors import StorageError
from .lock import LOCK
from .marker import MARKER, parse_state

CHECKPOINTS = "checkpoints"
RECORD, CONFIG, METRICS, PAIRS = "run.json", "config.yaml", "metrics.jsonl", "pairs.jsonl"
_LOGS = "logs"
_KEPT = (CONFIG, METRICS, PAIRS, f"{_LOGS}/tracker_id")
"""What a run that goes on needs beside its record and a checkpoint."""


def working_folder(output: str) -> Path:
    """The folder that a run works in: its output, or one in the temporary folder that belongs to the output's URL.
    Raises as `local_path`."""
    if not is_url(output):
        return local_path(output)
    address = output.rstrip("/")
    name = address.rpartition("/")[2]
    return _private() / hashlib.sha256(address.encode()).hexdigest()[:16] / name


def _private() -> Path:
    """The user's own part of the temporary folder, which other users of the machine cannot look into.

    Raises:
        StorageError: another user has made it.
    """
    folder = Path(tempfile.gettempdir()) / f"tgdpo-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise StorageError(f"{folder} is open to other users", fix="remove it, or set TMPDIR to a folder of your own")
    return folder


class RemoteRun:
    """What the store holds of a run.

    Args:
        url: the run's output.
        folder: where it works on this machine.

    Raises:
        UsageError: the URL's library is missing, or the URL holds credentials.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._store = ObjectStore(url)
        self._folder = folder

    def holds_anything(self) -> bool:
        """Whether there is any file."""
        return bool(self._store.names())

    # Checkpoints

    def checkpoint_names(self) -> set[str]:
        """The names of all checkpoints, whole or not."""
        return self._store.names(CHECKPOINTS)

    def has_marker(self, name: str) -> bool:
        """Whether all of a checkpoint is there."""
        return self._store.file(f"{CHECKPOINTS}/{name}/{MARKER}").exists()

    def fetch_checkpoint(self, name: str) -> None:
        """Makes the folder's checkpoint of that name what the store has, as far as it is there."""
        remote, local = f"{CHECKPOINTS}/{name}", self._folder / CHECKPOINTS / name
        shutil.rmtree(local, ignore_errors=True)
        local.mkdir(parents=True)
        # Whoever reads the checkpoint then says what is wrong with it.
        with suppress(FileNotFoundError, ValueError, RecursionError):
            marker = self._store.read(f"{remote}/{MARKER}")
            (local / MARKER).write_bytes(marker)
            for file in parse_state(marker, f"{self._store}/{remote}").files:
                (local / file).parent.mkdir(parents=True, exist_ok=True)
                self._store.download(f"{remote}/{file}", local / file)

    def put_files(self, name: str) -> None:
        """Puts all files that a checkpoint has on this machine but its marker."""
        remote, local = f"{CHECKPOINTS}/{name}", self._folder / CHECKPOINTS / name
        for path in _files(local):
            file = path.relative_to(local).as_posix()
            if file != MARKER:
                self._store.upload(path, f"{remote}/{file}")

    def put_marker(self, name: str) -> None:
        """Says that all files of a checkpoint are in the store."""
        self._store.upload(self._folder / CHECKPOINTS / name / MARKER, f"{CHECKPOINTS}/{name}/{MARKER}")

    def remove_checkpoint(self, name: str) -> None:
        """Removes a checkpoint, its marker first, so that what a kill leaves is not taken for a whole one."""
        self._store.remove([f"{CHECKPOINTS}/{name}/{MARKER}"])
        self._store.remove_tree(f"{CHECKPOINTS}/{name}")

    # The rest

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        return self._store.read_all([name]).get(name)

    def fetch_logs(self) -> None:
        """Gives the folder the record, the configuration and the logs that the store has."""
        for name, content in self._store.read_all([RECORD, *_KEPT]).items():
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(content)

    def fetch_model(self) -> None:
        """Gives the folder the trained policy."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in self._store.names() - {CHECKPOINTS, _LOGS}:
            self._store.download(name, self._folder / name)

    def put_logs(self) -> None:
        """Puts configuration, logs, and what trackers wrote."""
        names = {self._folder / name for name in _KEPT} & set(_files(self._folder))
        for path in sorted(names | set(_files(self._folder / _LOGS))):
            self._put(path)

    def put_run(self) -> None:
        """Puts all that lies in the folder beside checkpoints and the record."""
        self.put_logs()
        for path in sorted(self._folder.iterdir()):
            if path.is_file() and path.name not in (RECORD, LOCK, *_KEPT):
                self._put(path)

    def put_record(self) -> None:
        """Puts the record of the run."""
        self._put(self._folder / RECORD)

    def _put(self, path: Path) -> None:
        self._store.upload(path, path.relative_to(self._folder).as_posix())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
