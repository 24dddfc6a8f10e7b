"""The hyperparameters of an objective, from the configuration."""

from dataclasses import fields

from ..config import TrainConfig
from ..shapes import find_shape
from .types import LossSettings


def loss_settings(config: TrainConfig) -> LossSettings:
    """Raises UsageError where `config.f_shape` names no shape."""
    names = {field.name for field in fields(LossSettings)} - {"shape"}
    return LossSettings(shape=find_shape(config.f_shape), **{name: getattr(config, name) for name in names})
