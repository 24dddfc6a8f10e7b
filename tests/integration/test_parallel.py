"""Training on several processes: the run is that of one, however the policy and the batches are spread."""

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.commands.config.config_args import load_config_from_file
from processes import launch
from support import STANDARD_ROWS, Cli, Models, make_model, make_tokenizer, write_rows

FAST = ("--learning-rate", 1e-2, "--batch-size", 8, "--logging-steps", 1, "--eval-fraction", 0.1, "--log-pairs")
SPEED = {"tokens_per_second"}


@pytest.fixture(scope="module")
def cache(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty scored pairs of many lengths in three shards."""
    import tgdpo

    folder = tmp_path_factory.mktemp("parallel")
    rows = [{**row, "prompt": f"{n}. {row['prompt']}" + " and so on" * (n % 5)}
            for n, row in enumerate(STANDARD_ROWS * 3)]  # fmt: skip
    pairs = write_rows(folder / "pairs.jsonl", rows)
    tgdpo.score(tgdpo.ScoreConfig(dataset=str(pairs), reference=str(models.reference), guidance=str(models.guidance),
                                  output=str(folder / "cache"), pairs_per_shard=25))  # fmt: skip
    return folder / "cache"


def train(output: Path, *arguments: object, processes: int = 2, **environment: str) -> str:
    """Trains in processes of their own; returns what they printed."""
    started = launch("train", "--output", output, *FAST, *arguments, processes=processes,
                     log=output.parent / f"{output.name}.log", environment=environment)  # fmt: skip
    codes = started.wait()
    assert codes == [0] * processes, started.output
    return started.output


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(transformers.AutoModelForCausalLM.from_pretrained(run).state_dict())


def require_same_run(ours: Path, theirs: Path, tolerance: float = 1e-5) -> None:
    for record, expected in zip(metrics_of(ours), metrics_of(theirs), strict=True):
        assert record.keys() == expected.keys()
        # Where policy and reference are equal, rounding decides which response is better.
        undecided = {"rewards/accuracies", "eval_rewards/accuracies"} if record["step"] <= 1 else set()
        for name in record.keys() - SPEED - undecided:
            assert record[name] == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name
    assert (ours / "pairs.jsonl").read_bytes() == (theirs / "pairs.jsonl").read_bytes()
    expected_weights = weights_of(theirs)
    for name, weight in weights_of(ours).items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def alone(cache: Path, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, two epochs."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(run, "--cache", cache, "--model", models.reference, "--epochs", 2, processes=1)
    return run


@pytest.mark.parametrize(("parallel", "tokens"), [("ddp", 200), ("ddp", 1), ("fsdp", 10_000), ("fsdp", 200)])
def test_is_the_run_of_one_process(
    parallel: str, tokens: int, alone: Path, cache: Path, models: Models, tmp_path: Path
) -> None:
    printed = train(tmp_path / "run", "--cache", cache, "--model", models.reference, "--epochs", 2,
                    "--parallel", parallel, "--batch-tokens", tokens)  # fmt: skip
    require_same_run(tmp_path / "run", alone)
    assert printed.count(f"2 processes ({parallel})") == 1, "the main process alone speaks"
    assert printed.count(", rewards/accuracies") == 1


def test_every_pair_once_an_epoch(alone: Path) -> None:
    steps = [json.loads(line)["pairs"] for line in (alone / "pairs.jsonl").read_text().splitlines()]
    assert [len(step) for step in steps] == [8] * 6 + [6] + [8] * 6 + [6]
    epochs = [sorted(chain.from_iterable(part)) for part in (steps[:7], steps[7:])]
    assert epochs[0] == epochs[1]
    assert len(set(epochs[0])) == 54


def test_more_processes_than_pairs_are_left(cache: Path, models: Models, tmp_path: Path) -> None:
    """With three processes and a last batch of two, one has nothing of its own to do."""
    call = ("--cache", cache, "--model", models.reference, "--batch-size", 26)
    train(tmp_path / "one", *call, processes=1)
    train(tmp_path / "three", *call, processes=3)
    require_same_run(tmp_path / "three", tmp_path / "one")


@pytest.mark.parametrize(
    ("parallel", "options"),
    [
        ("ddp", ["--lora-rank", 4, "--lora-dropout", 0.1, "--gradient-checkpointing"]),
        ("ddp", ["--gradient-checkpointing", "--max-grad-norm", 0]),
        ("fsdp", ["--lora-rank", 4]),
        ("fsdp", ["--lora-rank", 4, "--lora-dropout", 0.1, "--gradient-checkpointing"]),
        ("fsdp", ["--gradient-checkpointing", "--max-grad-norm", 0]),
        ("fsdp", ["--attn-implementation", "sdpa"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value)),
)
def test_options(parallel: str, options: list[Any], cache: Path, models: Models, tmp_path: Path) -> None:
    call = ("--cache", cache, "--model", models.reference, "--max-steps", 3, *options)
    train(tmp_path / "one", *call, processes=1)
    train(tmp_path / "two", *call, "--parallel", parallel, "--batch-tokens", 200)
    if "--lora-dropout" in options:  # each process draws its own
        assert metrics_of(tmp_path / "two")[-1]["eval_loss"] < 0.69
    else:
        require_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_further_columns(parallel: str, cache: Path, models: Models, tmp_path: Path) -> None:
    """TDPO from samples of the reference."""
    import tgdpo

    sampled = str(tmp_path / "sampled")
    tgdpo.score(tgdpo.ScoreConfig(reuse=str(cache), reference_samples=3, output=sampled))
    call = ("--cache", sampled, "--model", models.reference, "--loss", "tdpo1", "--batch-tokens", 200)
    train(tmp_path / "one", *call, processes=1)
    train(tmp_path / "two", *call, "--parallel", parallel)
    require_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_tied_embeddings(parallel: str, cache: Path, tmp_path: Path) -> None:
    tied = make_model(tmp_path / "tied", make_tokenizer(chat=False), seed=0, tie_word_embeddings=True)
    train(tmp_path / "one", "--cache", cache, "--model", tied, "--max-steps", 3, processes=1)
    train(tmp_path / "two", "--cache", cache, "--model", tied, "--max-steps", 3, "--parallel", parallel)
    require_same_run(tmp_path / "two", tmp_path / "one")
    assert weights_of(tmp_path / "two").keys() == weights_of(tmp_path / "one").keys()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_bf16(parallel: str, cache: Path, models: Models, tmp_path: Path) -> None:
    train(tmp_path / "run", "--cache", cache, "--model", models.reference, "--mixed-precision", "bf16",
          "--parallel", parallel)  # fmt: skip
    assert metrics_of(tmp_path / "run")[-1]["eval_loss"] < 0.3
    assert weights_of(tmp_path / "run")["lm_head.weight"].dtype == torch.float32


class TestResume:
    """Checkpoints do not depend on how the policy was spread."""

    CALL = ("--max-steps", 6, "--logging-steps", 2, "--save-steps", 3)
    ADAPTER = ("--lora-rank", 4)

    @pytest.fixture(scope="class")
    def whole(self, cache: Path, models: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
        """The run of one process, without and with an adapter."""
        runs = {extra: tmp_path_factory.mktemp("whole") / "run" for extra in ((), self.ADAPTER)}
        for extra, run in runs.items():
            train(run, "--cache", cache, "--model", models.reference, *self.CALL, *extra, processes=1)
        return runs

    @pytest.mark.parametrize(
        ("first", "second", "state", "extra"),
        [
            ((2, "fsdp"), (1, "auto"), "full", ()),
            ((2, "fsdp"), (1, "auto"), "sharded", ADAPTER),
            ((1, "auto"), (2, "fsdp"), "full", ()),
            ((2, "fsdp"), (3, "fsdp"), "sharded", ()),
            ((2, "fsdp"), (2, "ddp"), "full", ADAPTER),
        ],
    )
    def test_with_other_processes(
        self, first: tuple[int, str], second: tuple[int, str], state: str, extra: tuple[Any, ...], cache: Path,
        models: Models, whole: dict[Any, Path], tmp_path: Path,
    ) -> None:  # fmt: skip
        call = ("--cache", cache, "--model", models.reference, *self.CALL, *extra, "--checkpoint-state", state)
        train(tmp_path / "first", *call, "--parallel", first[1], processes=first[0])
        checkpoint = tmp_path / "first" / "checkpoints" / "step-3"
        assert (checkpoint / "sharded").is_dir() == (state == "sharded")
        printed = train(tmp_path / "second", *call, "--parallel", second[1], "--resume", checkpoint,
                        processes=second[0])  # fmt: skip
        assert f"going on from {checkpoint}" in printed
        later = [record for record in metrics_of(whole[extra]) if record["step"] > 3]
        for record, expected in zip(metrics_of(tmp_path / "second"), later, strict=True):
            for name in expected.keys() - SPEED:
                assert record[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name


def test_a_loss_that_is_not_finite_stops_all_and_is_told_once(cache: Path, models: Models, tmp_path: Path) -> None:
    started = launch("train", "--output", tmp_path / "run", "--cache", cache, "--model", models.reference,
                     "--learning-rate", 1e30, "--warmup-ratio", 0, "--batch-size", 8, processes=2,
                     log=tmp_path / "log")  # fmt: skip
    assert any(started.wait())
    assert started.output.count("is not finite (pair_id") == 1


def test_what_the_main_process_refuses_stops_all(cache: Path, models: Models, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    started = launch("train", "--output", tmp_path / "run", "--cache", cache, "--model", models.reference,
                     processes=2, log=tmp_path / "log")  # fmt: skip
    assert any(started.wait())
    assert started.output.count("tgdpo: ") == 1
    assert "holds no run" in started.output


CONFIGURATIONS = sorted((Path(__file__).parents[2] / "docs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_the_configurations_of_the_documents_are_accelerates(path: Path) -> None:
    """Keys it does not know are an error there."""
    assert load_config_from_file(str(path)).num_processes in (1, 8, 16)


def test_accelerate_launch(alone: Path, cache: Path, models: Models, tmp_path: Path) -> None:
    """As a user types it, with the documents' configuration for two machines brought down to two processes."""
    configuration = next(path for path in CONFIGURATIONS if path.stem == "2x8-gpus-fsdp")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", configuration, "--num_machines", 1,
               "--num_processes", 2, "-m", "tgdpo", "train", "--cache", cache, "--model", models.reference, "--output",
               tmp_path / "run", *FAST, "--epochs", 2, "--mixed-precision", "no", "--save-steps", 5]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 processes (fsdp)") == 1
    assert done.stdout.count("rewards/accuracies") == 2, "one line: of the last step and of the evaluation"
    assert (tmp_path / "run" / "checkpoints" / "step-10" / "sharded").is_dir()
    require_same_run(tmp_path / "run", alone)


def test_deepspeed_without_its_launcher(cache: Path, models: Models, tmp_path: Path, run_cli: Cli) -> None:
    result = run_cli("train", "--output", tmp_path / "run", "--cache", cache, "--model", models.reference,
                     "--parallel", "deepspeed")  # fmt: skip
    assert result.code == 2
    assert "accelerate launch" in result.error
