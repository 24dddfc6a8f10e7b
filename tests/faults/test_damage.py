"""Whatever happens to the files of a finished cache, `verify` says which file it is."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scoring import Scoring, Tried

from tgdpo.data.cache import RewardCache
from tgdpo.data.schema import MANIFEST_NAME, SET_ASIDE_NAME
from tgdpo.data.verify import verify
from tgdpo.errors import CacheError

FLIPS = int(os.environ.get("TGDPO_FLIPS", "100"))
FIRST, SECOND = "part-00000-of-00004.parquet", "part-00001-of-00004.parquet"


def found(cache: Path) -> str:
    """What verify, or the manifest's reader before it, says of the cache."""
    try:
        return "\n".join(verify(RewardCache(cache)))
    except CacheError as error:
        return str(error)


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def test_every_flipped_bit_of_a_shard(copy: Path, scoring: Scoring, chance: random.Random, tried: Tried) -> None:
    shards = sorted(copy.glob("part-*"))
    for number in range(FLIPS):
        shard = shards[number % len(shards)]
        flip(shard, chance)
        assert f"{shard.name} has changed" in found(copy)
        shutil.copy(scoring.whole / shard.name, shard)
    tried("flipped bits of shards", FLIPS)


def test_every_flipped_bit_of_the_list_of_rows_set_aside(
    copy: Path, scoring: Scoring, chance: random.Random, tried: Tried
) -> None:
    for _ in range(FLIPS // 4):
        flip(copy / SET_ASIDE_NAME, chance)
        assert SET_ASIDE_NAME in found(copy)
        shutil.copy(scoring.whole / SET_ASIDE_NAME, copy)
    tried("flipped bits of _set_aside.jsonl", FLIPS // 4)


def test_flipped_bits_of_the_manifest_break_nothing(
    copy: Path, scoring: Scoring, chance: random.Random, tried: Tried
) -> None:
    """It has no hash of its own: a bit that changes a name or a number of it is not always found, but the rows are
    those that were scored, or the manifest is refused."""
    for _ in range(FLIPS):
        flip(copy / MANIFEST_NAME, chance)
        found(copy)
        shutil.copy(scoring.whole / MANIFEST_NAME, copy)
    tried("flipped bits of _manifest.json", FLIPS)


def swap(cache: Path) -> None:
    first, second = cache / FIRST, cache / SECOND
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated by a byte": lambda cache: os.truncate(cache / FIRST, (cache / FIRST).stat().st_size - 1),
    "truncated by half": lambda cache: os.truncate(cache / FIRST, (cache / FIRST).stat().st_size // 2),
    "emptied": lambda cache: os.truncate(cache / FIRST, 0),
    "longer by a byte": lambda cache: os.truncate(cache / FIRST, (cache / FIRST).stat().st_size + 1),
    "swapped with another": swap,
    "replaced by another": lambda cache: shutil.copy(cache / SECOND, cache / FIRST),
    "deleted": lambda cache: (cache / FIRST).unlink(),
    "a folder now": lambda cache: ((cache / FIRST).unlink(), (cache / FIRST).mkdir()),
    "a link to another": lambda cache: ((cache / FIRST).unlink(), (cache / FIRST).symlink_to(cache / SECOND)),
    "a link to a device": lambda cache: ((cache / FIRST).unlink(), (cache / FIRST).symlink_to("/dev/zero")),
    "a link to nothing": lambda cache: ((cache / FIRST).unlink(), (cache / FIRST).symlink_to(cache / "gone")),
    "a link to itself": lambda cache: ((cache / FIRST).unlink(), (cache / FIRST).symlink_to(cache / FIRST)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_is(damage: str, copy: Path, tried: Tried) -> None:
    DAMAGES[damage](copy)
    assert FIRST in found(copy)
    tried("other damages of shards", 1)


def test_a_shard_too_many(copy: Path) -> None:
    shutil.copy(copy / FIRST, copy / "part-00004-of-00005.parquet")
    assert "part-00004-of-00005.parquet is not in the manifest" in found(copy)


def test_a_shard_of_another_run(copy: Path, scoring: Scoring, tmp_path: Path) -> None:
    """Of the same rows and the same size, with other scores."""
    other = tmp_path / "other"
    done = scoring.start(other, "--guidance", scoring.words[scoring.words.index("--reference") + 1])
    assert done.wait() == [0], done.output
    shutil.copy(other / FIRST, copy / FIRST)
    assert FIRST in found(copy)


def test_files_of_an_unfinished_run(scoring: Scoring, tmp_path: Path, tried: Tried) -> None:
    """One line names the file, or the file is not needed and the cache is the undisturbed run's."""
    half = tmp_path / "half"
    assert scoring.start(half, "--worker", "0/2").wait() == [0]
    damages = 0
    for name in sorted(path.relative_to(half) for path in half.rglob("*") if path.is_file()):
        content = (half / name).read_bytes()
        middle = len(content) // 2
        for damaged in (b"", content[:middle], content[:middle] + b"\xff\xff\xff" + content[middle + 3 :]):
            output = shutil.copytree(half, tmp_path / "cache")
            (output / name).write_bytes(damaged)
            scoring.log.write_text("")
            done = scoring.start(output)
            assert done.wait() in ([0], [1]), done.output
            if done.processes[0].exitcode:
                assert f"{output / name} is damaged" in done.output
                assert "Traceback" not in done.output
            else:
                scoring.require_whole(output)
            shutil.rmtree(output)
            damages += 1
    tried("damaged files of unfinished runs", damages)
