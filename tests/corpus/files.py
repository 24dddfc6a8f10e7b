"""Odd files: JSON, CSV and Parquet in forms that people and programs write."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .inputs import ROWS, FileInput, Kind, bytes_file, lines, text_file

LINES = lines(ROWS)
ZIPPED = gzip.compress(LINES.encode())
UNICODE = [
    row | {"chosen": row["chosen"] + " 你好 é\u2028\x85", "rejected": "\ufeff" + row["rejected"]} for row in ROWS
]


def as_csv(rows: list[dict[str, Any]], **options: Any) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


CSV = as_csv(ROWS)
TABLE = pa.Table.from_pylist(ROWS)


def parquet(make: Callable[[], pa.Table], **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pq.write_table(make(), folder / "pairs.parquet", **options)
        return folder / "pairs.parquet"

    return write


def bytes_of(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def of_types(kind: pa.DataType) -> pa.Table:
    return TABLE.cast(pa.schema([(name, kind) for name in TABLE.column_names]))


def json_typed(folder: Path) -> Path:
    """What datasets writes where a field is text in one row and a list in another."""
    user = [{"role": "user", "content": "What color is the sky?"}]
    green = [{"role": "assistant", "content": "It is green."}]
    parts = [{"type": "text", "text": "It is blue."}]
    rows = [
        {"prompt": user, "chosen": [{"role": "assistant", "content": content}], "rejected": green}
        for content in ("It is blue.", parts)
    ]
    features = datasets.Features(
        {
            "prompt": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "chosen": [{"role": datasets.Value("string"), "content": datasets.Json()}],
            "rejected": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
        }
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def with_pandas_index(folder: Path) -> Path:
    pd.DataFrame(ROWS, index=["a", "b", "c"]).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def big_beside(folder: Path) -> Path:
    """A column of 65 MB a row that nobody asked for."""
    big = pa.array([b"x" * (65 * 2**20)], pa.large_binary())
    table = TABLE.slice(0, 1).append_column("image", big)
    pq.write_table(table, folder / "pairs.parquet", compression="zstd")
    return folder / "pairs.parquet"


KINDS = [
    Kind(
        "files",
        "JSON Lines",
        "datasets",
        {
            "with a byte order mark": FileInput(text_file("a.jsonl", LINES, "utf-8-sig")),
            "with CRLF": FileInput(text_file("a.jsonl", LINES.replace("\n", "\r\n"))),
            "without a last line break": FileInput(text_file("a.jsonl", LINES.rstrip("\n"))),
            "with blank lines": FileInput(text_file("a.jsonl", LINES.replace("\n", "\n \n\n"))),
            "with line separators of Unicode in strings": FileInput(text_file("a.jsonl", lines(UNICODE)), rows=UNICODE),
            "with escaped surrogate pairs": FileInput(text_file("a.jsonl", LINES.replace("fox", "fox \\ud83d\\ude00"))),
            "with fields in another order": FileInput(
                text_file("a.jsonl", lines([dict(reversed(row.items())) for row in ROWS]))
            ),
            "with further columns of several types": FileInput(
                text_file(
                    "a.jsonl", lines([row | {"x": value} for row, value in zip(ROWS, ("a", 1, None), strict=True)])
                )
            ),
            "called ndjson": FileInput(text_file("a.ndjson", LINES)),
            "an array in a .jsonl file": FileInput(text_file("a.jsonl", json.dumps(ROWS, indent=1))),
        },
    ),
    Kind(
        "files",
        "JSON that is not lines",
        "datasets",
        {
            "an array": FileInput(text_file("a.json", json.dumps(ROWS))),
            "an array with a byte order mark": FileInput(text_file("a.json", json.dumps(ROWS), "utf-8-sig")),
            "an indented array after blank lines": FileInput(
                text_file("a.json", "\n\n" + json.dumps(ROWS, indent=2)), rows=ROWS
            ),
            "lines in a .json file": FileInput(text_file("a.json", LINES)),
            "one indented object": FileInput(
                text_file("a.json", json.dumps({"data": ROWS}, indent=2)), "go over several lines"
            ),
            "objects over several lines": FileInput(
                text_file("a.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS)), "go over several lines"
            ),
            "rows under a key": FileInput(text_file("a.json", json.dumps({"data": ROWS})), "lie in the list 'data'"),
            "columns instead of rows": FileInput(
                text_file("a.json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]})),
                "not a message",
            ),
            "an array that is cut": FileInput(text_file("a.json", json.dumps(ROWS)[:-20]), "not valid JSON"),
            "two arrays": FileInput(text_file("a.json", json.dumps(ROWS) * 2), "not valid JSON"),
        },
    ),
    Kind(
        "files",
        "encodings",
        "one line",
        {
            **{
                f"{name} in {encoding}": FileInput(text_file(name, text, encoding), outcome)
                for name, text in (("a.jsonl", LINES), ("a.csv", CSV))
                for encoding, outcome in (("utf-16", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32"))
            },
            "an array in UTF-16": FileInput(text_file("a.json", json.dumps(ROWS), "utf-16"), "UTF-16"),
            "lines in Latin-1": FileInput(text_file("a.jsonl", LINES.replace("fox", "föx"), "latin-1"), "not UTF-8"),
            "CSV in GBK": FileInput(text_file("a.csv", CSV.replace("fox", "狐狸"), "gbk"), "UTF-8 CSV"),
            "an array in Latin-1": FileInput(
                text_file("a.json", json.dumps(ROWS, ensure_ascii=False).replace("fox", "föx"), "latin-1"), "not UTF-8"
            ),
        },
    ),
    Kind(
        "files",
        "CSV",
        "datasets",
        {
            "as it is": FileInput(text_file("a.csv", CSV)),
            "with a byte order mark": FileInput(text_file("a.csv", CSV, "utf-8-sig")),
            "with every field quoted": FileInput(text_file("a.csv", as_csv(ROWS, quoting=csv.QUOTE_ALL))),
            "with line breaks, quotes and commas in fields": FileInput(
                text_file("a.csv", as_csv([row | {"chosen": 'a "b",\nc'} for row in ROWS]))
            ),
            "the text null stays text": FileInput(
                text_file("a.csv", as_csv([row | {"chosen": "null"} for row in ROWS])),
                rows=[row | {"chosen": "null"} for row in ROWS],
            ),
            "separated by semicolons": FileInput(text_file("a.csv", as_csv(ROWS, delimiter=";")), "semicolons"),
            "separated by tabs": FileInput(text_file("a.csv", as_csv(ROWS, delimiter="\t")), "tabs"),
            "with a column twice": FileInput(
                text_file("a.csv", "prompt,chosen,rejected,chosen\na,b,c,d\n"), "two columns called chosen"
            ),
            "with a quote that is never closed": FileInput(text_file("a.csv", CSV + '"a,b,c\n'), "not a readable CSV"),
            "with a header alone": FileInput(text_file("a.csv", "prompt,chosen,rejected\n"), "has no rows"),
        },
    ),
    Kind(
        "files",
        "Parquet",
        "datasets",
        {
            "large strings": FileInput(parquet(lambda: of_types(pa.large_string()))),
            "string views": FileInput(parquet(lambda: of_types(pa.string_view()))),
            "categories": FileInput(parquet(lambda: of_types(pa.dictionary(pa.int32(), pa.string()))), rows=ROWS),
            "with pandas' index": FileInput(with_pandas_index),
            "values that datasets stores as JSON": FileInput(json_typed),
            "a large column beside": FileInput(big_beside),
            "bytes instead of text": FileInput(parquet(lambda: of_types(pa.binary())), "is bytes"),
            "numbers instead of text": FileInput(
                parquet(lambda: pa.table({name: [1, 2] for name in ROWS[0]})), "is int"
            ),
            "a column twice": FileInput(
                parquet(lambda: pa.table([["a"]] * 4, names=["prompt", "chosen", "rejected", "chosen"])),
                "two columns called chosen",
            ),
            "no rows": FileInput(parquet(lambda: TABLE.slice(0, 0)), "has no rows"),
        },
    ),
    Kind(
        "files",
        "compressed and damaged",
        "datasets",
        {
            "gzip": FileInput(bytes_file("a.jsonl.gz", gzip.compress(LINES.encode()))),
            "gzip of two parts": FileInput(
                bytes_file("a.jsonl.gz", gzip.compress(LINES.encode()[:100]) + gzip.compress(LINES.encode()[100:]))
            ),
            "bz2": FileInput(bytes_file("a.json.bz2", bz2.compress(json.dumps(ROWS).encode()))),
            "xz of CSV": FileInput(bytes_file("a.csv.xz", lzma.compress(CSV.encode()))),
            "gzip that is cut": FileInput(
                bytes_file("a.jsonl.gz", gzip.compress(LINES.encode())[:-9]), "cannot be read"
            ),
            "called gz and is none": FileInput(text_file("a.jsonl.gz", LINES), "cannot be read"),
            "empty": FileInput(bytes_file("a.jsonl", b""), "has no rows"),
            "called parquet and is JSON": FileInput(text_file("a.parquet", LINES), "not a readable Parquet file"),
            "called jsonl and is Parquet": FileInput(bytes_file("a.jsonl", bytes_of(TABLE)), "unreadable row"),
            "a pointer of git-lfs": FileInput(
                text_file("a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
                "not a readable Parquet file",
            ),
        },
    ),
]
