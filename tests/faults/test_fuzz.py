"""Random input, in the shapes that users' files have and in none: no traceback, no hang, no wrong count.

What may come is one of the package's own errors, in one line. TGDPO_FUZZ is the number of inputs of all tests together.
"""

import json
import os
import random
import re
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scoring import Scoring, Tried
from support import CHAT_ROWS, STANDARD_ROWS, make_tokenizer

from tgdpo.data.cache import RewardCache
from tgdpo.data.files import sha256_file
from tgdpo.data.manifest import Manifest
from tgdpo.data.preferences import PreferenceSet
from tgdpo.data.rendering import Columns, Renderer
from tgdpo.data.schema import MANIFEST_NAME
from tgdpo.data.tokenization import LengthLimits, PairTokenizer, begin_of_text_string, control_tokens
from tgdpo.data.verify import verify
from tgdpo.errors import TgdpoError
from tgdpo.pipeline.configuration import build, read_yaml, section
from tgdpo.stages.score.config import ScoreConfig
from tgdpo.stages.score.prepare import ShardBuilder
from tgdpo.stages.train.config import TrainConfig

INPUTS = int(os.environ.get("TGDPO_FUZZ", "700"))
SHARES = {"rows": 0.4, "bytes": 0.2, "yaml": 0.15, "manifest": 0.15, "shard": 0.1}
"""What part of the inputs each test gets."""
MEGABYTES = 1000
"""What all of them together may add to the process's largest memory."""


def fuzzed(kind: str) -> Callable[[Any], Any]:
    """Hypothesis with this kind's number of inputs, each of which must be done within ten seconds."""
    return settings(
        max_examples=max(10, int(INPUTS * SHARES[kind])),
        deadline=timedelta(seconds=10),
        suppress_health_check=list(HealthCheck),
        database=None,
        print_blob=True,
    )


@pytest.fixture(scope="module", autouse=True)
def bounded() -> Any:
    """An input that asks for gigabytes gets a MemoryError, not the machine's last page."""
    used = int(re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + 4 * MEGABYTES * 2**20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, limits)


@pytest.fixture(autouse=True)
def count(request: pytest.FixtureRequest, tried: Tried) -> Any:
    """Counts the inputs, and holds them to the bound of memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    INPUTS_DONE.clear()
    yield
    tried(f"fuzzed inputs: {request.node.name.removeprefix('test_')}", len(INPUTS_DONE))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


INPUTS_DONE: list[None] = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all inputs of a test: each overwrites the last."""
    shared_memory = Path("/dev/shm")
    if not os.access(shared_memory, os.W_OK):
        return tmp_path_factory.mktemp("fuzz")
    return Path(shutil.copytree(tmp_path_factory.mktemp("fuzz"), shared_memory / f"tgdpo-fuzz-{os.getpid()}"))


@pytest.fixture(scope="module", autouse=True)
def cleaned(folder: Path) -> Any:
    """Shared memory is given back."""
    yield
    shutil.rmtree(folder)


# What files hold

TEXT = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Cf", "Mn", "Co", "Cn"]), max_size=8),
    st.sampled_from(["", " ", "\n", "</s>", "a</s>", "<|im_start|>user\n", "\x00", "\ud800", "\u202e", "=1+1", "null"]),
)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT)
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
MESSAGE = st.one_of(
    VALUE,
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]) | VALUE, "content": TEXT | VALUE},
        optional={"name": VALUE, "tool_calls": VALUE},
    ),
)
FIELD = st.one_of(TEXT, VALUE, st.lists(MESSAGE, max_size=3))
ROW = st.one_of(
    VALUE,
    st.sampled_from(STANDARD_ROWS + CHAT_ROWS),
    st.fixed_dictionaries({}, optional={"prompt": FIELD, "chosen": FIELD, "rejected": FIELD, "x": VALUE}),
)


@cache
def tokenizer(chat: bool) -> Any:
    return make_tokenizer(chat=chat)


def prepare(path: Path, *, chat: bool) -> None:
    """Reads, renders and tokenises a file as `tgdpo score` does; every row is a pair or is set aside."""
    its = tokenizer(chat)
    renderer = Renderer(
        its,
        Columns(),
        control_tokens=control_tokens(its),
        end_of_turn=its.eos_token,
        begin_of_text=begin_of_text_string(its),
    )
    builder = ShardBuilder(renderer, PairTokenizer(its, LengthLimits(context=64)))
    rows = list(PreferenceSet(str(path)))
    assert [row.number for row in rows] == list(range(len(rows)))
    builder.add(rows)
    record, table = builder.record, builder.table
    assert record.rows == len(rows) == record.pairs + len(record.set_aside)
    assert len(table) == record.pairs
    numbers = table["source_row"].to_pylist() + [row.source_row for row in record.set_aside]
    assert sorted(numbers) == list(range(len(rows)))
    for row in record.set_aside:
        row.model_dump_json().encode()


def allowed(work: Callable[[], object]) -> None:
    """Does it; one of the package's own errors may come, and nothing else."""
    INPUTS_DONE.append(None)
    with suppress(TgdpoError):
        work()


