"""Files are whole or not there, and the first writer wins."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tgdpo.data import files
from tgdpo.data.files import follow_umask, publish, remove_temporaries, replace, sha256_file

Write = Callable[..., object]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_first_writer_wins(tmp_path: Path) -> None:
    final = tmp_path / "shard"
    assert publish(final, lambda path: path.write_text("first"))
    assert not publish(final, lambda path: path.write_text("second"))
    assert final.read_text() == "first"
    assert names(tmp_path) == ["shard"]


def test_replace_puts_the_new_file_in_the_place_of_the_old(tmp_path: Path) -> None:
    final = tmp_path / "state"
    for text in ("first", "second"):
        replace(final, lambda path, text=text: path.write_text(text))
        assert final.read_text() == text
    assert names(tmp_path) == ["state"]


@pytest.mark.parametrize("make", [publish, replace])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_nothing(make: Write, error: type[BaseException], tmp_path: Path) -> None:
    def half(path: Path) -> None:
        path.write_text("half of")
        raise error

    with pytest.raises(error):
        make(tmp_path / "new", half)
    assert names(tmp_path) == []
    (tmp_path / "old").write_text("old")
    with pytest.raises(error):
        make(tmp_path / "old", half)
    assert (tmp_path / "old").read_text() == "old"
    assert names(tmp_path) == ["old"]


def test_replace_leaves_nothing_where_the_name_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "folder" / "in it").mkdir(parents=True)
    with pytest.raises(OSError):  # noqa: PT011  (its class differs between systems)
        replace(tmp_path / "folder", lambda path: path.write_text("text"))
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("make", [publish, replace])
def test_a_reader_never_sees_the_file_before_it_is_whole(make: Write, tmp_path: Path) -> None:
    final = tmp_path / "shard.parquet"

    def write(path: Path) -> None:
        path.write_text("half")
        assert not final.exists()
        # Readers of Parquet folders skip the temporary name.
        assert path.name.startswith(".")
        path.write_text("whole")

    make(final, write)
    assert final.read_text() == "whole"


@pytest.mark.parametrize("make", [publish, replace])
@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_mode_follows_the_umask(make: Write, umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        make(tmp_path / "file", lambda path: path.write_text("x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644)])
def test_files_of_libraries_get_the_mode_of_any_new_file(umask: int, mode: int, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, theirs in (("weights", 0o600), ("folder/weights", 0o666)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(theirs)
    before = os.umask(umask)
    try:
        follow_umask(tmp_path)
    finally:
        os.umask(before)
    assert names(tmp_path) == ["folder", "weights"]
    for name in ("weights", "folder/weights"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from tgdpo.data.files import follow_umask, publish\n"
    code += "publish(Path(sys.argv[1]), lambda path: (path.write_text('half'), os.kill(os.getpid(), 9)))"
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "shard")])
    assert killed.returncode == -9
    assert len(names(tmp_path)) == 1
    (tmp_path / "other.tmp").write_text("not ours")
    remove_temporaries(tmp_path)
    assert names(tmp_path) == ["other.tmp"]


def test_what_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tgdpo.data.files import follow_umask, publish\n"
    code += "publish(Path(sys.argv[1]), lambda path: (path.write_text('half'), print(flush=True), sys.stdin.read()))"
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "shard")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    remove_temporaries(tmp_path)
    assert len(names(tmp_path)) == 1
    writer.communicate()
    assert names(tmp_path) == ["shard"]


def test_leftovers_of_other_machines_wait_for_the_end(tmp_path: Path) -> None:
    (tmp_path / ".shard.other-machine-0123.tmp").write_text("half")
    remove_temporaries(tmp_path)
    assert len(names(tmp_path)) == 1
    remove_temporaries(tmp_path, of_the_living=True)
    assert names(tmp_path) == []


class TestWithoutHardLinks:
    """As on FAT, and on many network and FUSE disks."""

    @pytest.fixture(autouse=True)
    def no_links(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)

    @pytest.mark.parametrize("has_noreplace", [True, False])
    def test_the_first_writer_wins(self, has_noreplace: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if not has_noreplace:
            monkeypatch.setattr(sys, "platform", "elsewhere")
        test_the_first_writer_wins(tmp_path)

    @pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
    def test_nothing_is_replaced_that_comes_meanwhile(self, tmp_path: Path) -> None:
        """No look at what is there comes before the rename."""
        (tmp_path / "old").write_text("old")
        (tmp_path / "new").write_text("new")
        with pytest.raises(FileExistsError):
            files._rename_without_replacing(tmp_path / "new", tmp_path / "old")
        assert (tmp_path / "old").read_text() == "old"

    def test_other_errors_are_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "link", fail)
        with pytest.raises(OSError, match="Input/output") as raised:
            publish(tmp_path / "shard", lambda path: path.write_text("text"))
        assert raised.value.filename == str(tmp_path / "shard")
        assert names(tmp_path) == []


def test_a_lost_answer_of_a_network_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name was given, the answer was lost, and the client's second call finds the name taken: by this file."""
    link = os.link

    def link_twice(*names: Path) -> None:
        link(*names)
        link(*names)

    monkeypatch.setattr(os, "link", link_twice)
    assert publish(tmp_path / "shard", lambda path: path.write_text("first"))
    assert not publish(tmp_path / "shard", lambda path: path.write_text("second"))
    assert (tmp_path / "shard").read_text() == "first"


def test_two_processes_publish_the_same_names(tmp_path: Path) -> None:
    """Each name has the whole bytes of one of them, and exactly one was told that it won."""
    code = """
import sys, time
from pathlib import Path
from tgdpo.data.files import follow_umask, publish
folder, letter = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready-{letter}").touch()
while not all((folder / f"ready-{other}").exists() for other in "ab"):
    time.sleep(0.001)
won = [n for n in range(60) if publish(folder / str(n), lambda path: path.write_text(letter * 300_000))]
print(*won)
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), letter], stdout=subprocess.PIPE, text=True)
        for letter in "ab"
    ]
    won = {letter: writer.communicate()[0].split() for letter, writer in zip("ab", writers, strict=True)}
    assert sorted(won["a"] + won["b"], key=int) == [str(n) for n in range(60)]
    for letter, numbers in won.items():
        for number in numbers:
            assert (tmp_path / number).read_text() == letter * 300_000
    assert len(names(tmp_path)) == 60 + 2


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "abc") == expected
