"""Two populations are found at their rates; one population, however skewed, is left whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import expon, laplace, norm

from forgetting.method import mixture, select_tokens
from forgetting.method.mixture import Component, Mixture, Sketch, fit_mixture

NUM = 60_000


@pytest.mark.parametrize(
    ("component", "distribution"),
    [
        (Component(1.0, 2 * math.sqrt(2), 2 * math.sqrt(2), 2.0), norm(1.0, 2.0)),
        (Component(-1.0, 0.5, 0.5, 1.0), laplace(-1.0, 0.5)),
        (Component(0.0, 1e-9, 3.0, 1.0), expon(0.0, 3.0)),
    ],
)
def test_components_are_the_distributions_that_they_generalise(component, distribution):
    x = np.linspace(0.01, 6, 50)
    assert component.log_density(x) == pytest.approx(distribution.logpdf(x), abs=1e-6)


def test_a_skewed_component_has_all_its_mass():
    component = Component(0.5, 0.3, 2.0, 0.8)

    def density(x):
        return math.exp(component.log_density(np.array([x]))[0])

    mass = quad(density, -np.inf, 0.5)[0] + quad(density, 0.5, np.inf)[0]
    assert mass == pytest.approx(1, abs=1e-6)


def noisy_quality(rate, good, bad, seed=0):
    random = np.random.default_rng(seed)
    noisy = random.random(NUM) < rate
    return np.where(noisy, bad(random), good(random)), noisy


PAIRS = {
    "normal": (lambda r: r.normal(0, 1, NUM), lambda r: r.normal(-5, 1, NUM)),
    "loss": (lambda r: -r.exponential(1, NUM), lambda r: r.normal(-8, 1.5, NUM)),
    "influence": (lambda r: r.laplace(0, 0.5, NUM), lambda r: r.normal(-4, 1, NUM)),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.4])
def test_known_noise_is_found_at_its_rate(pair, rate):
    quality, noisy = noisy_quality(rate, *PAIRS[pair])
    fit = fit_mixture(quality)
    assert isinstance(fit, Mixture)
    assert fit.weight == pytest.approx(rate, abs=0.02)
    polarity = select_tokens(quality, "auto", threshold="mixture")
    assert noisy[polarity < 0].mean() > 0.95
    assert (polarity[noisy] < 0).mean() > 0.5
    # Monotone in quality, with the doubtful between.
    assert quality[polarity < 0].max() <= quality[polarity == 0].min()
    assert quality[polarity == 0].max() <= quality[polarity > 0].min()


def test_a_higher_posterior_marks_fewer():
    quality, noisy = noisy_quality(0.2, *PAIRS["loss"])
    marks = [select_tokens(quality, 0.5, threshold="mixture", posterior=p) < 0 for p in (0.6, 0.99)]
    assert (marks[1] <= marks[0]).all()
    assert marks[1].sum() < marks[0].sum()
    assert noisy[marks[1]].mean() > noisy[marks[0]].mean()


ONE_POPULATION = {
    "normal": lambda r: r.normal(0, 1, NUM),
    "exponential": lambda r: -r.exponential(2, NUM),
    "laplace": lambda r: r.laplace(0, 1, NUM),
    "lognormal": lambda r: -r.lognormal(0, 1, NUM),
    "lognormal, reversed": lambda r: r.lognormal(0, 1, NUM),
    "very skewed lognormal": lambda r: -r.lognormal(0, 2, NUM),
    "gamma": lambda r: -r.gamma(0.3, 3, NUM),
    "student": lambda r: r.standard_t(3, NUM),
    "cauchy": lambda r: r.standard_cauchy(NUM),
    "uniform": lambda r: r.random(NUM),
    "half at zero": lambda r: np.where(r.random(NUM) < 0.5, 0.0, -r.exponential(2, NUM)),
}


@pytest.mark.parametrize("name", ONE_POPULATION)
def test_one_population_is_not_divided(name):
    quality = ONE_POPULATION[name](np.random.default_rng(1))
    assert isinstance(fit_mixture(quality), str)
    assert (select_tokens(quality, 0.5, threshold="mixture") == 1).all()


@pytest.mark.parametrize("shift", [-0.5, 0, 3])
def test_a_lower_peak_at_zero_or_above_is_not_bad(shift):
    # What the base knows, and what fine-tuning on D_ref taught.
    known = lambda r: shift + r.laplace(0, 0.3, NUM)  # noqa: E731
    quality, _ = noisy_quality(0.3, lambda r: r.normal(8, 2, NUM), known)
    assert isinstance(fit_mixture(quality - 4), Mixture)
    fit = fit_mixture(quality)
    assert isinstance(fit, Mixture) == (shift < 0)
    if shift >= 0:
        assert "at 0 or above" in fit


@pytest.mark.parametrize("quality", [np.zeros(1000), np.arange(10.0), np.zeros(0)])
def test_nothing_to_fit_is_said(quality):
    assert isinstance(fit_mixture(quality), str)


def test_a_sketch_is_of_fixed_size_and_does_not_depend_on_chunks(monkeypatch):
    monkeypatch.setattr(mixture, "SKETCH_SIZE", 100)
    values = np.random.default_rng(0).normal(size=10_000)
    whole, parts = Sketch(), Sketch()
    whole.add(values)
    for part in np.split(values, [1, 50, 7777]):
        parts.add(part)
    assert 25 < whole.values.size <= 100
    assert np.array_equal(whole.values, parts.values)


@pytest.mark.parametrize("arguments", [{"groups": np.zeros(4, int)}, {"posterior": 0.4}])
def test_what_a_mixture_cannot_do_is_refused(arguments):
    with pytest.raises(ValueError, match="mixture"):
        select_tokens(np.arange(4.0), 0.5, threshold="mixture", **arguments)
