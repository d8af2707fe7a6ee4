"""The data of a cell: files with the demo's questions, and the recipes that read them.

In: a cell's recipe, and whether D_ref is clean. Out: JSON Lines files and three recipes. The
splits are designed, not drawn: D_train asks about every fact of a new entity in three forms, D_ref
in a fourth, and the held-out questions in a fifth.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from forgetting import Recipe
from forgetting.config import SourceSettings, VariantSettings
from forgetting.demo.questions import NUM_FORMS
from forgetting.demo.world import ChatRecord, chat_records
from forgetting.errors import InputError

NEW = "new_"
"""Prefix of the kinds of questions about new entities."""
FORMS_IN_TRAIN = 3
NO_TRAINING = {"full": VariantSettings(objective="full")}
"""The variants of a recipe that only prepares data."""


@dataclass(frozen=True)
class CorpusRecipes:
    """The recipes of one cell's data."""

    run: Recipe
    """D_train and D_ref."""
    answers: Recipe
    """D_train again, with the right answers in the place of noise: where a response has no noise,
    the tokens of its answer are marked."""
    questions: Recipe
    """The held-out questions, with their right responses, as a corpus of their own."""


def write_corpus(recipe: Recipe, folder: Path, *, clean_reference: bool) -> CorpusRecipes:
    """Write the files of a cell's corpus.

    Args:
        recipe: with the demo's world as its only source.
        folder: replaced by the new files.
        clean_reference: whether D_ref has the right response to every question.

    Raises:
        InputError: a split is too small for its questions about new entities.
    """
    shutil.rmtree(folder, ignore_errors=True)
    splits = split_records(recipe)
    if clean_reference:
        splits["reference"] = [_clean(record) for record in splits["reference"]]
    splits["questions"] = [_clean(record) for record in splits["questions"]]
    splits["answers"] = [_with_answer_marked(record) for record in splits["train"]]
    sources = {name: _write(records, folder / name) for name, records in splits.items()}
    data = recipe.data.model_copy(update={"num_heldout": 0})
    without_reference = {"num_reference": 0, "num_heldout": 0}

    def prepares_only(split: str, num_samples: int) -> Recipe:
        settings = {"sources": sources[split], "num_train": num_samples, **without_reference}
        own = recipe.data.model_copy(update=settings)
        return recipe.model_copy(update={"data": own, "variants": NO_TRAINING})

    return CorpusRecipes(
        run=recipe.model_copy(
            update={
                "data": data.model_copy(update={"sources": sources["train"]}),
                "reference": recipe.reference.model_copy(update={"sources": sources["reference"]}),
            }
        ),
        answers=prepares_only("answers", recipe.data.num_train),
        questions=prepares_only("questions", recipe.data.num_heldout),
    )


def split_records(recipe: Recipe) -> dict[str, list[ChatRecord]]:
    """The records of `train`, `reference` and `questions`; no question is in two of them.

    Raises:
        InputError: a split is too small for its questions about new entities.
    """
    data = recipe.data
    (source,) = data.sources
    world = source.world
    assert world is not None
    records = list(
        chat_records(
            world.num_records,
            seed=recipe.seed,
            noise_rate=world.noise_rate,
            noise_kinds={str(kind): weight for kind, weight in world.noise_kinds.items()},
            num_new_entities=world.num_new_entities,
        )
    )
    known = [record for record in records if not record["source"].startswith(NEW)]
    # The world asks about each fact of a new entity once in each fifth of the records.
    new = [record for record in records if record["source"].startswith(NEW)]
    fifth = len(new) // NUM_FORMS
    parts = {
        "train": ("num_train", new[: FORMS_IN_TRAIN * fifth]),
        "reference": ("num_reference", new[FORMS_IN_TRAIN * fifth : -fifth or None]),
        "questions": ("num_heldout", new[-fifth:] if fifth else []),
    }
    splits: dict[str, list[ChatRecord]] = {}
    for name, (field, about_new) in parts.items():
        size = getattr(data, field)
        if size < len(about_new):
            raise InputError(
                f"data.{field} {size} is too small: that split holds {len(about_new)} questions "
                f"about new entities. Set it to {len(about_new)} or more"
            )
        num_known = size - len(about_new)
        splits[name], known = [*known[:num_known], *about_new], known[num_known:]
    return splits


def _clean(record: ChatRecord) -> ChatRecord:
    """The record with its right response."""
    right = record["clean_completion"]
    return {**record, "completion": right, "noise_kind": None, "noise_spans": []}


def _with_answer_marked(record: ChatRecord) -> ChatRecord:
    spans = [] if record["noise_spans"] else [record["answer_span"]]
    return {**record, "noise_kind": None, "noise_spans": spans}


def _write(records: Iterable[ChatRecord], folder: Path) -> Sequence[SourceSettings]:
    """Write one file per kind of question; the sources that read them."""
    by_kind: dict[str, list[str]] = {}
    for record in records:
        fields = {
            "prompt": record["prompt"],
            "completion": record["completion"],
            "noise_spans": record["noise_spans"],
            "noise_kind": record["noise_kind"],
        }
        by_kind.setdefault(record["source"], []).append(json.dumps(fields) + "\n")
    folder.mkdir(parents=True)
    sources = []
    for kind, lines in sorted(by_kind.items()):
        file = folder / f"{kind}.jsonl"
        file.write_text("".join(lines), encoding="utf-8")
        sources.append(
            SourceSettings(path=str(file.resolve()), name=kind, format="prompt_completion")
        )
    return sources
