"""What the card of a trained model says about forgetting.

TRL writes the card into each checkpoint and each push to the Hub, and says that the model was
trained with SFT. Input: the trainer's settings. Output: lines of Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from forgetting.training.config import ForgettingConfig

PAPER = {
    "title": "Forgetting: A New Mechanism Towards Better Large Language Model Fine-tuning",
    "id": "2508.04329",
    "citation": """@article{forgetting2026,
  title   = {Forgetting: A New Mechanism Towards Better Large Language Model Fine-tuning},
  journal = {Transactions on Machine Learning Research},
  year    = {2026},
  eprint  = {2508.04329},
  archivePrefix = {arXiv}
}""",
}
"""As TRL's cards take it."""
PLACE = "### Framework versions"
"""The heading of TRL's card before which the settings are inserted."""


def describe(args: ForgettingConfig) -> str:
    """The settings of forgetting as a Markdown section."""
    schedule, term, loss = args.lambda_schedule, args.forgetting_term, args.positive_loss
    values = {**term.parameters, **({} if term.floor is None else {"floor": term.floor})}
    rows = {
        "loss of positive tokens": _with_values(loss.kind, loss.parameters),
        "term of negative tokens": _with_values(term.kind, values),
        "lambda": f"{schedule.kind}, t_min {schedule.t_min:g}, t_max {schedule.t_max:g}",
        "normalization": args.normalization,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "### Forgetting\n\nTokens with polarity +1 were learned, those with -1 were unlearned, and "
        f"those with 0 were ignored.\n\n| setting | value |\n|---|---|\n{table}\n"
    )


def add_settings(card: Path, args: ForgettingConfig) -> None:
    """Insert the settings of forgetting into a card that TRL has written."""
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace(PLACE, f"{describe(args)}\n{PLACE}", 1), encoding="utf-8")


def _with_values(name: str, values: Mapping[str, float]) -> str:
    return ", ".join([name, *(f"{key} {value:g}" for key, value in values.items())])
