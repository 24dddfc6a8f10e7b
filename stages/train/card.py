"""The model card of a trained policy."""

from pathlib import Path
from typing import Any

from ...data.cache import RewardCache
from .config import TrainConfig

_CITATION = """```bibtex
@inproceedings{zhu2025tgdpo,
  title     = {{TGDPO}: Harnessing Token-Level Reward Guidance for Enhancing Direct Preference Optimization},
  author    = {Zhu, Mingkang and Chen, Xi and Wang, Zhongdao and Yu, Bei and Zhao, Hengshuang and Jia, Jiaya},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  url       = {https://arxiv.org/abs/2506.14574}
}
```"""


def write_card(folder: Path, config: TrainConfig, cache: RewardCache, summary: dict[str, Any]) -> None:
    """Writes README.md: what the model was trained from, with which settings, and the last metrics."""
    manifest = cache.manifest
    settings = ["beta"] + (["alpha", "beta_r", "f_shape", "f_clip"] if config.loss == "tgdpo" else [])
    settings += ["label_smoothing", "learning_rate", "lr_scheduler", "warmup_ratio", "batch_size", "seed", "lora_rank"]
    rows = [f"| {name} | {getattr(config, name)} |" for name in settings]
    metrics = [f"| {name} | {value:.6g} |" for name, value in summary.items() if isinstance(value, float)]
    text = [
        "---",
        "library_name: transformers",
        f"tags: [tgdpo, {config.loss}, preference-optimization]",
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
        *(
            f"| {name} | `{manifest.fingerprint[name]}` |"
            for name in ("dataset_sha256", "reference_sha256", "guidance_sha256")
        ),
        "",
        "| setting | |",
        "|---|---|",
        *rows,
        "",
        "| last logged | |",
        "|---|---|",
        *metrics,
        "",
        _CITATION,
        "",
    ]
    (folder / "README.md").write_text("\n".join(text))
