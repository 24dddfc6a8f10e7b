"""`tgdpo train --output s3://…` as a user types it, at a server that runs here: killed, moved to other machines, the
store gone for a while.
"""

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from object_store import Proxy, fetched
from processes import launch
from support import Cli, Models, records_of, weights_of

import tgdpo
from tgdpo.data import object_store

FAST = ("--learning-rate", 1e-2, "--batch-size", 4, "--epochs", 2, "--logging-steps", 1, "--save-steps", 2,
        "--keep-checkpoints", 2, "--log-pairs", "--eval-fraction", 0.1)  # fmt: skip


@pytest.fixture
def url(bucket: Any, request: pytest.FixtureRequest) -> str:
    """A place of the test's own."""
    return f"s3://caches/{request.node.originalname}/run"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of the machine that the test runs on."""
    folder = tmp_path / "machine"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def words(scored: Path, models: Models) -> tuple[object, ...]:
    """The command without its --output."""
    return ("train", "--cache", scored, "--model", models.reference, *FAST)


@pytest.fixture(scope="module")
def whole(words: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in a folder, never disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    started = launch(*words, "--output", folder / "run", log=folder / "log")
    assert started.wait() == [0], started.output
    return folder / "run"


def require_same_run(run: Path, whole: Path) -> None:
    """All files of two runs, but for times and addresses."""
    assert {path.relative_to(run) for path in run.rglob("*")} == {path.relative_to(whole) for path in whole.rglob("*")}
    for name in ("model.safetensors", "pairs.jsonl", "tokenizer.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = ([r | {"tokens_per_second": 0} for r in records_of(each)] for each in (run, whole))
    assert ours == theirs


def left_on(machine: Path) -> list[str]:
    """Files of runs on a machine."""
    return [path.name for path in machine.glob("tgdpo-*/**/*") if path.is_file()]


def test_is_the_run_in_a_folder(
    ok: Cli, words: tuple[object, ...], bucket: Any, url: str, machine: Path, whole: Path, tmp_path: Path
) -> None:
    assert ok(*words, "--output", url).stdout.startswith(f"{url}: step")
    require_same_run(fetched(bucket, url, tmp_path / "copy"), whole)
    assert left_on(machine) == []
    assert f"{url} is finished already, nothing to do" in ok(*words, "--output", url).stderr
    assert left_on(machine) == []


def test_report_reads_it(
    ok: Cli, words: tuple[object, ...], url: str, machine: Path, whole: Path, tmp_path: Path
) -> None:
    ok(*words, "--output", url)
    from_store, from_folder = (ok("report", run, "--html", tmp_path / "page.html").stdout for run in (url, whole))
    speed = "tokens_per_second"
    lines = zip(from_store.splitlines(), from_folder.splitlines(), strict=True)
    assert all(ours == theirs for ours, theirs in lines if speed not in ours)


def test_what_tensorboard_reads(
    ok: Cli, words: tuple[object, ...], bucket: Any, url: str, machine: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'tgdpo[dev]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ok(*words, "--output", url, "--report-to", "tensorboard", "--max-steps", 3, "--save-steps", 0)
    steps = []
    for events in (fetched(bucket, url, tmp_path / "copy") / "logs").rglob("events.out.tfevents.*"):
        accumulator = EventAccumulator(str(events))
        accumulator.Reload()
        if "loss" in accumulator.Tags()["scalars"]:  # another file has the settings
            steps += [event.step for event in accumulator.Scalars("loss")]
    assert steps == [1, 2, 3]


def test_the_trainer_class_takes_it(scored: Path, models: Models, url: str, machine: Path) -> None:
    args = tgdpo.TGDPOConfig(output=url, batch_size=4, max_steps=2, logging_steps=1, report_to=())
    weights = []
    for _ in range(2):  # the second finds it finished
        trainer = tgdpo.TGDPOTrainer(model=str(models.reference), args=args, train_dataset=str(scored))
        assert trainer.train().global_step == 2
        assert trainer.state.global_step == 2
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert left_on(machine) == []


def test_goes_on_where_it_was_killed(
    words: tuple[object, ...], bucket: Any, url: str, proxy: Proxy, whole: Path, tmp_path: Path
) -> None:
    """Each time on another machine, at a moment of its saving or thereafter."""
    resumed = []
    for number, wanted in enumerate(("step-2/model.safetensors", "step-2/trainer_state.json",
                                     "step-6/optimizer.safetensors", "step-8/trainer_state.json")):  # fmt: skip
        machine = tmp_path / f"machine-{number}"
        machine.mkdir()
        proxy.requests.clear()
        started = launch(*words, "--output", url, log=tmp_path / f"log-{number}",
                         environment={**proxy.environment, "TMPDIR": str(machine)})  # fmt: skip
        started.wait_for(partial(proxy.was_sent, wanted))
        started.kill()
        resumed.append(next((line for line in started.output.splitlines() if "going on from" in line), ""))
    assert resumed[0] == resumed[1] == ""
    assert resumed[2].endswith("step-2")
    assert resumed[3].endswith(("step-4", "step-6"))
    started = launch(*words, "--output", url, log=tmp_path / "log",
                     environment={**proxy.environment, "TMPDIR": str(tmp_path)})  # fmt: skip
    assert started.wait() == [0], started.output
    copy = fetched(bucket, url, tmp_path / "copy")
    # The last kill may have come before the oldest checkpoint was removed, and no other was made after it.
    shutil.rmtree(copy / "checkpoints" / "step-4", ignore_errors=True)
    require_same_run(copy, whole)


def test_a_store_that_is_gone_costs_no_checkpoint(
    run_cli: Cli, ok: Cli, words: tuple[object, ...], bucket: Any, url: str, proxy: Proxy, machine: Path, whole: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What it did not take goes up from the machine's folder when the command is typed again."""
    import s3fs

    monkeypatch.setattr(object_store, "PATIENCE", 0.01)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    with monkeypatch.context() as patch:
        for name, value in {**proxy.environment, "AWS_MAX_ATTEMPTS": "1"}.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.loses = lambda request: "step-4/optimizer" in request.path
        stopped = run_cli(*words, "--output", url)
        assert stopped.code == 1
        assert f"{url}/checkpoints/step-4/optimizer.safetensors cannot be written" in stopped.error
        assert "run the same command again, it goes on" in stopped.error
    s3fs.S3FileSystem.clear_instance_cache()
    resumed = ok(*words, "--output", url)
    assert f"going on from {url}/checkpoints/step-4" in resumed.stderr
    require_same_run(fetched(bucket, url, tmp_path / "copy"), whole)
    assert left_on(machine) == []


