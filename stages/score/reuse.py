"""`--reuse CACHE`: the plan of a run that takes pairs and reference scores from a finished cache.

What decided them is read from the cache's fingerprint: options need not be repeated, and one that says otherwise is
refused. The reference itself need not be at hand, unless something is to be scored with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from ...data.cache import RewardCache
from ...data.manifest import ENVIRONMENT_FIELDS, AddedGuide, Fingerprint, RewardKind
from ...data.preferences import PreferenceSet
from ...data.tokenization import chat_template_hash, tokenizer_hash, vocabulary_hash
from ...errors import CacheError, ModelError, UsageError
from ..console import warn
from ..models import ModelSource, has_tokenizer, load_tokenizer, pick_device, pick_dtype, resolve, tokenizer_source
from .config import ScoreConfig
from .engines import NAMED_ARGUMENTS, engine_class
from .engines.choice import AUTO, Choice, engine_arguments
from .passes import GUIDE
from .plan import (
    TEXT_OPTIONS,
    Guide,
    ScorePlan,
    added_fingerprint,
    added_guides,
    engine_fingerprint,
    find_guidance,
    guidance_fingerprint,
    reference_and_base,
    run_fingerprint,
)
from .samples import SAMPLES

_OPTIONS = (*TEXT_OPTIONS, "attn_implementation", "dtype", "engine")
_TAKEN_OVER = (
    *TEXT_OPTIONS,
    *("dataset_sha256", "tokenizer_sha256", "chat_template_sha256", "reference_sha256", "attn_implementation"),
)
_MADE_BY = ("device", "torch", "transformers", "vllm")
"""Fields of the environment that may show in scores."""


@dataclass(frozen=True)
class RecordedModel(ModelSource):
    """A model that is known by its hash alone."""

    recorded_hash: str = ""

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over weights and configuration."""
        return self.recorded_hash


@dataclass(frozen=True, kw_only=True)
class ReusePlan(ScorePlan):
    """A run over the pairs of a finished cache."""

    source: RewardCache

    @property
    def roles(self) -> list[str]:
        """See `ScorePlan.roles`: the reference's is done, and guidance's where no other is named."""
        return super().roles[1:]

    @property
    def kept(self) -> tuple[str, ...]:
        """Roles whose columns are the cache's."""
        has_guidance = self.guidance is None and self.source.manifest.reward_kind != "none"
        guides = [GUIDE + guide.name for guide in self.source.manifest.added_guides]
        has_samples = self.source.manifest.reference_samples > 0
        return ("reference", *(["guidance"] if has_guidance else []), *guides, *([SAMPLES] if has_samples else []))

    @property
    def parts(self) -> tuple[str, ...]:
        """See `ScorePlan.parts`."""
        return (*self.kept, *self.roles)

    @property
    def reward_kind(self) -> RewardKind:
        """See `ScorePlan.reward_kind`."""
        return super().reward_kind if self.guidance else self.source.manifest.reward_kind

    @property
    def guidance_name(self) -> str | None:
        """See `ScorePlan.guidance_name`."""
        return super().guidance_name if self.guidance else self.source.manifest.guidance

    @property
    def listed_guides(self) -> list[AddedGuide]:
        """See `ScorePlan.listed_guides`."""
        return [*self.source.manifest.added_guides, *super().listed_guides]

    @property
    def samples(self) -> int:
        """See `ScorePlan.samples`."""
        return super().samples or self.source.manifest.reference_samples

    @property
    def vocabulary_sha256(self) -> str:
        """See `ScorePlan.vocabulary_sha256`."""
        return self.source.manifest.tokenizer_vocabulary_sha256

    def require_same_tokenizers(self, *, conversational: bool) -> None:
        """See `ScorePlan.require_same_tokenizers`; compared with what the cache notes of its tokenizer."""
        for guide in filter(has_tokenizer, self.guides):
            theirs = load_tokenizer(guide)
            if vocabulary_hash(theirs) != self.vocabulary_sha256:
                raise ModelError(
                    f"{guide.name} has another vocabulary than the tokenizer of {self.source.storage} "
                    f"({self.tokenizer_name}), so token ids do not mean the same",
                    fix="name a guide of the family that the cache was scored with",
                )
            templates = chat_template_hash(theirs), self.fingerprint["chat_template_sha256"]
            if conversational and None not in templates and templates[0] != templates[1]:
                raise ModelError(
                    f"{guide.name} has another chat template than {self.source.storage} was made with",
                    fix="save the template that both were trained with beside the guide",
                )

    def require_context_fits(self, longest: int) -> None:
        """Raises ModelError where a model that is to run reads fewer tokens than the longest row has."""
        for model in (self.engine_spec(role).source for role in self.roles):
            if model.context is not None and model.context < longest:
                raise ModelError(
                    f"{model.name} reads at most {model.context} tokens, {self.source.storage} has rows of {longest}",
                    fix=f"score the dataset with --max-length {model.context}, or name another guide",
                )


