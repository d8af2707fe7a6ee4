"""Find the tokens of a fine-tuning corpus that hurt, and forget them while learning the rest."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forgetting.config.schema import Recipe
    from forgetting.method import select_tokens, token_quality
    from forgetting.method.loss import ForgettingTerm, LambdaSchedule, forgetting_loss
    from forgetting.pipeline import run
    from forgetting.scoring import score_dataset
    from forgetting.training.trainer import ForgettingConfig, ForgettingTrainer

__version__ = version("forgetting")
__all__ = [
    "ForgettingConfig",
    "ForgettingTerm",
    "ForgettingTrainer",
    "LambdaSchedule",
    "Recipe",
    "forgetting_loss",
    "run",
    "score_dataset",
    "select_tokens",
    "token_quality",
]
_HOMES = {
    "ForgettingConfig": "training.trainer",
    "ForgettingTerm": "method.loss",
    "ForgettingTrainer": "training.trainer",
    "LambdaSchedule": "method.loss",
    "Recipe": "config.schema",
    "forgetting_loss": "method.loss",
    "run": "pipeline",
    "score_dataset": "scoring",
    "select_tokens": "method",
    "token_quality": "method",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: importing torch and TRL takes seconds, `forgetting --help` does not.
    if name not in _HOMES:
        raise AttributeError(f"module 'forgetting' has no attribute {name!r}")
    return getattr(import_module(f"forgetting.{_HOMES[name]}"), name)
