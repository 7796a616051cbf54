"""Statistics of returns: pure NumPy functions of arrays. S training seeds, K evaluation episodes, R resamples.

Definitions follow Agarwal et al. 2021 (arXiv 2108.13264), with two differences: an interval resamples training seeds
and the episodes within them, and improvement is paired by evaluation seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def normalized_score(raw: ArrayLike, random: float, expert: float) -> Array:
    """100 * (raw - random) / (expert - random), any shape: 0 plays like the random policy, 100 like the expert data.

    Source: MADiff (arXiv 2305.17330), appendix, after OMAR.
    """
    if not expert > random:
        raise ValueError(f"the expert's return must exceed the random policy's, got {expert} and {random}")
    return 100.0 * (np.asarray(raw, dtype=np.float64) - random) / (expert - random)


def raw_return(score: ArrayLike, random: float, expert: float) -> Array:
    """Inverse of `normalized_score`."""
    if not expert > random:
        raise ValueError(f"the expert's return must exceed the random policy's, got {expert} and {random}")
    return random + np.asarray(score, dtype=np.float64) * (expert - random) / 100.0


def mean(values: ArrayLike, axis: int | None = None) -> Array:
    """Mean of all values, or along one axis."""
    return np.asarray(_finite(values).mean(axis=axis))


def interquartile_mean(values: ArrayLike, axis: int | None = None) -> Array:
    """Mean of what is left after dropping floor(n / 4) of the smallest and as many of the largest values."""
    array = _finite(values)
    if axis is None:
        array, axis = array.reshape(-1), 0
    ordered = np.moveaxis(np.sort(array, axis=axis), axis, 0)
    cut = ordered.shape[0] // 4
    return np.asarray(ordered[cut : ordered.shape[0] - cut].mean(axis=0))


def bootstrap_interval(
    values: ArrayLike,
    generator: np.random.Generator,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    statistic: Callable[[Array, int], Array] = mean,
) -> tuple[float, float]:
    """Percentile interval, at `level` in (0, 1), of a statistic of episode returns.

    values [K]: one training seed; episodes are resampled, so the interval says nothing about the luck of training.
    values [S, K]: training seeds are resampled, and episodes within each drawn seed. `statistic` maps [R, n] to [R]
    along the axis it is given. `scipy.stats.bootstrap` resamples single observations, so it cannot resample seeds with
    their episodes.
    """
    array = _finite(values)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise ValueError(f"an interval needs returns [K] or [S, K], got shape {array.shape}")
    if not 0.0 < level < 1.0 or resamples < 1:
        raise ValueError(f"an interval needs 0 < level < 1 and resamples >= 1, got {level} and {resamples}")
    num_seeds, num_episodes = array.shape
    seeds = generator.integers(num_seeds, size=(resamples, num_seeds, 1))
    episodes = generator.integers(num_episodes, size=(resamples, num_seeds, num_episodes))
    drawn = statistic(array[seeds, episodes].reshape(resamples, -1), 1)
    low, high = np.quantile(drawn, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """95 % score interval of a rate (Wilson 1927); unlike a bootstrap it is no point at a rate of 0 or 1."""
    from scipy.stats import binomtest  # takes half a second to import, and only tasks that can be won need it

    interval = binomtest(successes, count).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def probability_of_improvement(first: ArrayLike, second: ArrayLike) -> float:
    """Probability that `first` beats `second` on the same evaluation seed; a tie counts one half.

    first [K] or [S, K], second [K] or [S', K], column k of both played from evaluation seed k; every training seed of
    one side meets every training seed of the other.
    """
    left, right = np.atleast_2d(_finite(first)), np.atleast_2d(_finite(second))
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise ValueError(f"both sides need the same K evaluation seeds, got shapes {left.shape} and {right.shape}")
    difference = left[:, None] - right[None]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Array:
    """Share of all scores above each threshold, [T] for thresholds [T]; never rises along increasing thresholds."""
    flat = _finite(scores).reshape(-1)
    return np.mean(flat[None] > np.asarray(thresholds, dtype=np.float64)[:, None], axis=1)


def _finite(values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if not array.size or not np.isfinite(array).all():
        raise ValueError(f"expected at least one value and only finite ones, got an array of shape {array.shape}")
    return array
