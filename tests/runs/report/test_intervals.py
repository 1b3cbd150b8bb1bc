"""Confidence intervals against published examples and formulas written out."""

from math import sqrt
from statistics import mean, stdev, variance

import pytest

from composer_attn.runs.report.intervals import (
    newcombe,
    paired_shares,
    t_interval,
    welch_interval,
    wilson,
)

# Quantiles of Student's t at 0.975, from tables, for 1, 2, 4 and 9 degrees of freedom.
T = {1: 12.7062, 2: 4.30265, 4: 2.77645, 9: 2.26216}


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_a_t_interval_is_that_of_tables(count):
    values = [0.9 + 0.01 * (i * i % 7) for i in range(count)]
    found = t_interval(values)
    half = T[count - 1] * stdev(values) / sqrt(count)
    assert found.estimate == pytest.approx(mean(values))
    assert found.low == pytest.approx(mean(values) - half, rel=1e-5)
    assert found.high == pytest.approx(mean(values) + half, rel=1e-5)


def test_values_without_any_spread_have_no_interval():
    assert t_interval([0.02]) is None
    assert t_interval([0.02, 0.02, 0.02]) is None
    assert welch_interval([0.9], [0.8, 0.7]) is None
    assert welch_interval([0.9, 0.9], [0.8, 0.8]) is None


def test_welch_s_interval_has_its_own_degrees_of_freedom():
    here, there = [19.8, 20.4, 19.6, 17.8, 18.5], [28.2, 26.6, 20.1, 23.3, 25.2]
    one, other = variance(here) / 5, variance(there) / 5
    freedom = (one + other) ** 2 / (one**2 / 4 + other**2 / 4)
    assert freedom == pytest.approx(4.88774, abs=1e-5)
    found = welch_interval(here, there)
    half = 2.588442 * sqrt(one + other)  # between t(4) = 2.7764 and t(5) = 2.5706
    assert found.estimate == pytest.approx(-5.46)
    assert found.high - found.low == pytest.approx(2 * half, rel=1e-5)


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [  # Newcombe (1998), Two-sided confidence intervals for the single proportion, table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_s_interval_is_the_published_one(right, of, low, high):
    found = wilson(right, of)
    assert found.estimate == pytest.approx(right / of)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("here", "there", "low", "high"),
    [  # Newcombe (1998), Interval estimation for the difference, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_s_interval_is_the_published_one(here, there, low, high):
    found = newcombe(here, there)
    assert found.estimate == pytest.approx(here[0] / here[1] - there[0] / there[1])
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_of_the_same_images_only_those_count_that_changed():
    images = 360
    found = paired_shares(9, 6, images)
    assert found.estimate == pytest.approx(3 / 360)
    # Clopper and Pearson's interval of 9 in 15, from tables: 0.3229 to 0.8366.
    assert found.low == pytest.approx((2 * 0.32287 - 1) * 15 / 360, rel=1e-4)
    assert found.high == pytest.approx((2 * 0.83664 - 1) * 15 / 360, rel=1e-4)
    assert not found.excludes_zero
    # Six changed images that all agree have a probability of 2 / 64, five of 2 / 32.
    assert not paired_shares(5, 0, images).excludes_zero
    assert paired_shares(6, 0, images).excludes_zero
    assert paired_shares(0, 6, images).excludes_zero
    nothing = paired_shares(0, 0, images)
    assert (nothing.low, nothing.high, nothing.excludes_zero) == (0, 0, False)


def test_another_level_is_another_width():
    assert wilson(81, 263, 0.99).low < wilson(81, 263).low
    assert t_interval([1, 2, 4], 0.99).low < t_interval([1, 2, 4]).low
    assert welch_interval([1, 2, 4], [2, 5], 0.99).low < welch_interval([1, 2, 4], [2, 5]).low
