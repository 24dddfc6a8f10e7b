"""What a scoring run will do, settled before anything is written: which models, which tokenizer, which fingerprint."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ...data.chat_template import TEMPLATE_COLUMNS
from ...data.manifest import AddedGuide, Fingerprint, RewardKind
from ...data.preferences import PreferenceSet
from ...data.rendering import Columns, Renderer
from ...data.template_date import DatedTemplate
from ...data.tokenization import (
    LengthLimits,
    PairTokenizer,
    begin_of_text_string,
    control_tokens,
    vocabulary_hash,
)
from ...errors import ModelError, UsageError
from ..models import (
    ModelSource,
    has_tokenizer,
    load_tokenizer,
    pick_device,
    pick_dtype,
    require_same_tokenizer,
    resolve,
    tokenizer_source,
)
from .config import ScoreConfig
from .engines import NAMED_ARGUMENTS, Engine, EngineSpec, engine_class
from .engines.choice import Choice, choose_engine, engine_arguments
from .fingerprint import (
    added_fingerprint,
    engine_fingerprint,
    guidance_fingerprint,
    run_fingerprint,
    text_fingerprint,
)
from .guides import Guide, added_guides, find_guidance, reference_and_base, reward_kind
from .samples import SAMPLES
from .template_day import on_day, template_day

SHARED_ROLES = ("reference", "guidance")
"""The passes that one model may do."""


@dataclass(frozen=True, kw_only=True)
class ScorePlan(ABC):
    """A scoring run with everything looked up; where its pairs come from is a subclass's."""

    config: ScoreConfig
    reference: ModelSource
    guidance: ModelSource | None
    guidance_base: ModelSource | None
    """Base of a guidance adapter; the reference itself where it is the same model."""
    tokenizer_name: str
    dtype: torch.dtype
    device: torch.device
    engine: Choice
    engine_arguments: dict[str, Any]
    fingerprint: Fingerprint
    added: tuple[Guide, ...] = ()
    """Guides to be scored beside guidance."""
    notes: list[str] = field(default_factory=list, compare=False)
    """What is read, and what is not, each in a line for people; preparation adds to it."""

    @property
    def engine_class(self) -> type[Engine]:
        """What runs the models."""
        return engine_class(self.engine.name)

    @property
    def roles(self) -> list[str]:
        """The passes, in their order."""
        roles = ["reference", *(["guidance"] if self.guidance else []), *(guide.role for guide in self.added)]
        return [*roles, SAMPLES] if self.config.reference_samples else roles

    @property
    def parts(self) -> tuple[str, ...]:
        """Roles whose columns a finished shard has."""
        return tuple(self.roles)

    @property
    def reward_kind(self) -> RewardKind:
        """What the reward columns will hold."""
        return reward_kind(self.guidance)

    @property
    def samples(self) -> int:
        """Tokens of the reference for each response token in a finished shard."""
        return self.config.reference_samples

    @property
    def guidance_name(self) -> str | None:
        """What the manifest calls guidance."""
        return self.guidance.name if self.guidance else None

    @property
    def listed_guides(self) -> list[AddedGuide]:
        """What the manifest says of added guides."""
        return [
            AddedGuide(name=guide.name, guidance=guide.source.name, reward_kind=reward_kind(guide.source))
            for guide in self.added
        ]

    @property
    def guides(self) -> list[ModelSource]:
        """All guidance models that are to be run."""
        return [*([self.guidance] if self.guidance else []), *(guide.source for guide in self.added)]

    @property
    def model_names(self) -> str:
        """The models that are run, as they were named."""
        return " and ".join(dict.fromkeys(source.name for source in (self.reference, *self.guides)))

    def reward_kind_of(self, role: str) -> RewardKind:
        """What the scores of a pass are; "none" of the reference's."""
        kinds = {guide.role: reward_kind(guide.source) for guide in self.added}
        return kinds.get(role, self.reward_kind if role == "guidance" else "none")

    @property
    @abstractmethod
    def vocabulary_sha256(self) -> str:
        """Hash of the mapping from token to id."""

    @property
    def shares_base(self) -> bool:
        """Whether guidance is an adapter on the reference itself, so that one model serves both passes."""
        is_on_reference = self.guidance_base is not None and self.guidance_base is self.reference
        return is_on_reference and self.engine_class.switches_adapter

    def engine_spec(self, role: str, longest: int | None = None) -> EngineSpec:
        """The model of a pass. With a shared base it has the adapter, which the reference pass switches off.

        Args:
            role: the pass.
            longest: tokens of the longest row, once the data is prepared.
        """
        source, adapter = self.reference, self.guidance if self.shares_base and role in SHARED_ROLES else None
        if role == "guidance" and self.guidance is not None and not self.shares_base:
            source, adapter = self.guidance_base or self.guidance, self.guidance if self.guidance_base else None
        for guide in self.added:
            if role == guide.role:
                source, adapter = guide.base or guide.source, guide.source if guide.base else None
        return EngineSpec(
            source=source,
            adapter=adapter,
            dtype=self.dtype,
            device=self.device,
            attn_implementation=self.config.attn_implementation,
            batch_tokens=self.config.batch_tokens,
            longest=longest,
            arguments=self.engine_arguments,
        )

    def require_engine_fits(self) -> None:
        """Raises UsageError or ModelError where the engine cannot do what is asked of it."""
        for role in self.roles:
            self.engine_class.check(self.engine_spec(role))
        if SAMPLES in self.roles and not getattr(self.engine_class, "can_sample", False):
            raise UsageError(
                f"--reference-samples {self.config.reference_samples}: --engine {self.engine.name} draws no tokens",
                fix="use --engine transformers",
            )

    @abstractmethod
    def require_same_tokenizers(self, *, conversational: bool) -> None:
        """Raises ModelError where guidance was trained with another vocabulary or chat template."""

    def require_ids_known(self, largest_id: int) -> None:
        """Raises ModelError where a token id lies outside a model's embedding."""
        for source in (self.reference, *self.guides):
            size = source.vocabulary_size
            if size is not None and largest_id >= size:
                raise ModelError(
                    f"the tokenizer of {self.tokenizer_name} gives token id {largest_id}, but {source.name} has only "
                    f"{size} embeddings",
                    fix="use the tokenizer that the models were trained with (--tokenizer)",
                )


