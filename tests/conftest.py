"""Fixtures: models and preference sets made on the spot, and the command line as a user types it."""

import gc
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from object_store import Proxy, s3_server
from support import CHAT_ROWS, STANDARD_ROWS, Cli, CliResult, Models, make_models, write_rows

from tgdpo import cli

ROOT = Path(__file__).parents[1]


class RootFolder:
    """The root of the checkout is the package `tgdpo`, whatever its folder is called. pytest would import it under the
    folder's name, which need not be one of a package."""

    @staticmethod
    def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        """Makes the root a folder like any other."""
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    """Registers what a conftest below the root cannot be asked."""
    config.pluginmanager.register(RootFolder())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the fault tests have tried, added up: each records it under the name `tried`."""
    tried: Counter[str] = Counter()
    for report in chain.from_iterable(terminalreporter.stats.values()):
        if getattr(report, "when", None) == "teardown":
            tried.update(dict(value for name, value in report.user_properties if name == "tried"))
    for what, count in sorted(tried.items()):
        terminalreporter.write_line(f"tried: {count:,} {what}")


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage() -> None:
    """Leaves what is there, all of torch and of the tests, out of later searches for garbage: the product makes one for
    each model that it lets go, which would take half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def environment_stays() -> Iterator[None]:
    """What a test leaves in the environment would reach every later one, and the processes that these start."""
    before = dict(os.environ)
    yield
    changed = {name for name, _ in before.items() ^ os.environ.items()} - {"PYTEST_CURRENT_TEST"}
    for name in changed:
        os.environ.pop(name, None)
    os.environ.update({name: before[name] for name in changed & before.keys()})
    assert not changed, f"the test has changed the environment: {sorted(changed)}"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Models for plain text: the tokenizer adds BOS, responses end with </s>."""
    return make_models(tmp_path_factory.mktemp("models"), chat=False)


@pytest.fixture(scope="session")
def chat_models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Models with a ChatML template."""
    return make_models(tmp_path_factory.mktemp("chat_models"), chat=True)


@pytest.fixture(scope="session")
def scored(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of twenty scored pairs of plain text, to be read only."""
    from tgdpo import ScoreConfig, score

    folder = tmp_path_factory.mktemp("scored")
    rows = write_rows(folder / "pairs.jsonl", STANDARD_ROWS)
    reference, guidance = str(models.reference), str(models.guidance)
    score(ScoreConfig(dataset=str(rows), reference=reference, guidance=guidance, output=str(folder / "cache")))
    return folder / "cache"


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Twenty pairs of plain text."""
    return write_rows(tmp_path / "pairs.jsonl", STANDARD_ROWS)


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    """Twenty conversational pairs."""
    return write_rows(tmp_path / "chat.jsonl", CHAT_ROWS)


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs the command line in this process: the same `main` as the console script, without its start-up time."""

    def call(*arguments: object) -> CliResult:
        monkeypatch.setattr(sys, "argv", ["tgdpo", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return CliResult(exit_.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def ok(run_cli: Cli) -> Cli:
    """As `run_cli`, for calls that must succeed."""

    def call(*arguments: object) -> CliResult:
        result = run_cli(*arguments)
        assert result.code == 0, result.stderr
        return result

    return call


@pytest.fixture(scope="session")
def run_process() -> Cli:
    """Runs the command line as a process of its own."""

    def call(*arguments: object, **options: Any) -> CliResult:
        command = [sys.executable, "-m", "tgdpo", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
        return CliResult(done.returncode, done.stdout, done.stderr)

    return call


SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real pairs and a really pretrained small model, where they are at hand."""
    if not (SHARED / "data" / "SOURCES.md").is_file():
        pytest.skip("no ../shared with real pairs and a pretrained model beside this checkout")
    return SHARED


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Any, tuple[str, int]]]:
    """See `s3_server`."""
    with s3_server() as started:
        yield started


@pytest.fixture(scope="module")
def bucket(server: tuple[Any, tuple[str, int]]) -> Any:
    """A file system with the bucket `caches`; the environment leads to it."""
    return server[0]


@pytest.fixture
def proxy(server: tuple[Any, tuple[str, int]]) -> Iterator[Proxy]:
    """A way to the server on which answers are lost."""
    started = Proxy(server[1])
    yield started
    started.close()
