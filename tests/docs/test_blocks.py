"""Every block of commands in README, CONTRIBUTING and docs/ runs, in a folder with small models of the names it uses.

A page is one user: its blocks run in their order in one folder, bash in bash, Python in one namespace. What a machine
without GPUs, cluster or network cannot run is checked instead, see `CHECKED`: its options, and the files that it names.
"""

import argparse
import ast
import re
import shlex
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from fnmatch import fnmatchcase
from importlib import import_module
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import accelerate.commands.launch
import huggingface_hub
import pandas as pd
import pytest
import torch.distributed.run
import transformers
import yaml
from documents import PAGES, ROOT, Block, blocks_of
from hub import TOKEN, served
from scripts import run_script
from shell import Answer, Program, run_bash
from support import CHAT_ROWS, make_model, make_tokenizer, write_rows

from tgdpo import ScoreConfig, cli, score

moto_server = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'tgdpo[dev]'")
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'tgdpo[dev]'")

REFERENCES = (
    "my-sft-model", "base", "sft", "POLICY", "R", "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct", "store/models/sft",
)  # fmt: skip
GUIDES = ("my-dpo-model", "guide", "other-guide", "opposed-guide", "G", "store/models/guide")
REWARD_MODEL = "Skywork/Skywork-Reward-V2-Llama-3.2-1B"

MADE = {
    "docs/cache-format.md": {"cache"},
    "docs/how-to/compare-objectives.md": {"cache"},
    "docs/how-to/eight-gpus.md": {"cache"},
    "docs/how-to/reuse-a-cache.md": {"cache"},
    "docs/inspect.md": {"cache", "other-cache", "USER/NAME", "policy", "other-policy"},
    "docs/losses.md": {"CACHE"},
    "docs/training.md": {"cache"},
}
"""What a page takes as made: caches, and policies trained from `cache`."""
MAKES = {
    "docs/quickstart.md": {"guide"},
    "docs/how-to/guides.md": {"opposed-guide"},
    "docs/how-to/one-gpu.md": {"guide"},
    "docs/losses.md": {"sft", "guide"},
}
"""Models that a page trains itself."""

ELLIPSIS = {
    "score": ["--dataset", "pairs.jsonl", "--reference", "my-sft-model", "--guidance", "my-dpo-model"],
    "train": ["--cache", "cache", "--model", "my-sft-model"],
}
"""What … stands for; where no output folder is named, one of its own is added."""


def why_only_checked(arguments: list[str]) -> str | None:
    """Why a `tgdpo` command is checked with --dry-run; None where it runs."""
    text = " ".join(arguments)
    if "--engine vllm" in text or "--tensor-parallel-size" in text:
        return "vLLM: GPUs, and an environment of its own"
    if "--launcher ray" in text:
        return "Ray: a cluster, and an environment of its own"
    if "hf://" in text:
        return "reads from the hub"
    return None


CHECKED = {
    "accelerate": "several processes: configuration file and options",
    "torchrun": "several processes: options",
    "python": "benchmarks: the script and its options",
    "make": "the target",
    "pip": "the extras and files that it names",
    "pre-commit": "changes the checkout: nothing",
    "ray": "starts a cluster: nothing",
}
"""What is checked of programs that do not run."""


NAMES = {"docs/cache-format.md": ("datasets", "duckdb", "pandas", "polars", "tgdpo")}
"""Modules that the Python of a page takes as imported."""


