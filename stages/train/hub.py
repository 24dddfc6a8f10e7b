"""Pushing a trained policy to the Hugging Face hub.

The repository is made before training starts, so that a missing token or a wrong name costs nothing; the files go up
when the run is finished, so that a push that fails costs the push alone.
"""

from pathlib import Path
from typing import Any

from ...errors import TrainingError, UsageError
from .config import TrainConfig

_NOT_PUSHED = ("run.json", "config.yaml", "metrics.jsonl", "pairs.jsonl")
"""What the run folder holds beside the model; it names paths of the machine."""


def open_repository(config: TrainConfig) -> str:
    """Makes the repository of `--push-to-hub` where there is none.

    Returns:
        Its id, with the user's name where `--hub-model-id` left it out.

    Raises:
        UsageError: there is no token, or the hub does not let it.
    """
    from huggingface_hub import HfApi, get_token

    name = config.hub_model_id or Path(config.output).expanduser().resolve().name
    if get_token() is None:
        raise UsageError("--push-to-hub: nobody is logged in", fix="run hf auth login, or set HF_TOKEN")
    try:
        return HfApi().create_repo(name, private=config.hub_private_repo or None, exist_ok=True).repo_id
    except Exception as error:
        raise UsageError(
            f"--push-to-hub: the repository {name} cannot be made or written to ({_reason(error)})",
            fix="check --hub-model-id, the token's rights and the network",
        ) from error


def push(folder: Path, repository: str) -> str:
    """Uploads the model, its tokenizer and its card in one commit.

    Returns:
        Where they are now.

    Raises:
        TrainingError: the hub did not take them; the model stays where it is.
    """
    from huggingface_hub import HfApi

    files = [path.name for path in folder.iterdir() if path.is_file() and path.name not in _NOT_PUSHED]
    try:
        api = HfApi()
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=files,
            commit_message="Policy trained with tgdpo",
        )
    except Exception as error:
        excluded = " ".join(f"--exclude '{name}'" for name in ("checkpoints/*", "logs/*", *_NOT_PUSHED))
        raise TrainingError(
            f"the policy is trained and lies in {folder}, but {repository} did not take it ({_reason(error)})",
            fix=f"run the same command again, or hf upload {repository} {folder} {excluded}",
        ) from error
    return f"{api.endpoint}/{repository}"


def _reason(error: Any) -> str:
    """The first line of what a library says, never with the token in it."""
    from huggingface_hub import get_token

    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    token = get_token()
    return text.replace(token, "***") if token else text
