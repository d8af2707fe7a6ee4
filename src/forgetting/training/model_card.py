"""What the card of a trained model says about forgetting.

TRL writes the card into the output folder at each checkpoint and push to the Hub. Input: that card
and the trainer's settings. Output: a card that names the base model and what was done to it.
"""

from __future__ import annotations

import json
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
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    values = {**term.parameters, **({} if term.floor is None else {"floor": term.floor})}
    rows = {
        "loss of positive tokens": _with_values(loss.kind, loss.parameters),
        "term of negative tokens": _with_values(term.kind, values),
        "lambda": f"{schedule.kind}, t_min {schedule.t_min:g}, t_max {schedule.t_max:g}",
        "normalization": args.normalization,
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler_type.value}",
        "samples per optimizer step": str(batch),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "### Forgetting\n\nTokens with polarity +1 were learned, those with -1 were unlearned, and "
        f"those with 0 were ignored.\n\n| setting | value |\n|---|---|\n{table}\n"
    )


def correct_card(card: Path, args: ForgettingConfig, base: str, hub_model_id: str | None) -> None:
    """Correct a card that TRL has written, and insert the settings of forgetting.

    TRL names a base model only if it is on the Hub, and the trained one only if it is pushed.

    Args:
        base: name or folder of the base model; empty if it has none.
        hub_model_id: of the trained model, if it is pushed.
    """
    text = card.read_text(encoding="utf-8")
    name = f"`{Path(base).name}`" if base else "a model of no name"
    text = text.replace("[None](https://huggingface.co/None)", name)
    own = hub_model_id or Path(str(args.output_dir)).name
    text = text.replace('model="None"', f"model={json.dumps(own, ensure_ascii=False)}")
    # A placeholder, which the Hub would read as the license.
    text = text.replace("licence: license\n", "")
    text = text.replace(PLACE, f"{describe(args)}\n{PLACE}", 1)
    card.write_text(text, encoding="utf-8")


def _with_values(name: str, values: Mapping[str, float]) -> str:
    return ", ".join([name, *(f"{key} {value:g}" for key, value in values.items())])