def test_a_damaged_checkpoint_is_skipped(
    ok: Cli, words: tuple[object, ...], bucket: Any, url: str, machine: Path, whole: Path, tmp_path: Path
) -> None:
    ok(*words, "--output", url)
    newest = max(bucket.ls(f"{url}/checkpoints"), key=lambda path: int(path.rpartition("-")[2]))
    content = bytearray(bucket.cat_file(f"{newest}/model.safetensors"))
    content[-1] ^= 1
    bucket.pipe_file(f"{newest}/model.safetensors", bytes(content))
    make_unfinished(bucket, url)
    printed = ok(*words, "--output", url).stderr
    assert f"checkpoint {newest.rpartition('/')[2]} (model.safetensors has changed since it was written)" in printed
    require_same_run(fetched(bucket, url, tmp_path / "copy"), whole)


def make_unfinished(bucket: Any, url: str) -> None:
    """Makes a run one that was killed after its last checkpoint."""
    record = json.loads(bucket.cat_file(f"{url}/run.json"))
    bucket.pipe_file(f"{url}/run.json", json.dumps(record | {"finished": False}).encode())


def test_a_marker_that_names_files_elsewhere(
    ok: Cli, words: tuple[object, ...], bucket: Any, url: str, machine: Path
) -> None:
    """Nothing is written outside of the run's own folder."""
    ok(*words, "--output", url)
    newest = max(bucket.ls(f"{url}/checkpoints"), key=lambda path: int(path.rpartition("-")[2]))
    marker = json.loads(bucket.cat_file(f"{newest}/trainer_state.json"))
    marker["files"]["../../../../../stolen"] = [1, "0" * 64]
    bucket.pipe_file(f"{newest}/trainer_state.json", json.dumps(marker).encode())
    make_unfinished(bucket, url)
    assert "trainer_state.json is damaged" in ok(*words, "--output", url).stderr
    assert not list(machine.rglob("stolen"))