def damaged(content: bytes, chance: random.Random) -> bytes:
    """With a few bytes changed, left out, doubled or put in."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed) + 1)
        piece = changed[place : place + chance.choice([1, 1, 4, 40])]
        kind = chance.randrange(4)
        if kind == 0:
            changed[place : place + len(piece)] = chance.randbytes(len(piece))
        elif kind == 1:
            del changed[place : place + len(piece)]
        elif kind == 2:
            changed[place:place] = piece * chance.choice([1, 3])
        else:
            changed[place:place] = chance.choice([b'"', b"{", b"[", b"\n", b"\xff", b"\0", b",", b"9" * 30, b"\\ud800"])
    return bytes(changed)


SEED = st.integers(0, 2**32)


@given(
    rows=st.lists(ROW, max_size=4),
    first=st.sampled_from([[], STANDARD_ROWS[:1], CHAT_ROWS[:1]]),
    chat=st.booleans(),
    suffix=st.sampled_from(["jsonl", "json", "csv", "parquet"]),
)
@fuzzed("rows")
def test_rows_of_any_kind(rows: list[Any], first: list[Any], chat: bool, suffix: str, folder: Path) -> None:
    """Files that are whole, with anything for rows."""
    path = folder / f"rows.{suffix}"
    rows = first + rows
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "csv":
        mappings = [row for row in rows if isinstance(row, dict)]
        lines = [",".join(map(str, row.values())) for row in mappings]
        path.write_bytes("\n".join(["prompt,chosen,rejected", *lines]).encode(errors="surrogatepass"))
    else:
        try:
            pq.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), path)
        except (pa.ArrowException, ValueError, TypeError, OverflowError, OSError):
            return  # nothing that a Parquet file can hold
    allowed(lambda: prepare(path, chat=chat))


def written(suffix: str, rows: list[Any], folder: Path) -> bytes:
    path = folder / f"whole.{suffix}"
    if suffix == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix == "json":
        return json.dumps(rows).encode()
    if suffix == "csv":
        return "\n".join(["prompt,chosen,rejected", *(",".join(map(str, row.values())) for row in rows)]).encode()
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none")
    return path.read_bytes()


@given(
    seed=SEED,
    suffix=st.sampled_from(["jsonl", "json", "csv", "parquet", "jsonl.gz"]),
    rows=st.sampled_from([STANDARD_ROWS[:3], CHAT_ROWS[:3]]),
)
@fuzzed("bytes")
def test_bytes_of_preference_files(seed: int, suffix: str, rows: list[Any], folder: Path) -> None:
    """Good files with damaged bytes."""
    content = written(suffix.removesuffix(".gz"), rows, folder)
    path = folder / f"bytes.{suffix}"
    path.write_bytes(damaged(content, random.Random(seed)))
    allowed(lambda: prepare(path, chat=rows[0] is CHAT_ROWS[0]))


OPTIONS = sorted({*ScoreConfig.model_fields, *TrainConfig.model_fields, "score", "train", "nonsense"})


@given(content=st.dictionaries(st.sampled_from(OPTIONS) | TEXT, VALUE, max_size=5) | VALUE, seed=SEED)
@fuzzed("yaml")
def test_configurations(content: Any, seed: int, folder: Path) -> None:
    path = folder / "config.yaml"
    text = yaml.dump(content, allow_unicode=True).encode(errors="surrogatepass")
    path.write_bytes(damaged(text, random.Random(seed)) if seed % 2 else text)
    for name, kind in (("score", ScoreConfig), ("train", TrainConfig)):
        allowed(lambda name=name, kind=kind: build(kind, section(read_yaml(path), name, path), {}))


def manifest_paths(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in the manifest a value can be changed."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [*([at] if at else []), *(path for key, value in inner for path in manifest_paths(value, (*at, key)))]


@given(place=st.integers(0, 10_000), value=VALUE, seed=SEED)
@fuzzed("manifest")
def test_manifests(place: int, value: Any, seed: int, scoring: Scoring, folder: Path) -> None:
    """One value of the manifest is another, or some of its bytes are; the shards are as they were."""
    cache = folder / "cache"
    if not cache.exists():
        shutil.copytree(scoring.whole, cache)
    text = (scoring.whole / MANIFEST_NAME).read_bytes()
    if seed % 2:
        text = damaged(text, random.Random(seed))
    else:
        content = json.loads(text)
        paths = manifest_paths(content)
        *outer, key = paths[place % len(paths)]
        target = content
        for step in outer:
            target = target[step]
        target[key] = value
        text = json.dumps(content).encode()
    (cache / MANIFEST_NAME).write_bytes(text)
    allowed(lambda: check(cache))


def check(cache: Path) -> None:
    """As verify and training read a cache."""
    opened = RewardCache(cache)
    problems = verify(opened)
    for problem in problems:
        assert problem
    for group in opened.row_groups[:8]:
        opened.read_pairs(group)


@given(seed=SEED)
@fuzzed("shard")
def test_shards_behind_a_manifest_that_agrees(seed: int, scoring: Scoring, folder: Path) -> None:
    """Somebody wrote them and knows their hash: what is no shard is still told."""
    cache = folder / "forged"
    if not cache.exists():
        shutil.copytree(scoring.whole, cache)
    manifest = Manifest.read(scoring.whole)
    name = manifest.shards[0].name
    (cache / name).write_bytes(damaged((scoring.whole / name).read_bytes(), random.Random(seed)))
    agreeing = {"bytes": (cache / name).stat().st_size, "sha256": sha256_file(cache / name)}
    shards = [manifest.shards[0].model_copy(update=agreeing), *manifest.shards[1:]]
    manifest.model_copy(update={"shards": shards}).write(cache)
    allowed(lambda: check(cache))
