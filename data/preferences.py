"""Reads a preference set row by row: a local file, a folder, or a hub dataset.

Files are read by line or by record batch, so one bad row costs that row and memory does not grow with the file
(a JSON array is the exception: it is one value and is parsed as one).
"""

import bz2
import csv
import glob
import gzip
import hashlib
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError, UsageError
from .addresses import local_path
from .files import sha256_file

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: io.BufferedReader(pa.input_stream(str(path), compression="zstd")),
}

MAX_ROW_BYTES = 2**26
"""A longer line, CSV field or Parquet row is no preference pair; it is not taken to memory, or not to Python."""
PARQUET_ROWS = 32
"""Decoded together: small, since a small file may decode to very much."""


class Row(NamedTuple):
    """One row of the source. `problem` says why it could not be read (then `value` is empty)."""

    number: int
    value: dict[str, Any]
    problem: str | None = None


class PreferenceSet:
    """A preference set by name; iterating gives `Row`s in the source's order, numbered from 0 over all its files.

    Args:
        name: a JSON, JSONL, Parquet or CSV file (also compressed), a folder of them or of `Dataset.save_to_disk`,
            or a dataset of the Hugging Face hub.
        split: the split to read; a single file is its own `train` split.
        config_name: the hub dataset's configuration.
        limit: read only the first `limit` rows.

    Raises:
        DataError: nothing readable under that name.
        UsageError: the split does not exist.
    """

    def __init__(self, name: str, *, split: str = "train", config_name: str | None = None, limit: int | None = None):
        self.name = name
        self.split = split
        self.limit = limit
        self._files: list[Path] = []
        self._dataset: Any = None
        self._saved_files: list[Path] = []
        path = Path(name).expanduser()
        if path.is_file():
            _require_known_suffix(path)
            _require_split(name, split, ["train"])
            self._files = [path]
        elif path.is_dir():
            self._open_folder(path)
        elif _looks_like_a_path(name):
            raise DataError(f"--dataset {name}: there is no such file or folder", fix="check the path")
        else:
            self._dataset = _load_from_hub(name, config_name, split)

    def _open_folder(self, folder: Path) -> None:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = _load_saved(folder)
            _require_split(self.name, self.split, list(saved))
            self._dataset = saved[self.split]
            self._saved_files = [Path(file["filename"]) for file in self._dataset.cache_files]
            return
        by_split = _files_by_split(folder)
        if not by_split:
            raise DataError(
                f"--dataset {folder}: the folder holds no {', '.join(SUFFIXES)} file", fix="name the file or its folder"
            )
        _require_split(self.name, self.split, list(by_split))
        self._files = by_split[self.split]

    def __iter__(self) -> Iterator[Row]:
        return islice(self._rows(), self.limit)

    def _rows(self) -> Iterator[Row]:
        if self._dataset is not None:
            for number, value in enumerate(self._dataset):
                yield Row(number, value)
            return
        number = 0
        for path in self._files:
            for value, problem in _read_file(path):
                yield Row(number, value, problem)
                number += 1

    def __len__(self) -> int:
        """The number of rows where it is known without reading, else 0."""
        if self._dataset is not None:
            rows = len(self._dataset)
        elif all(_bare_suffix(path) == ".parquet" for path in self._files):
            rows = sum(_parquet_file(path).metadata.num_rows for path in self._files)
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
            digest.update(sha256_file(path).encode())
        digest.update(f"limit={self.limit}".encode())
        return digest.hexdigest()


def _looks_like_a_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or _bare_suffix(Path(name)) in SUFFIXES


def _bare_suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def _require_known_suffix(path: Path) -> None:
    if _bare_suffix(path) not in SUFFIXES:
        raise DataError(
            f"--dataset {path}: '{path.suffix}' files are not read", fix=f"use one of {', '.join(SUFFIXES)}"
        )


