"""Why a row is set aside, and what to do about it."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a row is set aside."""

    UNREADABLE = "unreadable row"
    MISSING_FIELD = "missing field"
    NOT_TEXT = "null or not text"
    BAD_MESSAGE = "bad message"
    EMPTY_RESPONSE = "empty response"
    EMPTY_PROMPT = "empty prompt"
    NO_COMMON_PREFIX = "no common prefix"
    SAME_RESPONSES = "chosen equals rejected"
    LONE_SURROGATE = "lone surrogate"
    CONTROL_TOKEN = "control token in the text"
    TEMPLATE = "chat template failed"
    PROMPT_TOO_LONG = "prompt too long"
    TOO_LONG = "too long"
    NON_FINITE = "non-finite score"


FORMS = "chosen and rejected are two texts or two lists of messages, each message with a role and its content"
"""The forms that are read, in a line."""

ADVICE = {
    Reason.UNREADABLE: "save the file as JSON Lines in UTF-8, one object per line, or as Parquet",
    Reason.MISSING_FIELD: "give every row the same columns",
    Reason.NOT_TEXT: f"convert the rows: {FORMS}",
    Reason.BAD_MESSAGE: f"convert the rows: {FORMS}",
    Reason.EMPTY_RESPONSE: "remove these rows",
    Reason.EMPTY_PROMPT: "remove these rows, or name the column of the prompts with --prompt-column",
    Reason.NO_COMMON_PREFIX: "name the prompts' column with --prompt-column, or begin both responses with the prompt",
    Reason.SAME_RESPONSES: "remove these rows",
    Reason.LONE_SURROGATE: "save the text as valid Unicode",
    Reason.CONTROL_TOKEN: "remove these tokens from the text, or keep them with --allow-control-tokens if the rows "
    "were rendered with a chat template",
    Reason.TEMPLATE: "write the conversations as the chat template takes them (the text of a system message, for "
    "example, into the first user message), or save a template that takes them with the models' tokenizers",
    Reason.PROMPT_TOO_LONG: "cut the prompts with --max-prompt-length N, or raise --max-length",
    Reason.TOO_LONG: "cut the responses with --max-length N, or use models with a longer context",
    Reason.NON_FINITE: "check the weights of {models} for NaN; if numbers overflow in float16, use --dtype bfloat16 "
    "or float32",
}
"""What to do where rows are set aside for this reason. `{models}` stands for the names of the models."""


class SetAside(Exception):  # noqa: N818  (a verdict on one row, not an error of the run)
    """Raised inside the preparation of one row; caught there and written to `_set_aside.jsonl`."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
