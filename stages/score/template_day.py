"""Which day the chat template of a run writes: the day on which the run began, whoever continues it and when."""

import datetime
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...data.manifest import ENVIRONMENT_FIELDS, Fingerprint
from ...data.template_date import parsed_day, reads_clock
from ...errors import UsageError
from .config import ScoreConfig
from .upgrade import differing

if TYPE_CHECKING:
    from .plan import ScorePlan

TEMPLATE_DATE = "template_date"
"""The option, and the field of the fingerprints of runs whose template can write the date."""
TEMPLATE = "chat_template_sha256"


def today() -> str:
    """The day by this machine's clock, as templates would write it."""
    return datetime.date.today().isoformat()


def template_day(config: ScoreConfig, tokenizer: Any, name: str) -> str | None:
    """The day for a new run, YYYY-MM-DD: --template-date, else today; None where the template writes none.

    Args:
        config: the run's options.
        tokenizer: the tokenizer with the template.
        name: the tokenizer's name, for people.

    Raises:
        UsageError: --template-date would do nothing.
    """
    if reads_clock(tokenizer.chat_template):
        return config.template_date or today()
    if config.template_date:
        raise UsageError(
            f"--template-date {config.template_date}: the chat template of {name} writes no date", fix="leave it out"
        )
    return None


def on_day(fingerprint: Fingerprint, day: str | None) -> Fingerprint:
    """The fingerprint of the run on another day."""
    others = {name: value for name, value in fingerprint.items() if name != TEMPLATE_DATE}
    return others | ({TEMPLATE_DATE: day} if day else {})


def as_recorded(plan: "ScorePlan", recorded: Fingerprint) -> "ScorePlan":
    """The plan for an output folder with a run of the fingerprint `recorded`: on that run's day, unless --template-date
    names one, and with that fingerprint where nothing else differs.

    Where 0.1.0 began the run, which recorded no day, the plan has none either.
    """
    from .plan import FreshPlan  # which needs this module

    ours, day = plan.fingerprint, parsed_day(recorded.get(TEMPLATE_DATE))
    if (
        isinstance(plan, FreshPlan)
        and plan.template_date
        and not plan.config.template_date
        and ours[TEMPLATE] == recorded.get(TEMPLATE)
    ):
        theirs = on_day(ours, day)
        if day or not differing(theirs, recorded, ignore=ENVIRONMENT_FIELDS):
            plan = replace(plan, fingerprint=theirs, template_date=day)
    return plan if differing(plan.fingerprint, recorded) else replace(plan, fingerprint=recorded)