@dataclass(frozen=True, kw_only=True)
class FreshPlan(ScorePlan):
    """A run over a preference set."""

    preferences: PreferenceSet
    tokenizer: Any
    limits: LengthLimits
    template_date: str | None
    """The day that the chat template writes; None where it writes none, or where the run's is not known."""

    @property
    def vocabulary_sha256(self) -> str:
        """See `ScorePlan.vocabulary_sha256`."""
        return vocabulary_hash(self.tokenizer)

    @property
    def text_fingerprint(self) -> Fingerprint:
        """What decides the prepared tokens."""
        return text_fingerprint(self.config, self.preferences, self.tokenizer)

    def renderer(self) -> Renderer:
        """Renders the rows with the plan's tokenizer."""
        return Renderer(
            DatedTemplate(self.tokenizer, self.template_date),
            _columns(self.config),
            control_tokens=control_tokens(self.tokenizer),
            end_of_turn=self.tokenizer.eos_token,
            begin_of_text=begin_of_text_string(self.tokenizer),
            allow_control_tokens=self.config.allow_control_tokens,
        )

    def pair_tokenizer(self) -> PairTokenizer:
        """Tokenises the rendered pairs within the plan's limits."""
        return PairTokenizer(self.tokenizer, self.limits)

    def require_same_tokenizers(self, *, conversational: bool) -> None:
        """See `ScorePlan.require_same_tokenizers`."""
        for other in (self.reference, *self.guides):
            if has_tokenizer(other):
                require_same_tokenizer(
                    self.tokenizer,
                    self.tokenizer_name,
                    load_tokenizer(other),
                    other.name,
                    conversational=conversational,
                )


