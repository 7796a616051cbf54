"""Closed forms and identities of the losses and of the draws they are computed on."""

from __future__ import annotations

import torch

from marl_flow.coflow import loss
from marl_flow.coflow.inputs import draw_times
from marl_flow.coflow.model import Condition
from marl_flow.tensors import append_dims


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_interpolation_ends() -> None:
    """Catches time running the other way: t = 0 must be data, t = 1 noise."""
    data, noise = torch.zeros(2, 3, 1, 1), torch.ones(2, 3, 1, 1)
    ends = loss.interpolate(data, noise, torch.tensor([0.0, 1.0]))
    assert ends[0].abs().max() == 0 and (ends[1] - 1).abs().max() == 0


def test_times_are_ordered_and_reach_noise() -> None:
    """Catches r above t, and a share at t = 1 that is not drawn (one-step sampling starts there)."""
    t, r = draw_times(20_000, generator(), full_noise_share=0.4, device=torch.device("cpu"))
    assert (r <= t).all() and (t <= 1).all() and (r > 0).all()
    assert abs(float((t == 1).float().mean()) - 0.4) < 0.02
    assert abs(float((t == r).float().mean()) - 0.5) < 0.02
    t, _ = draw_times(20_000, generator(), full_noise_share=0.0, device=torch.device("cpu"))
    assert (t < 1).all()
    assert abs(float(t.mean()) - 0.535) < 0.01  # of the larger of two draws


class Field:
    """u(z, t, label) = (a + b * label) * z + c * t with one parameter vector: derivatives known by hand."""

    def __init__(self) -> None:
        self.weights = torch.tensor([0.7, -0.4, 0.3], requires_grad=True)

    def __call__(self, z: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        a, b, c = self.weights
        return (a + b * append_dims(label, z)) * z + c * append_dims(t, z)


def flow_sample(
    t: tuple[float, float], r: tuple[float, float], shape: tuple[int, ...] = (2, 3, 2, 2)
) -> loss.FlowSample:
    """A float64 sample of two windows in which every frame is generated."""
    nothing = torch.zeros(shape[:3], dtype=torch.bool)
    return loss.FlowSample(
        noisy=torch.randn(shape, generator=generator(1), dtype=torch.float64),
        target_velocity=torch.randn(shape, generator=generator(2), dtype=torch.float64),
        t=torch.tensor(t, dtype=torch.float64),
        r=torch.tensor(r, dtype=torch.float64),
        generated_mask=~nothing,
        condition=Condition(nothing, torch.zeros(2, shape[2], dtype=torch.float64)),
    )


def test_finite_difference_by_hand() -> None:
    """Catches a gradient through the correction, or t and r swapped in V = u_r + (t - r) sg[u_t - u_r]."""
    sample, field = flow_sample((0.9, 0.4), (0.3, 0.4)), Field()
    noisy, t, r = sample.noisy, sample.t, sample.r
    v = loss.predicted_velocity("finite_difference", field, sample)
    a, b, c = field.weights.detach().double()
    gap = append_dims(t - r, noisy)
    expected = (a + b * append_dims(r, noisy)) * noisy + c * append_dims(t, noisy) + gap * b * gap * noisy
    torch.testing.assert_close(v.detach(), expected, rtol=0, atol=1e-7)
    v.sum().backward()
    # only u(noisy, t, r) carries a gradient: d V / d b = r * noisy
    torch.testing.assert_close(field.weights.grad[1].double(), (append_dims(r, noisy) * noisy).sum(), rtol=0, atol=1e-5)


def test_instantaneous_ignores_r() -> None:
    """Catches CoFlow-base reading r."""
    first = loss.predicted_velocity("instantaneous", Field(), flow_sample((0.9, 0.4), (0.3, 0.4)))
    assert torch.equal(first, loss.predicted_velocity("instantaneous", Field(), flow_sample((0.9, 0.4), (0.0, 0.0))))


def test_jvp_matches_a_finite_difference_of_the_network() -> None:
    """Catches a wrong tangent: along the path z moves with the velocity and t with 1. On the real network, float64."""
    from marl_flow.coflow.network import TrajectoryNetwork, UNetBackbone

    torch.manual_seed(0)
    backbone = UNetBackbone(4, 16, (1, 2), embedding=32, attention_on_every_skip=True, heads=4)
    network = TrajectoryNetwork(backbone, 16, None).double()
    network.set_gates(torch.tensor([0.5, -0.3, 0.8]))
    sample = flow_sample((0.8, 0.5), (0.2, 0.5), shape=(2, 4, 3, 4))
    noisy, velocity, t, r = sample.noisy, sample.target_velocity, sample.t, sample.r

    def u(z: torch.Tensor, _: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return network(z, label, sample.condition.returns, sample.condition.given_mask)

    value = loss.predicted_velocity("jvp", u, sample)
    step = 1e-6
    with torch.no_grad():
        ahead = u(noisy + step * velocity, t, t + step)
        behind = u(noisy - step * velocity, t, t - step)
        expected = u(noisy, t, t) + append_dims(t - r, noisy) * (ahead - behind) / (2 * step)
    torch.testing.assert_close(value.detach(), expected, rtol=1e-4, atol=1e-6)
    value.sum().backward()
    assert all(parameter.grad is not None for parameter in network.time_embedding.parameters())
