"""How fast `tgdpo verify` checks a cache: `python benchmarks/verify_speed.py [--shards 8]`.

The cache is made on the spot, shards of 8,192 pairs with random ids and scores (random scores compress little, as real
ones do). One process, one thread; the files are in the page cache, so that the figure is about the processor. Beside
it, what hashing alone takes.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from common import machine, make_pairs, table
from loader import LENGTHS, SHARD_PAIRS, VOCABULARY, shard_table

from tgdpo.data.cache import RewardCache
from tgdpo.data.files import sha256_file
from tgdpo.data.manifest import Counts, Manifest, Shard
from tgdpo.data.schema import ROW_GROUP_PAIRS, shard_name, write_parquet
from tgdpo.data.verify import verify


def make_cache(folder: Path, count: int) -> None:
    """A finished cache of `count` shards, every pair with a name of its own."""
    shards = []
    for number in range(count):
        pairs = make_pairs(SHARD_PAIRS, VOCABULARY, **LENGTHS, seed=number)
        rows = shard_table(pairs)
        names = pa.array([f"{number:08x}{row:024x}" for row in range(SHARD_PAIRS)])
        place = rows.schema.get_field_index("pair_id")
        path = folder / shard_name(number, count)
        write_parquet(rows.set_column(place, rows.schema.field("pair_id"), names), path)
        tokens = {f"{part}_tokens": sum(len(getattr(pair, part)) for pair in pairs) for part in pairs[0]._fields}
        shards.append(
            Shard(name=path.name, rows=SHARD_PAIRS, bytes=path.stat().st_size, sha256=sha256_file(path), **tokens)
        )
    rows_in_all = count * SHARD_PAIRS
    Manifest(
        created="2026-01-01T00:00:00Z",
        reward_kind="log-ratio",
        dataset="random",
        reference="random",
        guidance="random",
        tokenizer="random",
        tokenizer_vocabulary_sha256="0" * 64,
        conversational=False,
        row_group_pairs=ROW_GROUP_PAIRS,
        settings={},
        fingerprint={},
        counts=Counts(read=rows_in_all, scored=rows_in_all, set_aside=0, duplicates=0, truncated=0),
        set_aside_reasons={},
        shards=shards,
    ).write(folder)


def timed(work: Any) -> float:
    """Processor seconds that `work()` takes, the best of three."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Makes the cache, checks it, prints MB of files a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=8)
    shards = parser.parse_args().shards
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_cache(folder, shards)
        cache = RewardCache(folder)
        megabytes = sum(shard.bytes for shard in cache.manifest.shards) / 1e6
        found = verify(cache)
        assert found == [], found
        speeds = {
            "tgdpo verify": megabytes / timed(lambda: verify(RewardCache(folder))),
            "SHA-256 alone": megabytes / timed(lambda: [sha256_file(path) for path in folder.glob("part-*")]),
        }
    print(machine())
    print(f"{len(cache):,} pairs in {shards} shards, {megabytes:,.0f} MB; the best of three")
    print(table([["", "MB/s"], *([what, f"{speed:,.0f}"] for what, speed in speeds.items())]))


if __name__ == "__main__":
    main()