class Documents:
    """The programs of the documents, for one page."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.tried: Counter[str] = Counter()
        self.failed: list[Answer] = []
        """Bash forgives commands in the background."""
        self.ellipses = 0

    @property
    def programs(self) -> dict[str, Program]:
        own: dict[str, Program] = {
            "tgdpo": self.tgdpo,
            "accelerate": self.accelerate,
            "torchrun": self.torchrun,
            "python": self.python,
            "make": self.make,
            "pip": self.pip,
            "aws": self.aws,
            "sbatch": self.sbatch,
        }
        return own | {name: self.nothing(name) for name in CHECKED if name not in own}

    def count(self, what: str) -> None:
        self.tried[f"of the documents: {what}"] += 1

    def nothing(self, name: str) -> Program:
        def answer(_: list[str], __: Path) -> Answer:
            self.count(f"{name} only listed, {CHECKED[name]}")
            return Answer()

        return answer

    def tgdpo(self, arguments: list[str], folder: Path) -> Answer:
        arguments = self.filled(arguments)
        why = why_only_checked(arguments)
        if why:
            self.count(f"tgdpo {arguments[0]} checked with --dry-run, {why}")
            return self.called([*arguments, "--dry-run"], folder)
        self.count("commands run")
        return self.called(arguments, folder)

    def called(self, arguments: list[str], folder: Path) -> Answer:
        answer = main(arguments, folder)
        self.failed += [answer] if answer.code else []
        return answer

    def filled(self, arguments: list[str]) -> list[str]:
        """`arguments` with what … stands for."""
        if "…" not in arguments:
            return arguments
        self.ellipses += 1
        output = [] if "--output" in arguments else ["--output", f"out-{self.ellipses}"]
        return [*(one for one in arguments if one != "…"), *ELLIPSIS[arguments[0]], *output]

    def launched(self, command: list[str], folder: Path) -> Answer:
        """What a launcher starts, `tgdpo train …`."""
        return self.called([*self.filled(command), "--dry-run"], folder)

    def accelerate(self, arguments: list[str], folder: Path) -> Answer:
        self.count(f"accelerate checked, {CHECKED['accelerate']}")
        assert arguments[0] == "launch"
        given = accelerate.commands.launch.launch_command_parser().parse_args(arguments[1:])
        assert given.module
        assert given.training_script == "tgdpo"
        assert (folder / given.config_file).is_file(), given.config_file
        return self.launched(given.training_script_args, folder)

    def torchrun(self, arguments: list[str], folder: Path) -> Answer:
        self.count(f"torchrun checked, {CHECKED['torchrun']}")
        given = torch.distributed.run.get_args_parser().parse_args(arguments)
        assert given.module
        assert given.training_script == "tgdpo"
        return self.launched(given.training_script_args, folder)

    def python(self, arguments: list[str], _: Path) -> Answer:
        self.count(f"python checked, {CHECKED['python']}")
        accepts(ROOT / arguments[0], arguments[1:])
        return Answer()

    def make(self, arguments: list[str], _: Path) -> Answer:
        self.count(f"make checked, {CHECKED['make']}")
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets), arguments
        return Answer()

    def pip(self, arguments: list[str], _: Path) -> Answer:
        self.count(f"pip checked, {CHECKED['pip']}")
        parser = argparse.ArgumentParser()
        parser.add_argument("-c", dest="constraints", type=lambda name: (ROOT / name).resolve(strict=True))
        parser.add_argument("-e", action="store_true")
        parser.add_argument("what", nargs="+")
        given = parser.parse_args(arguments[1:])
        assert arguments[0] == "install"
        for requirement in given.what:
            found = re.fullmatch(r"(?:tgdpo|\.)(?:\[([\w,]+)\])?", requirement)
            assert found, requirement
            assert set((found[1] or "").split(",")) - {""} <= extras(), requirement
        return Answer()

    def aws(self, arguments: list[str], folder: Path) -> Answer:
        """`aws s3 cp --recursive [--exclude PATTERN] FOLDER URL`, or from a URL to a folder, done by s3fs."""
        self.count("commands run")
        *options, source, target = arguments
        assert options[:3] == ["s3", "cp", "--recursive"]
        excluded = options[4] if options[3:4] == ["--exclude"] else ""
        assert len(options) == (5 if excluded else 3)
        files = s3fs.S3FileSystem(skip_instance_cache=True)
        if not source.startswith("s3://"):
            files.put(f"{folder / source}/", target, recursive=True)
            return Answer()
        for path in files.find(source):
            name = path.removeprefix(source.removeprefix("s3://")).lstrip("/")
            if not fnmatchcase(name, excluded):
                (folder / target / name).parent.mkdir(parents=True, exist_ok=True)
                files.get_file(path, str(folder / target / name))
        return Answer()

    def sbatch(self, arguments: list[str], folder: Path) -> Answer:
        """Runs the script, once for each task of its array."""
        self.count("commands run")
        parser = argparse.ArgumentParser()
        parser.add_argument("--parsable", action="store_true")
        parser.add_argument("--dependency")
        parser.add_argument("script", type=Path)
        script = (folder / parser.parse_args(arguments).script).read_text()
        last = re.search(r"^#SBATCH --array=0-(\d+)$", script, re.MULTILINE)
        tasks = int(last[1]) + 1 if last else 1
        for task in range(tasks):
            variables = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(tasks)}
            stubs = folder.parent / f"sbatch-{task}"
            done = run_bash(script, folder, stubs, self.programs, SCRATCH=str(folder / "store"), **variables)
            if done.code:
                return done
        return Answer(stdout="17\n")


def main(arguments: list[str], folder: Path) -> Answer:
    """`tgdpo` in this process, whose working folder is `folder`."""
    output, errors, code = StringIO(), StringIO(), 0
    before = sys.argv
    sys.argv = ["tgdpo", *arguments]
    assert folder == Path.cwd()
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return Answer(code, output.getvalue(), errors.getvalue())


class ParsedError(Exception):
    """A script has understood its options."""


def accepts(script: Path, options: list[str]) -> None:
    """Runs a script as far as its options."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *_: Any) -> None:
        parse(self, options)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        with pytest.raises(ParsedError):
            run_script(script, *options)


