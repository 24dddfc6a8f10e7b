"""The command line: reads arguments, calls a stage, turns errors into one line and an exit code.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 the data or cache is bad, 2 the call is
wrong, 130 interrupted. torch and transformers are imported only by the commands that need them.
"""

import errno
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .errors import TgdpoError, UsageError
from .pipeline.options import options_of
from .stages.console import is_main_process
from .stages.score.config import ScoreConfig
from .stages.train.config import TrainConfig

app = typer.Typer(
    name="tgdpo",
    help="DPO guided per token: score the rewards once, train the policy alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file with any of these options; flags win.", show_default=False)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved configuration as YAML and do nothing else.")
]
PLAN = "Planning"
Planned = Annotated[
    bool,
    typer.Option("--plan", help="Print memory, steps, tokens and time, load no weights.", rich_help_panel=PLAN),
]
PlannedGpu = Annotated[
    str | None, typer.Option("--gpu", help="Kind of GPU to plan for, such as H100 or A100-80GB.", rich_help_panel=PLAN)
]
PlannedGpus = Annotated[int, typer.Option("--gpus", min=1, help="How many of them.", rich_help_panel=PLAN)]
PlannedUtilisation = Annotated[
    float,
    typer.Option("--utilisation", min=0.01, max=1, help="Share of their peak that is reached.", rich_help_panel=PLAN),
]
PlannedSpeed = Annotated[
    float | None,
    typer.Option(
        "--tokens-per-second", min=0.001, help="Speed that was measured, instead of a GPU.", rich_help_panel=PLAN
    ),
]
Cache = Annotated[str, typer.Argument(metavar="CACHE", help="Folder of the reward cache.", show_default=False)]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"tgdpo {__version__}")
        raise typer.Exit


@app.command("score")
@options_of(ScoreConfig)
def score_command(given: dict[str, Any], config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Run guidance and reference once and write per-token rewards to a cache of Parquet shards."""
    settings = _settings(ScoreConfig, "score", config, given)
    if dry_run:
        typer.echo(settings.to_yaml(), nl=False)
        return
    if settings.plan:
        from .stages.score.estimate import estimate

        typer.echo(estimate(settings))
        return
    from .pipeline.launch import score

    manifest = score(settings)
    if manifest is None:
        typer.echo(f"{settings.output}: worker {settings.worker} is done, others are not")
        return
    counts = manifest.counts
    typer.echo(f"{settings.output}: {counts.scored} pairs scored, {counts.set_aside} set aside")


@app.command("train")
@options_of(TrainConfig)
def train_command(
    given: dict[str, Any],
    config: ConfigFile = None,
    dry_run: DryRun = False,
    plan: Planned = False,
    gpu: PlannedGpu = None,
    gpus: PlannedGpus = 1,
    utilisation: PlannedUtilisation = 0.4,
    tokens_per_second: PlannedSpeed = None,
) -> None:
    """Train the policy from a reward cache; no other model is loaded."""
    settings = _settings(TrainConfig, "train", config, given)
    if dry_run:
        typer.echo(settings.to_yaml(), nl=False)
        return
    if plan:
        from .stages.train.plan import Speed, make_plan, rendered

        speed = Speed(gpu, gpus, utilisation, tokens_per_second)
        typer.echo(rendered(settings, make_plan(settings, speed), speed))
        return
    if gpu or tokens_per_second or gpus != 1:
        raise UsageError("--gpu, --gpus and --tokens-per-second describe a plan", fix="add --plan, or leave them out")
    from .stages.train.run import train

    result = train(settings)
    if is_main_process():
        typer.echo(f"{result.output}: {_shown_metrics(result.summary)}")


@app.command("run")
def run_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="YAML file with sections score and train.")],
) -> None:
    """Do both stages from one file, skipping what is done."""
    from .pipeline.run import read_run, run

    result = run(*read_run(config))
    typer.echo(f"{result.output}: {_shown_metrics(result.summary)}")


@app.command("verify")
def verify_command(cache: Cache) -> None:
    """Check a cache: hashes, schema, counts. One line per problem, exit code 1 if there is any."""
    from .data.cache import RewardCache
    from .data.verify import verify

    opened = RewardCache(cache)
    problems = verify(opened)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{cache}: {len(opened)} pairs in {len(opened.manifest.shards)} shards, all as the manifest says")


@app.command("inspect")
def inspect_command(
    cache: Cache,
    pair: Annotated[
        str | None, typer.Option("--pair", help="Number or pair_id of a pair to show.", show_default="0")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Tokenizer, where the cache's own is not at hand.")
    ] = None,
) -> None:
    """Show what a cache holds, and one pair with its tokens coloured by reward."""
    from .stages.inspect.run import inspect

    inspect(cache, pair=pair, tokenizer=tokenizer)


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option("--output", help="Folder for everything the demo makes.")] = Path(
        "tgdpo-demo"
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of data, models and training.")] = 0,
) -> None:
    """Do all of it on a small model made on the spot: guide, rewards, TGDPO and DPO; no download, no GPU."""
    from .pipeline.demo.run import demo

    typer.echo(demo(output, seed=seed))


def _settings(kind: Any, name: str, config: Path | None, given: dict[str, Any]) -> Any:
    from .pipeline.configuration import build, read_yaml, section

    from_file = section(read_yaml(config), name, config) if config else {}
    return build(kind, from_file, given)


def _shown_metrics(summary: dict[str, Any]) -> str:
    names = ("step", "loss", "rewards/accuracies", "eval_loss", "eval_rewards/accuracies")
    return ", ".join(f"{name} {summary[name]:.6g}" for name in names if name in summary)


# Typer brings its own copy of click; its error classes are reached through the one that Typer exports.
_ClickError: Any = typer.BadParameter.__mro__[2]


_WRITE_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE}


def main() -> None:
    """Entry point of the console script."""
    sys.exit(_exit_code())


def _exit_code() -> int:
    try:
        result = app(standalone_mode=False)
    except TgdpoError as error:
        return _fail(str(error), error.exit_code)
    except _ClickError as error:
        message = error.format_message()
        # Without a command the help has been shown, and there is nothing to add.
        return _fail(f"{message} (tgdpo --help lists what there is)", 2) if message else 2
    except (KeyboardInterrupt, typer.Abort):
        result = 130
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail("no space left on the disk: free some and run the same command again, it goes on", 1)
        if error.errno in _WRITE_ERRORS:
            return _fail(f"{error}: mend that and run the same command again, it goes on", 1)
        raise
    if result == 130:  # also what Typer makes of Ctrl-C
        return _fail("interrupted; what is finished stays, the same command goes on from there", 130)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    if not is_main_process():
        # What every process met, the main one says; its launcher ends this one meanwhile.
        time.sleep(10)
    print(f"tgdpo: {' '.join(message.split())}", file=sys.stderr)
    return code
