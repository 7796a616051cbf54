"""Statistics checked on arrays small enough to do by hand; each test names the slip it would catch."""

from __future__ import annotations

import numpy as np
import pytest

from marl_flow.benchmarks import scores


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_normalized_score_uses_both_references_the_right_way_round() -> None:
    """Catches swapped references, a forgotten 100, and an inverse that does not invert."""
    np.testing.assert_allclose(
        scores.normalized_score([159.8, 516.8, 586.2], 159.8, 516.8), [0, 100, 119.4398], rtol=1e-6
    )
    np.testing.assert_allclose(scores.normalized_score(-4.1, -4.1, 185.6), 0.0)
    np.testing.assert_allclose(scores.raw_return(scores.normalized_score([3.0, -7.0], -6.8, 79.5), -6.8, 79.5), [3, -7])
    with pytest.raises(ValueError, match="must exceed"):
        scores.normalized_score(1.0, 5.0, 5.0)


def test_interquartile_mean_drops_a_quarter_on_each_side() -> None:
    """Catches a trim of one half in all, of the unsorted array, or along the wrong axis."""
    values = [100.0, 1.0, 2.0, 3.0, 4.0, 7.0, 8.0, -100.0]
    assert scores.interquartile_mean(values) == pytest.approx((2 + 3 + 4 + 7) / 4)
    assert scores.interquartile_mean([9.0, 1.0, 2.0]) == pytest.approx(4.0)  # floor(3 / 4) = 0 are dropped
    np.testing.assert_allclose(scores.interquartile_mean([[0, 1, 2, 9], [4, 4, 4, 4]], axis=1), [1.5, 4.0])


def crossed(draw: np.random.Generator, seeds: int, luck: tuple[float, float, float], episodes: int = 100) -> np.ndarray:
    """Returns [S, K] of mean 0: luck of the training seed, of the episode, which all seeds share, and of both."""
    of_seed, of_episode, rest = luck
    shape = (seeds, episodes)
    return (
        draw.normal(0.0, of_seed, (seeds, 1))
        + draw.normal(0.0, of_episode, (1, episodes))
        + draw.normal(0.0, rest, shape)
    )


@pytest.mark.parametrize("luck", [(1, 90, 20), (20, 20, 20), (5, 20, 20), (0, 0, 20), (20, 0, 20)])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_of_several_seeds_cover(seeds: int, luck: tuple[float, float, float]) -> None:
    """Catches episodes drawn for each seed on its own (covers 77, 61 and 49 % where the luck of episodes dominates)
    and seeds resampled without a correction for their number (83 % at 3)."""
    draw, covered = generator(0), 0
    for _ in range(4000):
        interval = scores.mean_interval(crossed(draw, seeds, luck), draw)
        assert interval is not None
        covered += interval[0] <= 0.0 <= interval[1]
    assert 0.92 <= covered / 4000 <= 0.98


def test_intervals_of_one_seed_cover() -> None:
    """Catches a wrong level (one-sided, 90 %), also where returns are skewed."""
    draw = generator(0)
    for sample, mean in ((draw.normal(size=(1000, 100)), 0.0), (draw.exponential(size=(1000, 100)), 1.0)):
        intervals = [scores.mean_interval(values, draw, resamples=400) for values in sample]
        assert 0.92 <= np.mean([ends is not None and ends[0] <= mean <= ends[1] for ends in intervals]) <= 0.98


@pytest.mark.parametrize("seeds", [1, 3, 5, 10])
def test_win_intervals_cover(seeds: int) -> None:
    """Catches the games of several seeds counted as independent ones, which they are not where they share episodes."""
    draw = generator(0)
    truth = float(np.mean(1 / (1 + np.exp(-1.0 - draw.normal(0.0, np.hypot(0.3 * (seeds > 1), 2.0), 1_000_000)))))
    covered = 0
    for _ in range(600):
        chance = 1 / (1 + np.exp(-1.0 - crossed(draw, seeds, (0.3 * (seeds > 1), 2.0, 0.0))))
        interval = scores.win_interval(draw.random(chance.shape) < chance)
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 0.92 <= covered / 600 <= 0.98


