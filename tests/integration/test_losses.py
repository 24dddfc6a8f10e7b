"""All objectives on one cache through the command line, and the paper's pipeline with nothing but this tool."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import transformers
import yaml
from support import STANDARD_ROWS, Cli, Models, make_model, make_tokenizer, records_of, write_rows

from tgdpo.stages.train.losses import LOSSES

FAST = ("--learning-rate", 1e-2, "--batch-size", 4, "--logging-steps", 1)


@pytest.fixture(scope="module")
def reference_cache(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pairs as `scored`, without guidance."""
    from tgdpo import ScoreConfig, score

    folder = tmp_path_factory.mktemp("reference")
    rows = write_rows(folder / "pairs.jsonl", STANDARD_ROWS)
    score(ScoreConfig(dataset=str(rows), reference=str(models.reference), output=str(folder / "cache")))
    return folder / "cache"


@pytest.fixture(scope="module")
def guided(scored: Path, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scored cache with a second guide, bad."""
    from tgdpo import ScoreConfig, score

    folder = tmp_path_factory.mktemp("guided")
    bad = make_model(folder / "bad", make_tokenizer(chat=False), seed=5)
    score(ScoreConfig(reuse=str(scored), add_guidance=(f"bad={bad}",), output=str(folder / "cache")))
    return folder / "cache"


def also(loss: str, models: Models) -> tuple[object, ...]:
    """What an objective cannot do without."""
    if LOSSES[loss].needs_guides:
        return ("--positive-guide", "guidance", "--negative-guide", "bad")
    return ("--reference", models.reference) if LOSSES[loss].needs_reference else ()


@pytest.mark.parametrize("loss", LOSSES)
def test_every_objective_trains(loss: str, ok: Cli, guided: Path, models: Models, tmp_path: Path) -> None:
    trained = ok("train", "--loss", loss, "--cache", guided, "--model", models.reference, "--output", tmp_path / "run",
                 "--epochs", 3, *FAST, *also(loss, models))  # fmt: skip
    assert "does nothing" not in trained.stderr
    records = records_of(tmp_path / "run")
    assert records[-1]["loss"] < 0.9 * records[0]["loss"]
    if not LOSSES[loss].chosen_only:
        assert records[-1]["rewards/margins"] > records[0]["rewards/margins"]
    assert f"| loss | {loss} |" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize("loss", LOSSES)
def test_token_rewards_are_asked_for_only_where_they_count(
    loss: str, run_cli: Cli, reference_cache: Path, models: Models, tmp_path: Path
) -> None:
    result = run_cli("train", "--loss", loss, "--cache", reference_cache, "--model", models.reference,
                     "--output", tmp_path / "run", "--max-steps", 1, *also(loss, models))  # fmt: skip
    if loss in ("tgdpo", "sepo"):
        assert result.code == 1
        assert f"no token rewards for --loss {loss}" in result.error
        assert not (tmp_path / "run").exists()
    elif loss == "tis-dpo":
        assert result.code == 1
        assert "--positive-guide guidance: " in result.error
        assert "has no guide" in result.error
        assert not (tmp_path / "run").exists()
    else:
        assert result.code == 0


@pytest.mark.parametrize(
    ("loss", "option", "value"),
    [("dpo", "--f-shape", "rank"), ("simpo", "--alpha", 0.7), ("sft", "--beta", 0.3), ("ipo", "--label-smoothing", 0.1),
     ("tdpo1", "--tdpo-alpha", 0.3), ("dpo", "--reference", "anything"),
     ("tgdpo", "--gamma-beta-ratio", 0.3), ("tgdpo", "--sepo-ratio", 0.5)],
)  # fmt: skip
def test_options_of_other_objectives_are_named(
    loss: str, option: str, value: object, ok: Cli, scored: Path, models: Models, tmp_path: Path
) -> None:
    trained = ok("train", "--loss", loss, "--cache", scored, "--model", models.reference, "--output", tmp_path / "run",
                 "--max-steps", 1, option, value, *also(loss, models))  # fmt: skip
    assert f"warning: {option} does nothing with --loss {loss}" in trained.stderr


@pytest.mark.parametrize(
    ("loss", "option", "value"),
    [("simpo", "--gamma-beta-ratio", 0.3), ("ld-dpo", "--ld-alpha", 0.1), ("d2po", "--d2po-gamma", 0.5),
     ("sepo", "--sepo-ratio", 0.9), ("tdpo2", "--tdpo-alpha", 1.5), ("ipo", "--beta", 0.3),
     ("tis-dpo", "--tis-spread", 0.9), ("tis-dpo", "--negative-guide", "guidance"),
     ("tgdpo", "--f-shape", "rank"),
     ("tgdpo", "--f-shape", "clipped-linear")],
)  # fmt: skip
def test_options_change_the_run(
    loss: str, option: str, value: object, ok: Cli, guided: Path, models: Models, tmp_path: Path
) -> None:
    for name, extra in (("plain", ()), ("other", (option, value))):
        ok("train", "--loss", loss, "--cache", guided, "--model", models.reference, "--output", tmp_path / name,
           "--beta-r" if loss == "tgdpo" else "--beta", 0.5, *FAST, *also(loss, models), *extra)  # fmt: skip
    plain, other = records_of(tmp_path / "plain"), records_of(tmp_path / "other")
    assert other[2]["loss"] != pytest.approx(plain[2]["loss"], rel=1e-3)


def test_opposed_guides_are_named_and_there(run_cli: Cli, guided: Path, models: Models, tmp_path: Path) -> None:
    call = ["train", "--loss", "tis-dpo", "--cache", guided, "--model", models.reference, "--output", tmp_path / "run"]
    assert "name them: --positive-guide, --negative-guide" in run_cli(*call, "--positive-guide", "bad").error
    missing = run_cli(*call, "--positive-guide", "good", "--negative-guide", "bad")
    assert f"--positive-guide good: {guided} has bad, guidance" in missing.error
    assert f"tgdpo score --reuse {guided} --add-guidance good=MODEL" in missing.error
    assert not (tmp_path / "run").exists()


def test_a_guide_against_itself_is_dpo(ok: Cli, guided: Path, models: Models, tmp_path: Path) -> None:
    same = ("--loss", "tis-dpo", "--positive-guide", "bad", "--negative-guide", "bad")
    for name, options in (("dpo", ("--loss", "dpo")), ("same", same)):
        ok("train", "--cache", guided, "--model", models.reference, "--output", tmp_path / name, *FAST, *options)
    assert weights_equal(tmp_path / "dpo", tmp_path / "same")


def weights_equal(one: Path, other: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_defaults_are_the_objectives(ok: Cli, scored: Path, models: Models, tmp_path: Path) -> None:
    betas = {}
    for name, options in (("simpo", ()), ("given", ("--beta", 4)), ("sepo", ()), ("dpo", ())):
        loss = "simpo" if name == "given" else name
        ok("train", "--loss", loss, "--cache", scored, "--model", models.reference, "--output", tmp_path / name,
           "--max-steps", 1, *options)  # fmt: skip
        betas[name] = yaml.safe_load((tmp_path / name / "config.yaml").read_text())["beta"]
    assert betas == {"simpo": 2.5, "given": 4, "sepo": 1, "dpo": 0.1}


class TestShapeOfOnesOwn:
    """--f-shape with a dotted path."""

    def test_equals_the_same_shape_by_name(
        self, ok: Cli, scored: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "my_shapes.py").write_text("def bounded(rewards):\n    return rewards.clamp(-1, 1)\n")
        monkeypatch.chdir(tmp_path)
        for name, shape in (("own", "my_shapes.bounded"), ("ours", "clipped-linear")):
            ok("train", "--cache", scored, "--model", models.reference, "--output", tmp_path / name, "--beta-r", 3,
               "--f-shape", shape, *FAST)  # fmt: skip
        own, ours = records_of(tmp_path / "own"), records_of(tmp_path / "ours")
        assert [record["loss"] for record in own] == [record["loss"] for record in ours]
        assert yaml.safe_load((tmp_path / "own" / "config.yaml").read_text())["f_shape"] == "my_shapes.bounded"

    def test_is_refused_before_anything_is_made(
        self, run_cli: Cli, scored: Path, models: Models, tmp_path: Path
    ) -> None:
        result = run_cli("train", "--cache", scored, "--model", models.reference, "--output", tmp_path / "run",
                         "--f-shape", "no_such_module.f")  # fmt: skip
        assert result.code == 2
        assert "--f-shape no_such_module.f cannot be imported" in result.error
        assert not (tmp_path / "run").exists()


class TestTdpo:
    """Objectives that keep the reference in memory."""

    def test_say_so(self, ok: Cli, scored: Path, models: Models, tmp_path: Path) -> None:
        trained = ok("train", "--loss", "tdpo2", "--cache", scored, "--model", models.reference,
                     "--output", tmp_path / "run", "--reference", models.reference, *FAST)  # fmt: skip
        assert "parameters, stays in memory beside the policy" in trained.stderr
        # At the start the policy is the reference, and all KL is 0.
        assert records_of(tmp_path / "run")[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-5)

    @pytest.mark.parametrize(
        ("options", "code", "said"),
        [
            ((), 1, "has no samples of the reference, from which --loss tdpo1 would estimate"),
            (("--kl", "exact"), 2, "--loss tdpo1 --kl exact needs the reference"),
            (("--kl", "estimate", "--reference", "OTHER"), 1, "--reference-samples 8 --output NEW"),
            (("--reference", "OTHER"), 1, "is not the model"),
        ],
    )
    def test_need_the_model_that_scored_the_cache(
        self, options: tuple[str, ...], code: int, said: str, run_cli: Cli, scored: Path, models: Models, tmp_path: Path
    ) -> None:
        given = [models.guidance if option == "OTHER" else option for option in options]
        result = run_cli("train", "--loss", "tdpo1", "--cache", scored, "--model", models.reference,
                         "--output", tmp_path / "run", *given)  # fmt: skip
        assert result.code == code
        assert said in result.error

    def test_a_run_goes_on_with_its_reference_elsewhere(
        self, ok: Cli, scored: Path, models: Models, tmp_path: Path
    ) -> None:
        shutil.copytree(models.reference, tmp_path / "moved")
        for reference in (models.reference, tmp_path / "moved"):
            done = ok("train", "--loss", "tdpo1", "--cache", scored, "--model", models.reference,
                      "--output", tmp_path / "run", "--reference", reference, *FAST)  # fmt: skip
        assert "finished already" in done.stderr


class TestSft:
    """--loss sft: chosen responses alone."""

    def test_metrics_are_those_of_one_side(self, ok: Cli, scored: Path, models: Models, tmp_path: Path) -> None:
        ok("train", "--loss", "sft", "--cache", scored, "--model", models.reference, "--output", tmp_path / "run",
           "--eval-fraction", 0.2, *FAST)  # fmt: skip
        records = records_of(tmp_path / "run")
        measured = {"loss", "logps/chosen"}
        assert (
            set(records[1]) == {"step", "epoch", "learning_rate", "grad_norm", "tokens", "tokens_per_second"} | measured
        )
        assert set(records[0]) == {"step", "epoch", *(f"eval_{name}" for name in measured)}

    def test_counts_the_rows_it_trains_on(self, ok: Cli, scored: Path, models: Models, tmp_path: Path) -> None:
        ok(
            "train",
            "--loss",
            "sft",
            "--cache",
            scored,
            "--model",
            models.reference,
            "--output",
            tmp_path / "run",
            *FAST,
        )
        frame = pd.read_parquet(scored)
        tokens = sum(len(row.prompt_ids) + len(row.chosen_ids) for row in frame.itertuples())  # type: ignore[arg-type]
        assert records_of(tmp_path / "run")[-1]["tokens"] == tokens

    @pytest.mark.parametrize("options", [("--attn-implementation", "sdpa"), ("--batch-tokens", 1)])
    def test_layout_and_passes_do_not_change_the_run(
        self, options: tuple[object, ...], ok: Cli, scored: Path, models: Models, tmp_path: Path
    ) -> None:
        for name, extra in (("plain", ()), ("other", options)):
            ok("train", "--loss", "sft", "--cache", scored, "--model", models.reference, "--output", tmp_path / name,
               *FAST, *extra)  # fmt: skip
        plain, other = records_of(tmp_path / "plain"), records_of(tmp_path / "other")
        assert [r["loss"] for r in other] == pytest.approx([r["loss"] for r in plain], rel=1e-4)


def test_the_papers_pipeline(ok: Cli, models: Models, pairs_file: Path, tmp_path: Path) -> None:
    """SFT, guides from DPO and SimPO, scores of both, a policy from each."""

    def score(output: str, *options: object) -> Path:
        ok("score", "--dataset", pairs_file, "--output", tmp_path / output, *options)
        return tmp_path / output

    def train(output: str, cache: Path, model: Path, *options: object) -> Path:
        ok("train", "--cache", cache, "--model", model, "--output", tmp_path / output, *FAST, *options)
        return tmp_path / output

    start = score("start-cache", "--reference", models.reference)
    sft = train("sft", start, models.reference, "--loss", "sft")
    plain = score("plain-cache", "--reference", sft)
    for guide_loss in ("dpo", "simpo"):
        guide = train(f"{guide_loss}-guide", plain, sft, "--loss", guide_loss)
        cache = score(f"{guide_loss}-cache", "--reference", sft, "--guidance", guide)
        policy = train(f"{guide_loss}-policy", cache, sft)
        records = records_of(policy)
        assert records[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-5)
        assert records[-1]["loss"] < records[0]["loss"]
        assert records[-1]["f/max"] > 1 > records[-1]["f/min"]
        transformers.AutoModelForCausalLM.from_pretrained(policy)
