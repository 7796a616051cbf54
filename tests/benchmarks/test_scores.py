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


def test_mean_interval_meets_the_closed_form() -> None:
    """Catches a wrong level (one-sided, 90 %): for many values the interval is mean +- 1.96 standard errors."""
    values = generator(1).normal(50.0, 10.0, size=400)
    low, high = scores.bootstrap_interval(values, generator(), resamples=4000)
    error = values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.12 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.12 * error)


def test_two_values_give_every_resample_its_weight() -> None:
    """Catches drawing without replacement: of two episodes {0, 1}, a quarter of the resamples are (0, 0)."""
    low, high = scores.bootstrap_interval([0.0, 1.0], generator(), level=0.4)
    assert (low, high) == (0.5, 0.5)
    assert scores.bootstrap_interval([0.0, 1.0], generator(), level=0.6) == (0.0, 1.0)


def test_several_training_seeds_widen_the_interval() -> None:
    """Catches pooling seeds with episodes: two seeds that agree with themselves only leave the mean open."""
    values = np.array([[10.0] * 50, [20.0] * 50])
    assert scores.bootstrap_interval(values, generator()) == (10.0, 20.0)
    assert scores.bootstrap_interval(values[0], generator()) == (10.0, 10.0)
    flat_low, flat_high = scores.bootstrap_interval(values.reshape(-1), generator())
    assert flat_low > 13.0 and flat_high < 17.0


def test_episodes_are_resampled_within_their_own_training_seed() -> None:
    """Catches one draw of episodes shared by both seeds: mirrored seeds would then cancel in every resample."""
    episodes = generator(2).normal(0.0, 1.0, size=100)
    low, high = scores.bootstrap_interval(np.stack([episodes, -episodes]), generator(), level=0.4)
    assert high - low > 0.02


def test_interval_depends_on_the_generator_given_and_nothing_else() -> None:
    """Catches NumPy's global state, and a generator that is ignored."""
    values = generator(3).normal(size=30)
    np.random.seed(0)  # noqa: NPY002
    first = scores.bootstrap_interval(values, generator(4))
    np.random.seed(1)  # noqa: NPY002
    assert scores.bootstrap_interval(values, generator(4)) == first
    assert scores.bootstrap_interval(values, generator(5)) != first


def test_interval_takes_another_statistic() -> None:
    """Catches an ignored statistic: the interquartile mean does not see the outlier."""
    values = [1.0] * 30 + [1000.0]
    interval = scores.bootstrap_interval(values, generator(), statistic=scores.interquartile_mean)
    assert interval == (1.0, 1.0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], np.zeros((2, 2, 2))])
def test_interval_refuses_what_it_cannot_describe(values: object) -> None:
    """Catches an interval computed from missing or broken returns."""
    with pytest.raises(ValueError, match=r"expected|needs"):
        scores.bootstrap_interval(values, generator())


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
