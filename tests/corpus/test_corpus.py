"""Every odd input of the corpus is read as datasets and TRL read it, or answered by one line."""

from pathlib import Path

import pytest

from . import files, folders, rows, table
from .inputs import READ, FileInput, Kind, RowInput
from .references import answer_to_file, answer_to_row, rows_of_datasets, texts_of_trl, without_end
from .templates import tokenizer_of


def named(kinds: list[Kind]) -> list[object]:
    return [pytest.param(source, id=f"{kind.name}: {name}") for kind in kinds for name, source in kind.inputs.items()]


@pytest.mark.parametrize("source", named([*files.KINDS, *folders.KINDS]))
def test_files_and_folders(
    source: FileInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "made").mkdir()
    path = source.make(tmp_path / "made")
    monkeypatch.chdir(tmp_path / "made")
    capfd.readouterr()
    answer = answer_to_file(path.relative_to(Path.cwd()), source)
    assert capfd.readouterr() == ("", "")
    if source.outcome != READ:
        assert source.outcome in answer
        return
    assert answer == (rows_of_datasets(path, source, tmp_path / "scratch") if source.rows is None else source.rows)


@pytest.mark.parametrize("source", named(rows.KINDS))
def test_rows(source: RowInput) -> None:
    answer = answer_to_row(source)
    if source.outcome != READ:
        assert isinstance(answer, str)
        assert source.outcome in answer
        return
    assert not isinstance(answer, str), answer
    tokenizer = tokenizer_of(source.template)
    for ours, theirs in zip(answer, texts_of_trl(source), strict=True):
        assert without_end(ours, tokenizer) == without_end(theirs, tokenizer)


def test_the_table_of_the_documents_is_this_corpus() -> None:
    assert table.table() in table.DOCUMENT.read_text()
