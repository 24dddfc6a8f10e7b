"""What the product reads of an input, and what datasets and TRL read of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import trl

from tgdpo.data.chat_template import TEMPLATE_COLUMNS
from tgdpo.data.preferences import PreferenceSet, Row
from tgdpo.data.rendering import Columns, Renderer
from tgdpo.data.tokenization import LengthLimits, PairTokenizer, begin_of_text_string, control_tokens
from tgdpo.errors import DataError, TgdpoError
from tgdpo.stages.score.prepare import ShardBuilder
from tgdpo.stages.score.records import Prepared

from .inputs import FileInput, RowInput
from .templates import tokenizer_of

NAMES = ("prompt", "chosen", "rejected")


def renderer_of(tokenizer: Any) -> Renderer:
    """The renderer of a scoring run."""
    return Renderer(
        tokenizer,
        Columns(),
        control_tokens=control_tokens(tokenizer),
        end_of_turn=tokenizer.eos_token,
        begin_of_text=begin_of_text_string(tokenizer),
    )


def answer_to_file(path: Path, source: FileInput) -> list[dict[str, Any]] | str:
    """The rows of a file or folder that a scoring run uses, or the line in which it ends."""
    try:
        columns = (*Columns(), *TEMPLATE_COLUMNS)
        wanted = PreferenceSet(str(path), split=source.split, config_name=source.configuration, columns=columns)
        rows = list(wanted)
        if not rows:
            raise DataError(f"--dataset {path} has no rows", fix="name a file with preference pairs")
        is_chat = any(isinstance(row.value.get("chosen"), list) for row in rows)
        tokenizer = tokenizer_of("chatml" if is_chat else None)
        builder = ShardBuilder(renderer_of(tokenizer), PairTokenizer(tokenizer, LengthLimits()))
        builder.add(rows)
        Prepared([builder.record]).set_aside.require_few(len(rows), 0.01)
    except TgdpoError as error:
        return one_line(error)
    return [{name: row.value[name] for name in NAMES} for row in rows]


def one_line(error: TgdpoError) -> str:
    """The message, which must be one line with something to do."""
    assert "\n" not in str(error)
    assert error.fix
    return str(error)


def rows_of_datasets(path: Path, source: FileInput, scratch: Path) -> list[dict[str, Any]]:
    """What datasets reads of it."""
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        loaded = datasets.load_from_disk(path)
        loaded = loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
    elif path.is_dir():
        loaded = datasets.load_dataset(str(path), source.configuration, split=source.split, cache_dir=str(scratch))
    else:
        suffix = next(each for each in path.name.split(".")[1:] if each != "gz")
        kind = "json" if "json" in suffix else suffix
        loaded = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(scratch))
    return [{name: row[name] for name in NAMES} for row in loaded]


class Rows(list[dict[str, Any]]):
    """Rows as TRL's preparation takes them, without Arrow between."""

    def map(self, function: Any, fn_kwargs: Any = None, **_: Any) -> "Rows":
        """Applies `function` to each row."""
        return Rows({**row, **function(dict(row), **(fn_kwargs or {}))} for row in self)


def texts_of_trl(source: RowInput) -> tuple[list[int], list[int]]:
    """The ids of prompt and chosen, and of prompt and rejected, as TRL's DPOTrainer prepares the row."""
    tokenizer = tokenizer_of(source.template)
    settings = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    rows = Rows([dict(source.as_trl or source.row)])
    (row,) = trl.DPOTrainer._prepare_dataset(trainer, rows, tokenizer, settings, "train")
    return row["prompt_ids"] + row["chosen_ids"], row["prompt_ids"] + row["rejected_ids"]


def answer_to_row(source: RowInput) -> tuple[list[int], list[int]] | str:
    """The same of the product, or its line."""
    tokenizer = tokenizer_of(source.template)
    builder = ShardBuilder(renderer_of(tokenizer), PairTokenizer(tokenizer, LengthLimits()))
    try:
        builder.add([Row(0, source.row)])
        Prepared([builder.record]).set_aside.require_few(1, 0.01)
    except TgdpoError as error:
        return one_line(error)
    (row,) = builder.table.to_pylist()
    return row["prompt_ids"] + row["chosen_ids"], row["prompt_ids"] + row["rejected_ids"]


def without_end(ids: list[int], tokenizer: Any) -> list[int]:
    """The ids up to the end of the last turn: TRL keeps the white space that templates write after it."""
    ends = {tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|end|>"))}
    blank = {token for token in set(ids) if not tokenizer.decode([token]).strip()}
    while ids and ids[-1] in ends | blank:
        ids = ids[:-1]
    return ids
