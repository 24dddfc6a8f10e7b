"""`tgdpo score --reuse`: a new cache from a finished one."""

import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from processes import launch
from support import CHAT_ROWS, STANDARD_ROWS, Cli, Models, make_model, make_tokenizer, published, write_rows

from tgdpo.data.files import sha256_file
from tgdpo.data.manifest import Manifest
from tgdpo.data.schema import shard_metadata, write_parquet
from tgdpo.stages.score.engines.transformers import TransformersEngine


def shards_of(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(cache.glob("part-*"))}


@pytest.fixture(scope="module")
def other_guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("guide") / "other", make_tokenizer(chat=False), seed=2)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Sixty pairs, three of which cannot be used."""
    rows = [{**row, "prompt": f"{n}. {row['prompt']}"} for n, row in enumerate(STANDARD_ROWS * 3)]
    for n in (0, 25, 59):
        rows[n] = {**rows[n], "chosen": ""}
    return write_rows(tmp_path / "pairs.jsonl", rows)


Score = Callable[..., Path]


@pytest.fixture
def score(ok: Cli, models: Models, rows: Path, tmp_path: Path) -> Score:
    """Scores the rows with a guide to a folder of this name, in shards of ten rows."""

    def call(name: str, *options: object) -> Path:
        ok("score", "--dataset", rows, "--reference", models.reference, "--pairs-per-shard", 10, "--max-length", 40,
           "--max-set-aside", 0.1, "--output", tmp_path / name, *options)  # fmt: skip
        return tmp_path / name

    return call


def test_the_cache_is_that_of_a_run_from_the_start(
    ok: Cli,
    score: Score,
    models: Models,
    other_guide: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, fresh = score("base", "--guidance", models.guidance), score("fresh", "--guidance", other_guide)
    rows.unlink()
    loaded: list[str] = []
    original = TransformersEngine.__init__
    monkeypatch.setattr(
        TransformersEngine, "__init__", lambda self, spec: (loaded.append(spec.name), original(self, spec))[1]
    )
    result = ok("score", "--reuse", base, "--guidance", other_guide, "--output", tmp_path / "reused")
    assert "57 pairs scored, 3 set aside" in result.stdout
    assert loaded == [str(other_guide)]
    assert len(shards_of(fresh)) == 6
    ours, theirs = published(tmp_path / "reused"), published(fresh)
    assert json.loads(ours.pop("_manifest.json")) == json.loads(theirs.pop("_manifest.json"))
    assert ours == theirs
    ok("verify", tmp_path / "reused")
    again = ok("score", "--reuse", base, "--guidance", other_guide, "--output", tmp_path / "reused")
    assert "finished already" in again.stderr


def test_a_cache_without_guidance_gets_a_guide_from_afar(
    ok: Cli, score: Score, other_guide: Path, tmp_path: Path
) -> None:
    """As one that somebody has published: no dataset and no reference are at hand."""
    base, fresh = score("base"), score("fresh", "--guidance", other_guide)
    remote = fsspec.filesystem("memory")
    for path in base.iterdir():
        remote.pipe_file(f"/published/{path.name}", path.read_bytes())
    ok("score", "--reuse", "memory://published", "--guidance", other_guide, "--output", tmp_path / "reused")
    assert shards_of(tmp_path / "reused") == shards_of(fresh)


def test_the_plan_is_of_the_guide_alone(ok: Cli, score: Score, other_guide: Path, tmp_path: Path) -> None:
    base = score("base")
    planned = ok("score", "--reuse", base, "--guidance", other_guide, "--output", tmp_path / "new", "--plan").stdout
    lines = dict(line.split(maxsplit=1) for line in planned.splitlines())
    counts = [
        sum(shard.__dict__[f"{part}_tokens"] for shard in Manifest.read(base).shards)
        for part in ("prompt", "chosen", "rejected")
    ]
    assert lines["pairs"] == "57 (all of the cache)"
    assert lines["tokens"] == "{:,} prompt, {:,} chosen, {:,} rejected".format(*counts)
    assert lines["shards"] == "6 of 10 rows"
    assert "guidance" in lines
    assert "reference" not in lines
    assert not (tmp_path / "new").exists()


def test_conversations_and_workers(ok: Cli, chat_models: Models, chat_file: Path, tmp_path: Path) -> None:
    call = ["--reference", chat_models.reference, "--dataset", chat_file, "--pairs-per-shard", 4]
    ok("score", *call, "--output", tmp_path / "base")
    ok("score", *call, "--guidance", chat_models.guidance, "--output", tmp_path / "fresh")
    for number in (1, 0):
        call = ["--reuse", tmp_path / "base", "--guidance", chat_models.guidance, "--output", tmp_path / "reused"]
        result = ok("score", *call, "--worker", f"{number}/2")
    assert f"{len(CHAT_ROWS)} pairs scored" in result.stdout
    assert shards_of(tmp_path / "reused") == shards_of(tmp_path / "fresh")
    assert Manifest.read(tmp_path / "reused").conversational


def test_an_adapter_on_the_reference(ok: Cli, score: Score, models: Models, tmp_path: Path) -> None:
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(models.reference)
    lora = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    lora.peft_config["default"].base_model_name_or_path = str(models.reference)
    lora.save_pretrained(tmp_path / "adapter")
    base, fresh = score("base"), score("fresh", "--guidance", tmp_path / "adapter")
    for name, given in (("silent", []), ("named", ["--reference", models.reference])):
        ok("score", "--reuse", base, "--guidance", tmp_path / "adapter", "--output", tmp_path / name, *given)
        assert shards_of(tmp_path / name) == shards_of(fresh)


def test_killed_and_started_again(ok: Cli, score: Score, other_guide: Path, tmp_path: Path) -> None:
    base, fresh = score("base"), score("fresh", "--guidance", other_guide)
    killed = tmp_path / "killed"
    call = ["score", "--reuse", str(base), "--guidance", str(other_guide), "--output", str(killed)]
    started = launch(*call, "--batch-tokens", 64, log=tmp_path / "log")
    started.wait_for(lambda: any((killed / "_work").glob("reference-*")))
    started.kill()
    assert not (killed / "_manifest.json").exists()
    ok(*call)
    assert shards_of(killed) == shards_of(fresh)


def test_with_other_libraries_it_says_so(
    ok: Cli, score: Score, other_guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = score("base")
    manifest = Manifest.read(base)
    older = manifest.fingerprint | {"torch": "2.0.0", "tgdpo": "0.0.1"}
    shards = []
    for shard in manifest.shards:
        write_parquet(
            pq.read_table(base / shard.name).replace_schema_metadata(shard_metadata(older)), base / shard.name
        )
        size, sha256 = (base / shard.name).stat().st_size, sha256_file(base / shard.name)
        shards.append(shard.model_copy(update={"bytes": size, "sha256": sha256}))
    manifest.model_copy(update={"fingerprint": older, "shards": shards}).write(base)
    call = ["score", "--reuse", base, "--guidance", other_guide, "--output", tmp_path / "reused"]
    assert "reference with torch 2.0.0, not " in ok(*call).stderr
    made = Manifest.read(tmp_path / "reused").fingerprint
    assert made["environments"] == {"reference": {"torch": "2.0.0", "tgdpo": "0.0.1"}}
    # And a cache made from that one still knows where the reference was scored.
    ok("score", "--reuse", tmp_path / "reused", "--guidance", other_guide, "--output", tmp_path / "third")
    assert Manifest.read(tmp_path / "third").fingerprint["environments"] == made["environments"]


def test_what_differs_is_refused_by_name(
    run_cli: Cli, score: Score, models: Models, other_guide: Path, rows: Path, tmp_path: Path
) -> None:
    base = score("base", "--limit", 50)
    call = ["score", "--reuse", base, "--guidance", other_guide, "--output", tmp_path / "new"]
    for options, expected in (
        (["--max-length", 50], "--max-length 50: "),
        (["--dtype", "bfloat16"], "--dtype bfloat16: "),
        (["--engine", "dummy"], "--engine dummy: "),
        (["--attn-implementation", "eager"], "--attn-implementation eager: "),
        (["--split", "test"], "--split test: "),
        (["--dataset", rows], "is not what "),
        (["--limit", 5], "--limit 5 with --reuse"),
        (["--reference", models.guidance], "is not the model that scored"),
        (["--engine-arg", "block_size=3"], "was made with the engine arguments none, this run has {'block_size': 3}"),
        (["--check-against", "dummy"], "name it with --reference"),
    ):
        result = run_cli(*call, *options)
        assert result.code == 2, (options, result.stderr)
        assert expected in result.error
        assert not (tmp_path / "new").exists()
    same = ["--max-length", 40, "--dtype", "auto", "--dataset", rows, "--limit", 50, "--reference", models.reference]
    assert run_cli(*call, *same, "--tokenizer", models.reference).code == 0


def test_bad_calls(run_cli: Cli, score: Score, other_guide: Path, tmp_path: Path) -> None:
    base = score("base")
    foreign = make_model(tmp_path / "foreign", make_tokenizer(chat=False, vocabulary=350), seed=4)
    refused = [
        (["--reuse", base, "--output", tmp_path / "new"], 2, "--guidance"),
        (["--output", tmp_path / "new", "--guidance", other_guide], 2, "--dataset is missing"),
        (["--reuse", base, "--guidance", other_guide, "--output", base], 2, "name a new folder"),
        (["--reuse", tmp_path / "none", "--guidance", other_guide, "--output", tmp_path / "new"], 1, "is no folder"),
        (["--reuse", base, "--guidance", foreign, "--output", tmp_path / "new"], 1, "another vocabulary"),
    ]
    for options, code, expected in refused:
        result = run_cli("score", *options)
        assert (result.code, expected in result.error) == (code, True), result.stderr
    assert not (tmp_path / "new").exists()


def test_a_foreign_cache_names_no_code_and_no_nonsense(
    run_cli: Cli, score: Score, other_guide: Path, tmp_path: Path
) -> None:
    base = score("base")
    manifest = Manifest.read(base)
    call = ["score", "--reuse", base, "--guidance", other_guide, "--output", tmp_path / "new"]
    for changes, code, expected in (
        ({"engine": "their.module.Engine"}, 2, "add that, if you trust"),
        ({"attn_implementation": "them/kernels"}, 2, "--attn-implementation them/kernels"),
        ({"engine_arguments": {"trust_remote_code": True}}, 2, "was made with the engine arguments"),
        ({"pairs_per_shard": 0}, 1, "its fingerprint is damaged"),
        ({"dtype": "float8"}, 1, "its fingerprint is damaged"),
        ({"pairs_per_shard": 5}, 1, "names rows that the cache cannot have"),
    ):
        manifest.model_copy(update={"fingerprint": manifest.fingerprint | changes}).write(base)
        result = run_cli(*call)
        assert (result.code, expected in result.error) == (code, True), result.stderr
        assert not (tmp_path / "new").exists()
    without = {name: value for name, value in manifest.fingerprint.items() if name != "reference_sha256"}
    manifest.model_copy(update={"fingerprint": without}).write(base)
    assert "its fingerprint has no reference_sha256" in run_cli(*call).error


def test_a_guide_that_reads_fewer_tokens_and_a_damaged_cache(
    run_cli: Cli, score: Score, other_guide: Path, tmp_path: Path
) -> None:
    short = make_model(tmp_path / "short", make_tokenizer(chat=False), seed=3, max_position_embeddings=20)
    base = score("base")
    result = run_cli("score", "--reuse", base, "--guidance", short, "--output", tmp_path / "new")
    assert "reads at most 20 tokens" in result.error
    assert not (tmp_path / "new").exists()
    shard = sorted(base.glob("part-*"))[2]
    shard.write_bytes(shard.read_bytes()[:-9] + b"damaged!!")
    result = run_cli("score", "--reuse", base, "--guidance", other_guide, "--output", tmp_path / "new")
    assert result.code == 1
    assert "has changed" in result.error