def extras() -> set[str]:
    """Names in [project.optional-dependencies]."""
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, preference sets, caches."""
    for name in chain.from_iterable(NAMES.values()):
        import_module(name)  # here, since polars sets environment variables
    folder = tmp_path_factory.mktemp("documents")
    tokenizer = make_tokenizer(chat=True)
    for seed, name in enumerate(("reference", "guidance")):
        make_model(folder / name, tokenizer, seed=seed, max_position_embeddings=4096)
    configuration = transformers.LlamaConfig.from_pretrained(folder / "reference", num_labels=1)
    transformers.LlamaForSequenceClassification(configuration).save_pretrained(folder / "judge")
    tokenizer.save_pretrained(folder / "judge")
    rows = write_rows(folder / "pairs.jsonl", CHAT_ROWS)
    pd.DataFrame(CHAT_ROWS).to_parquet(folder / "pairs.parquet")
    for name, guide in (("cache", "guidance"), ("other-cache", "reference")):
        score(ScoreConfig(dataset=str(rows), reference=str(folder / "reference"), guidance=str(folder / guide),
                          output=str(folder / name)))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def bucket() -> Iterator[None]:
    """The bucket `bucket`; the environment leads to it."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (("ACCESS_KEY_ID", "id"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield
    server.stop()


@pytest.fixture
def user(bucket: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logged in at a hub."""
    with served() as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        yield


def prepare(folder: Path, page: str, made: Path) -> None:
    """What the commands of a page find in their folder."""
    folder.mkdir()
    write_rows(folder / "pairs.jsonl", CHAT_ROWS)
    given = {"D": "pairs.jsonl", "store/pairs.parquet": "pairs.parquet"}
    given |= dict.fromkeys(REFERENCES, "reference") | dict.fromkeys(GUIDES, "guidance") | {REWARD_MODEL: "judge"}
    given = {name: source for name, source in given.items() if name not in MAKES.get(page, ())}
    caches = [name for name in MADE.get(page, ()) if "policy" not in name]
    for name, source in (given | {name: name if name == "other-cache" else "cache" for name in caches}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(made / source)
    prompts = folder / "trl-lib" / "ultrafeedback-prompt"
    prompts.mkdir(parents=True)
    write_rows(prompts / "train.jsonl", [{"prompt": row["prompt"]} for row in CHAT_ROWS[:4]])
    (folder / "docs").symlink_to(ROOT / "docs")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_blocks_run(
    page: Path, made: Path, user: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    name, folder = page.relative_to(ROOT).as_posix(), tmp_path / "user"
    prepare(folder, name, made)
    monkeypatch.chdir(folder)
    documents = Documents(name)
    for policy in MADE.get(name, set()) & {"policy", "other-policy"}:
        trained = main(["train", "--cache", "cache", "--model", "my-sft-model", "--output", policy], folder)
        assert trained.code == 0, trained.stderr
    namespace: dict[str, Any] = {module: import_module(module) for module in NAMES.get(name, ())}
    for number, block in enumerate(blocks_of(page)):
        run(block, folder, tmp_path / f"stubs-{number}", documents, namespace)
    for tried in documents.tried.items():
        record_property("tried", tried)


def run(block: Block, folder: Path, stubs: Path, documents: Documents, namespace: dict[str, Any]) -> None:
    """Fails where the block does."""
    if block.kind == "bash":
        done = run_bash(block.text, folder, stubs, documents.programs)
        assert done.code == 0, f"{block}: {done.stderr}"
        assert not documents.failed, f"{block}: {documents.failed[0].stderr}"
    elif block.kind == "python":
        run_python(block, documents, namespace)
    elif block.kind == "yaml":
        documents.count("YAML files")
        (folder / "config.yaml").write_text(block.text)
    else:
        documents.count("listings, which are no commands" if block.kind == "listing" else "directives of the site")


def run_python(block: Block, documents: Documents, namespace: dict[str, Any]) -> None:
    code = compile(ast.parse(block.text), str(block), "exec")
    if "vllm" in code.co_names:
        documents.count("Python only parsed, vLLM: GPUs, and an environment of its own")
        return
    documents.count("blocks of Python run")
    with redirect_stdout(StringIO()):
        exec(code, namespace)


def test_every_page_is_seen() -> None:
    assert {"README.md", "docs/quickstart.md", "docs/how-to/s3.md"} <= {p.relative_to(ROOT).as_posix() for p in PAGES}
    kinds = Counter(block.kind for page in PAGES for block in blocks_of(page))
    assert kinds["bash"] > 50
    assert kinds["python"] > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_listings_hold_no_commands(page: Path) -> None:
    """Nothing escapes because it stands among other lines."""
    lines = [line for block in blocks_of(page) if block.kind == "listing" for line in block.text.splitlines()]
    assert not [line for line in lines if re.match(r"\s*(tgdpo|pip|torchrun|accelerate) [a-z]+ ", line)]


def test_the_kubernetes_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = yaml.safe_load((ROOT / "docs" / "examples" / "score-job.yaml").read_text())
    (script,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    command = shlex.split(script.replace("$JOB_COMPLETION_INDEX", str(job["spec"]["completions"] - 1)))
    assert command[:2] == ["exec", "tgdpo"]
    done = main([*command[2:], "--dry-run"], tmp_path)
    assert done.code == 0, done.stderr


def test_help_names_pages_that_exist() -> None:
    from tgdpo.stages.train.config import TrainConfig

    for text in (str(field.description) for field in TrainConfig.model_fields.values()):
        assert all((ROOT / name).is_file() for name in re.findall(r"docs/[\w./-]+\.md", text))
