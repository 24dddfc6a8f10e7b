"""A stage from its first line to its last."""

import gc
import importlib
import importlib.util
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from . import card, child
from .item import Context, Figures, Item, write_line
from .stages import STAGES

LEAST_SECONDS = 20.0
"""No item is started with less."""
PRELOADED = (
    "torch._dynamo", "torch._subclasses.fake_tensor", "torch.distributed.tensor", "pytest", "accelerate", "peft",
    "transformers.models.llama.modeling_llama", "transformers.models.gemma2.modeling_gemma2",
    "transformers.models.gemma3.modeling_gemma3", "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
)  # fmt: skip
"""What children would otherwise import one by one, and does not touch CUDA at its import."""


def run_stage(stage: str, output: Path, *, seconds: float, small: bool, only: list[str] | None = None) -> list[Figures]:
    """Runs the items of a stage in their order and writes `output`/stage-X.jsonl, line by line.

    Args:
        seconds: for all of it; what does not fit is skipped, with a line that says so.
        only: names of items, instead of all; their lines are added to those that the file has.
    """
    end = time.monotonic() + seconds
    output.mkdir(parents=True, exist_ok=True)
    lines = output / f"stage-{stage}.jsonl"
    if not only:
        lines.unlink(missing_ok=True)
    context = Context(small=small, lines=lines, card={}, folder=Path())
    preload(small=small)
    method = child.start_method(context)
    first = Item("card", card.look, 120, "Card")
    found = child.run_item(first, context, first.seconds, method)
    written = [_written({"item": first.name, "stage": stage, "group": first.group, "start": method} | found, lines)]
    context = Context(small=small, lines=lines, card=found, folder=Path())
    name = found.get("card", "unknown")
    for item in STAGES[stage]:
        if only and item.name not in only:
            continue
        left = end - time.monotonic()
        reason = _why_not(item, context, left)
        outcome: Figures = {"status": "skipped", "reason": reason, "seconds": 0.0}
        if reason is None:
            outcome = child.run_item(item, context, min(item.seconds, left), method)
        about = {"item": item.name, "stage": stage, "group": item.group, "card": name}
        written.append(_written(about | outcome, lines))
    return written


def preload(*, small: bool) -> None:
    """Imports what children need; TRL only for tiny models, since it imports Liger's kernels, which may ask the card
    what it is."""
    for name in (*PRELOADED, "trl.trainer.dpo_trainer") if small else PRELOADED:
        with suppress(ImportError):  # an item that needs it says so itself
            importlib.import_module(name)
    gc.freeze()  # children search for garbage when they let a model go; none of this is


def _why_not(item: Item, context: Context, left: float) -> str | None:
    """Why an item does not run here; None where it does."""
    if left < min(LEAST_SECONDS, item.seconds):
        return "no time left"
    if "cuda" in item.needs and not context.on_gpu:
        return "needs CUDA"
    for package in item.needs:
        if package != "cuda" and importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if context.small:
        return None
    memory = context.card.get("memory_gib") or 0.0
    if item.gib > memory:
        return f"needs {item.gib:.0f} GiB of a card's memory, this one has {memory:.0f}"
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    return f"needs {item.disk_gib:.0f} GiB of disk, {free:.0f} are free" if item.disk_gib > free else None


def _written(line: Figures, lines: Path) -> Figures:
    write_line(lines, line)
    reason = f": {line['reason']}" if "reason" in line else ""
    print(
        f"{line['stage']} {line['item']}: {line['status']}, {line['seconds']:.0f} s{reason}",
        file=sys.stderr,
        flush=True,
    )
    return line
