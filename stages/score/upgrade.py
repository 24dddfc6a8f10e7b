"""What an earlier version recorded of a scoring run, read as this version would have recorded it."""

from ...data.manifest import Fingerprint, differing_fields
from ...data.versions import FIRST_RELEASE, SCORE_VERSION, UNRECORDED
from .config import TEXT_OPTIONS, ScoreConfig

BEGUN_BY = "tgdpo"
"""The field that says which version began the work. Another one may finish it, if the score version is the same."""


def completed(recorded: Fingerprint) -> Fingerprint:
    """A recorded fingerprint with what it does not know yet."""
    return {"score_version": UNRECORDED} | ScoreConfig.completed(recorded, TEXT_OPTIONS)


def differing(ours: Fingerprint, recorded: Fingerprint, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Names of the fields for which a run with the fingerprint `ours` may not finish what was begun with `recorded`."""
    return differing_fields(completed(ours), completed(recorded), ignore=(BEGUN_BY, *ignore))


def begun_by(recorded: Fingerprint) -> str:
    """The version of tgdpo that began the work."""
    return str(recorded.get(BEGUN_BY, FIRST_RELEASE))


def maker(recorded: Fingerprint) -> str:
    """That version, and what is different now, where the score version is."""
    versions = f"score version {completed(recorded)['score_version']}, not {SCORE_VERSION}"
    return f"tgdpo {begun_by(recorded)}, which computes scores in another way ({versions})"
