"""The fingerprint of a run: everything that decides a score, field by field."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from ...data.manifest import ENVIRONMENT_FIELDS, Fingerprint
from ...data.preferences import PreferenceSet
from ...data.tokenization import chat_template_hash, tokenizer_hash
from ...data.versions import SCORE_VERSION, __version__
from ..models import ModelSource
from .config import TEXT_OPTIONS, ScoreConfig
from .engines import engine_class
from .guides import Guide, reward_kind
from .samples import SAMPLES


def text_fingerprint(config: ScoreConfig, preferences: PreferenceSet, tokenizer: Any) -> Fingerprint:
    return {name: getattr(config, name) for name in TEXT_OPTIONS} | {
        "dataset_sha256": preferences.fingerprint(),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "chat_template_sha256": chat_template_hash(tokenizer),
    }


def guidance_fingerprint(guidance: ModelSource | None, base: ModelSource | None) -> Fingerprint:
    """What of the fingerprint a guidance model decides."""
    return {
        "guidance_sha256": guidance.content_hash if guidance else None,
        "guidance_base_sha256": base.content_hash if base else None,
        "reward_kind": reward_kind(guidance),
    }


def added_fingerprint(added: Sequence[Guide], samples: int) -> Fingerprint:
    """What of the fingerprint added guides and samples decide; nothing without any."""
    guides = {guide.name: guidance_fingerprint(guide.source, guide.base) for guide in added}
    return ({"added_guides": guides} if guides else {}) | ({"reference_samples": samples} if samples else {})


def run_fingerprint(dtype: torch.dtype, device: torch.device) -> Fingerprint:
    """What decides scores beside the models and the engine: the dtype and this machine."""
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type if device.type != "cpu" else f"cpu {platform.machine()}",
        "score_version": SCORE_VERSION,
        "tgdpo": __version__,
        "torch": version("torch"),
        "pyarrow": version("pyarrow"),
    }


def engine_fingerprint(name: str, arguments: dict[str, Any]) -> Fingerprint:
    """What of the fingerprint the engine decides."""
    engine = engine_class(name)
    lasting = engine.lasting_arguments(arguments)
    return {"engine": name, **engine.versions(), **({"engine_arguments": lasting} if lasting else {})}


# Of a run that starts from a cache


def without_additions(made_with: Fingerprint) -> Fingerprint:
    """A cache's fingerprint as it was before anything was added to it."""
    return {
        name: value
        for name, value in made_with.items()
        if name not in ("added_guides", "reference_samples", "environments")
    }


def all_added(made_with: Fingerprint, added: Sequence[Guide], samples: int) -> Fingerprint:
    """What the fingerprint says of what was added to the cache, and of what is new."""
    new = added_fingerprint(added, samples)
    guides = made_with.get("added_guides", {}) | new.get("added_guides", {})
    kept = {name: made_with[name] for name in ("reference_samples",) if name in made_with}
    return kept | new | ({"added_guides": guides} if guides else {})


def environments(
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
