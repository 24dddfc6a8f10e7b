"""Every option in a YAML file, as flags, and both at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import STANDARD_ROWS, Cli, Models, write_rows

from tgdpo import ScoreConfig, TrainConfig

Values = dict[str, Any]


def as_flags(values: Values) -> list[str]:
    """The options as one types them."""
    flags: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{flag}")
        else:
            for each in value if isinstance(value, list) else [value]:
                flags += [f"--{flag}", str(each)]
    return flags


def write_yaml(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def resolved(run: Path) -> Values:
    """What a training run says it was made with."""
    content: Values = yaml.safe_load((run / "config.yaml").read_text())
    return content


def manifest(cache: Path) -> Values:
    content: Values = json.loads((cache / "_manifest.json").read_text())
    return content


@pytest.fixture
def score_values(models: Models, tmp_path: Path) -> Values:
    """Every option of `tgdpo score`, none of them (but for switches of one way) at its default."""
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    rows = [{names[name]: text for name, text in row.items()} for row in STANDARD_ROWS]
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "test.jsonl", rows)
    files = [{"split": "test", "path": "test.jsonl"}]
    card = {"configs": [{"config_name": name, "data_files": files} for name in ("main", "other")]}
    (tmp_path / "data" / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    return {
        "dataset": str(tmp_path / "data"),
        "split": "test",
        "dataset_config": "main",
        "prompt_column": "question",
        "chosen_column": "good",
        "rejected_column": "bad",
        "limit": 6,
        "max_set_aside": 0.5,
        "allow_control_tokens": True,
        "reference": str(models.reference),
        "guidance": str(models.guidance),
        "tokenizer": str(models.guidance),
        "dtype": "bfloat16",
        "device": "cpu",
        "attn_implementation": "eager",
        "trust_remote_code": True,
        "max_length": 50,
        "max_prompt_length": 20,
        "overlong": "set-aside",
        "output": str(tmp_path / "cache"),
        "engine": "transformers",
        "batch_tokens": 100,
        "pairs_per_shard": 3,
        "check_against": "dummy:3",
        "check_bound": 1000.0,
        "launcher": "local",
    }


OPTIONS_APART = {
    *("worker", "workers", "gpus_per_worker", "address"),
    *("plan", "gpu", "gpus", "utilisation", "gpu_price"),
    *("engine_arg", "tensor_parallel_size", "pipeline_parallel_size", "quantization", "gpu_memory_utilization"),
    *("max_model_len", "reuse", "add_guidance", "reference_samples", "template_date"),
}
"""Of `tgdpo score`: many workers, planning, other engines, starting from a cache, further guides, templates with the
date. They exclude one another, or have tests of their own."""


def train_values(cache: Path, models: Models, output: Path) -> Values:
    """Every option of `tgdpo train`."""
    return {
        "cache": str(cache),
        "model": str(models.reference),
        "output": str(output),
        "resume": "never",
        "trust_remote_code": True,
        "loss": "tgdpo",
        "beta": 0.2,
        "alpha": 0.25,
        "beta_r": 0.3,
        "f_shape": "sigmoid",
        "f_clip": 0.9,
        "label_smoothing": 0.1,
        "gamma_beta_ratio": 0.4,
        "ld_alpha": 0.3,
        "d2po_gamma": 0.9,
        "reference": "reference",
        "kl": "exact",
        "tdpo_alpha": 0.6,
        "sepo_ratio": 0.2,
        "positive_guide": "good",
        "negative_guide": "bad",
        "tis_spread": 0.2,
        "learning_rate": 1e-05,
        "lr_scheduler": "linear",
        "warmup_ratio": 0.2,
        "optim": "adamw_torch",
        "stochastic_rounding": False,
        "weight_decay": 0.01,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-06,
        "max_grad_norm": 0.5,
        "convergence_loss": 0.01,
        "convergence_window": 5,
        "seed": 7,
        "epochs": 2.0,
        "max_steps": 2,
        "batch_size": 4,
        "batch_tokens": 500,
        "dtype": "float32",
        "mixed_precision": "no",
        "device": "cpu",
        "parallel": "ddp",
        "gradient_checkpointing": True,
        "attn_implementation": "eager",
        "lora_rank": 2,
        "lora_alpha": 3.0,
        "lora_dropout": 0.1,
        "lora_target_modules": ["q_proj", "v_proj"],
        "lora_modules_to_save": ["lm_head"],
        "use_rslora": True,
        "use_dora": True,
        "load_in_4bit": False,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "fp4",
        "use_bnb_nested_quant": True,
        "logging_steps": 1,
        "eval_fraction": 0.2,
        "eval_split": "row",
        "eval_steps": 1,
        "save_steps": 1,
        "keep_checkpoints": 2,
        "checkpoint_state": "sharded",
        "log_pairs": True,
        "report_to": ["tensorboard"],
        "project": "a-project",
        "run_name": "a-name",
        "push_to_hub": False,
        "hub_model_id": "a-model",
        "hub_private_repo": True,
    }


@pytest.fixture(scope="module")
def cache(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored cache."""
    from tgdpo import score

    folder = tmp_path_factory.mktemp("scored")
    rows = write_rows(folder / "pairs.jsonl", STANDARD_ROWS)
    score(
        ScoreConfig(
            dataset=str(rows),
            reference=str(models.reference),
            guidance=str(models.guidance),
            output=str(folder / "cache"),
        )
    )
    return folder / "cache"