def _require_split(name: str, split: str, found: list[str]) -> None:
    if split not in found:
        hint = "use --limit for the first rows; " if "[" in split else ""
        raise UsageError(f"--split {split}: {name} has {', '.join(found)}", fix=f"{hint}choose one of these")


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    """The folder's data files by split, with the naming rules of `datasets.load_dataset(folder)`."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    base = glob.escape(str(folder))
    try:
        patterns = get_data_patterns(base)
    except EmptyDatasetError:
        return {}
    found = DataFilesDict.from_patterns(patterns, base_path=base)
    by_split = {
        str(split): sorted(path for path in map(Path, files) if _bare_suffix(path) in SUFFIXES)
        for split, files in found.items()
    }
    return {split: files for split, files in by_split.items() if files}


def _load_saved(folder: Path) -> Any:
    """The splits of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(local_path(folder)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--dataset {folder} looks like a folder of Dataset.save_to_disk, but does not load ({_first_line(error)})",
            fix="save it again",
        ) from error
    return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}


def _load_from_hub(name: str, config_name: str | None, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config_name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"--dataset {name} is no local path, and as a hub dataset it did not load ({_first_line(error)})",
            fix="check the name, --dataset-config, --split and the network, or name a local file",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """The file's bytes, unpacked. Raises DataError where they cannot be read."""
    try:
        with COMPRESSIONS[path.suffix](path) if path.suffix in COMPRESSIONS else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"--dataset {path} cannot be read ({error})", fix="fetch or save it again") from error


def _read_file(path: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    suffix = _bare_suffix(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix == ".csv":
        return _read_csv(path)
    if suffix == ".json" and _first_character(path) == "[":
        return _read_json_array(path)
    return _read_json_lines(path)


def _first_character(path: Path) -> str:
    with _open(path) as file:
        start: bytes = file.read(4096)
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1].decode("ascii", "replace")


def _as_row(value: Any) -> tuple[dict[str, Any], str | None]:
    return (value, None) if isinstance(value, dict) else ({}, "not a JSON object")


def _read_json_lines(path: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    with _open(path) as file:
        while line := file.readline(MAX_ROW_BYTES):
            if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
                del line
                _skip_line(file)
                yield {}, f"longer than {MAX_ROW_BYTES} bytes"
                continue
            if not line.strip():
                continue
            try:
                yield _as_row(json.loads(line))
            except UnicodeDecodeError:
                yield {}, "not UTF-8"
            except (ValueError, RecursionError):
                yield {}, "not valid JSON"


def _skip_line(file: Any) -> None:
    while (more := file.readline(2**20)) and not more.endswith(b"\n"):
        pass


def _read_json_array(path: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    with _open(path) as file:
        try:
            rows = json.load(file)
        except (ValueError, RecursionError) as error:
            raise DataError(f"--dataset {path} is not valid JSON ({error})", fix="mend the file") from error
    yield from map(_as_row, rows)


def _parquet_file(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(local_path(path))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
        raise _unreadable_parquet(path, error) from error


def _unreadable_parquet(path: Path, error: Exception) -> DataError:
    return DataError(f"--dataset {path} is not a readable Parquet file ({_first_line(error)})", fix="write it again")


def _read_parquet(path: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    try:
        for batch in _parquet_file(path).iter_batches(batch_size=PARQUET_ROWS):
            yield from _parquet_rows(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
        raise _unreadable_parquet(path, error) from error


def _parquet_rows(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], str | None]]:
    problem = None
    if batch.nbytes > MAX_ROW_BYTES:
        problem = f"larger than {MAX_ROW_BYTES} bytes"
    else:
        try:
            yield from [(value, None) for value in batch.to_pylist()]
        except UnicodeDecodeError:
            problem = "not UTF-8"
    if problem and len(batch) == 1:
        yield {}, problem
    elif problem:
        for number in range(len(batch)):
            yield from _parquet_rows(batch.slice(number, 1))


def _read_csv(path: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    csv.field_size_limit(MAX_ROW_BYTES)
    with _open(path) as file:
        yield from _csv_rows(path, io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))


def _csv_rows(path: Path, file: TextIO) -> Iterator[tuple[dict[str, Any], str | None]]:
    # Strict, since a quote that is never closed would else make the rest of the file one bad row.
    reader: Iterable[dict[str | None, Any]] = csv.DictReader(file, restkey=None, strict=True)
    try:
        for value in reader:
            if None in value or None in value.values():
                yield {}, "number of CSV fields differs from the header's"
            else:
                yield {str(name): field for name, field in value.items()}, None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"--dataset {path} is not a readable CSV file ({error})", fix="save it as UTF-8 CSV") from error