def test_no_interval_where_none_can_be_told() -> None:
    """Catches a number made of nothing: two training seeds, or a single episode."""
    assert (
        scores.mean_interval(np.zeros((2, 50)), generator()) is None and scores.win_interval(np.ones((2, 50))) is None
    )
    assert scores.mean_interval([3.0], generator()) is None


def test_the_interval_of_seeds_is_the_closed_form() -> None:
    """Catches a slip in the mean squares: seeds 1, 2, 6 that never vary have Student's interval of three numbers."""
    interval = scores.mean_interval(np.repeat([[1.0], [2.0], [6.0]], 40, axis=1), generator())
    half = 4.302653 * np.std([1.0, 2.0, 6.0], ddof=1) / np.sqrt(3)  # t with 2 degrees of freedom
    assert interval == (pytest.approx(3.0 - half, rel=1e-6), pytest.approx(3.0 + half, rel=1e-6))
    assert scores.mean_interval(np.full((3, 40), 20.0), generator()) == (20.0, 20.0)


def test_a_rate_of_one_is_no_point_however_many_seeds_have_it() -> None:
    """Catches [100, 100] for three seeds that win everything, where one seed has [96, 100]."""
    assert (
        scores.win_interval(np.ones((3, 100))) == scores.win_interval(np.ones(100)) == scores.wilson_interval(100, 100)
    )
    assert scores.win_interval(np.zeros((5, 100))) == scores.wilson_interval(0, 100)


def test_interval_depends_on_the_generator_given_and_nothing_else() -> None:
    """Catches NumPy's global state, and a generator that is ignored."""
    values = generator(3).normal(size=30)
    np.random.seed(0)  # noqa: NPY002
    first = scores.mean_interval(values, generator(4))
    np.random.seed(1)  # noqa: NPY002
    assert scores.mean_interval(values, generator(4)) == first
    assert scores.mean_interval(values, generator(5)) != first


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], np.zeros((2, 2, 2))])
def test_interval_refuses_what_it_cannot_describe(values: object) -> None:
    """Catches an interval computed from missing or broken returns."""
    with pytest.raises(ValueError, match=r"expected|needs"):
        scores.mean_interval(values, generator())


def test_improvement_is_paired_by_evaluation_seed() -> None:
    """Catches comparing every episode with every other: here all pairs of columns but one are won."""
    first, second = [1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 9.0]
    assert scores.probability_of_improvement(first, second) == pytest.approx(3 / 4)  # unpaired: 9 / 16 and ties
    assert scores.probability_of_improvement(first, first) == 0.5
    assert scores.probability_of_improvement([first, [5.0] * 4], second) == pytest.approx((3 + 3) / 8)
    with pytest.raises(ValueError, match="same K"):
        scores.probability_of_improvement(first, second[:3])


def test_performance_profile_counts_what_lies_above() -> None:
    """Catches >= for >, and shares taken per row."""
    profile = scores.performance_profile([[0.0, 50.0], [50.0, 100.0]], [-1.0, 0.0, 50.0, 100.0])
    np.testing.assert_allclose(profile, [1.0, 0.75, 0.25, 0.0])


def test_wilson_intervals() -> None:
    """Catches the normal approximation, whose interval of no wins is a point. 0 of 100 is 0 to z^2 / (100 + z^2)."""
    assert scores.wilson_interval(0, 100) == (0.0, pytest.approx(3.841459 / 103.841459))
    assert scores.wilson_interval(100, 100) == (pytest.approx(100 / 103.841459), 1.0)
    low, high = scores.wilson_interval(50, 100)
    assert (low + high) / 2 == pytest.approx(0.5)
