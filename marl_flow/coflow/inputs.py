"""From raw windows to what the networks read, in training and acting alike; and the draw of a training sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from marl_flow.coflow.config import CoFlowConfig
from marl_flow.coflow.loss import FlowSample
from marl_flow.coflow.model import Condition
from marl_flow.interfaces import Batch, TaskSpec
from marl_flow.normalize import Normalizers


def encode_observations(observations: Tensor, config: CoFlowConfig, spec: TaskSpec, normalizers: Normalizers) -> Tensor:
    """Raw observations [..., N, O] as frames: normalised, with the agent's id in front if the config says so."""
    frames = normalizers.observations.apply(observations)
    return prepend_agent_ids(frames, config.normalizer) if config.has_agent_ids(spec) else frames


def prepend_agent_ids(observations: Tensor, normalizer: str) -> Tensor:
    """Normalised observations [..., N, O] with the agents' one-hot ids in front, [..., N, N + O].

    Ids are normalised as a column of the data would be by that kind of normaliser: their two values become those that
    the published loader's CDF gives them, the ends of [-1, 1], or standardised ones.
    """
    agents = observations.shape[-2]
    ids = torch.eye(agents, device=observations.device, dtype=observations.dtype)
    fraction = 1.0 / agents
    if normalizer == "cdf":  # of N rows N - 1 are zero: cumulative probability 1 - 1/N, then 1
        ids = torch.where(ids > 0, 1.0, 2.0 * (1.0 - fraction) - 1.0)
    elif normalizer == "limits":
        ids = 2.0 * ids - 1.0
    elif agents > 1:
        ids = (ids - fraction) / (fraction * (1.0 - fraction)) ** 0.5
    return torch.cat([ids.expand(*observations.shape[:-1], agents), observations], dim=-1)


def encode_actions(actions: Tensor, spec: TaskSpec, normalizers: Normalizers) -> Tensor:
    """Raw actions [..., N, A], normalised; choices [..., N] as int64."""
    if spec.action.is_discrete:
        return actions.long()
    assert normalizers.actions is not None
    return normalizers.actions.apply(actions)


def scale_returns(returns: Tensor, config: CoFlowConfig, normalizers: Normalizers) -> Tensor:
    """Raw return-to-go [..., N] as the network reads it."""
    if config.returns_scale is not None:
        return returns / config.returns_scale
    return normalizers.returns.apply(returns[..., None])[..., 0]


def given_frames(frames: Tensor, history: int, visible: Tensor) -> tuple[Tensor, Tensor]:
    """What is given of windows [B, F, N, O]: given_mask [B, F, N] bool, given_values [B, F, N, O] (zero elsewhere).

    visible [B, N] bool: agents whose history and current frame are given. The others' histories are given as zeros and
    their current frame is generated. Centralized: everybody is visible; decentralized: one agent.
    Source: `Guowei-Zou/coflow-release: diffuser/utils/mask_generator.py`, `diffuser/datasets/sequence.py`.
    """
    frame = torch.arange(frames.shape[1], device=frames.device)[None, :, None]
    shown = (frame <= history) & visible[:, None]
    return shown | (frame < history), torch.where(shown[..., None], frames, 0.0)


