"""The command line: reads arguments, calls a stage, turns errors into one line and an exit code.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 the data or cache is bad, 2 the call is
wrong, 130 interrupted, 143 terminated. torch and transformers are imported only by the commands that need them.
"""

import errno
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .errors import TgdpoError, UsageError, is_out_of_memory
from .pipeline.options import DEBUG, Debug, options_of, with_debug
from .stages.console import degrade_stdout, is_main_process, printable
from .stages.inspect.config import InspectConfig
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


def _command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds a function to the program as the command `name`, with --debug, which every command has."""
    return lambda function: app.command(name)(with_debug(function))


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    debug: Debug = False,
) -> None:
    if debug:
        os.environ[DEBUG] = "1"
    if version:
        typer.echo(f"tgdpo {__version__}")
        raise typer.Exit


@_command("score")
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


@_command("train")
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


@_command("run")
def run_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="YAML file with sections score and train.")],
) -> None:
    """Do both stages from one file, skipping what is done."""
    from .pipeline.run import read_run, run

    result = run(*read_run(config))
    typer.echo(f"{result.output}: {_shown_metrics(result.summary)}")


@_command("verify")
def verify_command(cache: Cache) -> None:
    """Check a cache: hashes, schema, counts. One line per problem, exit code 1 if there is any."""
    from .data.cache import RewardCache
    from .data.verify import verify

    opened = RewardCache(cache)
    problems = verify(opened)
    for problem in problems:
        typer.echo(printable(problem))
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{cache}: {len(opened)} pairs in {len(opened.manifest.shards)} shards, all as the manifest says")


@_command("inspect")
@options_of(InspectConfig)
def inspect_command(
    given: dict[str, Any],
    cache: Cache,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Show what a cache holds: statistics, how good the guide is, pairs with their tokens coloured by reward."""
    from .stages.inspect.run import inspect

    inspect(cache, _settings(InspectConfig, "inspect", None, given), as_json=as_json)


@_command("report")
def report_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs, finished or not.")],
    html: Annotated[Path, typer.Option("--html", help="The page to write; it needs no network.")] = Path("runs.html"),
) -> None:
    """Show training runs side by side: settings, last metrics, and their curves as a page."""
    from .stages.report.run import report

    report(runs, html.expanduser())


@_command("push")
def push_command(
    cache: Cache,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Dataset on the hub, USER/NAME or NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new dataset private.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence for the card: apache-2.0, cc-by-4.0 …")
    ] = None,
) -> None:
    """Publish a cache as a dataset on the Hugging Face hub, with a card; train reads it from there."""
    from .stages.push.run import push_cache

    typer.echo(push_cache(cache, name, private=private, licence=licence))


@_command("env")
def env_command() -> None:
    """Print versions and hardware, for a bug report."""
    from .stages.provenance import environment

    for name, value in environment().items():
        typer.echo(f"{name}: {value}")


@_command("demo")
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
    degrade_stdout()
    with _termination_as_interrupt() as received:
        code = _exit_code(received)
    sys.exit(code)


@contextmanager
def _termination_as_interrupt() -> Iterator[list[int]]:
    """SIGTERM ends the block as Ctrl-C does; what was received stands in the list. A second one ends the process.

    Not where a launcher has started several processes: one of them may wait for the others in a library that lets no
    handler run, and would not end.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt

    if os.environ.get("WORLD_SIZE", "1") != "1":
        yield received
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit_code(received: list[int]) -> int:
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
    except BrokenPipeError:
        # Who read the output, head say, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if is_out_of_memory(error):
            return _fail("this machine's memory is not enough: end other programs, or use a larger one", 1)
        message = _write_problem(_os_error(error))
        if message is None:
            raise
        return _fail(f"{message} and run the same command again, it goes on", 1)
    if result == 130:  # also what Typer makes of Ctrl-C
        how, code = ("terminated", 128 + signal.SIGTERM) if received else ("interrupted", 130)
        return _fail(f"{how}; what is finished stays, the same command goes on from there", code)
    return result if isinstance(result, int) else 0


def _os_error(error: Exception) -> OSError:
    """The system's error behind `error`: libraries written in Rust give its number in their text alone."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), str(error)) if number else OSError()


def _write_problem(error: OSError) -> str | None:
    """What is wrong with the disk and what to do about it; None for what is no matter of disks."""
    if error.errno == errno.ENOSPC:
        where = f" of {error.filename}" if error.filename else ""
        return f"no space left on the disk{where}: free some"
    return f"{error}: mend that" if error.errno in _WRITE_ERRORS else None


def _fail(message: str, code: int) -> int:
    if not is_main_process():
        # What every process met, the main one says; its launcher ends this one meanwhile.
        time.sleep(10)
    with suppress(OSError):  # on a full disk, a log may have no room for the line
        if os.environ.get(DEBUG, "0") not in ("", "0") and sys.exc_info()[0] is not None:
            traceback.print_exc()
        print(f"tgdpo: {_one_safe_line(message)}", file=sys.stderr)
    return code


def _one_safe_line(message: str) -> str:
    """Without line breaks, escape codes, and what a URL may hold of credentials."""
    line = printable(" ".join(message.split()))
    return re.sub(r"(://)[^/\s@]*@|(://[^\s?]*)\?\S*", lambda found: f"{found[1] or found[2]}…", line)