def test_what_is_refused(
    run_cli: Cli, ok: Cli, words: tuple[object, ...], bucket: Any, url: str, machine: Path
) -> None:
    bucket.pipe_file(f"{url}/notes.txt", b"mine")
    assert "exists and holds no run" in run_cli(*words, "--output", url).error
    bucket.rm(url, recursive=True)
    ok(*words, "--output", url, "--max-steps", 3)
    assert (
        "with other settings: alpha (0.5, now 0.7)"
        in run_cli(*words, "--output", url, "--max-steps", 3, "--alpha", 0.7).error
    )
    assert "--resume is never" in run_cli(*words, "--output", url, "--max-steps", 3, "--resume", "never").error
    bucket.pipe_file(f"{url}/run.json", b"{")
    assert f"{url}/run.json is damaged" in run_cli(*words, "--output", url, "--max-steps", 3).error
    named = run_cli(*words, "--output", f"{url}-2", "--resume", f"{url}/checkpoints/step-2").error
    assert "is no folder: copy the checkpoint to one" in named
    assert f"--model {url}: a model is a folder or on the hub" in run_cli(*words, "--model", url, "--output", "o").error


def test_a_temporary_folder_that_others_may_open(
    run_cli: Cli, words: tuple[object, ...], url: str, machine: Path
) -> None:
    run_cli(*words, "--output", url, "--max-steps", 1)
    (private,) = machine.glob("tgdpo-*")
    private.chmod(0o755)
    assert "is open to other users: remove it, or set TMPDIR" in run_cli(*words, "--output", url).error


@pytest.mark.parametrize("state", ["full", "sharded"])
def test_machines_without_a_shared_disk(
    state: str, words: tuple[object, ...], bucket: Any, url: str, proxy: Proxy, tmp_path: Path
) -> None:
    """Two, each with its part of the policy; then two others go on, and one ends it."""
    url = f"{url}-{state}"
    words = (*words, "--parallel", "fsdp", "--checkpoint-state", state)

    def machines(name: str) -> list[Path]:
        folders = [tmp_path / f"{name}-{number}" for number in range(2)]
        for folder in folders:
            folder.mkdir()
        return folders

    calm = launch(*words, "--output", f"{url}-calm", log=tmp_path / "calm", machines=machines("calm"),
                  environment=proxy.environment)  # fmt: skip
    assert calm.wait() == [0, 0], calm.output
    proxy.requests.clear()
    first = launch(*words, "--output", url, log=tmp_path / "first", machines=machines("first"),
                   environment=proxy.environment)  # fmt: skip
    first.wait_for(partial(proxy.was_sent, "step-4/trainer_state.json"))
    first.kill()
    second = launch(*words, "--output", url, log=tmp_path / "second", machines=machines("second"),
                    environment=proxy.environment)  # fmt: skip
    assert second.wait() == [0, 0], second.output
    assert "going on from" in second.output
    run, undisturbed = (fetched(bucket, each, tmp_path / f"copy-{n}") for n, each in enumerate((url, f"{url}-calm")))
    ours, theirs = weights_of(run), weights_of(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [r | {"tokens_per_second": 0} for r in records_of(run)] == [
        r | {"tokens_per_second": 0} for r in records_of(undisturbed)
    ]
    make_unfinished(bucket, url)
    alone = launch(*words, "--output", url, log=tmp_path / "alone",
                   environment={**proxy.environment, "TMPDIR": str(tmp_path)})  # fmt: skip
    assert alone.wait() == [0], alone.output
    assert "going on from" in alone.output
