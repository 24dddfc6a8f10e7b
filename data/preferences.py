"""Reads a preference set row by row: a local file, a folder, or a hub dataset."""

import hashlib
import os
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ..errors import DataError, UsageError
from .addresses import local_path
from .dataset_folder import find_files, require_split
from .inputs import Inputs
from .row_files import SUFFIXES, bare_suffix, first_line, parquet_rows, read_file

NAMED_FILES = 3
"""Files that a message names."""


class Row(NamedTuple):
    """One row of the source. `problem` says why it could not be read (then `value` is empty).

    `value` has the names of all columns; of one that nobody asked for it may hold None.
    """

    number: int
    value: dict[str, Any]
    problem: str | None = None


class PreferenceSet:
    """A preference set by name; iterating gives `Row`s in the source's order, numbered from 0 over all its files.

    Args:
        name: a JSON, JSONL, Parquet or CSV file (also compressed), a folder of them or of `Dataset.save_to_disk`,
            or a dataset of the Hugging Face hub.
        split: the split to read; a single file is its own `train` split.
        config_name: the configuration of a hub dataset, or of a folder whose README.md names some.
        limit: read only the first `limit` rows.
        columns: the columns that are needed, None for all; others are not decoded where the format allows it.

    Raises:
        DataError: nothing readable under that name.
        UsageError: the split or the configuration does not exist, or one has to be chosen.
    """

    def __init__(
        self,
        name: str,
        *,
        split: str = "train",
        config_name: str | None = None,
        limit: int | None = None,
        columns: Collection[str] | None = None,
    ):
        self.name = name
        self.split = split
        self.limit = limit
        self.notes: list[str] = []
        """What is read of a folder or a hub dataset, and what is left out, each in a line for people."""
        self._columns = columns
        self._files: list[Path] = []
        self._dataset: Any = None
        self._saved_files: list[Path] = []
        self._inputs = Inputs()
        path = Path(name).expanduser()
        if path.is_file():
            _require_known_suffix(path)
            _refuse_configuration(config_name, f"{path} is a file")
            require_split(name, split, ["train"])
            self._files = [path]
        elif path.is_dir():
            self._open_folder(path, config_name)
        elif _looks_like_a_path(name):
            raise DataError(f"--dataset {name}: there is no such file or folder", fix="check the path")
        else:
            self._dataset = _load_from_hub(name, config_name, split)
            self._note(f"{len(self._dataset)} rows of the hub", self._dataset.info.config_name)

    def _open_folder(self, folder: Path, config_name: str | None) -> None:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            _refuse_configuration(config_name, f"{folder} is a folder of Dataset.save_to_disk")
            saved = _load_saved(folder)
            require_split(self.name, self.split, list(saved))
            self._dataset = saved[self.split]
            self._saved_files = [Path(file["filename"]) for file in self._dataset.cache_files]
            self._note(f"{len(self._dataset)} rows of Dataset.save_to_disk", None)
            return
        self._files, configuration, left_out = find_files(folder, self.split, config_name)
        names = [os.path.relpath(path, folder) for path in self._files]
        shown = ", ".join(names[:NAMED_FILES]) + (" …" if len(names) > NAMED_FILES else "")
        self._note(f"{len(names)} file{'s' * (len(names) > 1)} ({shown})", configuration)
        if left_out:
            self.notes.append(f"not read in {folder}: {', '.join(left_out)}")

    def _note(self, what: str, configuration: str | None) -> None:
        which = [f"configuration {configuration}"] if configuration else []
        self.notes.append(f"{self.name}: {', '.join([what, *which, f'split {self.split}'])}")

    def __iter__(self) -> Iterator[Row]:
        return islice(self._rows(), self.limit)

    def _rows(self) -> Iterator[Row]:
        if self._dataset is not None:
            for number, value in enumerate(_dataset_rows(self._dataset, self.name, self._columns)):
                yield Row(number, value)
            return
        number = 0
        for path in self._files:
            for value, problem in read_file(path, self._columns):
                yield Row(number, value, problem)
                number += 1

    def __len__(self) -> int:
        """The number of rows where it is known without reading, else 0."""
        if self._dataset is not None:
            rows = len(self._dataset)
        elif all(bare_suffix(path) == ".parquet" for path in self._files):
            rows = sum(map(parquet_rows, self._files))
        else:
            return self.limit or 0
        return rows if self.limit is None else min(rows, self.limit)

    def fingerprint(self) -> str:
        """Hash of the content: of the files' bytes, or datasets' own fingerprint of a hub dataset."""
        digest = hashlib.sha256()
        files = self._files or self._saved_files
        if not files:
            digest.update(str(self._dataset._fingerprint).encode())
        for path in files:
            digest.update(self._inputs.sha256(path).encode())
        digest.update(f"limit={self.limit}".encode())
        return digest.hexdigest()

    def require_unchanged(self) -> None:
        """Raises DataError where a file has changed since `fingerprint` read it."""
        path = self._inputs.changed()
        if path is not None:
            raise DataError(
                f"--dataset {self.name} has changed while it was in use: {path} is not what it was when the run began",
                fix="leave the files of a run alone until it has ended, and run the same command again",
            )


def _looks_like_a_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or bare_suffix(Path(name)) in SUFFIXES


def _require_known_suffix(path: Path) -> None:
    if bare_suffix(path) not in SUFFIXES:
        raise DataError(
            f"--dataset {path}: '{path.suffix}' files are not read", fix=f"use one of {', '.join(SUFFIXES)}"
        )


def _refuse_configuration(config_name: str | None, what: str) -> None:
    if config_name is not None:
        raise UsageError(f"--dataset-config {config_name}: {what}, which has no configurations", fix="leave it out")


def _load_saved(folder: Path) -> Any:
    """The splits of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(local_path(folder)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--dataset {folder} looks like a folder of Dataset.save_to_disk, but does not load ({first_line(error)})",
            fix="save it again",
        ) from error
    return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}


def _load_from_hub(name: str, config_name: str | None, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config_name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"--dataset {name} is no local path, and as a hub dataset it did not load ({first_line(error)})",
            fix="check the name, --dataset-config, --split and the network, or name a local file",
        ) from error


def _dataset_rows(dataset: Any, name: str, columns: Collection[str] | None) -> Iterator[dict[str, Any]]:
    """The rows as Python values whatever format the dataset was saved with; only wanted columns are decoded."""
    names = dataset.column_names
    wanted = names if columns is None else [each for each in names if each in columns]
    every = dict.fromkeys(names)
    if not wanted:
        yield from (dict(every) for _ in range(len(dataset)))
        return
    try:
        for value in dataset.with_format(None).select_columns(wanted):
            yield every | value
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise DataError(f"--dataset {name} cannot be read ({first_line(error)})", fix="save it again") from error
