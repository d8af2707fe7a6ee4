"""What a run did and found, in plain words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from forgetting.config import Recipe
from forgetting.report.sentences import noise_sentence, recipe_paragraph, reference_sentence
from forgetting.rundir.findings import ProbeReport
from forgetting.rundir.selections import KnownNoise

DATA = {"sources": [{"path": "notes.jsonl"}], "num_train": 2000, "num_reference": 300}


def paragraph(**sections: Any) -> str:
    recipe = {"name": "mine", "model": {"name_or_path": "org/base"}, "data": DATA, **sections}
    return recipe_paragraph(Recipe.model_validate(recipe))


def test_the_paragraph_has_every_number_of_the_papers_recipe() -> None:
    said = paragraph()
    for fact in (
        "org/base",
        "2,000 samples from notes",
        "2,048 tokens",
        "1 epoch",
        "rank 64",
        "batch size 24",
        "learning rate 0.0001",
        "300 separate samples",
        "l base − l reference",
        "“ignoring” learns the best 50%",
        "“forgetting” learns the best 70%",
        "from 0 to 0.2499",
    ):
        assert fact in said


@pytest.mark.parametrize(
    ("caution", "said"),
    [(1, "weight of each is 1 − c, where"), (2.5, "is (1 − c) / (1 − c + 2.5c), where c is the")],
)
def test_the_weight_of_a_token_has_its_formula(caution: float, said: str) -> None:
    own = {"objective": "weighted", "caution": caution}
    assert said in paragraph(variants={"own": own})


def test_without_a_selection_no_reference_is_spoken_of() -> None:
    assert "reference" not in paragraph(variants={"full": {"objective": "full"}})


@pytest.mark.parametrize(
    ("selection", "forgetting", "said"),
    [
        ({"rho": 0.75, "granularity": "sequence"}, {}, "the best 75% of the samples and unlearns"),
        ({"balance": "source"}, {}, "the best 70% of the tokens of each source and unlearns"),
        ({"by": "random"}, {}, "a random 70% of the tokens and unlearns the others"),
        (
            {"by": "random", "rho": "auto"},
            {},
            "random tokens, as many as have quality above 0, and",
        ),
        ({"rho": "auto"}, {}, "the tokens with quality above 0 and unlearns the others"),
        ({"threshold": "zero"}, {}, "the tokens with quality above 0 and unlearns the others"),
        ({"forget_rate": 0.1}, {}, "unlearns the worst 10%, ignoring those in between"),
        (
            {"threshold": "mixture", "posterior": 0.8},
            {},
            "the tokens that a two-component mixture does not assign to the bad component and "
            "unlearns those that are bad with a probability of at least 0.8",
        ),
        ({}, {"schedule": "constant", "t_max": 0.1}, "with a constant weight lambda of 0.1."),
        ({}, {"schedule": "linear_from_t_min", "t_min": 0.01}, "rises linearly from 0.01 to 0.25"),
        ({}, {"schedule": "cosine", "t_min": 0.01}, "rises with a cosine from 0.01 to 0.25"),
        ({}, {"term": "npo"}, "to 0.2499 and the term npo."),
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
        ({"name_or_path": "org/judge"}, "under the base model and the reference model judge."),
        ({"folds": 5}, "each on 4 of 5 folds; a sample is scored by the model that was not"),
        ({"sources": [{"path": "trusted.jsonl"}]}, "on 300 samples from trusted sources)"),
    ],
)
def test_where_the_reference_comes_from(reference: dict[str, Any], said: str) -> None:
    assert said in paragraph(reference=reference)


NOISE = KnownNoise(90, 0.061, 0.83, 0.3, 0.21, 0.72, 0.34, 0.72, [])


@pytest.mark.parametrize(
    ("auroc", "start"),
    [
        (
            0.83,
            "In 83 of 100 pairs of a noisy and a clean token, quality ranks the noisy one lower",
        ),
        (0.502, "No better than chance"),
        (0.41, "Worse than chance: quality ranks noisy tokens above clean ones"),
        (None, "AUROC is undefined"),
    ],
)
def test_noise_sentence_says_whether_the_score_works(auroc: float | None, start: str) -> None:
    assert noise_sentence("forgetting", replace(NOISE, auroc=auroc)).startswith(start)


def test_noise_sentence_gives_precision_against_the_share_of_noise() -> None:
    sentence = noise_sentence("forgetting", NOISE)
    assert (
        "21.0% of the tokens that forgetting does not learn are noisy, compared with 6.1%"
        in sentence
    )
    assert "None" not in noise_sentence("forgetting", replace(NOISE, precision=None))


REPORT = ProbeReport(900, 0.2, 0.91, 0.7, 0.8, 0.6, 0.02, [], 0.9, 0.6)


@pytest.mark.parametrize(
    ("alone", "start"),
    [(0.68, "passes help:"), (0.72, "passes hurt:"), (0.705, "passes make no difference:")],
)
def test_the_reference_is_judged_by_average_precision(alone: float, start: str) -> None:
    sentence = reference_sentence(replace(REPORT, average_precision_without_reference=alone))
    assert sentence is not None
    assert start in sentence
    assert f"average precision 0.700 and {alone:.3f}." in sentence


def test_without_a_reference_there_is_nothing_to_judge() -> None:
    assert reference_sentence(replace(REPORT, auroc_without_reference=None)) is None
