"""What an actor does, in this process: the shards of several threads, against a run without Ray."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import peft
import pytest
import transformers
from support import STANDARD_ROWS, Models, write_rows

from tgdpo.pipeline.configuration import build
from tgdpo.pipeline.ray_worker import Done, ShardWorker
from tgdpo.stages.score.config import ScoreConfig
from tgdpo.stages.score.engines.process import ProcessEngine
from tgdpo.stages.score.finish import publish_manifest
from tgdpo.stages.score.folder import OutputFolder
from tgdpo.stages.score.passes import Pass
from tgdpo.stages.score.plan import plan_score
from tgdpo.stages.score.run import jobs_of, passes_of, prepare_checked, score
from tgdpo.stages.score.share import WHOLE


@pytest.fixture
def adapter(models: Models, tmp_path: Path) -> Path:
    """A LoRA adapter on the reference."""
    base = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def options(models: Models, tmp_path: Path) -> dict[str, object]:
    rows = [{**row, "prompt": f"{n}. {row['prompt']}"} for n, row in enumerate(STANDARD_ROWS * 2)]
    return {"dataset": str(write_rows(tmp_path / "rows.jsonl", rows)), "reference": str(models.reference),
            "guidance": str(models.guidance), "pairs_per_shard": 5}  # fmt: skip


def score_by_workers(config: ScoreConfig) -> tuple[list[list[Pass]], list[Done]]:
    plan, folder = plan_score(config), OutputFolder(Path(config.output))
    prepared = prepare_checked(plan, folder, WHOLE)
    passes = passes_of(plan, folder, prepared)
    jobs = jobs_of(plan, passes)
    done: list[Done] = []
    for job in jobs:
        worker = ShardWorker(job)
        worker.load()
        with ThreadPoolExecutor(2) as pool:
            done += [result for result, _ in pool.map(worker.score, range(len(prepared.shard_pairs)))]
    publish_manifest(plan, prepared, folder)
    return jobs, done


def shards(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(cache.glob("part-*"))}


@pytest.mark.parametrize("kind", ["two models", "adapter", "none"])
def test_the_bytes_are_those_of_a_plain_run(
    kind: str, options: dict[str, object], adapter: Path, tmp_path: Path
) -> None:
    options["guidance"] = {"two models": options["guidance"], "adapter": str(adapter), "none": None}[kind]
    score(build(ScoreConfig, options, {"output": str(tmp_path / "plain")}))
    jobs, done = score_by_workers(build(ScoreConfig, options, {"output": str(tmp_path / "workers")}))
    assert [len(job) for job in jobs] == {"two models": [1, 1], "adapter": [2], "none": [1]}[kind]
    assert shards(tmp_path / "workers") == shards(tmp_path / "plain")
    assert [each.shard for each in done] == list(range(8)) * len(jobs)
    assert sum(each.pairs for each in done) == 40 * (1 if kind == "none" else 2)


@pytest.mark.parametrize("reuses", [False, True])
def test_further_guides_and_samples(
    reuses: bool, options: dict[str, object], adapter: Path, models: Models, tmp_path: Path
) -> None:
    """The adapter shares a model with the reference as guidance, and is loaded by itself as an added guide."""
    if reuses:
        score(build(ScoreConfig, options, {"output": str(tmp_path / "base")}))
        options = {"reuse": str(tmp_path / "base")}
    guides = (f"lora={adapter}", f"other={models.guidance}")
    options |= {"guidance": str(adapter), "add_guidance": guides, "reference_samples": 2}
    score(build(ScoreConfig, options, {"output": str(tmp_path / "plain")}))
    jobs, _ = score_by_workers(build(ScoreConfig, options, {"output": str(tmp_path / "workers")}))
    roles = [[work.role for work in job] for job in jobs]
    shared = ["guidance"] if reuses else ["reference", "guidance"]
    assert roles == [shared, ["guide-lora"], ["guide-other"], ["samples"]]
    assert shards(tmp_path / "workers") == shards(tmp_path / "plain")
    frame = pd.read_parquet(tmp_path / "plain")
    for one, other in zip(frame.chosen_rewards, frame.chosen_lora_rewards, strict=True):
        assert one.any()
        assert (one == other).all()


def test_after_deaths_an_engine_in_a_process_of_its_own_gives_the_same_bytes(
    options: dict[str, object], adapter: Path, tmp_path: Path
) -> None:
    options["guidance"] = str(adapter)
    score(build(ScoreConfig, options, {"output": str(tmp_path / "plain")}))
    plan = plan_score(build(ScoreConfig, options, {"output": str(tmp_path / "cache")}))
    folder = OutputFolder(tmp_path / "cache")
    prepared = prepare_checked(plan, folder, WHOLE)
    (job,) = jobs_of(plan, passes_of(plan, folder, prepared))
    worker = ShardWorker(job)
    worker.load()
    engines = []
    for shard, deaths in enumerate([0, 1, 2, 0]):
        worker.score(shard, deaths)
        engines.append(worker._engine)
    assert engines[0] is engines[1]
    assert [isinstance(engine, ProcessEngine) for engine in engines] == [False, False, True, True]
    assert engines[2] is engines[3], "it stays"
    engines[3].close()
    expected = shards(tmp_path / "plain")
    assert shards(tmp_path / "cache") == {name: expected[name] for name in sorted(expected)[:4]}


def test_a_shard_that_is_there_is_left_alone(options: dict[str, object], tmp_path: Path) -> None:
    config = build(ScoreConfig, options, {"output": str(tmp_path / "cache"), "guidance": None})
    plan, folder = plan_score(config), OutputFolder(tmp_path / "cache")
    prepared = prepare_checked(plan, folder, WHOLE)
    worker = ShardWorker(passes_of(plan, folder, prepared))
    worker.load()
    assert worker.score(3)[0].pairs == 5
    path = tmp_path / "cache" / folder.shard(3, 8).name
    before = path.stat().st_mtime_ns
    assert worker.score(3)[0].pairs == 0
    assert path.stat().st_mtime_ns == before
