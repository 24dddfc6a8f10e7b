"""Caches and runs that 0.1.0 made (tests/fixtures/0.1.0), opened with the code of today."""

import json
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from fixtures import golden
from processes import launch
from safetensors.torch import load_file
from support import Cli

from tgdpo import __version__
from tgdpo.data import versions
from tgdpo.data.cache import RewardCache
from tgdpo.data.files import sha256_file
from tgdpo.data.manifest import ENVIRONMENT_FIELDS, Manifest
from tgdpo.data.schema import shard_metadata, write_parquet
from tgdpo.stages.score import fingerprint, reuse, upgrade
from tgdpo.stages.score.fingerprint import engine_fingerprint, run_fingerprint
from tgdpo.stages.train import history
from tgdpo.stages.train.config import TrainConfig
from tgdpo.stages.train.recorded import as_begun

MADE = runpy.run_path(str(golden.OF_0_1_0 / "make.py"))
CACHES = ("plain", "chat", "rich")
RUNS = ("full-1", "full-2", "lora-1", "lora-2")


def command_of(cache: str) -> list[str]:
    """The command that made a cache."""
    if cache in ("plain", "stopped"):
        return MADE["PLAIN"]
    if cache == "chat":
        return [*MADE["SCORE"], "--dataset", "chat.jsonl", "--guidance", "models/guide"]
    return [
        *(*MADE["SCORE"], "--dataset", "plain.jsonl", "--limit", "12", "--guidance", "models/reward"),
        *("--reference-samples", "2", "--add-guidance", "good=models/guide", "--add-guidance", "bad=models/bad"),
    ]


