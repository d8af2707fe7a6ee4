"""Schedules of lambda against Algorithm 1 and its relatives."""

from __future__ import annotations

import math

import pytest

from forgetting.method.schedule import LambdaSchedule

FORMULAS = {
    "linear": lambda s, n: (0.25 - 1e-4) * s / n,
    "linear_from_t_min": lambda s, n: 1e-4 + (0.25 - 1e-4) * s / n,
    "cosine": lambda s, n: 1e-4 + (0.25 - 1e-4) * 0.5 * (1 - math.cos(math.pi * s / n)),
    "constant": lambda s, n: 0.25,
}


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("total", [1, 7, 2083])
def test_schedules(kind, total):
    schedule = LambdaSchedule(kind)
    for step in range(total + 1):
        assert schedule(step, total) == pytest.approx(FORMULAS[kind](step, total), abs=1e-15)
    assert schedule(total + 5, total) == schedule(total, total)


def test_the_papers_schedule_starts_at_zero():
    assert LambdaSchedule()(0, 100) == 0.0


@pytest.mark.parametrize(
    "bad",
    [{"kind": "quadratic"}, {"t_min": 0.3}, {"t_min": -1.0}, {"t_max": math.inf}],
)
def test_bad_schedules_are_refused(bad):
    with pytest.raises(ValueError, match=r"schedule"):
        LambdaSchedule(**bad)