def plan_reuse(config: ScoreConfig, *, device: torch.device | None = None, weights: bool = True) -> ReusePlan:
    """Looks everything up and checks that it fits the cache; arguments and errors as in `plan_score`.

    Raises:
        CacheError: there is no finished cache, or its fingerprint lacks what a run needs.
        UsageError: an option differs from the cache's.
    """
    source = RewardCache(str(config.reuse))
    made_with = _settings_of(source)
    reason = f"that of {source.storage}" if config.engine == AUTO else None
    config = _completed(config, source, made_with)
    find = partial(resolve, trust_remote_code=config.trust_remote_code, weights=weights)
    guidance = find_guidance(config.guidance, "--guidance", find) if config.guidance else None
    reference, guidance_base = _models(config, source, guidance, find, weights=weights)
    added = added_guides(config, find, [each for each in (reference, guidance_base) if each and each.config])
    _require_new_columns(config, added, source)
    _require_check_possible(config, reference)
    dtype, device = pick_dtype(str(config.dtype), reference), device or pick_device(config.device)
    arguments = _arguments(config, made_with)
    fingerprint: Fingerprint = {}
    if weights:
        here = run_fingerprint(dtype, device) | engine_fingerprint(config.engine, arguments)
        fingerprint = {name: made_with[name] for name in _TAKEN_OVER} if guidance else _without_additions(made_with)
        fingerprint |= guidance_fingerprint(guidance, guidance_base) | here if guidance else {}
        fingerprint |= _all_added(made_with, added, config.reference_samples)
        new = [*(guide.name for guide in added), *([SAMPLES] if config.reference_samples else [])]
        fingerprint |= _environments(made_with, here, fingerprint, new)
    plan = ReusePlan(
        config=config,
        reference=reference,
        guidance=guidance,
        guidance_base=guidance_base,
        tokenizer_name=source.manifest.tokenizer,
        dtype=dtype,
        device=device,
        engine=Choice(config.engine, reason),
        engine_arguments=arguments,
        fingerprint=fingerprint,
        source=source,
        added=added,
    )
    if weights:
        plan.require_engine_fits()
        _say_what_differs(plan)
    return plan


def _settings_of(source: RewardCache) -> Fingerprint:
    """The cache's fingerprint. Raises CacheError where it does not say what the reference was run with."""
    made_with = source.manifest.fingerprint
    missing = [name for name in (*_TAKEN_OVER, "dtype", "engine") if name not in made_with]
    if missing:
        raise CacheError(
            f"--reuse {source.storage}: its fingerprint has no {missing[0]}", fix="name a cache made by tgdpo score"
        )
    return made_with


# Options


def _completed(config: ScoreConfig, source: RewardCache, made_with: Fingerprint) -> ScoreConfig:
    """The configuration with the cache's settings where it is silent. Raises UsageError where it says otherwise."""
    if Path(config.output).expanduser().absolute() == Path(str(source.storage)).absolute():
        raise UsageError(
            f"--output {config.output} is the cache of --reuse",
            fix="a finished cache stays as it is; name a new folder",
        )
    for name in sorted(config.model_fields_set & set(_OPTIONS)):
        value = getattr(config, name)
        if value != made_with[name] and value not in (AUTO, None):
            _refuse(source, name, value, made_with[name])
    _require_same_dataset(config, source, made_with)
    if config.tokenizer:
        tokenizer = load_tokenizer(tokenizer_source(config.tokenizer))
        if tokenizer_hash(tokenizer) != made_with["tokenizer_sha256"]:
            _refuse(source, "tokenizer", config.tokenizer, source.manifest.tokenizer)
    taken_over = {name: made_with[name] for name in _OPTIONS} | {"dataset": source.manifest.dataset}
    if config.reference_samples and not config.reference:
        taken_over["reference"] = source.manifest.reference
    if "max_set_aside" not in config.model_fields_set:
        # What was set aside then was allowed then.
        taken_over["max_set_aside"] = source.manifest.settings.get("max_set_aside", config.max_set_aside)
    return config.model_copy(update=taken_over)


def _require_same_dataset(config: ScoreConfig, source: RewardCache, made_with: Fingerprint) -> None:
    if config.dataset is None:
        if config.limit is not None:
            raise UsageError(
                f"--limit {config.limit} with --reuse: all pairs of the cache are taken", fix="leave it out"
            )
        return
    preferences = PreferenceSet(
        config.dataset, split=made_with["split"], config_name=config.dataset_config, limit=config.limit
    )
    if preferences.fingerprint() != made_with["dataset_sha256"]:
        raise UsageError(
            f"--dataset {config.dataset} is not what {source.storage} was made from ({source.manifest.dataset}, "
            "with its --limit)",
            fix="leave it out, or score without --reuse",
        )


