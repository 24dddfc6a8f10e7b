"""`tgdpo run`: both stages from one file; what is done is skipped by the stages themselves."""

from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..stages.score.config import ScoreConfig
from ..stages.train.config import TrainConfig
from .configuration import build, read_yaml, require_keys


def read_run(path: Path) -> tuple[ScoreConfig, TrainConfig]:
    """The configurations of both stages. `train.cache` is the scored cache; `train.model` is the reference by default.

    Raises:
        UsageError: a section is missing, or an option in it is wrong.
    """
    content = read_yaml(path)
    require_keys(content, ("score", "train"), path)
    sections: dict[str, dict[str, Any]] = {}
    for name in ("score", "train"):
        if not isinstance(content.get(name), dict):
            raise UsageError(
                f"{path} has no section '{name}'", fix="write the options of both stages under score: and train:"
            )
        sections[name] = content[name]
    score_config = build(ScoreConfig, sections["score"])
    if score_config.worker:
        raise UsageError(
            f"{path}: worker {score_config.worker} scores a share, and training needs all of it",
            fix="run tgdpo score with it first, then this without it",
        )
    defaults: dict[str, Any] = {"cache": score_config.output}
    if score_config.reference:
        defaults["model"] = score_config.reference
    return score_config, build(TrainConfig, defaults, sections["train"])


def run(score_config: ScoreConfig, train_config: TrainConfig) -> Any:
    """Scores, then trains.

    Returns:
        The `TrainResult`.
    """
    from ..stages.train.run import train
    from .launch import score

    score(score_config)
    return train(train_config)
