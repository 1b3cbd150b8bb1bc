"""Confidence intervals: of a mean over seeds, of a share of images, and of differences of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy import stats

LEVEL = 0.95
_EQUAL = 1e-12  # below it, values differ by rounding


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: the estimate.
        low: lower end.
        high: upper end.
    """

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a true value of zero is outside of the interval."""
        return self.low > 0 or self.high < 0


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Return Student's t interval of a mean; ``None`` if the values do not differ at all.

    With paired differences as values, it is the interval of a paired t test.

    Example:
        >>> found = t_interval([0.01, 0.03, 0.02])
        >>> print(f"{found.estimate:.3f} from {found.low:.4f} to {found.high:.4f}")
        0.020 from -0.0048 to 0.0448
    """
    if len(values) < 2 or stdev(values) < _EQUAL:
        return None
    error = stdev(values) / len(values) ** 0.5
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return Interval(mean(values), mean(values) - half, mean(values) + half)


def welch_interval(
    here: Sequence[float], there: Sequence[float], level: float = LEVEL
) -> Interval | None:
    """Return Welch's t interval of the difference of two means, of samples that are not paired."""
    if min(len(here), len(there)) < 2 or max(stdev(here), stdev(there)) < _EQUAL:
        return None
    found = stats.ttest_ind(here, there, equal_var=False).confidence_interval(level)
    return Interval(mean(here) - mean(there), float(found.low), float(found.high))


def wilson(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """Return Wilson's score interval of a share.

    Example:
        >>> found = wilson(351, 360)
        >>> print(f"{found.low:.4f} to {found.high:.4f}")
        0.9532 to 0.9868
    """
    found = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    return Interval(successes / trials, float(found.low), float(found.high))


def newcombe(here: tuple[int, int], there: tuple[int, int], level: float = LEVEL) -> Interval:
    """Return Newcombe's interval of the difference of two shares, from their Wilson intervals.

    Newcombe, R. G. (1998). Interval estimation for the difference between independent
    proportions. Statistics in Medicine 17, method 10.

    Args:
        here: successes and trials of the one.
        there: successes and trials of the other, which is subtracted.
        level: confidence level.
    """
    one, other = wilson(*here, level), wilson(*there, level)
    difference = one.estimate - other.estimate
    below = ((one.estimate - one.low) ** 2 + (other.high - other.estimate) ** 2) ** 0.5
    above = ((one.high - one.estimate) ** 2 + (other.estimate - other.low) ** 2) ** 0.5
    return Interval(difference, difference - below, difference + above)


def paired_shares(gained: int, lost: int, images: int, level: float = LEVEL) -> Interval:
    """Return the interval of the difference of two shares of the same images.

    Only images that one of the two classifies correctly tell anything of the difference; it is
    the exact (Clopper-Pearson) interval of the share of these that were gained, scaled: it excludes
    zero where the exact form of McNemar's test finds a difference.

    Args:
        gained: number of images that only the one classifies correctly.
        lost: number of images that only the other does.
        images: number of all images.
        level: confidence level.
    """
    if gained + lost == 0:
        return Interval(0.0, 0.0, 0.0)
    changed = gained + lost
    found = stats.binomtest(gained, changed).proportion_ci(level, method="exact")
    shares = (gained / changed, float(found.low), float(found.high))
    return Interval(*(changed / images * (2 * share - 1) for share in shares))