def _refuse(source: RewardCache, name: str, value: Any, theirs: Any) -> None:
    raise UsageError(
        f"--{name.replace('_', '-')} {value}: {source.storage} was made with {theirs}",
        fix="leave it out to take the cache's, or score without --reuse",
    )


def _arguments(config: ScoreConfig, made_with: Fingerprint) -> dict[str, Any]:
    """The engine's arguments: those that decided the cache's scores, and what the user adds."""
    theirs = made_with.get("engine_arguments", {})
    ours = engine_arguments({name: getattr(config, name) for name in NAMED_ARGUMENTS}, config.engine_arg)
    lasting = engine_class(config.engine).lasting_arguments(ours)
    for name, value in lasting.items():
        if name not in theirs or theirs[name] != value:
            raise UsageError(
                f"--{name.replace('_', '-')} {value}: {config.reuse} was made with {theirs.get(name, 'none')}",
                fix="leave it out to take the cache's, or score without --reuse",
            )
    return {**theirs, **ours}


# Models


def _models(
    config: ScoreConfig,
    source: RewardCache,
    guidance: ModelSource | None,
    find: Callable[[str, str], ModelSource],
    *,
    weights: bool,
) -> tuple[ModelSource, ModelSource | None]:
    """The reference, perhaps known by its hash alone, and the base of guidance where that is an adapter."""
    theirs = str(source.manifest.fingerprint["reference_sha256"])
    recorded = RecordedModel(source.manifest.reference, Path("/dev/null"), "causal-lm", {}, recorded_hash=theirs)
    if config.reference:
        found, base = reference_and_base(config, guidance, find)
        if weights and found.content_hash != theirs:
            raise UsageError(
                f"--reference {config.reference} is not the model that scored {source.storage} "
                f"({source.manifest.reference})",
                fix="leave it out: the cache holds its scores",
            )
        return found, base
    if guidance is None or guidance.kind != "adapter":
        return recorded, None
    base, _ = reference_and_base(config, guidance, find)
    return (base if weights and base.content_hash == theirs else recorded), base


def _require_new_columns(config: ScoreConfig, added: Sequence[Guide], source: RewardCache) -> None:
    if config.reference_samples and source.manifest.reference_samples:
        raise UsageError(
            f"--reference-samples {config.reference_samples}: {source.storage} has "
            f"{source.manifest.reference_samples} for each token",
            fix="leave it out: they are taken over",
        )
    for guide in added:
        if guide.name in {other.name for other in source.manifest.added_guides}:
            raise UsageError(
                f"--add-guidance {guide.name}: {source.storage} has a guide of that name", fix="choose another name"
            )


def _require_check_possible(config: ScoreConfig, reference: ModelSource) -> None:
    if config.check_against and not config.guidance:
        raise UsageError(
            f"--check-against {config.check_against} compares the reference and --guidance", fix="leave it out"
        )
    if config.check_against and isinstance(reference, RecordedModel):
        raise UsageError(
            f"--check-against {config.check_against} runs the reference as well",
            fix=f"name it with --reference ({reference.name})",
        )


# The fingerprint


def _without_additions(made_with: Fingerprint) -> Fingerprint:
    return {
        name: value
        for name, value in made_with.items()
        if name not in ("added_guides", "reference_samples", "environments")
    }


def _all_added(made_with: Fingerprint, added: Sequence[Guide], samples: int) -> Fingerprint:
    """What the fingerprint says of what was added to the cache, and of what is new."""
    new = added_fingerprint(added, samples)
    guides = made_with.get("added_guides", {}) | new.get("added_guides", {})
    kept = {name: made_with[name] for name in ("reference_samples",) if name in made_with}
    return kept | new | ({"added_guides": guides} if guides else {})


def _environments(
    made_with: Fingerprint, here: Fingerprint, fingerprint: Fingerprint, new: Sequence[str]
) -> Fingerprint:
    """Which scores were made elsewhere than the fingerprint's own fields say, and where.

    Those fields are guidance's, or the reference's without guidance.
    """
    before = made_with.get("environments", {})
    kept = ["reference", *made_with.get("added_guides", {}), *([SAMPLES] if "reference_samples" in made_with else [])]
    made_in = {part: made_with | before.get(part, {}) for part in kept} | dict.fromkeys(new, here)
    names = [name for name in ENVIRONMENT_FIELDS if name != "environments"]
    elsewhere = {
        part: {name: where.get(name) for name in names if where.get(name) != fingerprint.get(name)}
        for part, where in made_in.items()
    }
    elsewhere = {part: differing for part, differing in elsewhere.items() if differing}
    return {"environments": elsewhere} if elsewhere else {}


def _say_what_differs(plan: ReusePlan) -> None:
    shown = [
        f"{part} with {name} {value}, not {plan.fingerprint.get(name)}"
        for part, differing in plan.fingerprint.get("environments", {}).items()
        for name, value in differing.items()
        if name in _MADE_BY
    ]
    if shown:
        warn(f"not all scores are made in one place ({'; '.join(shown)}): rewards hold that difference")
