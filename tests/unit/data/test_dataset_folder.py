"""Which files of a folder are read: the same as datasets finds, whatever they are called."""

import random
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import write_rows

from tgdpo.data.dataset_folder import find_files
from tgdpo.errors import DataError, TgdpoError, UsageError

ROWS = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
FOLDERS = ["", "train/", "test/", "data/", "en/", "en/train/", "sub-train/x/", ".hidden/"]
NAMES = ["train", "test", "dev", "a", "my_train_set", "x-test", "validation-1", "train-00000-of-00002", "eval", "data"]
SUFFIXES = [".jsonl", ".json", ".csv", ".parquet"]


def random_folder(folder: Path, chance: random.Random) -> None:
    """One to five files with one row each."""
    folder.mkdir()
    suffixes = chance.sample(SUFFIXES, chance.choice([1, 1, 2]))
    for _ in range(chance.randint(1, 5)):
        path = folder / (chance.choice(FOLDERS) + chance.choice(NAMES) + chance.choice(suffixes))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path)
        elif path.suffix == ".csv":
            path.write_text("prompt,chosen,rejected\na,b,c\n")
        else:
            write_rows(path, ROWS)


def files_of(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """The files that are found of each split that datasets knows by name."""
    for split in ("train", "validation", "test"):
        try:
            yield split, sorted(find_files(folder, split, None).files)
        except TgdpoError:
            continue


@pytest.mark.parametrize("seed", range(30))
def test_they_are_those_of_datasets(seed: int, tmp_path: Path) -> None:
    random_folder(tmp_path / "set", random.Random(seed))
    try:
        builder = datasets.load_dataset_builder(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    except (FileNotFoundError, ValueError):
        return  # datasets reads nothing of it, or wants one format in all splits
    theirs = {str(split): sorted({Path(file) for file in files}) for split, files in builder.config.data_files.items()}
    assert dict(files_of(tmp_path / "set")) == {split: files for split, files in theirs.items() if files}


def test_a_link_to_a_cache_is_a_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/_manifest.json").write_text('{"format_version": 1}')
    write_rows(tmp_path / "cache/part.jsonl", ROWS)
    (tmp_path / "set").mkdir()
    write_rows(tmp_path / "set/a.jsonl", ROWS)
    (tmp_path / "set/linked").symlink_to(tmp_path / "cache")
    assert [path.name for path in find_files(tmp_path / "set", "train", None).files] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("configs", "says"),
    [
        ("- config_name: a\n  data_files: a.csv\n  sep: ';'\n", "sets sep for configuration a"),
        ("- config_name: a\n  data_files: https://host/a.jsonl\n", "which is not there"),
        ("- data_files: a.jsonl\n", "cannot be read"),
        ("- config_name: a\n  data_files: {train: a.jsonl}\n", "cannot be read"),
        ("7\n", "cannot be read"),
    ],
)
def test_a_readme_that_cannot_be_followed(configs: str, says: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n# A set\n")
    with pytest.raises(DataError, match=says):
        find_files(tmp_path, "train", None)


def test_several_default_configurations_are_none(tmp_path: Path) -> None:
    """datasets refuses them; a choice is read."""
    one = "- config_name: {name}\n  default: true\n  data_files: {name}.jsonl\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{one.format(name='a')}{one.format(name='b')}---\n")
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", ROWS)
    with pytest.raises(UsageError, match="has a, b: choose one of these with --dataset-config"):
        find_files(tmp_path, "train", None)
    assert [path.name for path in find_files(tmp_path, "train", "b").files] == ["b.jsonl"]
