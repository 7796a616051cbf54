"""CoFlow's two losses (arXiv 2605.01457): averaged velocity and inverse dynamics.

Time runs as in the paper: t = 1 is noise, t = 0 is data,

    noisy = (1 - t) * data + t * noise,    target velocity = noise - data,    one step: data = noise - u(noise, 1).

Flow loss: mean | V - target velocity |^2 over the frames that are generated. data [B, F, N, O] are windows of the
team's observations, encoded by inputs.py. `u(noisy, t, label)` is the network: noisy stands at time t [B] and the
network is told the time `label` [B] <= t. With r <= t and sg = stop-gradient, the predicted velocity V is

    finite_difference   V = u(noisy, t, r) + (t - r) * sg[u(noisy, t, t) - u(noisy, t, r)]        (the paper)
    instantaneous       V = u(noisy, t, t)                                                       (CoFlow-base)
    jvp                 V = u(noisy, t, t) + (t - r) * sg[d u / d t along (d noisy / d t, 1)]    (MeanFlow)

`jvp` is the true average-velocity identity of MeanFlow (arXiv 2505.13447) for a network with one time label: along
the path noisy moves with the target velocity and t with 1, while given frames and r stay. The network does not read r,
so like the other two it learns one field per t, and in sampling its label is t.

Inverse-dynamics loss: mean | a - I(o, o') |^2 of the action a between the true frames o and o', or the cross-entropy
of a where actions are discrete. `CoFlow.losses` (algorithm.py) trains (1 - w) * flow loss + w * inverse-dynamics loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from marl_flow.coflow.config import CoFlowConfig, Objective
from marl_flow.coflow.model import CoFlowModel, Condition
from marl_flow.tensors import append_dims, masked_mean

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u: (noisy [B, F, N, O], time of noisy [B], time label [B]) -> velocity [B, F, N, O]."""


@dataclass(frozen=True, kw_only=True)
class FlowSample:
    """Windows on the straight path from data to noise, and what the network is told about them.

    noisy [B, F, N, O] is the point at time t [B]: given frames hold their values, padding holds noise;
    target_velocity [B, F, N, O]; r [B] <= t; generated_mask [B, F, N] bool: frames neither given nor padding.
    """

    noisy: Tensor
    target_velocity: Tensor
    t: Tensor
    r: Tensor
    generated_mask: Tensor
    condition: Condition

    @classmethod
    def on_path(
        cls,
        data: Tensor,
        noise: Tensor,
        t: Tensor,
        r: Tensor,
        *,
        condition: Condition,
        given_values: Tensor,
        real: Tensor,
    ) -> FlowSample:
        """The sample at time t [B] between data and noise; given_values like data, real [B, F] bool: not padding."""
        given_mask = condition.given_mask
        noisy = torch.where(given_mask[..., None], given_values, interpolate(data, noise, t))
        return cls(
            noisy=torch.where(real[..., None, None], noisy, noise),
            target_velocity=noise - data,
            t=t,
            r=r,
            generated_mask=~given_mask & real[..., None],
            condition=condition,
        )

    @property
    def tangent(self) -> Tensor:
        """d noisy / d t [B, F, N, O]: the target velocity in generated frames, zero in the others, which stay."""
        return torch.where(self.generated_mask[..., None], self.target_velocity, 0.0)


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Points at time t [B] on the straight paths from data (t = 0) to noise (t = 1), the shape of data."""
    t = append_dims(t, data)
    return (1 - t) * data + t * noise


def predicted_velocity(objective: Objective, u: Velocity, sample: FlowSample) -> Tensor:
    """V [B, F, N, O] of the module's docstring, which training pulls towards the target velocity."""
    noisy, t, r = sample.noisy, sample.t, sample.r
    if objective == "instantaneous":
        return u(noisy, t, t)
    if objective == "jvp":
        along_path = (sample.tangent, torch.ones_like(t))
        value_and_slope = torch.func.jvp(lambda z, time: u(z, time, time), (noisy, t), along_path)
        at_t, slope = cast("tuple[Tensor, Tensor]", value_and_slope)
        return at_t + append_dims(t - r, noisy) * slope.detach()
    at_r = u(noisy, t, r)
    with torch.no_grad():
        difference = u(noisy, t, t) - at_r.detach()
    return at_r + append_dims(t - r, noisy) * difference


def flow_loss(model: CoFlowModel, sample: FlowSample, config: CoFlowConfig) -> Tensor:
    """Mean squared distance (scalar) of the predicted velocity from the target velocity.

    Over generated frames if `masked`, else over everything, as in the release. With output `data` it is weighted by
    t^2, which makes it the squared error of the plan.
    """
    guidance = config.guidance_weight if config.guidance_in_loss else 1.0

    def u(noisy: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return model.velocity(noisy, t, label, sample.condition, guidance=guidance)

    squared = (predicted_velocity(config.objective, u, sample) - sample.target_velocity) ** 2
    if config.output == "data":
        squared = squared * append_dims(sample.t.clamp_min(config.time_floor), squared) ** 2
    return masked_mean(squared, sample.generated_mask[..., None]) if config.masked else squared.mean()


def inverse_loss(
    model: CoFlowModel, frames: Tensor, actions: Tensor, legal: Tensor | None, valid: Tensor, config: CoFlowConfig
) -> Tensor:
    """Mean error (scalar) of the action from each true frame to the next, from the current frame on.

    frames [B, F, N, O]; actions [B, H, N, A] normalised: squared error; or choices [B, H, N] (int64): cross-entropy
    over the legal ones [B, H, N, A] (None: all are); valid [B, H].

    `masked` False keeps three deviations of the release: legal actions are ignored, padding counts, and the losses of
    per-agent heads are summed over agents instead of averaged.
    """
    current = config.history
    predicted: Tensor = model.inverse(frames[:, current:-1], frames[:, current + 1 :])  # [B, H, N, A]
    if actions.is_floating_point():
        errors = ((predicted - actions) ** 2).mean(-1)
    else:
        if config.masked and legal is not None:
            predicted = predicted.masked_fill(~legal, torch.finfo(predicted.dtype).min)
        errors = functional.cross_entropy(predicted.flatten(0, 2), actions.flatten(), reduction="none")
        errors = errors.reshape(actions.shape)
    if config.masked:
        return masked_mean(errors, valid[..., None])
    return errors.mean() * (frames.shape[2] if config.inverse_per_agent else 1)
