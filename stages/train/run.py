"""Stage two from start to end: what must fit together, whose the output folder is, the run, the upload."""

from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.state import AcceleratorState

from ...data.cache import RewardCache
from ...data.tokenization import chat_template_hash, vocabulary_hash
from ...errors import CacheError, ModelError, TgdpoError, TrainingError
from ..console import log, quiet_libraries, warn
from ..models import ModelSource, has_tokenizer, load_tokenizer, pick_device, resolve
from ..provenance import made_with
from .config import TrainConfig
from .contrast import contrast_of
from .folder import RunFolder, Start
from .history import History
from .hub import open_repository, push
from .loaded import LoadedModel
from .logs import another_at_work
from .loop import TrainRun
from .losses import LOSSES
from .optimizers import require_optimizer, require_spreads
from .parallel import Parallel
from .quantization import require_quantization
from .recorded import as_begun
from .sampled import estimates_kl
from .shapes import find_shape, shape_identity
from .trackers import require_installed


class TrainResult(NamedTuple):
    """Where the trained policy lies, and its last metrics."""

    output: Path | str
    """A folder, or an address in an object store."""
    summary: dict[str, Any]
    policy: Any = None
    """The trained model; None where the run was finished already."""


def train(config: TrainConfig, *, start: LoadedModel | None = None, tokenizer: Any = None) -> TrainResult:
    """Trains the policy from the cache, or goes on where an earlier start of the same run stopped.

    Args:
        start: a policy in memory, instead of `config.model`, which then is its name.
        tokenizer: the policy's; None takes the one saved beside `config.model`.

    Raises:
        TgdpoError: what was asked for cannot work; checkpoints stay.
    """
    quiet_libraries()
    config = as_begun(config)
    require_installed(config.report_to)
    require_optimizer(config, pick_device(config.device))
    find_shape(config.f_shape)
    for name, why in config.idle.items():
        warn(f"--{name.replace('_', '-')} does nothing with {why}")
    cache = RewardCache(config.cache)
    source = start or resolve(config.model, "--model", trust_remote_code=config.trust_remote_code)
    require_quantization(config, source)
    tokenizer = _fitting_tokenizer(config, cache, source, tokenizer)
    cache.require_complete()
    with closing(RunFolder(config)) as folder:
        try:
            parallel = Parallel(config)
            require_spreads(config, parallel.kind)
            result, repository = _train(config, cache, source, tokenizer, parallel, folder)
            parallel.end()
            is_main, is_first_of_machine = parallel.is_main, parallel.is_first_of_machine
        except Exception as error:
            # Libraries written in Rust have exceptions of their own.
            if isinstance(error, FileNotFoundError) or "(os error 2)" in str(error):
                folder.explain_missing(error)
            raise
        finally:
            # accelerate keeps its state for the whole process; a second run may have other settings.
            AcceleratorState._reset_state(reset_partial_state=True)
        has_trained = result.policy is not None
        if has_trained and is_main:
            folder.sync_logs()  # what trackers have written at their end
        if repository:
            path = folder.path if has_trained else folder.fetch_model()
            log(f"pushed to {push(path, repository)}")
        if is_first_of_machine:
            folder.leave()
    return result


def _train(
    config: TrainConfig, cache: RewardCache, source: ModelSource, tokenizer: Any, parallel: Parallel, folder: RunFolder
) -> tuple[TrainResult, str | None]:
    """The result, and on the main process the repository to push to."""
    repository: str | None = None
    history = History(made_with(parallel.device, parallel.count))

    def claim() -> Start:
        nonlocal repository
        identity = {"cache_sha256": cache.content_hash, "model_sha256": source.content_hash}
        start = folder.claim(identity | shape_identity(config.f_shape), history)
        repository = open_repository(config) if config.push_to_hub else None
        return start

    start = parallel.decided_by_main(claim)
    if start.summary is not None:
        log(f"{folder.output} is finished already, nothing to do")
        return TrainResult(folder.output, start.summary), repository
    checkpoint = folder.checkpoint(start, parallel)
    try:
        run = TrainRun(config, cache, source, tokenizer, folder, parallel, history, checkpoint)
        return TrainResult(folder.output, run.finish(), run.policy), repository
    except (TgdpoError, OSError) as error:
        if checkpoint and not checkpoint.exists() and folder.path.exists():
            raise another_at_work(folder.shown(checkpoint), done="removed") from error
        raise
    except torch.OutOfMemoryError as error:
        # Passes have their own answer; this is the model itself, or the optimizer's state in the first step.
        raise TrainingError(
            f"{config.model}, its gradients and the state of --optim {config.optim} do not fit in the memory of "
            f"{parallel.device}",
            fix="see tgdpo train --plan; set --lora-rank or another --optim, or use FSDP; checkpoints are kept",
        ) from error


def _fitting_tokenizer(config: TrainConfig, cache: RewardCache, source: ModelSource, tokenizer: Any) -> Any:
    """The policy's tokenizer. Raises where cache and policy, or cache and loss, do not go together."""
    manifest = cache.manifest
    if manifest.rows == 0:
        raise CacheError(f"{cache.storage} holds no pairs", fix="score a preference set with usable rows")
    if LOSSES[config.loss].needs_rewards and manifest.reward_kind == "none":
        raise CacheError(
            f"{cache.storage} was scored without guidance, so it has no token rewards for --loss {config.loss}",
            fix="score it with --guidance, or train with --loss dpo",
        )
    contrast_of(config, cache)
    estimates_kl(config, cache)
    if tokenizer is None:
        with_tokenizer = source
        if source.kind == "adapter" and not has_tokenizer(source):
            with_tokenizer = resolve(source.base_name or "", f"--model {source.name} has the base")
        tokenizer = load_tokenizer(with_tokenizer)
    if vocabulary_hash(tokenizer) != manifest.tokenizer_vocabulary_sha256:
        raise ModelError(
            f"--model {source.name} has another vocabulary than the cache's tokenizer ({manifest.tokenizer})",
            fix="train a model of the family that the cache was scored with, or score again",
        )
    templates = chat_template_hash(tokenizer), manifest.fingerprint.get("chat_template_sha256")
    if manifest.conversational and None not in templates and templates[0] != templates[1]:
        raise ModelError(
            f"--model {source.name} has another chat template than the cache's tokenizer ({manifest.tokenizer})",
            fix="save the same template beside the policy, or score again with it",
        )
    return tokenizer
