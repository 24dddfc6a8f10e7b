"""The model card of a trained policy."""

import re
from pathlib import Path
from typing import Any

from ...data.cache import RewardCache
from ..hub import CITATION
from ..settings import panel_of
from .config import BATCH, LORA, LOSS, OPTIMIZER, TrainConfig
from .history import History
from .losses import LOSSES


def write_card(
    folder: Path, config: TrainConfig, cache: RewardCache, summary: dict[str, Any], history: History
) -> None:
    """Writes README.md: what the model was trained from, with which settings and on what, and the last metrics."""
    manifest = cache.manifest
    rows = [f"| {name} | {value} |" for name, value in _settings(config).items()]
    metrics = [f"| {name} | {value:.6g} |" for name, value in summary.items() if isinstance(value, float)]
    text = [
        "---",
        f"library_name: {'peft' if config.lora_rank else 'transformers'}",
        *_base_model(config),
        "pipeline_tag: text-generation",
        f"tags: [{', '.join(dict.fromkeys(['tgdpo', config.loss, 'preference-optimization']))}]",
        "---",
        "",
        f"# {folder.name}",
        "",
        f"`{config.model}` trained with {config.loss.upper()} by [tgdpo](https://arxiv.org/abs/2506.14574) on "
        f"{manifest.rows:,} preference pairs ({summary['step']} steps).",
        "",
        "| reward cache | |",
        "|---|---|",
        f"| dataset | {manifest.dataset} |",
        f"| reference | {manifest.reference} |",
        f"| guidance | {manifest.guidance or 'none'} |",
        f"| token rewards | {manifest.reward_kind} |",
        f"| cache_sha256 | `{cache.content_hash}` |",
        *(
            f"| {name} | `{manifest.fingerprint[name]}` |"
            for name in ("dataset_sha256", "reference_sha256", "guidance_sha256")
        ),
        "",
        "| setting | |",
        "|---|---|",
        *rows,
        "",
        "| made with | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _made_with(history, summary).items()),
        "",
        "| last logged | |",
        "|---|---|",
        *metrics,
        "",
        CITATION,
        "",
    ]
    # A cache may name files whose names are no valid text.
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8", errors="backslashreplace")


def _made_with(history: History, summary: dict[str, Any]) -> dict[str, Any]:
    """What the last start ran on, and the work of all."""
    last = {name.replace("_", " "): value for name, value in history.starts[-1].items() if name != "step"}
    resumed = [start["step"] for start in history.starts[1:]]
    work = {
        "resumed at step": ", ".join(map(str, resumed)),
        "training seconds": history.seconds,
        "tokens": f"{summary['tokens']:,}",
    }
    return {name: value for name, value in (last | work).items() if value not in (None, "")}


def _base_model(config: TrainConfig) -> list[str]:
    """The line that links the card to its base; the hub refuses a path there."""
    name = config.model.partition("@")[0]
    is_on_hub = not Path(config.model).expanduser().exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name)
    return [f"base_model: {name}"] if is_on_hub else []


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What decided the result: the main settings, and every other that is not at its default and not idle."""
    main = [
        "loss",
        *LOSSES[config.loss].options,
        "learning_rate",
        "lr_scheduler",
        "warmup_ratio",
        "batch_size",
        "seed",
        "lora_rank",
    ]
    others = [
        name
        for name, field in TrainConfig.model_fields.items()
        if panel_of(field) in (LOSS, OPTIMIZER, BATCH, LORA)
        and name not in (*main, *config.idle)
        and getattr(config, name) != field.default
    ]
    return {name: getattr(config, name) for name in main + others}
