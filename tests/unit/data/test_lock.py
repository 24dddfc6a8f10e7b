"""Locks that end with their process."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tgdpo.data.lock import Lock, NoLocksError


def test_shared_by_many_or_held_by_one(tmp_path: Path) -> None:
    """Two locks of one process exclude each other as those of two processes do."""
    one, two = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert one.acquire(shared=True)
    assert two.acquire(shared=True)
    assert not one.acquire()
    two.release()
    assert one.acquire()
    three = Lock(tmp_path / "lock")
    assert not three.acquire(shared=True)
    assert not three.acquire(shared=True, seconds=0.1)
    assert one.acquire(shared=True)
    assert three.acquire(shared=True)


def test_gone_with_its_process(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tgdpo.data.lock import Lock\n"
    code += "lock = Lock(Path(sys.argv[1])); print(lock.acquire(), flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout
    assert holder.stdout.readline() == b"True\n"
    lock = Lock(tmp_path / "lock")
    assert not lock.acquire(shared=True)
    holder.kill()
    holder.communicate()
    assert lock.acquire()


def test_a_removed_file_is_noticed(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.is_at_its_path
    first.remove()
    assert not (tmp_path / "lock").exists()
    assert not second.is_at_its_path
    third = Lock(tmp_path / "lock")
    second.remove()  # which leaves the new file alone
    assert third.is_at_its_path


def test_the_text_is_that_of_the_last_holder(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("a long text of before")
    lock = Lock(tmp_path / "lock")
    lock.write("short\n")
    assert (tmp_path / "lock").read_text() == Lock(tmp_path / "lock").read() == "short\n"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(NoLocksError):
        Lock(tmp_path / "lock").acquire()
