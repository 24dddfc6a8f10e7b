"""The lock of a run folder: one process trains in it at a time. The system releases it when the process ends."""

import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from ...data.lock import Lock, NoLocksError
from ...errors import TrainingError
from ..console import log

LOCK = ".lock"


def lock_run(folder: Path, output: object) -> Lock | None:
    """Takes the lock of the run in `folder`, until it is released or the process ends.

    The text in the file is for people only: a process that is gone holds nothing, whatever its file says.

    Args:
        folder: it is there.
        output: what a person calls it.

    Returns:
        The lock; None on a file system without locks, where only what other processes write tells of them.

    Raises:
        TrainingError: another process is at work in the run.
    """
    lock = Lock(folder / LOCK)
    try:
        is_ours = lock.acquire()
        while is_ours and not lock.is_at_its_path:  # a process that ended meanwhile has removed it
            lock.release()
            lock = Lock(folder / LOCK)
            is_ours = lock.acquire()
    except NoLocksError:
        log(f"{output}: no locks on its file system, a second process is noticed by what it writes")
        lock.release()
        return None
    if not is_ours:
        holder = lock.read().strip()
        lock.release()
        raise TrainingError(
            f"--output {output} is in use by another tgdpo train{f' ({holder})' if holder else ''}",
            fix="wait until it has ended, or use another --output",
        )
    lock.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n")
    return lock
