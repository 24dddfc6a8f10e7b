"""What an S3 server refuses: its own reason and what helps, in one line; and what arrives damaged."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import BUCKET, Proxy, Refused, Request

from tgdpo.data import object_store
from tgdpo.data.cache import RewardCache
from tgdpo.data.storage import Storage
from tgdpo.data.store import Store, open_store
from tgdpo.data.store_errors import refusal
from tgdpo.data.verify import verify
from tgdpo.errors import CacheError, StorageError, TgdpoError, is_out_of_memory

REGION = {"x-amz-bucket-region": "eu-west-1"}
REFUSALS = {
    "another region": (
        Refused(301, "PermanentRedirect", "Use the specified endpoint.", REGION),
        "the bucket is in the region eu-west-1): set AWS_DEFAULT_REGION=eu-west-1",
    ),
    "another region, not named": (
        Refused(301, "PermanentRedirect", "Use the specified endpoint."),
        "the bucket is in another region): set AWS_DEFAULT_REGION=REGION",
    ),
    "signed for another region": (
        Refused(400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-west-1'", REGION),
        "the bucket is in the region eu-west-1): set AWS_DEFAULT_REGION=eu-west-1",
    ),
    "expired": (Refused(400, "ExpiredToken", "The provided token has expired."), "has expired): renew the credentials"),
    "no token": (Refused(400, "InvalidToken", "The token is malformed."), "The token is malformed): check the cred"),
    "no key": (Refused(403, "InvalidAccessKeyId", "No such key."), "No such key): check the credentials"),
    "wrong secret": (Refused(403, "SignatureDoesNotMatch", "Not the same."), "Not the same): check the credentials"),
    "clock": (Refused(403, "RequestTimeTooSkewed", "Too late."), "Too late): set this machine's clock"),
    "denied": (Refused(403, "AccessDenied", "Access Denied"), "Access Denied): let the credentials list the bucket"),
    "no bucket": (Refused(404, "NoSuchBucket", "No such bucket."), "No such bucket): check the address, or make the"),
}
ASKED: dict[str, Callable[[Store], object]] = {
    "is it there": lambda store: store.existing(["_manifest.json"]),
    "read": lambda store: store.read("x"),
    "read a part": lambda store: store.file("x.parquet").rows(),
    "write": lambda store: store.publish("x", lambda path: path.write_text("x")),
    "read a cache": lambda store: Storage(store.location).read("x"),
}


@pytest.fixture
def through(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy, on the way of this process to its bucket."""
    s3fs = pytest.importorskip("s3fs")
    for name, value in proxy.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "FIRST_PAUSE", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("kind", REFUSALS)
def test_one_right_line_at_once(kind: str, through: Proxy) -> None:
    """Also of a store that has answered before, which is else asked again for a minute."""
    refused, expected = REFUSALS[kind]
    store = open_store(f"s3://{BUCKET}/refused")
    store.names()
    through.refuses = lambda *_: refused
    start = time.monotonic()
    for name, ask in ASKED.items():
        with pytest.raises(TgdpoError) as caught:
            ask(store)
        assert expected in str(caught.value), name
        assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 20


def test_listing_denied_and_reading_allowed(through: Proxy) -> None:
    """S3 says "Forbidden" of a file that is not there to who must not list."""
    store = open_store(f"s3://{BUCKET}/unlisted")
    store.publish("there", lambda path: path.write_text("content"))
    through.refuses = lambda _, path: (
        Refused(403, "AccessDenied", "not authorized to perform: s3:ListBucket")
        if "list-type" in path or "gone" in path
        else None
    )
    assert store.read("there") == b"content"
    with pytest.raises(StorageError, match=r"ListBucket\): let the credentials list the bucket"):
        store.existing(["gone"])


