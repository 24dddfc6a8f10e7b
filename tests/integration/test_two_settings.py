"""Runs with other settings in one --output of `tgdpo score`: files of one never become part of the other's cache."""

import errno
import fcntl
import os
import shutil
import sys
from pathlib import Path

import pytest
from support import STANDARD_ROWS, Cli, Models, published, write_rows

from tgdpo import cli
from tgdpo.data.manifest import Fingerprint, Manifest
from tgdpo.stages.score.folder import OutputFolder
from tgdpo.stages.score.passes import Pass

Words = tuple[object, ...]
SHARDS = 2


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "pairs.jsonl", STANDARD_ROWS[: 3 * SHARDS])


def command(rows: Path, reference: Path, guide: Path) -> Words:
    return ("score", "--dataset", rows, "--reference", reference, "--guidance", guide, "--pairs-per-shard", 3,
            "--add-guidance", f"more={guide}", "--reference-samples", 1, "--output")  # fmt: skip


@pytest.fixture(scope="module")
def ours(rows: Path, models: Models) -> Words:
    return command(rows, models.reference, models.guidance)


@pytest.fixture(scope="module")
def others(rows: Path, models: Models) -> Words:
    """The same shards of the same rows, and other scores."""
    return command(rows, models.guidance, models.reference)


def score(words: Words, output: Path) -> None:
    """Runs the command line to its end, without the fixtures that live for one test alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tgdpo", *map(str, words), str(output)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0


@pytest.fixture(scope="module")
def whole(ours: Words, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the command makes in a folder of its own."""
    output = tmp_path_factory.mktemp("whole") / "cache"
    score(ours, output)
    return published(output)


