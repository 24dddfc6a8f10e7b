"""The models of a scoring run, found: the reference, guidance, and guides that are added to it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...data.manifest import RewardKind
from ...errors import ModelError, UsageError
from ..models import ModelSource
from .config import ScoreConfig
from .passes import GUIDE

Find = Callable[[str, str], ModelSource]
"""Finds a model by its name and the option that it was given with."""


class Guide(NamedTuple):
    """A guidance model that gets columns of its own."""

    name: str
    source: ModelSource
    base: ModelSource | None
    """Of an adapter."""

    @property
    def role(self) -> str:
        """The role of its pass."""
        return GUIDE + self.name


def reward_kind(guidance: ModelSource | None) -> RewardKind:
    """The kind of rewards that a guidance model gives."""
    if guidance is None:
        return "none"
    return "token-classification" if guidance.kind == "token-classification" else "log-ratio"


def find_guidance(name: str, option: str, find: Find) -> ModelSource:
    """The guidance model `name`, given with `option`. Raises ModelError where it gives no token rewards."""
    guidance = find(name, option)
    if guidance.kind == "token-classification" and guidance.labels != 1:
        raise ModelError(
            f"{guidance.name} is a token classifier with {guidance.labels} labels",
            fix="a token-level reward model has one label (num_labels=1)",
        )
    return guidance


def added_guides(config: ScoreConfig, find: Find, known: Sequence[ModelSource]) -> tuple[Guide, ...]:
    """The guides of --add-guidance; `known` are models that may be an adapter's base."""
    guides = []
    for name, model in config.guides_to_add.items():
        option = f"--add-guidance {name}={model}"
        source = find_guidance(model, option, find)
        guides.append(Guide(name, source, _base_of(source, option, find, known) if source.kind == "adapter" else None))
    return tuple(guides)


def _base_of(adapter: ModelSource, option: str, find: Find, known: Sequence[ModelSource]) -> ModelSource:
    if not adapter.base_name:
        raise ModelError(f"{option}: the adapter names no base model", fix="save it with peft again")
    at_hand = next((source for source in known if source.name == adapter.base_name), None)
    base = at_hand or find(adapter.base_name, f"{option} has the base")
    if base.kind == "adapter":
        raise ModelError(
            f"{option} is an adapter on {base.name}, which is an adapter too",
            fix="merge that into its base, and name the result in adapter_config.json (base_model_name_or_path)",
        )
    return base


def reference_and_base(
    config: ScoreConfig, guidance: ModelSource | None, find: Find
) -> tuple[ModelSource, ModelSource | None]:
    """The reference, and the base of guidance where that is an adapter."""
    reference = find(config.reference, "--reference") if config.reference else None
    if guidance is None or guidance.kind != "adapter":
        if reference is None:
            raise UsageError("--reference is missing", fix="name the model that the policy will start from")
        return reference, None
    base = _base_of(guidance, f"--guidance {guidance.name}", find, [reference] if reference else [])
    if reference is None or base.content_hash == reference.content_hash:
        return reference or base, reference or base
    return reference, base
