"""Closed forms of the sampler."""

from __future__ import annotations

import pytest
import torch

from marl_flow.coflow.sampler import integrate

SHAPE = (2, 3, 2, 2)


def test_exact_on_a_straight_path() -> None:
    """Catches wrong step lengths or a wrong sign: noise - data is constant along the path, so every k is exact."""
    data, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    nothing = torch.zeros(1, dtype=torch.bool)
    for steps in (1, 2, 3, 7):
        out = integrate(lambda z, t: noise - data, noise, steps, nothing, data)
        torch.testing.assert_close(out, data)


def test_times_visited() -> None:
    """Catches an off-by-one in time: velocity 2 t integrates to 1, Euler from 1 with k steps to 1 + 1 / k."""
    for steps in (1, 2, 4, 100):
        nothing = torch.zeros(1, dtype=torch.bool)
        ones = torch.ones(SHAPE)
        out = integrate(lambda z, t: 2 * t[:, None, None, None] * torch.ones_like(z), ones, steps, nothing, ones)
        torch.testing.assert_close(out, ones - (1 + 1 / steps))


def test_given_entries_hold() -> None:
    """Catches a condition imposed only at the end: the velocity must see the given values at every step."""
    given_mask = torch.zeros(SHAPE, dtype=torch.bool)
    given_mask[:, 0] = True
    values = torch.full(SHAPE, 5.0)

    def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert (z[:, 0] == 5).all()
        return torch.ones_like(z)

    noise = torch.randn(SHAPE)
    before = noise.clone()
    out = integrate(velocity, noise, 3, given_mask, values)
    assert (out[:, 0] == 5).all()
    torch.testing.assert_close(out[:, 1:], noise[:, 1:] - 1)
    assert torch.equal(noise, before)


def test_refuses_zero_steps() -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        integrate(lambda z, t: z, torch.zeros(SHAPE), 0, torch.zeros(1, dtype=torch.bool), torch.zeros(SHAPE))