def plan_score(config: ScoreConfig, *, device: torch.device | None = None, weights: bool = True) -> ScorePlan:
    """Looks everything up and checks that it fits together. Loads no weights, writes nothing.

    Args:
        device: that of other machines that will do the work; by default the configuration's, which must be here.
        weights: fetch the models' weights and hash them. Without, the plan has no fingerprint, and cannot be run.

    Raises:
        UsageError, DataError, ModelError: something is missing or does not fit.
    """
    if config.reuse:
        from .reuse import plan_reuse

        return plan_reuse(config, device=device, weights=weights)
    preferences = _preferences(config)
    find = partial(resolve, trust_remote_code=config.trust_remote_code, weights=weights)
    guidance = find_guidance(config.guidance, "--guidance", find) if config.guidance else None
    reference, guidance_base = reference_and_base(config, guidance, find)
    if reference.kind != "causal-lm":
        raise ModelError(f"--reference {reference.name} is a {reference.kind}", fix="name a causal language model")
    tokenizer_name = config.tokenizer or reference.name
    tokenizer = load_tokenizer(tokenizer_source(config.tokenizer) if config.tokenizer else reference)
    added = added_guides(config, find, [source for source in (reference, guidance_base) if source])
    bases = [guide.base or guide.source for guide in added]
    day = template_day(config, tokenizer, tokenizer_name)
    dtype, device = pick_dtype(config.dtype, reference), device or pick_device(config.device)
    to_load = [reference, guidance_base or guidance or reference, *bases]
    engine = choose_engine(config.engine, to_load, device, config.attn_implementation)
    arguments = engine_arguments({name: getattr(config, name) for name in NAMED_ARGUMENTS}, config.engine_arg)
    fingerprint: Fingerprint = {}
    if weights:
        fingerprint = text_fingerprint(config, preferences, tokenizer)
        fingerprint |= {"attn_implementation": config.attn_implementation, "reference_sha256": reference.content_hash}
        fingerprint |= guidance_fingerprint(guidance, guidance_base) | run_fingerprint(dtype, device)
        fingerprint |= engine_fingerprint(engine.name, arguments) | added_fingerprint(added, config.reference_samples)
        fingerprint = on_day(fingerprint, day)
    plan = FreshPlan(
        config=config,
        preferences=preferences,
        reference=reference,
        guidance=guidance,
        guidance_base=guidance_base,
        tokenizer=tokenizer,
        tokenizer_name=tokenizer_name,
        dtype=dtype,
        device=device,
        limits=_limits(config, [source for source in (reference, guidance, guidance_base, *bases) if source]),
        template_date=day,
        engine=engine,
        engine_arguments=arguments,
        fingerprint=fingerprint,
        added=added,
        notes=list(preferences.notes),
    )
    if weights:
        plan.require_engine_fits()
    return plan


def _preferences(config: ScoreConfig) -> PreferenceSet:
    return PreferenceSet(
        str(config.dataset),
        split=config.split,
        config_name=config.dataset_config,
        limit=config.limit,
        columns=(*_columns(config), *TEMPLATE_COLUMNS),
    )


def _columns(config: ScoreConfig) -> Columns:
    return Columns(config.prompt_column, config.chosen_column, config.rejected_column)


def _limits(config: ScoreConfig, sources: list[ModelSource]) -> LengthLimits:
    contexts = {source.context: source.name for source in sources if source.context}
    context = min(contexts, default=None)
    if context is not None and config.max_length is not None and config.max_length > context:
        raise UsageError(
            f"--max-length {config.max_length}: {contexts[context]} reads at most {context} tokens",
            fix=f"use --max-length {context} or less",
        )
    if config.max_length and config.max_prompt_length and config.max_prompt_length >= config.max_length:
        raise UsageError(
            f"--max-prompt-length {config.max_prompt_length} leaves no room for a response in "
            f"--max-length {config.max_length}",
            fix="make it smaller than --max-length",
        )
    return LengthLimits(
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        context=context,
        overlong=config.overlong,
    )
