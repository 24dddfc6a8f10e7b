"""`--reuse CACHE`: the plan of a run that takes pairs and reference scores from a finished cache.

What decided them is read from the cache's fingerprint: options need not be repeated, and one that says otherwise is
refused. The reference itself need not be at hand, unless something is to be scored with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from ...data.cache import RewardCache
from ...data.manifest import AddedGuide, Fingerprint, RewardKind
from ...data.tokenization import chat_template_hash, vocabulary_hash
from ...data.versions import SCORE_VERSION
from ...errors import ModelError, UsageError
from ..console import log, warn
from ..models import ModelSource, has_tokenizer, load_tokenizer, pick_device, pick_dtype, resolve
from .config import ScoreConfig
from .engines.choice import AUTO, Choice
from .fingerprint import (
    added_fingerprint,
    all_added,
    engine_fingerprint,
    environments,
    guidance_fingerprint,
    run_fingerprint,
    without_additions,
)
from .guides import Find, Guide, added_guides, find_guidance, reference_and_base
from .passes import GUIDE
from .plan import ScorePlan
from .reuse_settings import TAKEN_OVER, arguments_of, completed, settings_of
from .samples import SAMPLES
from .template_day import TEMPLATE_DATE
from .upgrade import maker

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
    rescores: bool = False
    """Whether nothing but the pairs is taken over: the cache's scores were computed in another way."""

    @property
    def roles(self) -> list[str]:
        """See `ScorePlan.roles`: the reference's is done, and guidance's where no other is named."""
        return super().roles if self.rescores else super().roles[1:]

    @property
    def kept(self) -> tuple[str, ...]:
        """Roles whose columns are the cache's."""
        if self.rescores:
            return ()
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
        return [*([] if self.rescores else self.source.manifest.added_guides), *super().listed_guides]

    @property
    def samples(self) -> int:
        """See `ScorePlan.samples`."""
        return super().samples or (0 if self.rescores else self.source.manifest.reference_samples)

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
    made_with = settings_of(source)
    rescores = made_with["score_version"] != SCORE_VERSION
    reason = f"that of {source.storage}" if config.engine == AUTO else None
    config = completed(config, source)
    find = partial(resolve, trust_remote_code=config.trust_remote_code, weights=weights)
    guidance = find_guidance(config.guidance, "--guidance", find) if config.guidance else None
    if rescores:
        log(f"all scores are made again: {_why_again(source)}")
        config = config.model_copy(update={"reference": config.reference or source.manifest.reference})
    reference, guidance_base = _models(config, source, guidance, find, weights=weights, rescores=rescores)
    added = added_guides(config, find, [each for each in (reference, guidance_base) if each and each.config])
    _require_columns(config, added, source, rescores=rescores)
    _require_check_possible(config, reference)
    dtype, device = pick_dtype(str(config.dtype), reference), device or pick_device(config.device)
    arguments = arguments_of(config, source)
    here = run_fingerprint(dtype, device) | engine_fingerprint(config.engine, arguments) if weights else {}
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
        fingerprint=_fingerprint(made_with, config, guidance, guidance_base, added, here, rescores) if weights else {},
        source=source,
        rescores=rescores,
        added=added,
    )
    if weights:
        plan.require_engine_fits()
        _say_what_differs(plan)
    return plan


def _fingerprint(
    made_with: Fingerprint,
    config: ScoreConfig,
    guidance: ModelSource | None,
    guidance_base: ModelSource | None,
    added: Sequence[Guide],
    here: Fingerprint,
    rescores: bool,
) -> Fingerprint:
    """What the cache was made with where it is taken over, and what is made here."""
    taken_over = {name: made_with[name] for name in (*TAKEN_OVER, TEMPLATE_DATE) if name in made_with}
    if rescores:
        new = guidance_fingerprint(guidance, guidance_base) | added_fingerprint(added, config.reference_samples)
        return taken_over | here | new
    fingerprint = without_additions(made_with)
    if guidance:
        fingerprint = taken_over | guidance_fingerprint(guidance, guidance_base) | here
    fingerprint |= all_added(made_with, added, config.reference_samples)
    parts = [*(guide.name for guide in added), *([SAMPLES] if config.reference_samples else [])]
    return fingerprint | environments(made_with, here, fingerprint, parts)


# Models


def _models(
    config: ScoreConfig,
    source: RewardCache,
    guidance: ModelSource | None,
    find: Find,
    *,
    weights: bool,
    rescores: bool,
) -> tuple[ModelSource, ModelSource | None]:
    """The reference, perhaps known by its hash alone, and the base of guidance where that is an adapter."""
    theirs = str(source.manifest.fingerprint["reference_sha256"])
    recorded = RecordedModel(source.manifest.reference, Path("/dev/null"), "causal-lm", {}, recorded_hash=theirs)
    if rescores:
        return _reference_again(config, source, guidance, find, theirs if weights else None)
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


def _reference_again(
    config: ScoreConfig, source: RewardCache, guidance: ModelSource | None, find: Find, theirs: str | None
) -> tuple[ModelSource, ModelSource | None]:
    """The model that scored the cache, with the hash `theirs` (None: whatever is there), to be run again."""
    try:
        found, base = reference_and_base(config, guidance, find)
        problem = "is another model now" if theirs not in (None, found.content_hash) else None
    except ModelError as error:
        problem = f"cannot be used ({error.problem})"
    if problem:
        raise ModelError(
            f"{_why_again(source)}, so its reference is needed, and {config.reference} {problem}",
            fix="name the model that scored it with --reference, or score without --reuse",
        )
    return found, base


def _why_again(source: RewardCache) -> str:
    return f"{source.storage} was made by {maker(settings_of(source))}"


def _require_columns(config: ScoreConfig, added: Sequence[Guide], source: RewardCache, *, rescores: bool) -> None:
    """Raises UsageError where the run would lose columns of the cache, or make some that it has."""
    manifest = source.manifest
    theirs, ours = {guide.name: guide.guidance for guide in manifest.added_guides}, {guide.name for guide in added}
    if rescores:
        missing = [f"--guidance {manifest.guidance}"] if manifest.guidance and not config.guidance else []
        missing += [f"--add-guidance {name}={model}" for name, model in theirs.items() if name not in ours]
        if manifest.reference_samples and not config.reference_samples:
            missing.append(f"--reference-samples {manifest.reference_samples}")
        if missing:
            raise UsageError(_why_again(source), fix=f"add {' '.join(missing)}, or score without --reuse")
        return
    if config.reference_samples and manifest.reference_samples:
        raise UsageError(
            f"--reference-samples {config.reference_samples}: {source.storage} has "
            f"{manifest.reference_samples} for each token",
            fix="leave it out: they are taken over",
        )
    for name in sorted(ours & theirs.keys()):
        raise UsageError(f"--add-guidance {name}: {source.storage} has a guide of that name", fix="choose another name")


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


def _say_what_differs(plan: ReusePlan) -> None:
    shown = [
        f"{part} with {name} {value}, not {plan.fingerprint.get(name)}"
        for part, differing in plan.fingerprint.get("environments", {}).items()
        for name, value in differing.items()
        if name in _MADE_BY
    ]
    if shown:
        warn(f"not all scores are made in one place ({'; '.join(shown)}): rewards hold that difference")
