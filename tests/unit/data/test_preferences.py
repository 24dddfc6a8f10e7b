"""Reading a preference set: every kind of file gives the same rows, and a bad row costs that row alone."""

import bz2
import csv
import gzip
import json
import lzma
import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import CHAT_ROWS, STANDARD_ROWS, write_rows

from tgdpo.data.preferences import PreferenceSet
from tgdpo.data.row_files import MAX_ROW_BYTES
from tgdpo.errors import DataError, UsageError

Writer = Callable[[Path], Path]
"""Writes the twenty standard rows somewhere in a folder and returns their name."""


def values(name: Path, **options: Any) -> list[dict[str, Any]]:
    """The rows of a set without a bad row in it."""
    rows = list(PreferenceSet(str(name), **options))
    assert [row.number for row in rows] == list(range(len(rows)))
    assert not any(row.problem for row in rows)
    return [row.value for row in rows]


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def packed(suffix: str, pack: Callable[[bytes], bytes]) -> Writer:
    def write(folder: Path) -> Path:
        plain = write_rows(folder / "plain.jsonl", STANDARD_ROWS)
        path = folder / f"pairs.jsonl.{suffix}"
        path.write_bytes(pack(plain.read_bytes()))
        return path

    return write


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    packed_bytes: bytes = sink.getvalue().to_pybytes()
    return packed_bytes


def gzipped_csv(folder: Path) -> Path:
    plain = write_csv(folder / "plain.csv", STANDARD_ROWS)
    path = folder / "pairs.csv.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


def saved(folder: Path) -> Path:
    datasets.Dataset.from_list(STANDARD_ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def saved_splits(folder: Path) -> Path:
    splits = {"test": datasets.Dataset.from_list(STANDARD_ROWS[:3]), "train": datasets.Dataset.from_list(STANDARD_ROWS)}
    datasets.DatasetDict(splits).save_to_disk(folder / "saved")
    return folder / "saved"


def folder_of_files(folder: Path) -> Path:
    path = folder / "two [files] *"  # nothing in a name is a pattern
    path.mkdir()
    (path / "README.md").write_text("no data")
    write_rows(path / "a.jsonl", STANDARD_ROWS[:11])
    write_rows(path / "b.jsonl", STANDARD_ROWS[11:])
    neighbour = folder / "two f other"
    neighbour.mkdir()
    write_rows(neighbour / "c.jsonl", STANDARD_ROWS)
    return path


def data_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".jsonl", ".parquet", ".arrow")]


WRITERS: dict[str, Writer] = {
    "lines": lambda folder: write_rows(folder / "pairs.jsonl", STANDARD_ROWS),
    "ndjson": lambda folder: write_rows(folder / "pairs.ndjson", STANDARD_ROWS),
    "array": lambda folder: write_json(folder / "pairs.json", STANDARD_ROWS),
    "lines-in-json": lambda folder: write_rows(folder / "pairs.json", STANDARD_ROWS),
    "parquet": lambda folder: write_parquet(folder / "pairs.parquet", STANDARD_ROWS),
    "csv": lambda folder: write_csv(folder / "pairs.csv", STANDARD_ROWS),
    "gz": packed("gz", gzip.compress),
    "bz2": packed("bz2", bz2.compress),
    "xz": packed("xz", lzma.compress),
    "zst": packed("zst", zstd),
    "csv-gz": gzipped_csv,
    "saved": saved,
    "saved-splits": saved_splits,
    "folder": folder_of_files,
}


