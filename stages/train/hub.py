"""Pushing a trained policy to the Hugging Face hub.

The repository is made before training starts, so that a missing token or a wrong name costs nothing; the files go up
when the run is finished, so that a push that fails costs the push alone.
"""

from pathlib import Path

from ...errors import TrainingError
from ..hub import make_repository, reason
from .config import TrainConfig
from .remote import CONFIG, METRICS, PAIRS, RECORD

_NOT_PUSHED = (RECORD, CONFIG, METRICS, PAIRS)
"""What the run folder holds beside the model; it names paths of the machine."""


def open_repository(config: TrainConfig) -> str:
    """Makes the repository of `--push-to-hub` where there is none.

    Returns:
        Its id, with the user's name where `--hub-model-id` left it out.

    Raises:
        UsageError: there is no token, or the hub does not let it.
    """
    name = config.hub_model_id or Path(config.output).expanduser().resolve().name
    return make_repository(name, "--hub-model-id", repo_type="model", private=config.hub_private_repo)


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
            f"the policy is trained and lies in {folder}, but {repository} did not take it ({reason(error)})",
            fix=f"run the same command again, or hf upload {repository} {folder} {excluded}",
        ) from error
    return f"{api.endpoint}/{repository}"
