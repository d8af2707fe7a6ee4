"""What a run did and found, in plain words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from forgetting.config import Recipe
from forgetting.report.sentences import noise_sentence, recipe_paragraph
from forgetting.rundir.selection import KnownNoise

DATA = {"sources": [{"path": "notes.jsonl"}], "num_train": 2000, "num_reference": 300}


def paragraph(**sections: Any) -> str:
    recipe = {"name": "mine", "model": {"name_or_path": "org/base"}, "data": DATA, **sections}
    return recipe_paragraph(Recipe.model_validate(recipe)).replace("\u00a0", " ")


def test_the_paper_in_a_paragraph() -> None:
    assert paragraph() == (
        "The base model org/base is fine-tuned on 2,000 samples from notes, of at most 2,048 "
        "tokens. The quality of a response token comes from the base and from a reference model "
        "(the base after 1 epoch of a LoRA adapter of rank 64 in batches of 24, at a learning "
        "rate of 0.0001, on 300 other samples); it is measured by influence (l base − l "
        "reference), where l is the loss of the token and more is better. “full” learns all "
        "response tokens. “ignoring” learns the best 50 % of the tokens and leaves the others "
        "out. “forgetting” learns the best 70 % of the tokens and unlearns the others, with a "
        "weight lambda that rises from 0 to 0.2499 in a straight line. Every variant is trained "
        "with 1 epoch of a LoRA adapter of rank 64 in batches of 24, at a learning rate of 0.0001."
    )


def test_without_a_selection_no_reference_is_spoken_of() -> None:
    assert "reference" not in paragraph(variants={"full": {"objective": "full"}})


@pytest.mark.parametrize(
    ("selection", "forgetting", "said"),
    [
        ({"rho": 0.75, "granularity": "sequence"}, {}, "the best 75 % of the samples and unlearns"),
        ({"balance": "source"}, {}, "the best 70 % of the tokens of each source and unlearns"),
        ({"by": "random"}, {}, "70 % of the tokens, chosen by chance, and unlearns the others"),
        ({"by": "random", "rho": "auto"}, {}, "as many tokens as have quality above 0, chosen by"),
        ({"rho": "auto"}, {}, "the tokens of quality above 0 and unlearns the others"),
        ({"threshold": "zero"}, {}, "the tokens of quality above 0 and unlearns the others"),
        ({"forget_rate": 0.1}, {}, "unlearns the worst 10 % of all, leaving out those between"),
        (
            {"threshold": "mixture", "posterior": 0.8},
            {},
            "the tokens that a fit of two components does not count as bad and unlearns "
            "those that are bad with a probability of at least 0.8",
        ),
        ({}, {"schedule": "constant", "t_max": 0.1}, "with a constant weight lambda of 0.1."),
        ({}, {"schedule": "linear_from_t_min", "t_min": 0.01}, "rises from 0.01 to 0.25 in a str"),
        ({}, {"schedule": "cosine", "t_min": 0.01}, "rises from 0.01 to 0.25 in a cosine"),
        ({}, {"term": "npo"}, "in a straight line, by the term npo."),
    ],
)
def test_variants_are_told_apart(
    selection: dict[str, Any], forgetting: dict[str, Any], said: str
) -> None:
    own = {"objective": "forgetting", "selection": selection, "forgetting": forgetting}
    found = paragraph(variants={"own": own})
    assert "“own” learns " in found
    assert said in found


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ({"name_or_path": "org/judge"}, "and from a given reference model, judge;"),
        ({"folds": 5}, "on the 4 of 5 parts of the samples that do not hold the one"),
        ({"sources": [{"path": "trusted.jsonl"}]}, "on 300 samples of trusted sources)"),
    ],
)
def test_where_the_reference_comes_from(reference: dict[str, Any], said: str) -> None:
    assert said in paragraph(reference=reference)


NOISE = KnownNoise(90, 0.061, 0.83, 0.3, 0.21, 0.72, 0.34, 0.72, [])


@pytest.mark.parametrize(
    ("auroc", "start"),
    [
        (0.83, "In 83 of 100 pairs of a noisy and a clean token"),
        (0.502, "No better than chance"),
        (0.41, "Worse than chance: the score ranks noisy tokens as better than clean ones"),
        (None, "There is nothing to tell apart"),
    ],
)
def test_noise_sentence_says_whether_the_score_works(auroc: float | None, start: str) -> None:
    assert noise_sentence("forgetting", replace(NOISE, auroc=auroc)).startswith(start)


def test_noise_sentence_gives_precision_against_the_share_of_noise() -> None:
    sentence = noise_sentence("forgetting", NOISE)
    assert "21.0 % are noisy (of all tokens: 6.1 %); they are 72.0 % of all" in sentence
    assert "None" not in noise_sentence("forgetting", replace(NOISE, precision=None))
