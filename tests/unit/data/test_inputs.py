"""Files that were hashed, and whether they are still what they were."""

import os
from pathlib import Path

import pytest

from tgdpo.data import inputs
from tgdpo.data.files import sha256_file
from tgdpo.data.inputs import Inputs


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("one")
    return tmp_path / "file"


def test_the_hash_is_the_files(file: Path) -> None:
    assert Inputs().sha256(file) == sha256_file(file)


def replaced(path: Path) -> None:
    (path.parent / "new").write_text("two")
    os.replace(path.parent / "new", path)


def rewritten(path: Path) -> None:
    path.write_text("two")


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [replaced, rewritten, removed])
def test_a_change_is_found_though_the_size_stays(change: object, file: Path, tmp_path: Path) -> None:
    known = Inputs()
    (tmp_path / "other").write_text("other")
    known.sha256(tmp_path / "other")
    known.sha256(file)
    assert known.changed() is None
    change(file)  # type: ignore[operator]
    assert known.changed() == file


def test_the_same_bytes_in_another_file_are_no_change(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Inputs()
    known.sha256(file)
    (tmp_path / "copy").write_text("one")
    os.replace(tmp_path / "copy", file)
    assert known.changed() is None
    # It is not read again.
    monkeypatch.setattr(inputs, "sha256_file", lambda _: pytest.fail("read again"))
    assert known.changed() is None


def test_a_change_while_it_is_read_is_found(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Inputs()

    def read_and_change(path: Path) -> str:
        found = sha256_file(path)
        replaced(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "sha256_file", read_and_change)
        known.sha256(file)
    assert known.changed() == file