def training_of(run: str) -> list[str]:
    """The command that made a run, or began it."""
    return [*MADE["TRAIN"], *MADE["RUNS"][run.partition("-")[0]], "--output", f"runs/{run}"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder that they lie in, and the present one."""
    shutil.copytree(golden.OF_0_1_0, tmp_path / "0.1.0")
    monkeypatch.chdir(tmp_path / "0.1.0")
    return tmp_path / "0.1.0"


@pytest.fixture(scope="module")
def is_same_machine(tmp_path_factory: pytest.TempPathFactory) -> bool:
    """Whether what is computed here is what was computed when the fixtures were made, bit for bit."""
    folder = tmp_path_factory.mktemp("golden")
    golden.workplace(folder)
    stored = json.loads((golden.GOLDEN / "scores.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = golden.scores_of(golden.SCORES["plain"], folder / "scores")
    made_with = Manifest.read(golden.OF_0_1_0 / "caches/plain").fingerprint
    here = environment()
    is_same_environment = all(here[name] == made_with[name] for name in here)
    return is_same_environment and stored["version"] == 1 and found == stored["cases"]["plain"]


def environment() -> dict[str, Any]:
    """What a fingerprint says of this machine and must not change while a cache is made."""
    here = run_fingerprint(torch.float32, torch.device("cpu")) | engine_fingerprint("transformers", {})
    return {name: here[name] for name in here if name in ENVIRONMENT_FIELDS and name not in ("tgdpo", "score_version")}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def columns_of(cache: Path) -> dict[str, list[Any]]:
    return {path.name: pq.read_table(path).to_pylist() for path in sorted(cache.glob("part-*"))}


# Finished caches


@pytest.mark.parametrize("cache", CACHES)
def test_a_finished_cache_opens(cache: str, place: Path, ok: Cli) -> None:
    path = f"caches/{cache}"
    before = files_of(place / path)
    assert "all as the manifest says" in ok("verify", path).stdout
    assert f"{len(RewardCache(path))}" in ok("inspect", path).stdout
    assert "finished already" in ok(*command_of(cache), "--output", path).stderr
    assert files_of(place / path) == before


@pytest.mark.parametrize("cache", CACHES)
def test_a_finished_cache_is_trained_from(cache: str, place: Path, ok: Cli) -> None:
    ok("train", "--cache", f"caches/{cache}", "--model", "models/reference", "--output", "new", "--max-steps", 2)
    assert (place / "new/model.safetensors").is_file()


@pytest.mark.parametrize("cache", CACHES)
def test_another_guide_is_added_to_a_finished_cache(cache: str, place: Path, ok: Cli) -> None:
    added = ok("score", "--reuse", f"caches/{cache}", "--add-guidance", "other=models/bad", "--output", "new")
    assert "again" not in added.stderr
    before, after = Manifest.read(place / "caches" / cache), Manifest.read(place / "new")
    assert after.fingerprint["score_version"] == 1
    assert [guide.name for guide in after.added_guides] == [*(guide.name for guide in before.added_guides), "other"]
    old, new = columns_of(place / "caches" / cache), columns_of(place / "new")
    kept = {name: [{key: row[key] for key in old[name][0]} for row in rows] for name, rows in new.items()}
    assert kept == old
    assert "all as the manifest says" in ok("verify", "new").stdout


def forget_overlong(cache: Path) -> None:
    """Takes the option out of all that a cache records."""
    path = cache / "_manifest.json" if (cache / "_manifest.json").exists() else cache / "_work/settings.json"
    recorded = json.loads(path.read_text())
    fingerprint = recorded.get("fingerprint", recorded)
    del fingerprint["overlong"]
    for number, part in enumerate(sorted(cache.glob("part-*"))):
        write_parquet(pq.read_table(part).replace_schema_metadata(shard_metadata(fingerprint)), part)
        if "shards" in recorded:
            recorded["shards"][number] |= {"bytes": part.stat().st_size, "sha256": sha256_file(part)}
    path.write_text(json.dumps(recorded))
    for note in cache.glob("_work/finished-*"):
        note.unlink()


def test_options_that_a_cache_does_not_know_are_what_0_1_0_did(
    place: Path, ok: Cli, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if `overlong` were newer than the caches of 0.1.0."""
    for cache in ("plain", "stopped"):
        forget_overlong(place / "caches" / cache)
    make_it_be_of_here(place / "caches/stopped")
    ok("score", "--reuse", "caches/plain", "--add-guidance", "other=models/bad", "--output", "new")
    assert "finished already" in ok(*command_of("plain"), "--output", "caches/plain").stderr
    refused = run_cli(*command_of("stopped"), "--output", "caches/stopped", "--overlong", "set-aside")
    assert "overlong (truncate, now set-aside)" in refused.error
    ok(*command_of("stopped"), "--output", "caches/stopped")
    # What 0.1.0 did need not be the default of today.
    field = upgrade.ScoreConfig.model_fields["overlong"]
    monkeypatch.setattr(field, "json_schema_extra", {"panel": "Lengths", "before": "set-aside"})
    assert "finished already" in ok(*command_of("plain"), "--output", "caches/plain").stderr
    refused = run_cli(*command_of("plain"), "--output", "caches/plain", "--overlong", "truncate")
    assert "overlong (set-aside, now truncate)" in refused.error


# Caches that are not finished


def make_it_be_of_here(cache: Path) -> None:
    """Makes a stopped cache one of this machine, where library versions or processor are others than in the fixture."""
    settings = cache / "_work/settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | environment(), indent=1) + "\n")


def test_a_stopped_cache_is_finished(place: Path, ok: Cli, is_same_machine: bool) -> None:
    stopped, whole = place / "caches/stopped", place / "caches/plain"
    parts = {path.name: path.read_bytes() for path in stopped.glob("part-*")}
    assert 0 < len(parts) < len(list(whole.glob("part-*")))
    make_it_be_of_here(stopped)
    resumed = ok(*command_of("stopped"), "--output", "caches/stopped")
    assert f"{len(parts)} of 16 shards are there" in resumed.stderr
    assert {name: (stopped / name).read_bytes() for name in parts} == parts
    if is_same_machine:
        shards = {name: content for name, content in files_of(whole).items() if name != "_manifest.json"}
        assert {name: content for name, content in files_of(stopped).items() if name != "_manifest.json"} == shards
        assert Manifest.read(stopped).model_dump(exclude={"created"}) == Manifest.read(whole).model_dump(
            exclude={"created"}
        )
    for name, rows in columns_of(whole).items():
        for row, found in zip(rows, columns_of(stopped)[name], strict=True):
            assert close(found, row), name


def close(found: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether two rows of a cache have the same ids, and scores that are close."""
    return all(
        found[name] == (pytest.approx(value, rel=1e-5, abs=1e-5) if isinstance(value, list) else value)
        for name, value in row.items()
    )


def test_rows_that_0_1_0_began_to_prepare_are_prepared_by_one_release(place: Path, ok: Cli) -> None:
    """It reads some rows in another way: no cache holds both."""
    stopped = place / "caches/stopped"
    make_it_be_of_here(stopped)
    for scored in [*stopped.glob("part-*"), *stopped.glob("_work/reference-*"), *stopped.glob("_work/finished-*")]:
        scored.unlink()
    (stopped / "_work/prepared-00003.json").unlink()
    (stopped / "_work/tokens-00000.parquet").write_text("whoever takes this fails")
    ok(*command_of("stopped"), "--output", "caches/stopped")
    assert Manifest.read(stopped).fingerprint["tgdpo"] == __version__
    for name, rows in columns_of(place / "caches/plain").items():
        for row, found in zip(rows, columns_of(stopped)[name], strict=True):
            assert close(found, row), name


def raise_score_version(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fingerprint, upgrade, reuse):
        monkeypatch.setattr(module, "SCORE_VERSION", versions.SCORE_VERSION + 1)


def test_a_stopped_cache_of_another_score_version_is_refused(
    place: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_it_be_of_here(place / "caches/stopped")
    before = files_of(place / "caches/stopped")
    raise_score_version(monkeypatch)
    for words in ((), ("--worker", "0/2")):
        refused = run_cli(*command_of("stopped"), "--output", "caches/stopped", *words)
        assert refused.code == 1
        assert re.search(r"was begun by tgdpo 0\.1\.0, .*\(score version 1, not 2\)", refused.error)
        assert "finish it with tgdpo 0.1.0, or use another --output" in refused.error
    assert files_of(place / "caches/stopped") == before | {"_work/lock": b""}


def test_a_finished_cache_of_another_score_version_is_used(
    place: Path, ok: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_score_version(monkeypatch)
    assert "finished already" in ok(*command_of("plain"), "--output", "caches/plain").stderr
    assert "all as the manifest says" in ok("verify", "caches/plain").stdout
    ok("train", "--cache", "caches/plain", "--model", "models/reference", "--output", "new", "--max-steps", 1)


def test_reuse_scores_the_reference_again_for_another_score_version(
    place: Path, ok: Cli, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_score_version(monkeypatch)
    command = ["score", "--reuse", "caches/plain", "--guidance", "models/bad", "--output"]
    again = ok(*command, "again")
    assert "all scores are made again: caches/plain was made by tgdpo 0.1.0" in again.stderr
    assert "reference: 960 tokens" in again.stderr
    # The bytes are those of a run from the start.
    start = [word if word != "models/guide" else "models/bad" for word in command_of("plain")]
    ok(*start, "--output", "start")
    assert files_of(place / "again").keys() == files_of(place / "start").keys()
    assert columns_of(place / "again") == columns_of(place / "start")
    assert Manifest.read(place / "again").fingerprint == Manifest.read(place / "start").fingerprint
    shutil.move("models/reference", "models/moved")
    refused = run_cli(*command, "other")
    assert refused.code == 1
    assert "so its reference is needed" in refused.error
    assert "--reference" in refused.error
    ok(*command, "named", "--reference", "models/moved")
    assert columns_of(place / "named") == columns_of(place / "start")
    shutil.copytree("models/guide", "models/reference")
    assert "models/reference is another model now" in run_cli(*command, "other").error


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["--add-guidance", "other=models/bad"], "--guidance models/reward --add-guidance good=models/guide "
            "--add-guidance bad=models/bad --reference-samples 2"),
        (["--guidance", "models/reward", "--add-guidance", "good=models/guide", "--reference-samples", "2"],
            "--add-guidance bad=models/bad"),
    ],
)  # fmt: skip
def test_reuse_for_another_score_version_loses_no_column_in_silence(
    given: list[str], missing: str, place: Path, ok: Cli, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_score_version(monkeypatch)
    command = ["score", "--reuse", "caches/rich", "--output", "new"]
    refused = run_cli(*command, *given)
    assert refused.code == 2
    assert f"add {missing}, or score without --reuse" in refused.error
    assert not (place / "new").exists()
    ok(*command, *given, *missing.split())
    assert columns_of(place / "new")["part-00000-of-00001.parquet"][0].keys() >= {
        *columns_of(place / "caches/rich")["part-00000-of-00001.parquet"][0]
    }


# Runs


@pytest.mark.parametrize("run", RUNS)
def test_a_finished_run_stays_finished(run: str, place: Path, ok: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(place / "runs" / run)
    assert "finished already" in ok(*training_of(run)).stderr
    assert run in ok("report", f"runs/{run}", "--html", "report.html").stdout
    monkeypatch.setattr(history, "STEP_VERSION", 2)
    assert "finished already" in ok(*training_of(run)).stderr
    assert files_of(place / "runs" / run) == before


def require_same_run(place: Path, run: str, is_same_machine: bool) -> None:
    """Compares a resumed run with the one of 0.1.0 that nothing disturbed."""
    whole, resumed = place / "runs" / run, place / "runs" / f"{run}-stopped"
    (weights,) = whole.glob("*model.safetensors")
    if is_same_machine:
        assert (resumed / weights.name).read_bytes() == weights.read_bytes()
    stored, found = load_file(weights), load_file(resumed / weights.name)
    assert found.keys() == stored.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
    logs = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (whole, resumed)]
    for line, other in zip(*logs, strict=True):
        one, two = ({**json.loads(each), "tokens_per_second": 0} for each in (line, other))
        assert two == (one if is_same_machine else pytest.approx(one, rel=1e-5, abs=1e-5))


@pytest.mark.parametrize("run", ["full-1", "lora-1"])
def test_a_stopped_run_is_resumed(run: str, place: Path, ok: Cli, is_same_machine: bool) -> None:
    assert "step-8" in ok(*training_of(f"{run}-stopped")).stderr
    require_same_run(place, run, is_same_machine)
    record = json.loads((place / f"runs/{run}-stopped/run.json").read_text())
    assert [start["step"] for start in record["starts"]] == [0, 8]
    assert record["starts"][0]["tgdpo"] == "0.1.0"
    assert (record["seconds"], record["tokens"]) == (None, record["summary"]["tokens"])
    assert "| resumed at step | 8 |" in (place / f"runs/{run}-stopped/README.md").read_text()


@pytest.mark.parametrize("run", ["full-2", "lora-2"])
def test_a_stopped_run_of_two_processes_is_resumed(
    run: str, place: Path, tmp_path: Path, is_same_machine: bool
) -> None:
    resumed = launch(*training_of(f"{run}-stopped"), processes=2, log=tmp_path / "log")
    assert resumed.wait() == [0, 0], resumed.output
    require_same_run(place, run, is_same_machine)


def test_a_stopped_run_of_another_step_version_is_refused(
    place: Path, ok: Cli, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "STEP_VERSION", 2)
    before = files_of(place / "runs/full-1-stopped")
    refused = run_cli(*training_of("full-1-stopped"))
    assert refused.code == 1
    assert re.search(r"was begun by tgdpo 0\.1\.0, .*\(step version 1, not 2\)", refused.error)
    named = [*training_of("full-1-stopped")[:-1], "new", "--resume", "runs/full-1-stopped/checkpoints/step-8"]
    refused = run_cli(*named)
    assert re.search(r"is of a run begun by tgdpo 0\.1\.0, .*\(step version 1, not 2\)", refused.error)
    assert files_of(place / "runs/full-1-stopped") == before
    monkeypatch.setattr(history, "STEP_VERSION", 1)
    ok(*named)


Edit = Callable[[dict[str, Any]], object]


def edit_options(run: Path, edit: Edit) -> None:
    """Changes what a run recorded of its options, in config.yaml."""
    options = yaml.safe_load((run / "config.yaml").read_text())
    edit(options)
    (run / "config.yaml").write_text(yaml.safe_dump(options))


def test_options_that_a_run_does_not_know_are_what_0_1_0_did(
    place: Path, ok: Cli, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if `weight_decay` were newer than the runs of 0.1.0."""
    edit_options(place / "runs/full-1", lambda options: options.pop("weight_decay"))
    assert "finished already" in ok(*training_of("full-1")).stderr
    refused = run_cli(*training_of("full-1"), "--weight-decay", 0.5)
    assert "weight_decay (0.0, now 0.5)" in refused.error
    field = TrainConfig.model_fields["weight_decay"]
    monkeypatch.setattr(field, "json_schema_extra", {"panel": "Optimizer", "before": 0.25})
    assert "finished already" in ok(*training_of("full-1")).stderr
    given = {"cache": "caches/plain", "model": "models/reference", "output": "runs/full-1"}
    assert as_begun(TrainConfig(**given)).weight_decay == 0.25
    assert as_begun(TrainConfig(**given, weight_decay=0.0)).weight_decay == 0.0
    assert as_begun(TrainConfig(**given | {"output": "new"})).weight_decay == 0.0
    assert "weight_decay (0.25, now 0.0)" in run_cli(*training_of("full-1"), "--weight-decay", 0).error


def test_options_that_are_gone_are_ignored_at_their_default(
    place: Path, ok: Cli, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainConfig, "gone", {"old": 3})
    edit_options(place / "runs/full-1", lambda options: options.update(old=3))
    assert "finished already" in ok(*training_of("full-1")).stderr
    config = place / "runs/full-1/config.yaml"
    assert "finished already" in ok("train", "--config", config).stderr
    edit_options(place / "runs/full-1", lambda options: options.update(old=4))
    assert "old (4, now None)" in run_cli(*training_of("full-1")).error
    assert "old" in run_cli("train", "--config", config).error
