"""Trainings of the study and their judging; what is there is not done again.

FOLDER/base, pairs.jsonl              the task
FOLDER/cache, cache-GUIDE             scored without guidance and with each guide
FOLDER/runs/NAME                      run folders of tgdpo train
FOLDER/results/NAME.parquet           raw results, a row per prompt, written when a run is judged
"""

import contextlib
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from grid import Grid, Spec
from judging import answers
from numpy.typing import NDArray
from raw import About, Raw
from tasks import SMOKE_SIZES, Task, sorting, stories

from tgdpo.data.files import publish
from tgdpo.pipeline.demo.run import torch_threads
from tgdpo.stages.console import meter
from tgdpo.stages.score.config import ScoreConfig
from tgdpo.stages.score.run import score
from tgdpo.stages.train.config import TrainConfig
from tgdpo.stages.train.run import train

PRELOADED = ["pandas", "tgdpo.pipeline.demo.run", "torch._dynamo", "transformers.models.llama.modeling_llama"]
"""What workers would otherwise import one by one."""
BASE_SEED, ANSWER_SEED = 2000, 1000
"""The base's answers that others are held against are draws of their own."""


@dataclass(frozen=True)
class Study:
    """A study on one task; picklable, so that workers can have it."""

    task_name: str
    folder: Path
    grid: Grid
    shared: Path

    def task(self) -> Task:
        """Makes what is missing of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.task_name == "stories":
            return stories(self.shared, self.folder)
        return sorting(self.folder, SMOKE_SIZES) if self.task_name == "smoke" else sorting(self.folder)

    def run_folder(self, spec: Spec) -> Path:
        """Of tgdpo train."""
        return self.folder / "runs" / spec.name

    def result(self, name: str) -> Path:
        """Raw results of a run, or of the base."""
        return self.folder / "results" / f"{name}.parquet"

    def finish(self, workers: int) -> None:
        """Does all that is missing."""
        with torch_threads(1):
            task = self.task()
            (self.folder / "results").mkdir(exist_ok=True)
            self._score(task, "cache")
            self._judge_base(task)
        self._run(self.grid.guide_specs(), workers)
        with torch_threads(1):
            for spec in self.grid.guide_specs():
                self._score(task, f"cache-{spec.method}", guidance=str(self.run_folder(spec)))
        self._run(self.grid.specs(), workers)

    def _score(self, task: Task, name: str, **options: Any) -> None:
        files = {"dataset": str(task.pairs), "reference": str(task.base), "output": str(self.folder / name)}
        score(ScoreConfig(**files, limit=self.grid.pairs, device="cpu", **options))

    def _judge_base(self, task: Task) -> None:
        for seed in range(self.grid.seeds):
            name = f"base-s{seed}"
            if not self.result(name).is_file():
                self._write(name, answers(task, self._prompts(task), task.base, BASE_SEED + seed).assign(seed=seed))

    def _prompts(self, task: Task) -> list[str]:
        return task.prompts[: self.grid.prompts]

    def _write(self, name: str, frame: pd.DataFrame) -> None:
        publish(self.result(name), lambda path: frame.to_parquet(path, index=False))

    # Runs, on several workers

    def _run(self, specs: Iterable[Spec], workers: int) -> None:
        missing = [spec for spec in specs if not self.result(spec.name).is_file()]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        with (
            meter(f"{self.task_name}: runs", len(missing)) as progress,
            ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            futures = [pool.submit(self.run_one, spec) for spec in missing]
            try:
                for future in as_completed(futures):
                    future.result()
                    progress.advance(1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def run_one(self, spec: Spec) -> None:
        """Trains and judges; messages go to the run's log."""
        task = self.task()
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{spec.name}.log").open("w", encoding="utf-8") as file, contextlib.redirect_stderr(file):
            train(self._config(task, spec))
            frame = answers(task, self._prompts(task), self.run_folder(spec), ANSWER_SEED + spec.seed)
        self._write(spec.name, frame.assign(**asdict(spec)))

    def _config(self, task: Task, spec: Spec) -> TrainConfig:
        grid = self.grid
        options: dict[str, Any] = {
            "loss": spec.method.removeprefix("weak-"),
            "learning_rate": spec.learning_rate,
            "seed": spec.seed,
            "batch_size": grid.batch_size,
            "cache": str(self.folder / (f"cache-{spec.guide}" if spec.guide else "cache")),
        }
        if spec.method == "tgdpo":
            options["alpha"] = spec.alpha
        if spec.method.startswith("tdpo"):
            options["reference"] = str(task.base)
        if spec.method.startswith("weak-"):
            options["epochs"] = grid.weak_share
        if spec.method in grid.beta:
            options["beta"] = grid.beta[spec.method]
        if spec.part == "convergence":
            options |= {"epochs": grid.epochs_to_convergence, "lr_scheduler": "constant_with_warmup",
                        "convergence_loss": grid.convergence_loss, "convergence_window": 5}  # fmt: skip
        return TrainConfig(
            model=str(task.base), output=str(self.run_folder(spec)), device="cpu", save_steps=0, logging_steps=1,
            **options,
        )  # fmt: skip

    # What came out

    def raw(self) -> Raw:
        """All of it."""
        task = self.task()
        pairs = min(self.grid.pairs, len(task.pairs.read_text(encoding="utf-8").splitlines()))
        prompts = pd.DataFrame({"text": self._prompts(task)}).rename_axis("prompt").reset_index()
        about = About(task=task.name, scale=task.scale, pairs=pairs)
        return Raw(about, prompts, self.base(), self.guides(), self.results(), self.curves())

    def results(self) -> pd.DataFrame:
        """The answers of all runs, with the base's score of the same prompt and seed."""
        names = [spec.name for spec in (*self.grid.guide_specs(), *self.grid.specs())]
        runs = pd.concat([pd.read_parquet(self.result(name)) for name in names], ignore_index=True)
        base = self.base()[["prompt", "seed", "score"]].rename(columns={"score": "base_score"})
        return runs.merge(base, on=["prompt", "seed"], how="left")

    def base(self) -> pd.DataFrame:
        """The base's own answers."""
        seeds = range(self.grid.seeds)
        return pd.concat([pd.read_parquet(self.result(f"base-s{seed}")) for seed in seeds], ignore_index=True)

    def guides(self) -> pd.DataFrame:
        """How large the guides' rewards are, and how alike, over the tokens of all pairs."""
        rewards = pd.DataFrame({guide: _token_rewards(self.folder / f"cache-{guide}") for guide in self.grid.guides})
        alike = rewards.corr()[self.grid.guides[0]]
        columns = {"tokens": len(rewards), "rms": (rewards**2).mean() ** 0.5, "correlation": alike}
        return pd.DataFrame(columns).rename_axis("guide").reset_index()

    def curves(self) -> pd.DataFrame:
        """metrics.jsonl of all runs, a row per step."""
        specs = [*self.grid.guide_specs(), *self.grid.specs()]
        frames = [
            pd.read_json(self.run_folder(spec) / "metrics.jsonl", lines=True).assign(**asdict(spec)) for spec in specs
        ]
        return pd.concat(frames, ignore_index=True)


def _token_rewards(cache: Path) -> NDArray[np.float64]:
    """Of all responses of a cache, one after the other."""
    pairs = pd.read_parquet(cache, columns=["chosen_rewards", "rejected_rewards"])
    return np.concatenate([*pairs.chosen_rewards, *pairs.rejected_rewards]).astype(np.float64)


def default_workers() -> int:
    """One a core."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