class TestEveryOption:
    """In the file, by flag, and by flag against the file: the same run."""

    def test_of_score(self, ok: Cli, score_values: Values, tmp_path: Path) -> None:
        assert set(score_values) | OPTIONS_APART == set(ScoreConfig.model_fields)
        ok("score", "--config", write_yaml(tmp_path / "score.yaml", score_values))
        in_file = manifest(tmp_path / "cache")
        ok("score", *as_flags(score_values | {"output": tmp_path / "by-flag"}))
        by_flag = manifest(tmp_path / "by-flag")
        assert in_file | {"created": ""} == by_flag | {"created": ""}
        expected = {name: score_values[name] for name in score_values.keys() & in_file["fingerprint"].keys()}
        assert (
            in_file["fingerprint"] | expected | {"device": in_file["fingerprint"]["device"]} == in_file["fingerprint"]
        )
        assert in_file["counts"]["read"] == 6
        assert [shard["rows"] for shard in in_file["shards"]] == [3, 3]
        assert in_file["settings"] == {"batch_tokens": 100, "max_set_aside": 0.5}

    @pytest.mark.parametrize("style", ["file", "flags", "flags-win"])
    def test_of_train(self, style: str, ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
        values = train_values(cache, models, tmp_path / "run")
        assert set(values) == set(TrainConfig.model_fields)
        if style == "file":
            ok("train", "--config", write_yaml(tmp_path / "train.yaml", values))
        elif style == "flags":
            ok("train", *as_flags(values))
        else:
            other = {name: field.default for name, field in TrainConfig.model_fields.items() if not field.is_required()}
            other |= {"cache": "nowhere", "model": "nothing", "output": "none", "lora_target_modules": "all-linear"}
            other |= {"lora_modules_to_save": []}
            ok("train", "--config", write_yaml(tmp_path / "train.yaml", other | {"report_to": []}), *as_flags(values))
        assert resolved(tmp_path / "run") == values


class TestDryRun:
    """--dry-run prints what --config reads, and touches nothing."""

    def test_of_train(self, ok: Cli, cache: Path, models: Models, tmp_path: Path) -> None:
        values = train_values(cache, models, tmp_path / "run")
        printed = ok("train", *as_flags(values), "--dry-run").stdout
        assert yaml.safe_load(printed) == values
        (tmp_path / "printed.yaml").write_text(printed)
        assert ok("train", "--config", tmp_path / "printed.yaml", "--dry-run").stdout == printed
        assert not (tmp_path / "run").exists()

    def test_of_score(self, ok: Cli, tmp_path: Path) -> None:
        result = ok("score", "--dataset", "nothing", "--reference", "none", "--output", tmp_path / "c", "--dry-run")
        assert yaml.safe_load(result.stdout)["max_length"] == ScoreConfig.model_fields["max_length"].default
        assert result.stderr == ""
        assert not (tmp_path / "c").exists()
        (tmp_path / "printed.yaml").write_text(result.stdout)
        assert ok("score", "--config", tmp_path / "printed.yaml", "--dry-run").stdout == result.stdout

    def test_a_wrong_value_is_still_refused(self, run_cli: Cli) -> None:
        result = run_cli("train", "--cache", "c", "--model", "m", "--output", "o", "--beta", -1, "--dry-run")
        assert (result.code, result.stdout) == (2, "")


class TestFile:
    """How a file may be written."""

    @pytest.fixture
    def needed(self, cache: Path, models: Models, tmp_path: Path) -> list[object]:
        """The options without which training does not run, and one step, to be quick."""
        return ["--cache", cache, "--model", models.reference, "--output", tmp_path / "run", "--max-steps", 1]

    @pytest.mark.parametrize(
        "text",
        [
            "batch-size: 5\nlearning-rate: 1e-5\nmixed-precision: no",
            "batch_size: 5\nlearning_rate: 1e-5\nmixed_precision: no",
            "train:\n  batch_size: 5\n  learning-rate: 1.0e-5\n  mixed_precision: 'no'",
            "score:\n  dataset: not read here\ntrain:\n  {batch-size: 5, learning_rate: 0.00001, mixed-precision: no}",
        ],
    )
    def test_dashes_underscores_and_sections(self, text: str, ok: Cli, needed: list[object], tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text(text)
        ok("train", "--config", tmp_path / "c.yaml", *needed)
        values = resolved(tmp_path / "run")
        assert (values["batch_size"], values["learning_rate"], values["mixed_precision"]) == (5, 1e-5, "no")

    def test_one_value_where_several_may_be_given(self, ok: Cli, needed: list[object], tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("lora_rank: 1\nlora_target_modules: q_proj\nreport_to: tensorboard")
        ok("train", "--config", tmp_path / "c.yaml", *needed)
        values = resolved(tmp_path / "run")
        assert (values["lora_target_modules"], values["report_to"]) == (["q_proj"], ["tensorboard"])

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("beta: 0.1\nalpha: 1.0\nbeta: 0.5", "line 3 sets 'beta' again, after line 1"),
            ("learning_rate: 1e-5\nlearning-rate: 2e-5", "line 2 sets 'learning-rate' again, after line 1"),
            ("train:\n  beta: 1\n  beta: 1", "line 3 sets 'beta' again, after line 2"),
            ("lora_rank: yes", "--lora-rank yes: should be a valid integer"),
            ("lora_rank: true", "--lora-rank True: should be a number, not a truth value"),
            ("f_clip: on", "--f-clip on: should be a valid number"),
            ("epochs: 1:30", "--epochs 1:30: should be a valid number"),
            ("batch_size: 0b11", "--batch-size 0b11: should be a valid integer"),
        ],
    )
    def test_what_can_be_read_in_two_ways_is_refused(self, text: str, says: str, run_cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text(text)
        command = ["train", "--config", tmp_path / "c.yaml", "--cache", "c", "--model", "m", "--output", "o"]
        refused = run_cli(*command, "--dry-run")
        assert (refused.code, refused.stdout) == (2, "")
        assert says in refused.error

    def test_the_file_of_a_run_serves_another_objective(self, ok: Cli, needed: list[object], tmp_path: Path) -> None:
        ok("train", *needed, "--loss", "dpo")
        again = ok("train", "--config", tmp_path / "run" / "config.yaml", "--loss", "simpo", "--output", tmp_path / "s")
        assert resolved(tmp_path / "s")["beta"] == 2.5
        assert "--beta 0.1 in the file counts as not set" in again.stderr

    def test_one_file_serves_both_commands(self, ok: Cli, models: Models, pairs_file: Path, tmp_path: Path) -> None:
        content = {
            "score": {"dataset": str(pairs_file), "reference": str(models.reference), "output": str(tmp_path / "c")},
            "train": {
                "cache": str(tmp_path / "c"), "model": str(models.reference), "output": str(tmp_path / "run"),
                "loss": "dpo", "max_steps": 1,
            },
        }  # fmt: skip
        path = write_yaml(tmp_path / "both.yaml", content)
        ok("score", "--config", path)
        ok("train", "--config", path)
        # `run` sees the same two stages, both done.
        assert ok("run", path).stderr.count("finished already") == 2
