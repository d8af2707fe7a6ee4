"""Find the tokens of a fine-tuning corpus that hurt, and forget them while learning the rest."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forgetting.config import Recipe, load_recipe
    from forgetting.formats import Message, register_format
    from forgetting.method import select_tokens, token_quality
    from forgetting.method.corruptions import Corrupted, register_corruption
    from forgetting.method.loss import forgetting_loss
    from forgetting.method.losses import PositiveLoss, register_loss
    from forgetting.method.measures import register_measure
    from forgetting.method.schedule import LambdaSchedule
    from forgetting.method.terms import ForgettingTerm, register_term
    from forgetting.pipeline import run
    from forgetting.scoring import score_dataset
    from forgetting.training.config import ForgettingConfig
    from forgetting.training.trainer import ForgettingTrainer

__version__ = version("forgetting")
__all__ = [
    "Corrupted",
    "ForgettingConfig",
    "ForgettingTerm",
    "ForgettingTrainer",
    "LambdaSchedule",
    "Message",
    "PositiveLoss",
    "Recipe",
    "forgetting_loss",
    "load_recipe",
    "register_corruption",
    "register_format",
    "register_loss",
    "register_measure",
    "register_term",
    "run",
    "score_dataset",
    "select_tokens",
    "token_quality",
]
_HOMES = {
    "Corrupted": "method.corruptions",
    "ForgettingConfig": "training.config",
    "ForgettingTerm": "method.terms",
    "ForgettingTrainer": "training.trainer",
    "LambdaSchedule": "method.schedule",
    "Message": "formats",
    "PositiveLoss": "method.losses",
    "Recipe": "config",
    "forgetting_loss": "method.loss",
    "load_recipe": "config",
    "register_corruption": "method.corruptions",
    "register_format": "formats",
    "register_loss": "method.losses",
    "register_measure": "method.measures",
    "register_term": "method.terms",
    "run": "pipeline",
    "score_dataset": "scoring",
    "select_tokens": "method",
    "token_quality": "method",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch and TRL take seconds, and `forgetting --help` needs neither.
    if name not in _HOMES:
        raise AttributeError(f"module 'forgetting' has no attribute {name!r}")
    return getattr(import_module(f"forgetting.{_HOMES[name]}"), name)
