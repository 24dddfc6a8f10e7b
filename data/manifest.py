"""`_manifest.json`: what a reward cache holds and what it was made from. It is written last, so its presence means
that the cache is whole."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import CacheError
from .additions import GUIDE_NAME, MAX_SAMPLES
from .schema import FORMAT_VERSION, MANIFEST_NAME, SHARD_PATTERN
from .storage import Storage
from .store import Store, open_store

RewardKind = Literal["log-ratio", "token-classification", "none"]
"""What the reward columns hold: log pi_guide - log pi_ref, a reward model's output, or zeros (no guidance)."""

Fingerprint = dict[str, Any]
"""Everything that decides a score, flat: field name to a JSON value."""

ENVIRONMENT_FIELDS = ("device", "torch", "transformers", "vllm", "pyarrow", "tgdpo", "score_version", "environments")
"""Fields of the fingerprint that say where a cache was made. All but `tgdpo` must agree while it is being written, so
that one cache never mixes two library versions; a finished cache stays what it is after an upgrade."""

ROW_GROUP_BYTES = 100
"""At the least, in a file of this format: its entry in the footer alone is several times this."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Shard(_Record):
    """One Parquet file of the cache."""

    name: Annotated[str, Field(pattern=f"^{SHARD_PATTERN.pattern}$")]
    rows: Annotated[int, Field(ge=0)]
    prompt_tokens: Annotated[int, Field(ge=0)]
    chosen_tokens: Annotated[int, Field(ge=0)]
    rejected_tokens: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(gt=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Counts(_Record):
    """Rows: read = scored + set aside. The others are kept rows that are worth knowing about."""

    read: int
    scored: int
    set_aside: int
    duplicates: int
    truncated: int


class Difference(_Record):
    """Per-token |difference| between two engines, in nats."""

    mean: float
    max: float


class EngineCheck(_Record):
    """Pairs of the cache that another engine scored as well."""

    against: str
    pairs: int
    tokens: int
    """Response tokens of these pairs."""
    reference: Difference
    guidance: Difference | None
    """Guidance's scores, None without guidance; like `rewards`, guidance minus reference."""
    rewards: Difference | None
    reward_size: float | None
    """Mean |reward| of these tokens, to hold the difference against."""


class AddedGuide(_Record):
    """A guide whose rewards lie in columns of their own; `added_guides` of the fingerprint says what it is."""

    name: Annotated[str, Field(pattern=f"^{GUIDE_NAME.pattern}$")]
    guidance: str
    """As it was named on the command line."""
    reward_kind: RewardKind


class Manifest(_Record):
    """Contents of `_manifest.json`."""

    format_version: Literal[1] = 1
    created: str
    """ISO 8601 time in UTC."""
    reward_kind: RewardKind
    dataset: str
    """As it was named on the command line, like the model names below: for people; the fingerprint decides."""
    reference: str
    guidance: str | None
    added_guides: list[AddedGuide] = []
    """Guides with columns of their own, chosen_NAME_rewards and rejected_NAME_rewards, in the columns' order."""
    reference_samples: Annotated[int, Field(ge=0, le=MAX_SAMPLES)] = 0
    """Tokens drawn from the reference for each response token, 0 where there are none."""
    tokenizer: str
    tokenizer_vocabulary_sha256: str
    """Hash of the mapping from token to id; a policy must have the same."""
    conversational: bool
    row_group_pairs: Annotated[int, Field(gt=0)]
    settings: dict[str, Any]
    """Settings that may differ between two runs of one cache, such as the token budget."""
    fingerprint: Fingerprint
    counts: Counts
    set_aside_reasons: dict[str, int]
    set_aside_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Hash of `_set_aside.jsonl`; None in caches of before it was noted."""
    shards: list[Shard]
    engine_check: EngineCheck | None = None
    """Set by `--check-against`."""

    @model_validator(mode="after")
    def _row_groups_fit_into_their_files(self) -> "Manifest":
        # Readers make lists as long as what is counted here, and the counts may be anybody's.
        for shard in self.shards:
            if -(-shard.rows // self.row_group_pairs) * ROW_GROUP_BYTES > shard.bytes:
                raise ValueError(f"{shard.name} counts more rows than its bytes can hold")
        return self

    @model_validator(mode="after")
    def _guides_have_different_names(self) -> "Manifest":
        if len({guide.name for guide in self.added_guides}) < len(self.added_guides):
            raise ValueError("two added guides have one name")
        return self

    @property
    def rows(self) -> int:
        """Scored pairs in the cache."""
        return sum(shard.rows for shard in self.shards)

    def write(self, folder: Path | Store) -> None:
        """Publishes the manifest in `folder`."""
        store = open_store(folder) if isinstance(folder, Path) else folder
        text = json.dumps(self.model_dump(), indent=1, ensure_ascii=True) + "\n"
        store.replace(MANIFEST_NAME, lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, folder: Path | Storage) -> "Manifest":
        """Raises CacheError where there is no whole cache, or one of another format version."""
        storage = Storage(folder) if isinstance(folder, Path) else folder
        path = storage.path(MANIFEST_NAME)
        if MANIFEST_NAME not in storage.files:
            raise CacheError(
                f"{storage} has no {MANIFEST_NAME}, so the cache in it is not finished",
                fix="run the same tgdpo score command again, it goes on where it stopped",
            )
        try:
            return cls._parsed(storage.read(MANIFEST_NAME), path)
        except CacheError:
            if storage.is_local:
                raise
        return cls._parsed(storage.read(MANIFEST_NAME), path)  # perhaps it was damaged on its way

    @classmethod
    def _parsed(cls, text: bytes, path: str) -> "Manifest":
        try:
            content = json.loads(text)
            version = content.get("format_version") if isinstance(content, dict) else None
            if version != FORMAT_VERSION:
                raise CacheError(
                    f"{path} has format version {version!r}, this tgdpo reads {FORMAT_VERSION}",
                    fix="use the tgdpo that wrote it, or score again",
                )
            return cls.model_validate(content)
        except (ValueError, RecursionError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise CacheError(f"{path} is damaged ({reason})", fix="restore it from a copy, or score again") from error


def differing_fields(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Names of the fields that differ, those of `ignore` left out."""
    names = sorted(ours.keys() | theirs.keys())
    return [name for name in names if name not in ignore and ours.get(name) != theirs.get(name)]
