"""`tgdpo score --output s3://…`, at a server that runs here: killed, several at once, answers lost, the store gone.

Whatever happens, the same command ends in the bytes of a run on a disk that was never disturbed.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from object_store import BUCKET, Proxy, Request, fetched
from processes import Launch, strike
from scoring import Scoring, Tried
from support import Cli, Models

from tgdpo.data import object_store

KILLS = max(4, int(os.environ.get("TGDPO_SCORE_KILLS", "8")) // 4)


class Remote:
    """A scoring run into the bucket, through the proxy."""

    def __init__(self, scoring: Scoring, files: Any, proxy: Proxy, url: str, folder: Path) -> None:
        self.scoring = scoring
        self.files = files
        self.proxy = proxy
        self.url = url
        self._folder = folder

    def start(self, *options: object) -> Launch:
        return self.scoring.start(self.url, *options, environment=self.proxy.environment)

    def finish(self) -> None:
        done = self.start()
        assert done.wait() == [0], done.output
        self.require_whole()

    def require_whole(self) -> None:
        """What is in the bucket are the undisturbed run's files, and no others."""
        copy = fetched(self.files, self.url, self._folder / f"copy-{len(list(self._folder.iterdir()))}")
        self.scoring.require_whole(copy)
        assert {path.name for path in copy.rglob("*")} == {path.name for path in self.scoring.whole.iterdir()}

    def remove(self) -> None:
        self.files.rm(self.url, recursive=True)

    def puts(self, kind: str) -> list[Request]:
        """Requests that would have made a file of a kind."""
        return [each for each in self.proxy.requests if each.method == "PUT" and each.name.startswith(kind)]


@pytest.fixture(scope="module")
def seconds(
    small_scoring: Scoring, server: tuple[Any, tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> float:
    """How long an undisturbed run takes."""
    proxy, start = Proxy(server[1]), time.monotonic()
    Remote(small_scoring, server[0], proxy, f"s3://{BUCKET}/undisturbed", tmp_path_factory.mktemp("copies")).finish()
    proxy.close()
    return time.monotonic() - start


@pytest.fixture
def remote(
    small_scoring: Scoring,
    server: tuple[Any, tuple[str, int]],
    proxy: Proxy,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Remote:
    return Remote(small_scoring, server[0], proxy, f"s3://{BUCKET}/{request.node.name.partition('[')[0]}", tmp_path)


def test_the_bytes_are_those_on_a_disk(remote: Remote, tried: Tried) -> None:
    remote.finish()
    for kind in ("tokens-", "reference-", "part-", "_manifest"):
        assert {each.status for each in remote.puts(kind)} == {200}
    before = len(remote.proxy.requests)
    done = remote.start()
    assert done.wait() == [0]
    assert f"{remote.url} is finished already" in done.output
    assert not [each for each in remote.proxy.requests[before:] if each.method == "PUT"]


def test_killed_at_random_moments_and_started_again(
    remote: Remote, seconds: float, chance: random.Random, tried: Tried
) -> None:
    """Nothing that is in the bucket is scored again, though each start may be on another machine."""
    kills = 0
    while kills < KILLS:
        started = remote.start()
        if strike(started, signal.SIGKILL, chance, seconds):
            kills += 1
        else:
            remote.require_whole()
            remote.remove()
    remote.finish()
    assert {each.status for kind in ("reference-", "part-") for each in remote.puts(kind)} == {200}
    tried("kill -9 of tgdpo score to an object store", kills)


def test_interrupted_at_a_random_moment(remote: Remote, seconds: float, chance: random.Random) -> None:
    started = remote.start()
    while not strike(started, signal.SIGINT, chance, seconds):
        remote.remove()
        started = remote.start()
    # Before Python has set its handlers, a signal ends the process as the system does.
    assert started.processes[0].exitcode in (130, -signal.SIGINT)
    assert "Traceback" not in started.output
    remote.finish()


def test_two_at_once_of_which_one_is_killed(remote: Remote, seconds: float, chance: random.Random) -> None:
    started = [remote.start() for _ in range(2)]
    strike(started[0], signal.SIGKILL, chance, seconds)
    assert started[1].wait() == [0], started[1].output
    remote.require_whole()


def test_two_at_once(remote: Remote) -> None:
    started = [remote.start() for _ in range(2)]
    assert [each.wait() for each in started] == [[0], [0]], started[0].output
    remote.require_whole()


def test_shares_of_three_workers(remote: Remote) -> None:
    started = [remote.start("--worker", f"{number}/3") for number in range(3)]
    assert [each.wait() for each in started] == [[0]] * 3, started[0].output
    remote.require_whole()
    assert len(remote.puts("part-")) == 2


def test_answers_that_are_lost(remote: Remote, tried: Tried) -> None:
    """The first answer to every put: the library asks again, and is refused for what it has put itself."""
    seen: set[str] = set()

    def is_first(request: Request) -> bool:
        if request.method != "PUT" or request.path in seen:
            return False
        seen.add(request.path)
        return True

    remote.proxy.loses = is_first
    remote.finish()
    parts = [each.status for each in remote.puts("part-")]
    assert parts.count(200) == parts.count(412) == 2
    tried("answers of an object store that were lost", len(seen))


def test_a_store_that_is_gone(
    remote: Remote, run_cli: Cli, models: Models, monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    """From some request on, it answers nothing: one line, and the same command goes on when it is back."""
    monkeypatch.setattr(object_store, "PATIENCE", 0.01)
    for name, value in {**remote.proxy.environment, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    deaths = 0
    for allowed in (0, 3, 12, 25, 40):
        start = len(remote.proxy.requests)
        remote.proxy.loses = lambda _, until=start + allowed: len(remote.proxy.requests) > until
        result = run_cli(*remote.scoring.words, "--output", remote.url)
        assert result.code == 1
        assert remote.url in result.error
        assert "run the same command again, it goes on" in result.error
        assert "Traceback" not in result.stderr
        deaths += 1
    remote.proxy.loses = lambda _: False
    remote.finish()
    tried("object stores that were gone", deaths)


def test_a_store_that_is_back_in_time(remote: Remote, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has been answered before waits."""
    monkeypatch.setattr(object_store, "FIRST_PAUSE", 0.01)
    for name, value in {**remote.proxy.environment, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    remote.proxy.loses = lambda _: len(remote.proxy.requests) % 10 in (8, 9)
    result = run_cli(*remote.scoring.words, "--output", remote.url)
    assert result.code == 0, result.stderr
    remote.require_whole()


def test_other_settings_are_refused(remote: Remote, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name, value in remote.proxy.environment.items():
        monkeypatch.setenv(name, value)
    remote.finish()
    s3fs.S3FileSystem.clear_instance_cache()  # one of before would ask the proxy of another test
    result = run_cli(*remote.scoring.words, "--max-length", 30, "--output", remote.url)
    assert result.code == 1
    assert f"--output {remote.url} was made with other settings: max_length (None, now 30)" in result.error