@dataclass(frozen=True, kw_only=True)
class PlanSpace:
    """Planned frames x [B, H, N, O] are generated as (x - origin) / unit.

    `absolute`: frames as they are. `residual`: a visible agent's frame h steps ahead is its difference from the current
    frame in units of step_scale * sqrt(h), step_scale [O] being the standard deviation of one step's change in the
    data. Without it the next frame, the one that decides the action, hardly counts against the spread of the frames
    themselves. An invisible agent has no current frame to start from and stays absolute.
    """

    history: int
    origin: Tensor
    unit: Tensor

    @classmethod
    def absolute(cls, given_values: Tensor, history: int) -> Self:
        return cls(history=history, origin=given_values.new_zeros(()), unit=given_values.new_ones(()))

    @classmethod
    def residual(cls, given_values: Tensor, visible: Tensor, history: int, step_scale: Tensor) -> Self:
        """given_values [B, F, N, O] of `given_frames` (zero where invisible), visible [B, N], step_scale [O]."""
        horizon = given_values.shape[1] - history - 1
        steps = torch.arange(1, horizon + 1, device=given_values.device, dtype=given_values.dtype)
        unit = (steps.sqrt()[:, None] * step_scale)[None, :, None]  # [1, H, 1, O]
        return cls(
            history=history,
            origin=given_values[:, history : history + 1],
            unit=torch.where(visible[:, None, :, None], unit, 1.0),
        )

    def encode(self, window: Tensor) -> Tensor:
        """Window [B, F, N, O] with its planned frames in plan units; history and current frame unchanged."""
        first = self.history + 1
        return torch.cat([window[:, :first], (window[:, first:] - self.origin) / self.unit], dim=1)

    def decode(self, window: Tensor) -> Tensor:
        """The inverse of `encode`."""
        first = self.history + 1
        return torch.cat([window[:, :first], window[:, first:] * self.unit + self.origin], dim=1)


def plan_space(given_values: Tensor, visible: Tensor, config: CoFlowConfig, normalizers: Normalizers) -> PlanSpace:
    """The space in which the planned frames of windows with given_values [B, F, N, O], visible [B, N] are generated."""
    if config.plan_space == "absolute":
        return PlanSpace.absolute(given_values, config.history)
    scale = normalizers.changes.tables["scale"]
    ids = scale.new_ones(given_values.shape[-1] - len(scale))  # agent ids, where frames have them, never change
    return PlanSpace.residual(given_values, visible, config.history, torch.cat([ids, scale]))


def draw_flow_sample(
    frames: Tensor, batch: Batch, config: CoFlowConfig, normalizers: Normalizers, generator: torch.Generator
) -> FlowSample:
    """Draws for each window of a batch, encoded as frames [B, F, N, O]: visible agents, times, noise, shown returns."""
    size, _, agents, _ = frames.shape
    visible = draw_visible(size, agents, config, generator, frames.device)
    given_mask, given_values = given_frames(frames, config.history, visible)
    t, r = draw_times(size, generator, full_noise_share=config.full_noise_share, device=frames.device)
    noise = torch.randn(frames.shape, generator=generator, device=frames.device)
    keep_returns = None
    if config.condition_dropout:
        keep_returns = torch.rand(size, 1, generator=generator, device=frames.device) >= config.condition_dropout
    valid = batch.valid if config.masked else torch.ones_like(batch.valid)  # the release takes padding for data
    return FlowSample.on_path(
        plan_space(given_values, visible, config, normalizers).encode(frames),
        noise,
        t,
        r,
        condition=Condition(given_mask, scale_returns(batch.returns_to_go, config, normalizers), keep_returns),
        given_values=given_values,
        real=functional.pad(valid, (config.history + 1, 0), value=True),
    )


def draw_visible(
    size: int, agents: int, config: CoFlowConfig, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Agents that each of `size` training windows shows, [B, N] bool: all, one at random, or either at even odds."""
    if config.conditioning == "centralized":
        return torch.ones(size, agents, dtype=torch.bool, device=device)
    shown = torch.randint(agents, (size, 1), generator=generator, device=device)
    visible = shown == torch.arange(agents, device=device)
    if config.conditioning == "mixed":
        visible = visible | (torch.rand(size, 1, generator=generator, device=device) < 0.5)
    return visible


def draw_times(
    size: int, generator: torch.Generator, *, full_noise_share: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Times (t, r), [B] each, r <= t.

    Two logit-normal draws, sigmoid(N(-0.4, 1)), the larger is t; for half of the batch r := t (release settings). Then
    a fraction `full_noise_share` of the draws moves to t = 1, where sampling starts and which logit-normal draws
    practically never reach.
    """
    draws = torch.sigmoid(torch.randn(2, size, generator=generator, device=device) - 0.4)
    t, r = draws.amax(0), draws.amin(0)
    equal = torch.rand(size, generator=generator, device=device) < 0.5
    full_noise = torch.rand(size, generator=generator, device=device) < full_noise_share
    t = torch.where(full_noise, torch.ones_like(t), t)
    return t, torch.where(equal, t, r)
