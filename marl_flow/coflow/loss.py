"""The training objectives, as pure functions.

Time runs as in the paper (CoFlow, arXiv 2605.01457): t = 1 is noise, t = 0 is data,

    noisy = (1 - t) * data + t * noise,    velocity = noise - data,    one step: data = noise - u(noise, 1).

`u(noisy, t, label)` is any velocity network: noisy [B, F, N, O] stands at time t [B] and the network is told the time
`label` [B] <= t. With r <= t and sg = stop-gradient, what is regressed on the velocity is

    finite_difference   V = u(noisy, t, r) + (t - r) * sg[u(noisy, t, t) - u(noisy, t, r)]        (the paper)
    instantaneous       V = u(noisy, t, t)                                                       (CoFlow-base)
    jvp                 V = u(noisy, t, t) + (t - r) * sg[d u / d t along (d noisy / d t, 1)]    (MeanFlow)

`jvp` is the true average-velocity identity of MeanFlow (arXiv 2505.13447) for a network with one time label: along
the path noisy moves with the velocity (where it is not given) and t with 1, r stays. The network sees no r, so like the
other two it learns one field per t, and the label it is sampled with is t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Objective = Literal["finite_difference", "instantaneous", "jvp"]
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy [B, F, N, O], time of noisy [B], label [B]) -> velocity [B, F, N, O]."""


def expand(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B, 1, ..., 1] to broadcast against `like`."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Points at time t [B] on the straight paths from data (t = 0) to noise (t = 1), the shape of data."""
    t = expand(t, data)
    return (1 - t) * data + t * noise


def draw_times(
    batch: int, generator: torch.Generator, *, full_noise_share: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Times (t, r), [B] each, r <= t.

    Two logit-normal draws, sigmoid(N(-0.4, 1)), the larger is t; for half of the batch r := t (release settings). A
    share of the draws then moves to t = 1, where sampling starts and which logit-normal draws practically never reach.
    """
    draws = torch.sigmoid(torch.randn(2, batch, generator=generator, device=device) - 0.4)
    t, r = draws.amax(0), draws.amin(0)
    equal = torch.rand(batch, generator=generator, device=device) < 0.5
    full = torch.rand(batch, generator=generator, device=device) < full_noise_share
    t = torch.where(full, torch.ones_like(t), t)
    return t, torch.where(equal, t, r)


def regressand(objective: Objective, u: Velocity, noisy: Tensor, tangent: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """V [B, F, N, O] of the module docstring: what training pulls towards the velocity.

    tangent [B, F, N, O] is how `noisy` moves with t, read by `jvp` only: the velocity, zero where entries are given.
    """
    if objective == "instantaneous":
        return u(noisy, t, t)
    if objective == "jvp":
        along = torch.func.jvp(lambda z, time: u(z, time, time), (noisy, t), (tangent, torch.ones_like(t)))
        return along[0] + expand(t - r, noisy) * along[1].detach()
    at_r = u(noisy, t, r)
    with torch.no_grad():
        difference = u(noisy, t, t) - at_r.detach()
    return at_r + expand(t - r, noisy) * difference


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values over entries where mask (bool or weights, broadcastable) is set; zero when none is."""
    weights = mask.to(values.dtype).expand_as(values)
    return (values * weights).sum() / weights.sum().clamp_min(1e-12)
