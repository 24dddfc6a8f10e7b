"""Reads a file row by row: JSON Lines, a JSON array, Parquet or CSV, also compressed.

Files are read by line or by record batch, so one bad row costs that row and memory does not grow with the file
(a JSON array is the exception: it is one value and is parsed as one).
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from .addresses import local_path

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

FileRow = tuple[dict[str, Any], str | None]
"""The columns of a row by name, or why it cannot be read."""


def bare_suffix(path: Path) -> str:
    """The suffix without that of a compression."""
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def read_file(path: Path, columns: Collection[str] | None = None) -> Iterator[FileRow]:
    """The rows of a file.

    Args:
        path: the file; its suffix says what it is.
        columns: the columns that are wanted, None for all. Of the others Parquet rows have the names, with None.

    Raises:
        DataError: the file cannot be read, or is not what its suffix says.
    """
    suffix = bare_suffix(path)
    if suffix == ".parquet":
        return _read_parquet(path, columns)
    start = _start_of_text(path)
    if suffix == ".csv":
        return _read_csv(path)
    # datasets reads an array in a file called .jsonl as well.
    return _read_json_array(path) if start.startswith("[") else _read_json_lines(path)


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
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


def _start_of_text(path: Path) -> str:
    """The first characters of a text file, white space left out. Raises DataError where it is not UTF-8."""
    with _open(path) as file:
        start: bytes = file.read(4096)
    encoding = json.detect_encoding(start)
    if not encoding.startswith("utf-8"):
        raise DataError(f"--dataset {path} is not UTF-8 but {encoding.upper()}", fix="save it as UTF-8")
    return start.decode(encoding, "replace").lstrip()


# JSON


def _as_row(value: Any) -> FileRow:
    return (value, None) if isinstance(value, dict) else ({}, "not a JSON object")


def _read_json_lines(path: Path) -> Iterator[FileRow]:
    with _open(path) as file:
        is_first = True
        while line := file.readline(MAX_ROW_BYTES):
            if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
                del line
                _skip_line(file)
                yield {}, f"longer than {MAX_ROW_BYTES} bytes"
                continue
            if not line.strip():
                continue
            if is_first and line.strip(b" \t\r\n\xef\xbb\xbf") == b"{":
                raise DataError(
                    f"--dataset {path} holds JSON objects that go over several lines",
                    fix="write one object per line (JSON Lines), or all rows in one array: [ … ]",
                )
            is_first = False
            yield _parse_line(line)


def _parse_line(line: bytes) -> FileRow:
    try:
        # Decoded here: of bytes json.loads guesses the encoding. Lone surrogates are told later, by name.
        return _as_row(json.loads(line.decode("utf-8", "surrogatepass").removeprefix("\ufeff")))
    except UnicodeDecodeError:
        return {}, "not UTF-8"
    except (ValueError, RecursionError):
        return {}, "not valid JSON"


def _skip_line(file: Any) -> None:
    while (more := file.readline(2**20)) and not more.endswith(b"\n"):
        pass


def _read_json_array(path: Path) -> Iterator[FileRow]:
    with _open(path) as file:
        try:
            rows = json.load(io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogatepass"))
        except UnicodeDecodeError as error:
            raise DataError(f"--dataset {path} is not UTF-8 ({error.reason})", fix="save it as UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"--dataset {path} is not valid JSON ({error})", fix="correct the file") from error
    yield from map(_as_row, rows)


# Parquet


def parquet_rows(path: Path) -> int:
    """The number of rows of a Parquet file. Raises DataError where it is none."""
    return int(_parquet_file(path).metadata.num_rows)


def _parquet_file(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(local_path(path))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
        raise _unreadable_parquet(path, error) from error


def _unreadable_parquet(path: Path, error: Exception) -> DataError:
    return DataError(f"--dataset {path} is not a readable Parquet file ({first_line(error)})", fix="write it again")


def _read_parquet(path: Path, columns: Collection[str] | None) -> Iterator[FileRow]:
    try:
        file = _parquet_file(path)
        names = file.schema_arrow.names
        wanted = names if columns is None else [name for name in names if name in columns]
        require_once(path, names, wanted)
        decode = _decoder(file.schema_arrow, wanted)
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=wanted, use_threads=False):
            for value, problem in _batch_rows(batch.select(wanted)):
                yield (value, problem) if problem else (dict.fromkeys(names) | decode(value), None)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
        raise _unreadable_parquet(path, error) from error


def require_once(path: Path | str, names: Iterable[str], wanted: Collection[str]) -> None:
    """Raises DataError where one of the wanted columns is there twice."""
    twice = [name for name, count in Counter(names).items() if count > 1 and name in wanted]
    if twice:
        raise DataError(f"--dataset {path} has two columns called {twice[0]}", fix="rename one of them")


def _decoder(schema: pa.Schema, wanted: list[str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """datasets stores values of several types as JSON text, and says so beside the schema."""
    if b"huggingface" not in (schema.metadata or {}) or "arrow.json" not in str(schema):
        return lambda value: value
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    decoded: Callable[[dict[str, Any]], dict[str, Any]] = datasets.Features(
        {name: features[name] for name in wanted}
    ).decode_example
    return decoded


def _batch_rows(batch: pa.RecordBatch) -> Iterator[FileRow]:
    problem = None
    batch = _without_dictionaries(batch)
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
            yield from _batch_rows(batch.slice(number, 1))


def _without_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows with the values in place: the size of a dictionary says nothing of that of a row."""
    if not any(pa.types.is_dictionary(field.type) for field in batch.schema):
        return batch
    plain = [each.dictionary_decode() if pa.types.is_dictionary(each.type) else each for each in batch.columns]
    return pa.RecordBatch.from_arrays(plain, names=batch.schema.names)


# CSV


def _read_csv(path: Path) -> Iterator[FileRow]:
    csv.field_size_limit(MAX_ROW_BYTES)
    with _open(path) as file:
        yield from _csv_rows(path, io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))


def _csv_rows(path: Path, file: TextIO) -> Iterator[FileRow]:
    # Strict, since a quote that is never closed would else make the rest of the file one bad row.
    reader: Any = csv.DictReader(file, restkey=None, strict=True)
    try:
        header = list(reader.fieldnames or [])
        require_once(path, header, header)
        _require_commas(path, header)
        for value in reader:
            if None in value or None in value.values():
                yield {}, "number of CSV fields differs from the header's"
            else:
                yield {str(name): field for name, field in value.items()}, None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"--dataset {path} is not a readable CSV file ({error})", fix="save it as UTF-8 CSV") from error


def _require_commas(path: Path, header: list[str]) -> None:
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and header[0].count(separator) > 0:
            raise DataError(f"--dataset {path} is separated by {name}", fix="save it with commas, or as JSON Lines")
