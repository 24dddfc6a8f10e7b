"""Odd folders: splits by name, configurations of a README, several formats, outputs of tgdpo among the data."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from .inputs import ROWS, FileInput, Kind, lines

OTHER = [row | {"prompt": "DE " + row["prompt"]} for row in ROWS]

CONFIGS = """---
configs:
- config_name: en
  {default}data_files:
  - split: train
    path: en/*.jsonl
  - split: test
    path: en-test.jsonl
- config_name: de
  data_dir: de
---
# A set
"""


def tree(files: dict[str, Any], root: str = "") -> Callable[[Path], Path]:
    """Makes a folder: rows become JSON Lines, text and bytes are written as they are, a table is Parquet."""

    def make(folder: Path) -> Path:
        for name, content in files.items():
            path = folder / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, pa.Table):
                pq.write_table(content, path)
            elif isinstance(content, str):
                path.write_text(content)
            else:
                path.write_text(lines(content))
        return folder / "set" / root

    return make


TABLE = pa.Table.from_pylist(ROWS)
CACHE = {
    "_manifest.json": json.dumps({"format_version": 1}),
    "part-00000-of-00001.parquet": TABLE,
    "_set_aside.jsonl": "",
}
UNFINISHED = {"_work/settings.json": json.dumps({"dtype": "float32"}), "_work/tokens-00000.parquet": TABLE}
RUN = {"run.json": json.dumps({"identity": {}, "id": "a"}), "metrics.jsonl": [{"loss": 1.0}], "pairs.jsonl": OTHER}


def readme(files: str) -> str:
    return f"---\nconfigs:\n- config_name: x\n  data_files: {files}\n---\n"


def below(name: str, files: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}/{each}": content for each, content in files.items()}


def saved(change: Callable[[datasets.Dataset], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        change(datasets.Dataset.from_list([row | {"ids": [1, 2]} for row in ROWS])).save_to_disk(folder / "set")
        return folder / "set"

    return make


def with_images(folder: Path) -> Path:
    """The pictures are none: whoever decodes them fails."""
    strings = {name: datasets.Value("string") for name in ROWS[0]}
    features = datasets.Features(strings | {"image": datasets.Image()})
    images = [{"bytes": b"no picture", "path": None}] * len(ROWS)
    columns = {name: [row[name] for row in ROWS] for name in strings} | {"image": images}
    datasets.Dataset(pa.table(columns, schema=features.arrow_schema)).save_to_disk(folder / "set")
    return folder / "set"


en = functools.partial(CONFIGS.format, default="default: true\n  ")
TWO = {"en/a.jsonl": ROWS, "en-test.jsonl": OTHER, "de/b.jsonl": OTHER}

KINDS = [
    Kind(
        "folders",
        "splits by name",
        "datasets",
        {
            "train.jsonl and test.jsonl": FileInput(tree({"train.jsonl": ROWS, "test.jsonl": OTHER})),
            "the split test": FileInput(tree({"train.jsonl": ROWS, "test.jsonl": OTHER}), split="test"),
            "folders train and dev": FileInput(tree({"train/a.jsonl": ROWS, "dev/a.jsonl": OTHER}), split="validation"),
            "shards in data/": FileInput(tree({"data/train-00000-of-00001.parquet": TABLE, "notes.jsonl": OTHER})),
            "a split of another name": FileInput(tree({"data/mine-00000-of-00001.parquet": TABLE}), split="mine"),
            "no name says a split": FileInput(tree({"b.jsonl": ROWS, "c/a.jsonl": OTHER})),
            "two patterns fit one file": FileInput(tree({"train/train-a/x.jsonl": ROWS}), rows=ROWS),
            "hidden files and __pycache__": FileInput(
                tree({"a.jsonl": ROWS, ".hidden.jsonl": OTHER, "__pycache__/b.jsonl": OTHER, ".git/c.json": OTHER})
            ),
            "a split that is not there": FileInput(tree({"train.jsonl": ROWS}), "has train", split="test"),
            "nothing that is read": FileInput(tree({"a.xlsx": "x", "README.md": "# A set"}), "the folder holds no"),
        },
    ),
    Kind(
        "folders",
        "configurations of a README.md",
        "datasets",
        {
            "the default one": FileInput(tree({"README.md": en()} | TWO)),
            "its other split": FileInput(tree({"README.md": en()} | TWO), split="test"),
            "another one, by data_dir": FileInput(tree({"README.md": en()} | TWO), configuration="de"),
            "none is the default": FileInput(tree({"README.md": CONFIGS.format(default="")} | TWO), "has en, de"),
            "an unknown one": FileInput(tree({"README.md": en()} | TWO), "has en, de", configuration="fr"),
            "one alone": FileInput(
                tree(
                    {
                        "README.md": "---\nconfigs:\n- config_name: x\n  data_files: a/*\n---\n",
                        "a/1.jsonl": ROWS,
                        "b.jsonl": OTHER,
                    }
                )
            ),
            "a README without any": FileInput(
                tree({"README.md": "---\nlicense: mit\n---\n", "a.jsonl": ROWS}),
                "no README.md that names",
                configuration="x",
            ),
            "in .huggingface.yaml": FileInput(
                tree(
                    {
                        ".huggingface.yaml": "configs:\n- config_name: x\n  data_files: b.jsonl\n",
                        "a.jsonl": ROWS,
                        "b.jsonl": OTHER,
                    }
                )
            ),
            "that is not YAML": FileInput(
                tree({"README.md": "---\nconfigs: [\n---\n", "a.jsonl": ROWS}), "cannot be read"
            ),
            "that names a file that is gone": FileInput(
                tree(
                    {"README.md": "---\nconfigs:\n- config_name: x\n  data_files: gone.jsonl\n---\n", "a.jsonl": ROWS}
                ),
                "which is not there",
            ),
        },
    ),
    Kind(
        "folders",
        "several formats",
        "datasets",
        {
            "two of one set": FileInput(tree({"train.jsonl": ROWS, "train.parquet": TABLE})),
            "more of one": FileInput(tree({"a.jsonl": ROWS, "b.jsonl": ROWS, "c.parquet": TABLE})),
            "json and jsonl": FileInput(tree({"a.json": ROWS, "b.jsonl": OTHER})),
            "json, jsonl and Parquet": FileInput(tree({"a.json": OTHER, "b.jsonl": OTHER, "c.parquet": TABLE})),
            "CSV and JSON": FileInput(tree({"a.csv": "prompt,chosen,rejected\na,b,c\n", "b.json": ROWS})),
            "other names of files": FileInput(tree({"a.jsonl": ROWS, "LICENSE": "x", "make.py": "pass"})),
            "one format a split": FileInput(tree({"train.jsonl": ROWS, "test.parquet": TABLE}), rows=ROWS),
        },
    ),
    Kind(
        "folders",
        "outputs of tgdpo among the data",
        "datasets on the folder without them",
        {
            "a cache": FileInput(tree({"a.jsonl": ROWS} | below("cache", CACHE)), rows=ROWS),
            "an unfinished cache": FileInput(tree({"a.jsonl": ROWS} | below("cache", UNFINISHED)), rows=ROWS),
            "a run": FileInput(tree({"a.jsonl": ROWS} | below("run", RUN)), rows=ROWS),
            "a cache called train": FileInput(tree({"a.jsonl": ROWS} | below("train", CACHE)), rows=ROWS),
            "a run called eval": FileInput(tree({"a.jsonl": ROWS} | below("out/eval", RUN)), rows=ROWS),
            "a folder with a run.json of its own": FileInput(tree({"a/run.json": ROWS})),
            "a manifest of something else": FileInput(tree({"b/_manifest.json": [{"files": 1} | ROWS[0]]})),
            "the cache itself": FileInput(tree(CACHE), "--reuse"),
            "the run itself": FileInput(tree(RUN), "is a training run"),
            "nothing but a cache": FileInput(tree(below("cache", CACHE)), "a finished output of tgdpo"),
        },
    ),
    Kind(
        "folders",
        "Dataset.save_to_disk",
        "datasets",
        {
            "as it is": FileInput(saved(lambda rows: rows)),
            "torch, some columns": FileInput(saved(lambda rows: rows.with_format("torch", columns=["ids"])), rows=ROWS),
            "numpy": FileInput(saved(lambda rows: rows.with_format("numpy")), rows=ROWS),
            "pandas": FileInput(saved(lambda rows: rows.with_format("pandas")), rows=ROWS),
            "shuffled": FileInput(saved(lambda rows: rows.shuffle(seed=1))),
            "of several splits": FileInput(
                saved(lambda rows: datasets.DatasetDict({"test": rows.select([0]), "train": rows})), split="test"
            ),
            "with pictures that are none": FileInput(with_images, rows=ROWS),
            "with a configuration": FileInput(saved(lambda rows: rows), "has no configurations", configuration="x"),
        },
    ),
]
