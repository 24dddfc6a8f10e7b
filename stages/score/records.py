"""What preparation leaves beside the tokens: one small record per shard, and their totals."""

import math
from collections import Counter
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from ...data.rendering import Form, require_one_form
from ...data.set_aside import ADVICE, Reason
from ...errors import DataError

EXAMPLES = 3
"""Rows that a message names per reason."""
ADVISED = 2
"""Reasons, the most frequent ones, for which a message says what to do."""


class SetAsideRow(BaseModel):
    """A line of `_set_aside.jsonl`. Says where and why, never the row's text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_row: int
    reason: str
    detail: str


class ShardRecord(BaseModel):
    """What the preparation of one shard found; `prepared-NNNNN.json`.

    `form` is the first row's that it knows of, `attended` the pairs of tokens of which one attends to the other,
    `longest` the tokens of the longest row, prompt and response together.
    """

    model_config = ConfigDict(extra="forbid")

    rows: int = 0
    pairs: int = 0
    prompt_tokens: int = 0
    chosen_tokens: int = 0
    rejected_tokens: int = 0
    attended: int = 0
    truncated: int = 0
    largest_id: int = 0
    longest: int = 0
    form: Form | None = None
    set_aside: list[SetAsideRow] = []


class SetAsideCount:
    """Counts rows that are set aside, and remembers a few of them."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self._examples: dict[str, list[SetAsideRow]] = {}

    def add(self, rows: Iterable[SetAsideRow]) -> None:
        """Counts `rows`."""
        for row in rows:
            self.reasons[row.reason] += 1
            examples = self._examples.setdefault(row.reason, [])
            if len(examples) < EXAMPLES:
                examples.append(row)

    def require_few(self, rows_read: int, limit: float, models: str = "the models") -> None:
        """Raises DataError where more than `limit` of the rows read are set aside.

        `models` names those whose scores may not be finite.
        """
        total = self.reasons.total()
        share = total / rows_read
        if share <= limit:
            return
        advice = "; ".join(dict.fromkeys(ADVICE[Reason(reason)] for reason, _ in self.reasons.most_common(ADVISED)))
        advice = advice.format(models=models)
        if total < rows_read:
            advice += f"; or allow more than {limit * 100:.4g}% with --max-set-aside {_round_up(share)}"
        raise DataError(f"{total} of {rows_read} rows cannot be used ({self})", fix=advice)

    def __str__(self) -> str:
        """The reasons with their counts and first rows: '3 empty response, row 4, 9, 17; 1 …'."""
        return "; ".join(self._describe(reason, count) for reason, count in self.reasons.most_common())

    def _describe(self, reason: str, count: int) -> str:
        examples = self._examples[reason]
        detail = f": {examples[0].detail}" if examples[0].detail else ""
        numbers = ", ".join(str(row.source_row) for row in examples) + (" …" if count > EXAMPLES else "")
        return f"{count} {reason}, row {numbers}{detail}"


class Prepared:
    """The totals of all shards' records.

    Raises:
        DataError: one shard's rows are conversational, another's plain text.
    """

    def __init__(self, records: Iterable[ShardRecord]) -> None:
        self.rows_read = self.truncated = self.largest_id = self.longest = 0
        self.prompt_tokens = self.chosen_tokens = self.rejected_tokens = self.attended = 0
        self.shard_pairs: list[int] = []
        self.set_aside = SetAsideCount()
        self.form: Form | None = None
        for record in records:
            self._add(record)

    def _add(self, record: ShardRecord) -> None:
        self.rows_read += record.rows
        self.truncated += record.truncated
        self.largest_id = max(self.largest_id, record.largest_id)
        self.longest = max(self.longest, record.longest)
        self.prompt_tokens += record.prompt_tokens
        self.chosen_tokens += record.chosen_tokens
        self.rejected_tokens += record.rejected_tokens
        self.attended += record.attended
        self.shard_pairs.append(record.pairs)
        self.set_aside.add(record.set_aside)
        self.form = self.form or record.form
        if self.form and record.form:
            require_one_form(self.form, record.form)

    @property
    def pairs(self) -> int:
        """Rows that can be scored."""
        return sum(self.shard_pairs)

    @property
    def conversational(self) -> bool:
        """Whether the rows are conversational."""
        return self.form is not None and self.form.conversational


def _round_up(share: float) -> float:
    return min(1.0, math.ceil(share * 100) / 100)
