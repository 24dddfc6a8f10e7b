"""`tgdpo score --add-guidance`: further guides in columns of their own."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support import STANDARD_ROWS, Cli, Models, make_model, make_tokenizer, write_rows

from tgdpo.data.cache import RewardCache
from tgdpo.data.manifest import Manifest
from tgdpo.data.schema import write_parquet
from tgdpo.data.verify import verify
from tgdpo.stages.score.engines.transformers import TransformersEngine

Score = Callable[..., Path]
REWARDS = ["chosen_rewards", "rejected_rewards"]


@pytest.fixture(scope="module")
def guides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, tokenizer = tmp_path_factory.mktemp("guides"), make_tokenizer(chat=False)
    return {name: make_model(folder / name, tokenizer, seed=seed) for name, seed in (("good", 2), ("bad", 3))}


@pytest.fixture
def score(ok: Cli, models: Models, tmp_path: Path) -> Score:
    """Scores twenty pairs to a folder of this name, in shards of eight rows."""
    rows = write_rows(tmp_path / "pairs.jsonl", STANDARD_ROWS)

    def call(name: str, *options: object) -> Path:
        given = ["--dataset", rows, "--reference", models.reference, "--pairs-per-shard", 8]
        ok("score", *given, "--output", tmp_path / name, *options)
        return tmp_path / name

    return call


def same_values(frame: pd.DataFrame, columns: list[str], other: pd.DataFrame, others: list[str]) -> bool:
    return all(
        np.array_equal(ours, theirs)
        for name, other_name in zip(columns, others, strict=True)
        for ours, theirs in zip(frame[name], other[other_name], strict=True)
    )


def test_columns_are_appended_and_nothing_else_is_scored_again(
    ok: Cli, score: Score, models: Models, guides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = score("base", "--guidance", models.guidance)
    alone = {name: pd.read_parquet(score(name, "--guidance", model)) for name, model in guides.items()}
    loaded: list[str] = []
    original = TransformersEngine.__init__
    monkeypatch.setattr(
        TransformersEngine, "__init__", lambda self, spec: (loaded.append(spec.name), original(self, spec))[1]
    )
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    new = tmp_path / "new"
    ok("score", "--reuse", base, "--add-guidance", f"good={guides['good']}", "--add-guidance", f"bad={guides['bad']}",
       "--output", new)  # fmt: skip
    assert loaded == [str(guides["good"]), str(guides["bad"])]
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before

    frame, of_base = pd.read_parquet(new), pd.read_parquet(base)
    assert list(frame.columns) == [
        *of_base.columns,
        *("chosen_good_rewards", "rejected_good_rewards", "chosen_bad_rewards", "rejected_bad_rewards"),
    ]
    assert frame[of_base.columns].astype(str).equals(of_base.astype(str))
    for name in guides:
        assert same_values(frame, [f"chosen_{name}_rewards", f"rejected_{name}_rewards"], alone[name], REWARDS)
    manifest = Manifest.read(new)
    assert manifest.guidance == str(models.guidance)
    assert [(guide.name, guide.guidance) for guide in manifest.added_guides] == [(n, str(g)) for n, g in guides.items()]
    added = {name: Manifest.read(tmp_path / name).fingerprint["guidance_sha256"] for name in guides}
    assert {name: guide["guidance_sha256"] for name, guide in manifest.fingerprint["added_guides"].items()} == added
    assert manifest.fingerprint | {"added_guides": 0} == Manifest.read(base).fingerprint | {"added_guides": 0}


def test_readers_go_on_working(ok: Cli, score: Score, models: Models, guides: dict[str, Path], tmp_path: Path) -> None:
    base = score("base", "--guidance", models.guidance)
    new = score("new", "--guidance", models.guidance, "--add-guidance", f"good={guides['good']}")
    assert "all as the manifest says" in ok("verify", new).stdout
    assert f"good: {guides['good']}" in " ".join(ok("inspect", new).stdout.split())
    assert "chosen_good_rewards" in datasets.load_dataset(str(new), split="train").column_names
    assert "chosen_good_rewards" in RewardCache(new).to_pandas(["chosen_good_rewards"]).columns
    weights = []
    for cache in (base, new):
        run = tmp_path / f"trained-{cache.name}"
        ok("train", "--cache", cache, "--model", models.reference, "--output", run, "--max-steps", 2, "--batch-size", 4,
           "--learning-rate", "1e-3")  # fmt: skip
        weights.append((run / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_all_at_once_is_as_one_after_the_other(
    ok: Cli, score: Score, models: Models, guides: dict[str, Path], tmp_path: Path
) -> None:
    """Also under another guidance: what was added is kept."""
    given = [f"--add-guidance={name}={model}" for name, model in guides.items()]
    at_once = score("at-once", "--guidance", models.guidance, *given)
    first = score("first", "--add-guidance", f"good={guides['good']}")
    ok("score", "--reuse", first, "--guidance", models.guidance, "--add-guidance", f"bad={guides['bad']}", "--output",
       tmp_path / "second")  # fmt: skip
    for shard in sorted(at_once.glob("part-*")):
        assert (tmp_path / "second" / shard.name).read_bytes() == shard.read_bytes()
    assert Manifest.read(first).reward_kind == "none"
    assert not any(map(np.any, pd.read_parquet(first).chosen_rewards))


def test_an_adapter_and_a_reward_model(ok: Cli, score: Score, models: Models, tmp_path: Path) -> None:
    import peft
    import torch
    import transformers

    base_model = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
    lora = peft.get_peft_model(base_model, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    lora.peft_config["default"].base_model_name_or_path = str(models.reference)
    lora.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(models.reference, num_labels=1)
    transformers.AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path / "judge")
    names = {"lora": tmp_path / "adapter", "judge": tmp_path / "judge"}
    # An adapter on the reference shares its model as guidance, and is loaded by itself as an added guide.
    new = score("new", "--guidance", tmp_path / "adapter", *(f"--add-guidance={n}={m}" for n, m in names.items()))
    frame = pd.read_parquet(new)
    assert same_values(frame, ["chosen_lora_rewards", "rejected_lora_rewards"], frame, REWARDS)
    judged = pd.read_parquet(score("judged", "--guidance", tmp_path / "judge"))
    assert same_values(frame, ["chosen_judge_rewards", "rejected_judge_rewards"], judged, REWARDS)
    kinds = {guide.name: guide.reward_kind for guide in Manifest.read(new).added_guides}
    assert kinds == {"lora": "log-ratio", "judge": "token-classification"}


def test_a_stopped_run_goes_on(
    run_cli: Cli, ok: Cli, score: Score, guides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"--add-guidance={name}={model}" for name, model in guides.items()]
    whole, base = score("whole", *given), score("base")
    original, calls = TransformersEngine.score, []

    def stop(self: TransformersEngine, *args: object) -> object:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformersEngine, "score", stop)
    call = ["score", "--reuse", base, *given, "--output", tmp_path / "stopped"]
    assert run_cli(*call).code == 130
    ok(*call)
    assert len(calls) == 7  # three shards, two guides, and the one that was stopped
    for shard in sorted(whole.glob("part-*")):
        assert (tmp_path / "stopped" / shard.name).read_bytes() == shard.read_bytes()


def test_verify_looks_at_added_columns(score: Score, guides: dict[str, Path]) -> None:
    cache = score("cache", "--add-guidance", f"good={guides['good']}")
    shard = sorted(cache.glob("part-*"))[0]
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[0]["chosen_good_rewards"][0] = float("inf")
    rows[1]["rejected_good_rewards"].append(0.0)
    rewritten = type(table).from_pylist(rows, schema=table.schema)
    write_parquet(rewritten, shard)
    manifest = json.loads((cache / "_manifest.json").read_text())
    import hashlib

    manifest["shards"][0] |= {
        "bytes": shard.stat().st_size,
        "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
        "chosen_tokens": manifest["shards"][0]["chosen_tokens"],
    }
    (cache / "_manifest.json").write_text(json.dumps(manifest))
    problems = "\n".join(verify(RewardCache(cache)))
    assert "chosen_good_rewards holds a value that is not finite" in problems
    assert "rejected_good_rewards and rejected_ids differ in length" in problems
    manifest["added_guides"] = []
    (cache / "_manifest.json").write_text(json.dumps(manifest))
    assert "has other columns than the format" in "\n".join(verify(RewardCache(cache)))


def test_bad_names(run_cli: Cli, ok: Cli, score: Score, guides: dict[str, Path], tmp_path: Path) -> None:
    good = guides["good"]
    base = score("base", "--add-guidance", f"good={good}")
    for given, expected in (
        ([f"Good={good}"], "write NAME=MODEL"),
        ([str(good)], "write NAME=MODEL"),
        (["good="], "write NAME=MODEL"),
        ([f"reference={good}"], "choose another one"),
        ([f"a={good}", f"a={guides['bad']}"], "a is given twice"),
        ([f"good={guides['bad']}"], "has a guide of that name"),
    ):
        options = [word for text in given for word in ("--add-guidance", text)]
        result = run_cli("score", "--reuse", base, "--output", tmp_path / "new", *options)
        assert (result.code, expected in result.error) == (2, True), result.stderr
    result = run_cli("score", "--reuse", base, "--output", tmp_path / "new", "--add-guidance", "x=nowhere/at/all")
    assert "--add-guidance x=nowhere/at/all" in result.error
    (tmp_path / "score.yaml").write_text(
        f"reuse: {base}\noutput: {tmp_path / 'new'}\nadd_guidance:\n  bad: {guides['bad']}\n"
    )
    ok("score", "--config", tmp_path / "score.yaml")
    assert [guide.name for guide in Manifest.read(tmp_path / "new").added_guides] == ["good", "bad"]
