"""`tgdpo push`: the shards, the manifest and a card, in one commit."""

from pathlib import Path

from ...data.cache import RewardCache
from ...data.schema import MANIFEST_NAME, SET_ASIDE_NAME
from ...data.verify import verify
from ...errors import CacheError, HubError, UsageError
from ..console import log
from ..hub import make_repository, reason
from .card import card


def push_cache(folder: str, name: str, *, private: bool = False, licence: str | None = None) -> str:
    """Makes or updates the dataset `name` from a finished cache on this machine.

    Args:
        name: of the dataset; with the user's or organisation's name and a slash, or without.
        licence: for the card, by the hub's identifier: apache-2.0, cc-by-4.0 …

    Returns:
        The address of the dataset.

    Raises:
        CacheError: there is no such cache, or it is not what its manifest says.
        UsageError: nobody is logged in, or the hub does not let this user make or change the dataset.
        HubError: the hub did not take the files.
    """
    cache = RewardCache(folder)
    if not cache.storage.is_local:
        raise UsageError(f"{folder} is not on this machine", fix="copy it here, and push the copy")
    problems = verify(cache)
    if problems:
        raise CacheError(f"{folder}: {problems[0]}", fix="run tgdpo verify; restore the cache or score again")
    repository = make_repository(name, "NAME", repo_type="dataset", private=private)
    text = card(cache, repository, licence)
    log(f"pushing {len(cache)} pairs; the manifest goes with them and names models and dataset as they were given")
    return _upload(Path(cache.storage.root), [shard.name for shard in cache.manifest.shards], text, repository)


def _upload(folder: Path, shards: list[str], text: str, repository: str) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    files = [folder / name for name in (*shards, MANIFEST_NAME, SET_ASIDE_NAME) if (folder / name).is_file()]
    operations = [CommitOperationAdd(path.name, str(path)) for path in files]
    operations.append(CommitOperationAdd("README.md", text.encode(errors="backslashreplace")))
    api = HfApi()
    try:
        api.create_commit(repository, operations, commit_message="Reward cache of tgdpo", repo_type="dataset")
    except Exception as error:
        raise HubError(
            f"{repository} did not take the cache ({reason(error)})", fix="run the same command again"
        ) from error
    return f"{api.endpoint}/datasets/{repository}"
