"""Statistics of returns: pure NumPy functions of arrays. S training seeds, K evaluation episodes, R resamples.

Definitions follow Agarwal et al. 2021 (arXiv 2108.13264), with two differences: intervals know that all training seeds
play the same evaluation episodes, and improvement is paired by evaluation seed.
"""

from __future__ import annotations

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


Interval = tuple[float, float]


def mean_interval(returns: ArrayLike, generator: np.random.Generator, resamples: int = 2000) -> Interval | None:
    """95 % interval of the mean of returns [S, K], column k of every training seed played from evaluation seed k.

    One training seed: percentile bootstrap over its episodes; it says nothing about the luck of training. Three and
    more: see `crossed_variance`. None where no honest interval is to be had: with two training seeds, whose luck two
    numbers hardly tell (such an interval covers 88 % or is 25 times as wide as it need be), and with one episode.
    """
    array = _crossed(returns)
    if array.shape[0] == 2 or array.size == 1:
        return None
    if array.shape[0] > 2:
        variance, freedom = crossed_variance(array)
        half = _t_quantile(freedom) * float(np.sqrt(variance))
        return float(array.mean()) - half, float(array.mean()) + half
    from scipy.stats import bootstrap  # takes half a second to import

    found = bootstrap((array[0],), np.mean, n_resamples=resamples, method="percentile", rng=generator)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def win_interval(won: ArrayLike) -> Interval | None:
    """95 % interval of the rate of won episodes [S, K], 0 or 1, crossed as in `mean_interval`; None with two seeds.

    Wilson's score interval (1927), which unlike others is no point at a rate of 0 or 1. Several seeds that play the
    same episodes tell less than S * K games: they count as the number of independent games whose rate would vary as
    much (`crossed_variance`), and as K where all are won or all lost.
    """
    array = _crossed(won)
    seeds, episodes = array.shape
    rate = float(array.mean())
    if seeds == 2:
        return None
    if seeds == 1 or rate in (0.0, 1.0):
        return wilson_interval(int(array[0].sum()), episodes)
    variance, freedom = crossed_variance(array)
    games, quantile = min(rate * (1.0 - rate) / variance, array.size), _t_quantile(freedom)
    share = quantile**2 / games
    middle = (rate + share / 2) / (1 + share)
    half = quantile / (1 + share) * float(np.sqrt(rate * (1 - rate) / games + share / (4 * games)))
    return middle - half, middle + half


def wilson_interval(successes: int, count: int) -> Interval:
    """95 % score interval of the rate of independent trials (Wilson 1927)."""
    from scipy.stats import binomtest  # takes half a second to import, and only tasks that can be won need it

    interval = binomtest(successes, count).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def crossed_variance(array: Array) -> tuple[float, float]:
    """Variance of the mean of values [S, K], S > 2, and its degrees of freedom, where S seeds play the same K episodes.

    A value is mean + luck of the seed + luck of the episode + rest, the two-way layout with random effects. With the
    mean squares MS of seeds, episodes and rest the variance is (MS_seeds + MS_episodes - MS_rest) / (S K); its degrees
    of freedom are Satterthwaite's (1946). What episodes add counts as 0 where its estimate is negative.
    """
    seeds, episodes = array.shape
    mean, by_seed, by_episode = array.mean(), array.mean(1, keepdims=True), array.mean(0, keepdims=True)
    seed_square = episodes * ((by_seed - mean) ** 2).sum() / (seeds - 1)
    total, weighted = float(seed_square), float(seed_square**2 / (seeds - 1))
    if episodes > 1:
        both = (seeds - 1) * (episodes - 1)
        episode_square = seeds * ((by_episode - mean) ** 2).sum() / (episodes - 1)
        rest_square = ((array - by_seed - by_episode + mean) ** 2).sum() / both
        if episode_square > rest_square:
            total += float(episode_square - rest_square)
            weighted += float(episode_square**2 / (episodes - 1) + rest_square**2 / both)
    return total / array.size, total**2 / weighted if weighted > 0.0 else np.inf


def _t_quantile(freedom: float) -> float:
    """97.5 % point of Student's distribution."""
    from scipy.stats import t

    return float(t.ppf(0.975, max(freedom, 1.0)))


def _crossed(values: ArrayLike) -> Array:
    array = _finite(values)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise ValueError(f"an interval needs values [K] or [S, K], got shape {array.shape}")
    return array


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