@pytest.fixture(params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The standard rows in one of the forms."""
    return WRITERS[request.param](tmp_path)


def test_every_form_gives_the_same_rows(written: Path) -> None:
    assert values(written) == STANDARD_ROWS


def test_limit_reads_the_first_rows(written: Path) -> None:
    assert values(written, limit=7) == STANDARD_ROWS[:7]
    assert values(written, limit=100) == STANDARD_ROWS


def test_the_length_is_known_or_zero(written: Path) -> None:
    """It feeds the progress bar alone."""
    assert len(PreferenceSet(str(written))) in (0, 20)
    assert len(PreferenceSet(str(written), limit=5)) == 5


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_rows(folder / "chat.jsonl", CHAT_ROWS),
        lambda folder: write_json(folder / "chat.json", CHAT_ROWS),
        lambda folder: write_parquet(folder / "chat.parquet", CHAT_ROWS),
    ],
)
def test_messages_stay_lists_of_mappings(write: Writer, tmp_path: Path) -> None:
    assert values(write(tmp_path)) == CHAT_ROWS


def test_lines_may_have_a_byte_order_mark_and_blank_lines_between(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\ufeff" + "\r\n\n".join(map(json.dumps, STANDARD_ROWS)))
    assert values(path) == STANDARD_ROWS


def test_csv_keeps_line_breaks_quotes_and_the_text_null(tmp_path: Path) -> None:
    rows = [{"prompt": 'a "b",\r\nc', "chosen": "null", "rejected": "é\n"}]
    assert values(write_csv(tmp_path / "a.csv", rows)) == rows


class TestSplits:
    """Splits by file name, as `datasets.load_dataset(folder)` finds them."""

    @pytest.fixture(
        params=["{}.jsonl", "data/{}.jsonl", "{}/pairs.jsonl", "{}-00000-of-00001.jsonl", "my_{}_set.jsonl"]
    )
    def folder(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        for split, rows in (("train", STANDARD_ROWS), ("test", STANDARD_ROWS[:4])):
            path = tmp_path / "set" / str(request.param).format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_rows(path, rows)
        return tmp_path / "set"

    def test_are_read_apart(self, folder: Path) -> None:
        assert values(folder) == STANDARD_ROWS
        assert values(folder, split="test") == STANDARD_ROWS[:4]

    def test_another_is_refused_with_those_there_are(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="train, test"):
            PreferenceSet(str(folder), split="validation")

    def test_of_a_saved_dict(self, tmp_path: Path) -> None:
        path = saved_splits(tmp_path)
        assert values(path, split="test") == STANDARD_ROWS[:3]
        with pytest.raises(UsageError, match="test, train"):
            PreferenceSet(str(path), split="validation")

    def test_slices_point_to_limit(self, pairs_file: Path) -> None:
        with pytest.raises(UsageError, match="--limit"):
            PreferenceSet(str(pairs_file), split="train[:10]")


class TestNotes:
    """What is read of a folder is said."""

    def test_of_a_file_there_are_none(self, pairs_file: Path) -> None:
        assert PreferenceSet(str(pairs_file)).notes == []

    def test_of_a_folder(self, tmp_path: Path) -> None:
        for name in "abcd":
            write_rows(tmp_path / f"{name}.jsonl", STANDARD_ROWS)
        write_parquet(tmp_path / "e.parquet", STANDARD_ROWS)
        assert PreferenceSet(str(tmp_path)).notes == [
            f"{tmp_path}: 4 files (a.jsonl, b.jsonl, c.jsonl …), split train",
            f"not read in {tmp_path}: 1 .parquet file",
        ]

    def test_of_a_configuration_and_a_split(self, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text(
            "---\nconfigs:\n- config_name: de\n  data_files:\n  - split: test\n    path: de/*\n---\n"
        )
        (tmp_path / "de").mkdir()
        write_rows(tmp_path / "de/x.jsonl", STANDARD_ROWS)
        assert PreferenceSet(str(tmp_path), split="test").notes == [
            f"{tmp_path}: 1 file (de/x.jsonl), configuration de, split test"
        ]


class TestFingerprint:
    """It changes with the content and with nothing else."""

    def test_is_the_same_for_a_copy(self, tmp_path: Path) -> None:
        for name, write in WRITERS.items():
            prints = set()
            for copy in ("one", "two"):
                (tmp_path / name / copy).mkdir(parents=True)
                prints.add(PreferenceSet(str(write(tmp_path / name / copy))).fingerprint())
            assert len(prints) == 1, name

    def test_changes_with_one_byte(self, written: Path) -> None:
        before = PreferenceSet(str(written)).fingerprint()
        for path in [written] if written.is_file() else data_files(written):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        assert self.fingerprint_or_refusal(written) != before

    @staticmethod
    def fingerprint_or_refusal(path: Path) -> str:
        try:
            return PreferenceSet(str(path)).fingerprint()
        except DataError as error:
            return str(error)

    def test_changes_with_limit_and_with_the_split(self, tmp_path: Path) -> None:
        path = str(saved_splits(tmp_path))
        options: list[dict[str, Any]] = [{}, {"limit": 3}, {"limit": 4}, {"split": "test"}]
        assert len({PreferenceSet(path, **each).fingerprint() for each in options}) == 4


class TestColumns:
    """Those that nobody asked for are there by name."""

    WANTED = ("prompt", "chosen", "rejected", "tools")

    @pytest.mark.parametrize("kind", ["parquet", "saved"])
    def test_are_not_decoded(self, kind: str, tmp_path: Path) -> None:
        rows = [row | {"further": [{"a": [n]}]} for n, row in enumerate(STANDARD_ROWS)]
        path = tmp_path / "pairs.parquet"
        write_parquet(path, rows)
        if kind == "saved":
            path = tmp_path / "saved"
            datasets.Dataset.from_list(rows).save_to_disk(path)
        assert values(path) == rows
        assert values(path, columns=self.WANTED) == [row | {"further": None} for row in STANDARD_ROWS]
        assert values(path, columns=["nothing"]) == [dict.fromkeys(rows[0])] * len(rows)

    def test_do_not_change_the_fingerprint(self, tmp_path: Path) -> None:
        path = str(saved(tmp_path))
        assert PreferenceSet(path, columns=self.WANTED).fingerprint() == PreferenceSet(path).fingerprint()


class TestBadRows:
    """Each has its number and a reason, and the rows around it are read."""

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            (b'{"prompt": "a"', "not valid JSON"),
            (b"prompt: a", "not valid JSON"),
            (b"[" * 100_000, "not valid JSON"),
            (b'{"prompt": ' + b"1" * 5000 + b"}", "not valid JSON"),
            (b'["a", "b"]', "not a JSON object"),
            (b"null", "not a JSON object"),
            (b'{"prompt": "\xff"}', "not UTF-8"),
        ],
    )
    def test_of_json_lines(self, line: bytes, problem: str, tmp_path: Path) -> None:
        good = b'{"prompt": "a"}'
        path = tmp_path / "pairs.jsonl"
        path.write_bytes(b"\n".join([good, line, good]))
        rows = list(PreferenceSet(str(path)))
        assert [row.number for row in rows] == [0, 1, 2]
        assert [row.problem for row in rows] == [None, problem, None]
        assert rows[1].value == {}

    def test_of_a_json_array(self, tmp_path: Path) -> None:
        path = write_json(tmp_path / "pairs.json", [{"prompt": "a"}, 3, {"prompt": "b"}])
        assert [row.problem for row in PreferenceSet(str(path))] == [None, "not a JSON object", None]

    @pytest.mark.parametrize("line", ["a,b", "a,b,c,d", "a,b,c,"])
    def test_of_csv(self, line: str, tmp_path: Path) -> None:
        path = tmp_path / "pairs.csv"
        path.write_text(f"prompt,chosen,rejected\na,b,c\n{line}\na,b,c\n")
        problems = [row.problem for row in PreferenceSet(str(path))]
        assert problems == [None, "number of CSV fields differs from the header's", None]

    def test_of_parquet_text_that_is_not_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.parquet"
        rows = [{"prompt": f"prompt {n}"} for n in range(600)]
        pq.write_table(pa.Table.from_pylist(rows), path, compression="none", use_dictionary=False)
        content = path.read_bytes()
        assert content.count(b"prompt 300") == 1
        path.write_bytes(content.replace(b"prompt 300", b"prompt \xff00"))
        read = list(PreferenceSet(str(path)))
        assert [(row.number, row.problem) for row in read if row.problem] == [(300, "not UTF-8")]
        assert [row.value for row in read if not row.problem] == rows[:300] + rows[301:]


class TestHugeRows:
    """A row of absurd size costs that row, and no memory."""

    @pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
    def test_of_json_lines(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"pairs.{suffix}"
        with gzip.open(path, "wb", 1) if suffix.endswith("gz") else path.open("wb") as file:
            file.write(b'{"prompt": "a"}\n')
            for _ in range(5):
                file.write(b"x" * (MAX_ROW_BYTES // 2))
            file.write(b'\n{"prompt": "a"}\n')
        tracemalloc.start()
        problems = [row.problem for row in PreferenceSet(str(path))]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert problems == [None, "longer than 67108864 bytes", None]
        assert peak < 2.5 * MAX_ROW_BYTES

    def test_of_parquet(self, tmp_path: Path) -> None:
        """A file of a few kilobytes that decodes to gigabytes: one text, repeated by reference."""
        path = tmp_path / "pairs.parquet"
        texts = pa.DictionaryArray.from_arrays(pa.array([0, *[1] * 2000], pa.int32()), ["a", "a" * 2_500_000])
        pq.write_table(pa.table({"prompt": texts}), path, compression="zstd", store_schema=False)
        assert path.stat().st_size < 10_000
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows = 0
        for row in PreferenceSet(str(path)):
            rows += 1
            assert row.problem is None
        assert rows == 2001
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kilobytes

    def test_of_one_parquet_cell(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.parquet"
        pq.write_table(pa.table({"prompt": ["a", "a" * (MAX_ROW_BYTES + 1), "b"]}), path)
        assert [row.problem for row in PreferenceSet(str(path))] == [None, "larger than 67108864 bytes", None]

    def test_of_parquet_categories(self, tmp_path: Path) -> None:
        """Their dictionary is larger than a row may be, and no row is."""
        path = tmp_path / "pairs.parquet"
        values = pa.array(["a", "b" * (MAX_ROW_BYTES - 100), "c" * 1000])
        texts = pa.DictionaryArray.from_arrays(pa.array([0, 2], pa.int32()), values)
        pq.write_table(pa.table({"prompt": texts}), path, compression="zstd")
        assert [row.problem for row in PreferenceSet(str(path))] == [None, None]

    def test_of_csv(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.csv"
        path.write_bytes(b"prompt,chosen,rejected\na,b," + b"x" * (MAX_ROW_BYTES + 1))
        with pytest.raises(DataError, match="field larger than field limit"):
            list(PreferenceSet(str(path)))


class TestUnreadable:
    """What cannot be read at all is one DataError, never the reader's own."""

    @pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
    @pytest.mark.parametrize("damage", ["cut", "no archive"])
    def test_archives(self, suffix: str, damage: str, tmp_path: Path) -> None:
        path = WRITERS[suffix](tmp_path)
        path.write_bytes(path.read_bytes()[:-30] if damage == "cut" else b"no archive at all")
        with pytest.raises(DataError, match=rf"pairs\.jsonl\.{suffix} cannot be read"):
            list(PreferenceSet(str(path)))

    def test_parquet_with_damaged_pages(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.parquet"
        pq.write_table(pa.Table.from_pylist(STANDARD_ROWS), path, compression="none")
        content = bytearray(path.read_bytes())
        content[20:60] = b"\xff" * 40
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a readable Parquet file"):
            list(PreferenceSet(str(path)))

    def test_parquet_with_a_damaged_column_name(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.parquet"
        pq.write_table(pa.Table.from_pylist(STANDARD_ROWS), path, compression="none", store_schema=False)
        path.write_bytes(path.read_bytes().replace(b"rejected", b"rej\x85cted"))
        with pytest.raises(DataError, match="not a readable Parquet file"):
            list(PreferenceSet(str(path)))

    def test_csv_with_a_quote_that_is_never_closed(self, tmp_path: Path) -> None:
        """Read leniently, the rest of the file would be one bad row, which the limit on those may allow."""
        path = tmp_path / "pairs.csv"
        path.write_text("prompt,chosen,rejected\n" + "a,b,c\n" * 200 + '"a,b,c\n' + "a,b,c\n" * 200)
        with pytest.raises(DataError, match="not a readable CSV file"):
            list(PreferenceSet(str(path)))

    def test_csv_of_another_encoding(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.csv"
        path.write_bytes("prompt,chosen,rejected\nä,b,c\n".encode("latin-1"))
        with pytest.raises(DataError, match="UTF-8 CSV"):
            list(PreferenceSet(str(path)))

    @pytest.mark.parametrize("file", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
    @pytest.mark.parametrize("damage", ["cut", "gone"])
    def test_saved_folders(self, file: str, damage: str, tmp_path: Path) -> None:
        path = saved(tmp_path) / file
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:40])
        else:
            path.unlink()
        with pytest.raises(DataError):
            PreferenceSet(str(path.parent))
