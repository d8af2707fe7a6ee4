"""The settings of the trainer: those of the moment at which training begins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forgetting.training.config import ForgettingConfig
from tests.training.conftest import assert_same, config, rows, weights


@pytest.mark.parametrize(
    "late",
    [
        {"schedule": "constant", "t_max": 0.4},
        {"schedule": "constant", "term": "unlikelihood"},
        {"schedule": "constant", "term": "wga", "alpha": 2.0},
        {"schedule": "constant", "term": "wga", "term_parameters": {"alpha": 2.0}},
        {"loss": "dft", "loss_parameters": {"min_weight": 0.5}},
        {"schedule": "constant", "floor": 0.02},
        {"normalization": "token", "schedule": "constant"},
    ],
    ids=str,
)
def test_a_setting_made_after_construction_counts(train, late):
    samples = rows(16)
    first = train(samples, **late)
    afterwards = train(samples, late=late)
    assert_same(weights(first), weights(afterwards))
    assert first.state.log_history[0]["loss"] == afterwards.state.log_history[0]["loss"]
    before = weights(train(samples))
    assert any((before[name] != value).any() for name, value in weights(first).items())


def test_a_parameter_has_one_place(tmp_path):
    args = ForgettingConfig(**config(tmp_path, term="wga", term_parameters={"alpha": 0.5}))
    assert args.alpha == 0.5
    args.alpha = 2.0
    assert args.forgetting_term.parameters == {"alpha": 2.0}
    assert replace(args, t_max=0.1).forgetting_term.parameters == {"alpha": 2.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t_min": 0.5, "t_max": 0.1}, "t_min"),
        ({"term": "npo", "normalization": "token"}, "one value per sample"),
        ({"normalization": "sample"}, "normalization must be one of"),
        ({"divergence_ratio": 1.0}, "divergence_ratio must be above 1"),
        ({"term": "gradient"}, "gradient"),
        ({"loss": "hinge"}, "hinge"),
        *[
            ({name: value}, f"{name} must be a number, got {value!r}")
            for name in ("t_min", "t_max", "floor", "divergence_ratio", "alpha", "beta")
            for value in ("0.2", ())
        ],
        *[({name: None}, f"{name} must be a number") for name in ("t_min", "t_max", "alpha")],
        ({"loss_parameters": "x"}, "loss_parameters must be a dictionary"),
        ({"loss": "dft", "loss_parameters": {"min_weight": "x"}}, r"min_weight'\] must be a num"),
        ({"term": "wga", "term_parameters": {"other": "x"}}, r"other'\] must be a number"),
    ],
)
def test_bad_settings_are_refused_when_they_are_made_and_when_training_begins(
    change, message, train, tmp_path
):
    with pytest.raises(ValueError, match=message):
        ForgettingConfig(**config(tmp_path, **change))
    with pytest.raises(ValueError, match=message):
        train(rows(4), late=change)


def test_a_term_whose_column_is_missing_is_refused_when_training_begins(train):
    with pytest.raises(ValueError, match="base_log_probs"):
        train(rows(4), late={"term": "tnpo"})
