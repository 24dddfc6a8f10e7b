"""Token-level guided preference optimization (TGDPO) in two offline stages.

`tgdpo score` runs a guidance and a reference model once and writes per-token rewards to Parquet shards;
`tgdpo train` streams the shards into a trainer that holds the policy alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .data.versions import __version__

if TYPE_CHECKING:
    from .data.cache import RewardCache, load_cache
    from .pipeline.launch import score
    from .stages.score.config import ScoreConfig
    from .stages.train.config import TrainConfig
    from .stages.train.functional import tgdpo_loss
    from .stages.train.run import train
    from .stages.train.trainer import TGDPOConfig, TGDPOTrainer

# Imported on first use: `import tgdpo` and `tgdpo --help` stay free of torch.
_LAZY = {
    "RewardCache": ".data.cache",
    "ScoreConfig": ".stages.score.config",
    "TGDPOConfig": ".stages.train.trainer",
    "TGDPOTrainer": ".stages.train.trainer",
    "TrainConfig": ".stages.train.config",
    "load_cache": ".data.cache",
    "score": ".pipeline.launch",
    "tgdpo_loss": ".stages.train.functional",
    "train": ".stages.train.run",
}

__all__ = [
    "RewardCache",
    "ScoreConfig",
    "TGDPOConfig",
    "TGDPOTrainer",
    "TrainConfig",
    "__version__",
    "load_cache",
    "score",
    "tgdpo_loss",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