def test_a_busy_store_is_asked_again(through: Proxy) -> None:
    store = open_store(f"s3://{BUCKET}/busy")
    store.names()
    seen: list[str] = []

    def refuse(method: str, _: str) -> Refused | None:
        seen.append(method)
        return Refused(503, "SlowDown", "Please reduce your request rate.") if len(seen) < 2 else None

    through.refuses = refuse
    assert store.publish("x", lambda path: path.write_text("x"))
    assert len(seen) >= 2


def test_what_is_no_refusal() -> None:
    assert refusal(ConnectionError("the line is dead\nand more")).reason == "the line is dead"
    assert refusal(OSError(22, "Bad thing")).reason == "Bad thing"
    assert refusal(ValueError()).reason == "ValueError"
    assert refusal(ConnectionError("x")).will_pass


class Flips:
    """Changes one bit in the middle of what arrives of files of a kind: the first `times` answers."""

    def __init__(self, kind: str, times: int, *, parts_of_it: bool = False) -> None:
        self.kind, self.times, self.parts_of_it = kind, times, parts_of_it
        self.done = 0

    def __call__(self, request: Request, content: bytes) -> bytes:
        is_part = request.status == 206
        if request.method != "GET" or not request.name.startswith(self.kind) or is_part != self.parts_of_it:
            return content
        if self.done >= self.times or len(content) < 100:
            return content
        self.done += 1
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1 << self.done % 8]) + content[middle + 1 :]


@pytest.fixture
def copied(finished: Path, bucket: Any, through: Proxy) -> str:
    """A finished cache in the bucket, behind the proxy."""
    url = f"s3://{BUCKET}/flips"
    bucket.put(f"{finished}/", url, recursive=True)
    return url


@pytest.mark.parametrize("is_part", [False, True])
@pytest.mark.parametrize("kind", ["part-", "_manifest"])
def test_a_bit_that_flips_on_the_way_costs_nothing(kind: str, is_part: bool, copied: str, through: Proxy) -> None:
    through.alters = flips = Flips(kind, 1, parts_of_it=is_part)
    cache = RewardCache(copied)
    assert verify(cache) == []
    assert sum(len(cache.read_pairs(group)) for group in cache.row_groups) == len(cache)
    assert flips.done == (1 if is_part == (kind == "part-") else 0)


def test_bits_that_flip_each_time_are_the_networks(
    copied: str, through: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = RewardCache(copied)
    through.alters = Flips("part-", 10**6, parts_of_it=True)
    with pytest.raises(CacheError, match=r"did not match.*check the network and its proxies"):
        cache.read_pairs(cache.row_groups[0])
    digests = iter("ab")  # of a store without checksums
    monkeypatch.setattr(Storage, "sha256", lambda *_: next(digests))
    with pytest.raises(CacheError, match=r"arrives with other bytes each time.*check the network and its proxies"):
        cache.read_pairs(cache.row_groups[0])


@pytest.mark.parametrize("is_part", [False, True])
def test_an_intermediate_file_is_read_again(is_part: bool, through: Proxy) -> None:
    store = open_store(f"s3://{BUCKET}/work-{is_part}")
    table = pa.table({"a": list(range(5000))})
    file = store.file("a.parquet")
    file.publish(lambda path: pq.write_table(table, path, write_page_checksum=True))
    through.alters = flips = Flips("a.parquet", 1, parts_of_it=is_part)
    assert file.table().equals(table) if is_part else len(file.read()) == file.size_and_sha256()[0]
    assert flips.done == 1


def test_memory_that_ends_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's error of memory is one of its errors of files as well."""
    store = open_store(tmp_path)
    store.publish("a.parquet", lambda path: pq.write_table(pa.table({"a": [1]}), path))

    def no_memory(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(pq.ParquetFile, "read", no_memory)
    with pytest.raises(pa.ArrowMemoryError):
        store.file("a.parquet").table()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (pa.ArrowMemoryError("malloc of size 64 failed"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"), True),
        (ImportError("libx.so: failed to map segment from shared object"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("shapes differ"), False),
        (ValueError("not enough memory of it"), False),
    ],
)
def test_what_says_that_memory_has_ended(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
