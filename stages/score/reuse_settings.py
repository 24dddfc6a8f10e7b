"""Which settings a run that starts from a cache takes from it, and what it refuses.

The cache may be anybody's: a setting that could name code to run is taken from the command line alone.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...data.addresses import is_url
from ...data.cache import RewardCache
from ...data.manifest import Fingerprint
from ...data.preferences import PreferenceSet
from ...data.tokenization import tokenizer_hash
from ...errors import CacheError, UsageError
from ..models import load_tokenizer, tokenizer_source
from .config import TEXT_OPTIONS, ScoreConfig
from .engines import ENGINES, NAMED_ARGUMENTS, engine_class
from .engines.choice import AUTO, engine_arguments
from .template_day import TEMPLATE_DATE
from .upgrade import completed as completed_fingerprint

OPTIONS = (*TEXT_OPTIONS, "attn_implementation", "dtype", "engine")
"""Options that are the cache's where nothing else is said."""
TAKEN_OVER = (
    *TEXT_OPTIONS,
    *("dataset_sha256", "tokenizer_sha256", "chat_template_sha256", "reference_sha256", "attn_implementation"),
)
"""Fields of the fingerprint that stay the cache's."""
ATTENTIONS = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Others may be names of the hub, with code."""


def settings_of(source: RewardCache) -> Fingerprint:
    """The cache's fingerprint. Raises CacheError where it does not say what the reference was run with."""
    made_with = completed_fingerprint(source.manifest.fingerprint)
    missing = [name for name in (*TAKEN_OVER, "dtype", "engine") if name not in made_with]
    if missing:
        raise CacheError(
            f"--reuse {source.storage}: its fingerprint has no {missing[0]}", fix="name a cache made by tgdpo score"
        )
    return made_with


def completed(config: ScoreConfig, source: RewardCache) -> ScoreConfig:
    """The configuration with the cache's settings where it is silent.

    Raises:
        UsageError: it says otherwise, or has to say something itself.
        CacheError: the cache has settings that no run has.
    """
    made_with, manifest = settings_of(source), source.manifest
    _require_other_folder(config, source)
    for name in sorted(config.model_fields_set & {*OPTIONS, TEMPLATE_DATE}):
        value = getattr(config, name)
        if value != made_with.get(name) and value not in (AUTO, None):
            _refuse(source, name, value, made_with.get(name) or "none")
    _require_code_named(config, source)
    taken_over = {name: made_with[name] for name in OPTIONS}
    if config.reference_samples and not config.reference:
        taken_over["reference"] = manifest.reference
    if "max_set_aside" not in config.model_fields_set:
        # What was set aside then was allowed then.
        taken_over["max_set_aside"] = manifest.settings.get("max_set_aside", config.max_set_aside)
    try:
        full = ScoreConfig(**(config.model_dump(exclude_unset=True) | taken_over | {"dataset": manifest.dataset}))
    except ValidationError as error:
        raise CacheError(
            f"--reuse {source.storage}: its fingerprint is damaged ({error.errors()[0]['msg']})",
            fix="name a cache made by tgdpo score",
        ) from error
    _require_same_dataset(config, source)
    _require_same_tokenizer(config, source)
    return full


def arguments_of(config: ScoreConfig, source: RewardCache) -> dict[str, Any]:
    """The engine's arguments. Raises UsageError where those that decide scores are not the cache's."""
    arguments = engine_arguments({name: getattr(config, name) for name in NAMED_ARGUMENTS}, config.engine_arg)
    ours = engine_class(config.engine).lasting_arguments(arguments)
    theirs = source.manifest.fingerprint.get("engine_arguments", {})
    if ours != theirs:
        raise UsageError(
            f"{source.storage} was made with the engine arguments {theirs or 'none'}, this run has {ours or 'none'}",
            fix="give it the same ones, or score without --reuse",
        )
    return arguments


def _require_other_folder(config: ScoreConfig, source: RewardCache) -> None:
    if _resolved(config.output) == _resolved(str(source.storage)):
        raise UsageError(
            f"--output {config.output} is the cache of --reuse",
            fix="a finished cache stays as it is; name a new folder",
        )


def _resolved(location: str) -> str:
    return location.rstrip("/") if is_url(location) else str(Path(location).expanduser().resolve())


def _require_code_named(config: ScoreConfig, source: RewardCache) -> None:
    made_with = source.manifest.fingerprint
    for name, known in (("engine", tuple(ENGINES)), ("attn_implementation", ATTENTIONS)):
        if made_with[name] not in known and getattr(config, name) != made_with[name]:
            option = f"--{name.replace('_', '-')} {made_with[name]}"
            raise UsageError(f"{source.storage} was made with {option}", fix="add that, if you trust the code it runs")


def _require_same_dataset(config: ScoreConfig, source: RewardCache) -> None:
    if config.dataset is None:
        if config.limit is not None:
            raise UsageError(
                f"--limit {config.limit} with --reuse: all pairs of the cache are taken", fix="leave it out"
            )
        return
    made_with = source.manifest.fingerprint
    preferences = PreferenceSet(
        config.dataset, split=made_with["split"], config_name=config.dataset_config, limit=config.limit
    )
    if preferences.fingerprint() != made_with["dataset_sha256"]:
        raise UsageError(
            f"--dataset {config.dataset} is not what {source.storage} was made from ({source.manifest.dataset}, "
            "with its --limit)",
            fix="leave it out, or score without --reuse",
        )


def _require_same_tokenizer(config: ScoreConfig, source: RewardCache) -> None:
    if config.tokenizer:
        tokenizer = load_tokenizer(tokenizer_source(config.tokenizer))
        if tokenizer_hash(tokenizer) != source.manifest.fingerprint["tokenizer_sha256"]:
            _refuse(source, "tokenizer", config.tokenizer, source.manifest.tokenizer)


def _refuse(source: RewardCache, name: str, value: Any, theirs: Any) -> None:
    raise UsageError(
        f"--{name.replace('_', '-')} {value}: {source.storage} was made with {theirs}",
        fix="leave it out to take the cache's, or score without --reuse",
    )
