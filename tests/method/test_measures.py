"""Every measure against its formula in float64, token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.errors import InputError
from forgetting.method import MEASURES, token_quality
from forgetting.method.measures import cautious_weights, register_measure

# log-probabilities, ranks and entropies as a pass over a model can yield them, zeros among them.
log_probs = st.one_of(st.just(0.0), st.floats(-200, 0, width=32))
scores = st.fixed_dictionaries(
    {
        "base_log_probs": log_probs,
        "reference_log_probs": log_probs,
        "base_rank": st.integers(0, 2**31 - 1),
        "reference_rank": st.integers(0, 2**31 - 1),
        "base_entropy": st.floats(0, 20, width=32),
        "posterior": st.floats(0, 1, width=32),
    }
)
FORMULAS = {
    "influence": lambda s: -s["base_log_probs"] - -s["reference_log_probs"],
    "base_loss": lambda s: s["base_log_probs"],
    "reference_loss": lambda s: s["reference_log_probs"],
    "min_loss": lambda s: -min(-s["base_log_probs"], -s["reference_log_probs"]),
    "relative": lambda s: (
        (-s["base_log_probs"] - -s["reference_log_probs"]) / max(-s["base_log_probs"], 0.01)
    ),
    "rank_gap": lambda s: math.log((1 + s["base_rank"]) / (1 + s["reference_rank"])),
    "entropy_gap": lambda s: s["base_entropy"] - -s["base_log_probs"],
    "detector": lambda s: 1 - s["posterior"],
}


def arrays(rows, columns):
    kind = {True: np.int32, False: np.float32}
    return [np.array([row[c] for row in rows], kind[c.endswith("rank")]) for c in columns]


@pytest.mark.parametrize("name", MEASURES)
@given(st.lists(scores, min_size=1, max_size=8))
def test_a_measure_is_its_formula(name, rows):
    measure = MEASURES[name]
    quality = measure.compute(*arrays(rows, measure.columns))
    assert quality.dtype == np.float32
    assert quality.tolist() == pytest.approx([FORMULAS[name](row) for row in rows], 1e-5, 1e-5)
    if not measure.has_zero and measure.columns != ("posterior",):
        assert (quality <= 0).all()


@pytest.mark.parametrize("name", MEASURES)
def test_extreme_scores_have_a_finite_quality(name):
    lowest = float(np.finfo(np.float32).min)
    rows = [
        {
            "base_log_probs": base,
            "reference_log_probs": reference,
            "base_rank": rank,
            "reference_rank": 2**31 - 1 - rank,
            "base_entropy": 0.0,
            "posterior": float(base < 0),
        }
        for base in (0.0, -1e-45, lowest)
        for reference in (0.0, lowest)
        for rank in (0, 2**31 - 1)
    ]
    measure = MEASURES[name]
    assert np.isfinite(measure.compute(*arrays(rows, measure.columns))).all()


# A token of which a model is surer, that it ranks higher, or that it expected less.
@pytest.mark.parametrize(
    ("name", "worse", "better"),
    [
        ("influence", {"reference_log_probs": -3.0}, {"reference_log_probs": -1.0}),
        ("base_loss", {"base_log_probs": -3.0}, {"base_log_probs": -1.0}),
        ("reference_loss", {"reference_log_probs": -3.0}, {"reference_log_probs": -1.0}),
        ("min_loss", {"base_log_probs": -3.0}, {"base_log_probs": -1.0}),
        ("relative", {"reference_log_probs": -3.0}, {"reference_log_probs": -1.0}),
        ("rank_gap", {"reference_rank": 9}, {"reference_rank": 1}),
        ("entropy_gap", {"base_entropy": 0.5}, {"base_entropy": 4.0}),
        ("detector", {"posterior": 0.9}, {"posterior": 0.2}),
    ],
)
def test_higher_is_better(name, worse, better):
    same = {
        "base_log_probs": -2.0,
        "reference_log_probs": -2.5,
        "base_rank": 5,
        "reference_rank": 5,
        "base_entropy": 1.0,
    }
    measure = MEASURES[name]
    low, high = measure.compute(*arrays([{**same, **worse}, {**same, **better}], measure.columns))
    assert low < high


def test_quality_is_reference_minus_base():
    quality = token_quality([-3.0, -1.0], [-1.0, -4.0])
    assert quality.tolist() == [2.0, -3.0]
    with pytest.raises(ValueError, match="shape"):
        token_quality([1.0], [1.0, 2.0])


def test_a_registered_measure_is_one_of_the_measures(registries):
    register_measure("doubt", lambda h, p: h + p, columns=("base_entropy", "reference_log_probs"))
    measure = MEASURES["doubt"]
    assert measure.columns == ("base_entropy", "reference_log_probs")
    assert (measure.formula, measure.has_zero) == ("doubt", False)
    assert measure.compute(np.float32([1, 2]), np.float32([-3, -1])).tolist() == [-2, 1]


@pytest.mark.parametrize("columns", [("base_loss",), ("log_probs",), ()])
def test_columns_that_no_model_yields_are_refused(registries, columns):
    with pytest.raises(ValueError, match="The columns are base_log_probs, "):
        register_measure("mine", lambda x: x, columns=columns)


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda x: x[:1], r"returned an array of shape \(1,\) for 2 tokens"),
        (lambda x: x / 0, "not a finite number"),
        (lambda x: np.array(["a", "b"]), "not a finite number"),
    ],
)
def test_what_a_registered_measure_must_not_return_is_an_error(registries, compute, reason):
    register_measure("mine", compute)
    with np.errstate(all="ignore"), pytest.raises(InputError, match=f"the measure mine .*{reason}"):
        MEASURES["mine"].compute(np.float32([-1, 2]))


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8),
    st.floats(0.1, 100),
)
def test_cautious_weights_are_those_at_higher_odds(posterior, caution):
    weights = cautious_weights(np.array(posterior, np.float32), caution)
    assert weights.dtype == np.float32
    expected = []
    for bad in posterior:
        good = float(1 - np.float32(bad))
        odds = math.inf if good == 0 else caution * (1 - good) / good
        expected.append(1 / (1 + odds))
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)


def test_without_caution_the_weight_is_the_probability_of_being_good():
    posterior = np.array([0.0, 1e-8, 0.1, 0.7, 1.0], np.float32)
    assert cautious_weights(posterior, 1.0).tolist() == (1 - posterior).tolist()
    assert cautious_weights(posterior[:1], 4.0).tolist() == [1.0]