@pytest.fixture(scope="module")
def planted(others: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the other run writes, its intermediate files included."""
    output = tmp_path_factory.mktemp("others") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OutputFolder, "clean", lambda _: None)
        score(others, output)
    (output / "_manifest.json").unlink()
    return output


FILES = [
    *("_work/shards.json", "_work/tokens-00001.parquet", "_work/prepared-00001.json", "_work/finished-00001.json"),
    *("_work/reference-00001.parquet", "_work/guidance-00001.parquet", "_work/guide-more-00001.parquet"),
    *("_work/samples-00001.parquet", "part-00001-of-00002.parquet"),
]


def test_the_list_of_files_is_whole(planted: Path) -> None:
    there = {str(path.relative_to(planted)) for path in planted.rglob("*") if path.is_file()}
    # The last pass, of samples, writes the finished shards.
    expected = set(FILES) - {"_work/samples-00001.parquet"} | {"_set_aside.jsonl", "_work/settings.json", "_work/lock"}
    assert {name for name in there if "00000" not in name or "-of-" in name} - {
        "part-00000-of-00002.parquet"
    } == expected


@pytest.mark.parametrize("name", [name for name in FILES if "samples" not in name])
@pytest.mark.parametrize("step", ["tokens", "guidance"])
def test_a_file_of_another_run_is_not_used(
    name: str,
    step: str,
    ours: Words,
    whole: dict[str, bytes],
    planted: Path,
    run_cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted when this step begins: it is refused, or written over before anybody reads it."""
    output = tmp_path / "cache"

    def plant() -> None:
        if not (output / name).exists() or name.startswith("_work"):
            shutil.copyfile(planted / name, output / name)

    if step == "tokens":
        claim = OutputFolder.claim
        monkeypatch.setattr(OutputFolder, "claim", lambda *a, **k: (claim(*a, **k), plant())[0])
    else:
        missing, seen = Pass.missing, set[str]()

        def and_plant(self: Pass, shards: object) -> list[int]:
            if self.role == step and step not in seen:
                seen.add(step)
                plant()
            return missing(self, shards)  # type: ignore[arg-type]

        monkeypatch.setattr(Pass, "missing", and_plant)
    result = run_cli(*ours, output)
    if result.code == 0:
        assert published(output) == whole
    else:
        assert f"{name} was written by a run with other settings, which shared this --output" in result.error
        assert not (output / "_manifest.json").exists()


@pytest.mark.parametrize("name", ["tokens", "reference"])
def test_a_run_that_was_started_over_by_another_ends_in_one_line(
    name: str, ours: Words, planted: Path, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where there are no locks: the settings in the folder are another run's from one shard to the next."""
    output, write = tmp_path / "cache", OutputFolder.tokens if name == "tokens" else OutputFolder.scores

    def and_plant(self: OutputFolder, *arguments: object) -> object:
        shutil.copyfile(planted / "_work/settings.json", output / "_work/settings.json")
        return write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(OutputFolder, "tokens" if name == "tokens" else "scores", and_plant)
    refused = run_cli(*ours, output)
    assert refused.code == 1
    assert "was made with other settings: " in refused.error


def test_while_a_run_is_at_work_another_is_refused(ours: Words, others: Words, run_cli: Cli, tmp_path: Path) -> None:
    """Although nothing is scored yet. When its process has ended, the folder is started over."""
    output = tmp_path / "cache"
    assert run_cli(*ours, output, "--limit", 3, "--check-against", "no-such").code == 2  # planned, not begun
    folder = OutputFolder(output)
    folder.claim({"engine": "x"})
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    refused = run_cli(*ours, output)
    assert refused.code == 1
    assert "is in use by another tgdpo score with other settings: " in refused.error
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    folder.close()
    assert run_cli(*ours, output).code == 0
    assert "was made with other settings" in run_cli(*others, output).error


def test_work_that_another_release_began_meanwhile_is_not_removed(
    ours: Words, run_cli: Cli, ok: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began after this run's plan was made, and has scores. This run takes its part in it: it reads them."""
    output, claim = tmp_path / "cache", OutputFolder.claim

    def after_another(self: OutputFolder, fingerprint: Fingerprint, **options: bool) -> bool:
        monkeypatch.setattr(OutputFolder, "claim", claim)
        other = OutputFolder(output)
        other.claim(fingerprint | {"tgdpo": "0.2.9"})
        (output / "_work/reference-00000.parquet").write_bytes(b"scores")
        other.close()
        return claim(self, fingerprint, **options)

    monkeypatch.setattr(OutputFolder, "claim", after_another)
    assert "reference-00000.parquet is damaged" in run_cli(*ours, output).error
    assert (output / "_work/reference-00000.parquet").read_bytes() == b"scores"
    (output / "_work/reference-00000.parquet").unlink()
    ok(*ours, output)
    assert Manifest.read(output).fingerprint["tgdpo"] == "0.2.9"


def test_without_locks_one_line_says_so(
    ours: Words, whole: dict[str, bytes], ok: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    result = ok(*ours, tmp_path / "cache")
    assert result.stderr.count("no locks on its file system") == 1
    assert published(tmp_path / "cache") == whole


class TestRefusedRuns:
    """What a run that is refused leaves behind."""

    @pytest.fixture
    def bad(self, tmp_path: Path, models: Models) -> Words:
        rows = write_rows(tmp_path / "bad.jsonl", [{"prompt": "a", "chosen": "", "rejected": ""}] * 5)
        return ("score", "--dataset", rows, "--reference", models.reference, "--output")

    def test_a_folder_that_was_there_stays(self, bad: Words, run_cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir(mode=0o750)
        assert run_cli(*bad, tmp_path / "mine").code == 1
        assert list((tmp_path / "mine").iterdir()) == []
        assert run_cli(*bad, tmp_path / "new").code == 1
        assert not (tmp_path / "new").exists()

    def test_a_link_to_a_folder_stays(self, bad: Words, run_cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "target").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "target")
        assert "cannot be used" in run_cli(*bad, tmp_path / "link").error
        assert (tmp_path / "link").is_symlink()
        assert list((tmp_path / "target").iterdir()) == []

    def test_files_that_are_put_there_meanwhile_stay(
        self, bad: Words, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claim, output = OutputFolder.claim, tmp_path / "new"

        def and_write(self: OutputFolder, *arguments: object, **options: object) -> bool:
            is_new = claim(self, *arguments, **options)  # type: ignore[arg-type]
            for name in ("notes.txt", "_work/notes.txt"):
                (output / name).write_text("precious")
            return is_new

        monkeypatch.setattr(OutputFolder, "claim", and_write)
        assert run_cli(*bad, output).code == 1
        assert {path.name for path in output.rglob("*")} == {"notes.txt", "_work"}
        assert (output / "_work/notes.txt").read_text() == "precious"

    def test_a_folder_that_is_moved_away(
        self, ours: Words, whole: dict[str, bytes], run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        missing, output = Pass.missing, tmp_path / "cache"

        def and_move(self: Pass, shards: object) -> list[int]:
            found = missing(self, shards)  # type: ignore[arg-type]
            if self.role == "guidance" and output.exists():
                output.rename(tmp_path / "moved")
            return found

        monkeypatch.setattr(Pass, "missing", and_move)
        refused = run_cli(*ours, output)
        assert refused.code == 1
        assert f"--output {output} is gone: it was moved or removed while the run was at work" in refused.error
        assert run_cli(*ours, tmp_path / "moved").code == 0
        assert published(tmp_path / "moved") == whole
