"""What a run recorded of its options, compared with those of another start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data.addresses import is_url
from ...data.manifest import differing_fields
from ...errors import TrainingError
from ..yaml_text import parse_yaml
from .config import TrainConfig
from .marker import settings_in
from .remote import CONFIG, RemoteRun, working_folder

# What may change between two starts of one run: it does not decide the result.
_FREE_FIELDS = (
    "cache",
    "model",
    "reference",
    "output",
    "resume",
    "device",
    "batch_tokens",
    "parallel",
    "gradient_checkpointing",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "keep_checkpoints",
    "checkpoint_state",
    "log_pairs",
    "report_to",
    "project",
    "run_name",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
)


def options_in(content: bytes) -> tuple[dict[str, Any] | None, str]:
    """The options of a config.yaml; None, and what the file is instead."""
    try:
        options = parse_yaml(content)
    except ValueError as error:
        return None, str(error)
    return (options, "") if isinstance(options, dict) else (None, "no mapping of options")


def as_begun(config: TrainConfig) -> TrainConfig:
    """The configuration, for a run that an earlier version began in its output, or whose checkpoint --resume names:
    options that it did not know and that are not set keep doing what that version did. All processes must call it
    before anything depends on options."""
    path = working_folder(config.output)
    if is_url(config.output):
        content = RemoteRun(config.output, path).read(CONFIG)
    else:
        content = (path / CONFIG).read_bytes() if (path / CONFIG).is_file() else None
    options, _ = options_in(content) if content else (settings_in(Path(config.resume).expanduser()), "")
    return config.as_begun(options) if options else config


def require_same_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any], whose: str) -> None:
    """Raises TrainingError where settings differ that decide the result.

    Args:
        ours: options, and what the run is made from, as JSON values.
        theirs: the same, as an earlier start recorded them.
        whose: begins the message.
    """
    theirs = TrainConfig.completed(theirs)
    fields = differing_fields(ours, theirs, ignore=_FREE_FIELDS)
    if fields:
        raise TrainingError(
            f"{whose} with other settings: "
            + ", ".join(f"{name} ({theirs.get(name)}, now {ours.get(name)})" for name in fields),
            fix="use the same settings, or another --output",
        )
