"""Checkpoints, whole or not there: written under a temporary name, the marker last, and renamed when all is on disk.

Those of a run in an object store are made the same way on this machine, and then put there.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ...data.files import follow_umask, sync
from .logs import another_at_work
from .marker import NO_MARKER, State, digests, mark, problem_of
from .parallel import Parallel
from .remote import RemoteRun

_NAME = "step-"


class Found(NamedTuple):
    """The newest whole checkpoint, and those newer that are not whole."""

    step: int
    """0 where there is none."""
    skipped: list[str]
    """Name and reason of each that is not whole."""
    damaged: bool
    """Whether one of those was whole once. In a store one without a marker never was: it was not put there in full."""


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: holds them on this machine, as step-N.
        remote: the run in an object store, if it is in one. Then the folder holds what is on its way there or back.
    """

    def __init__(self, folder: Path, remote: RemoteRun | None) -> None:
        self._folder = folder
        self._remote = remote
        self._known: set[int] = set()

    def path(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self._folder / f"{_NAME}{step}"

    def exist(self) -> bool:
        """Whether there are any, whole or not."""
        return bool(self._here() or self._there())

    def newest(self) -> Found:
        """The newest whole one, which then is in the folder and, of a run in a store, in the store."""
        self.remove_leftovers()
        self._known = self._here() | self._there()
        skipped: list[str] = []
        is_damaged = False
        for step in sorted(self._known, reverse=True):
            problem = self._brought(step)
            if problem is None:
                return Found(step, skipped, is_damaged)
            skipped.append(f"{self.path(step).name} ({problem})")
            is_damaged |= self._remote is None or problem != NO_MARKER
        return Found(0, skipped, is_damaged)

    def require_known(self) -> None:
        """Raises TrainingError where there is a checkpoint that was made by neither this process nor one before it."""
        others = (self._here() | self._there()) - self._known
        if others:
            raise another_at_work(self.path(max(others)))

    def _brought(self, step: int) -> str | None:
        """Sees to a checkpoint being here and there; why it is not whole, or None."""
        problem = problem_of(self.path(step))
        if self._remote is None:
            return problem
        if problem:
            return self.fetch(step)
        if not self._remote.has_marker(self.path(step).name):
            self._put(step, is_main=True)
        return None

    def fetch(self, step: int) -> str | None:
        """Brings a checkpoint here from the store; why it is not whole, or None."""
        if self._remote:
            self._remote.fetch_checkpoint(self.path(step).name)
        return problem_of(self.path(step))

    def is_ahead(self) -> bool:
        """Whether this machine has one that the store did not get."""
        return max(self._here(), default=0) > max(self._there(), default=0)

    def _here(self) -> set[int]:
        return _steps({path.name for path in self._folder.glob(f"{_NAME}*")})

    def _there(self) -> set[int]:
        return _steps(self._remote.checkpoint_names()) if self._remote else set()

    def save(self, step: int, *, write: Callable[[Path], dict[str, Any]], parallel: Parallel, keep: int) -> None:
        """Makes the checkpoint of a step and removes all but the newest `keep`. All processes must call it.

        Args:
            write: writes weights and optimizer into the folder it gets, and returns the JSON values of the loop.
        """
        temporary, final = self._folder / f".{_NAME}{step}.tmp", self.path(step)
        # Machines share the folder of a run on a disk, and each has its own for a run in a store.
        is_writer = parallel.is_main or (self._remote is not None and parallel.is_first_of_machine)
        if is_writer:
            self.remove_leftovers()
            temporary.mkdir(parents=True)
        parallel.wait()
        values = write(temporary)
        parallel.wait()
        if is_writer:
            follow_umask(temporary)
        sees_files = parallel.is_on_main_machine or self._remote is not None
        ours = digests(temporary, parallel.local_rank, parallel.local_count) if sees_files else {}
        files = parallel.union(ours)
        if parallel.is_main:
            mark(temporary, State(values, files))
        if is_writer:
            _remove(final)
            os.rename(temporary, final)
            sync(self._folder)
        if self._remote:
            self._put_from_all(step, parallel, is_writer=is_writer)
        if is_writer:
            self._remove_others(step, keep, is_main=parallel.is_main)
        self._known.add(step)

    def _put_from_all(self, step: int, parallel: Parallel, *, is_writer: bool) -> None:
        """Puts what each machine has of a checkpoint, and then the marker."""
        assert self._remote
        if parallel.is_main and step in self._there():
            self._remote.remove_checkpoint(self.path(step).name)  # it was not whole, or is of a lost part of the run
        parallel.wait()
        if is_writer and not parallel.is_main:
            self._put(step, is_main=False)
        parallel.wait()
        if parallel.is_main:
            self._put(step, is_main=True)

    def _put(self, step: int, *, is_main: bool) -> None:
        assert self._remote
        self._remote.put_files(self.path(step).name)
        if is_main:
            self._remote.put_marker(self.path(step).name)

    def remove_leftovers(self) -> None:
        """Removes what killed runs left here: checkpoints half written or half removed."""
        for leftover in self._folder.glob(f".{_NAME}*.tmp"):
            shutil.rmtree(leftover)

    def _remove_others(self, step: int, keep: int, *, is_main: bool) -> None:
        if self._remote and is_main:
            for other in _others(self._there(), step, keep):
                self._remote.remove_checkpoint(self.path(other).name)
        for other in self._here() if self._remote else _others(self._here(), step, keep):
            _remove(self.path(other))


def _steps(names: set[str]) -> set[int]:
    """N of every step-N."""
    numbers = (name.removeprefix(_NAME) for name in names if name.startswith(_NAME))
    return {int(number) for number in numbers if number.isdecimal()}


def _others(steps: set[int], step: int, keep: int) -> set[int]:
    """Those to remove once the checkpoint of `step` is there."""
    # One of a later step was skipped when this run was resumed from an earlier one: it is not whole. It stays until the
    # run is past it.
    return set(sorted(other for other in steps if other <= step)[:-keep])


def _remove(path: Path) -> None:
    """Under another name first, so that a kill leaves no half checkpoint that looks like a whole one."""
    if path.exists():
        doomed = path.with_name(f".{path.name}.old.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed)
