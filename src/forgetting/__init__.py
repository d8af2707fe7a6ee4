"""Find the tokens of a fine-tuning corpus that hurt, and forget them while learning the rest."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forgetting.objective import ForgettingTerm, LambdaSchedule, forgetting_loss
    from forgetting.pipeline import run
    from forgetting.recipe import Recipe
    from forgetting.scoring import score_dataset
    from forgetting.selection import select_tokens, token_quality
    from forgetting.trainer import ForgettingConfig, ForgettingTrainer

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
    "ForgettingConfig": "trainer",
    "ForgettingTerm": "objective",
    "ForgettingTrainer": "trainer",
    "LambdaSchedule": "objective",
    "Recipe": "recipe",
    "forgetting_loss": "objective",
    "run": "pipeline",
    "score_dataset": "scoring",
    "select_tokens": "selection",
    "token_quality": "selection",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: importing torch and TRL takes seconds, `forgetting --help` does not.
    if name not in _HOMES:
        raise AttributeError(f"module 'forgetting' has no attribute {name!r}")
    return getattr(import_module(f"forgetting.{_HOMES[name]}"), name)
