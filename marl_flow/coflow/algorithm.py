"""CoFlow (arXiv 2605.01457): plan the team's coming observations in few steps, read actions off by inverse dynamics.

Training draws windows of a team's observations, noises the frames to come, and regresses one joint velocity field
(loss.py); an inverse-dynamics head learns the action between two frames. ActingConfig fixes what is known, integrates
the field from noise in k steps (sampler.py) and takes the action from the current frame to the first planned one.

Centralized (C): one plan from everybody's observations. Decentralized (D): every agent plans the whole team from its
own observations alone (team-mates' histories are zeros, their current frame is imagined) and keeps its own part.
The presets are in config.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from marl_flow.algorithm import Algorithm, descend
from marl_flow.coflow import loss as objectives
from marl_flow.coflow.config import PRESETS, CoFlowConfig
from marl_flow.coflow.inputs import condition
from marl_flow.coflow.model import CoFlowModel
from marl_flow.coflow.network import PolyakAverage
from marl_flow.coflow.policy import FlowPolicy, frames_of, plan_space, scale_returns
from marl_flow.interfaces import (
    ActingConfig,
    Batch,
    Execution,
    Metrics,
    TaskSpec,
    UserError,
    WindowSpec,
)
from marl_flow.normalize import Normalizers


class CoFlow(Algorithm):
    """The algorithm: config and networks in, updates and policies out."""

    name = "coflow"
    presets = PRESETS
    samples_in_steps = True
    return_conditioned = True
    config: CoFlowConfig

    def __init__(self, config: CoFlowConfig, spec: TaskSpec, normalizers: Normalizers, device: torch.device) -> None:
        super().__init__(config, spec, normalizers, device)
        self.model = CoFlowModel(config, spec).to(device)
        self.average = PolyakAverage(self.model, config.ema_decay, every=config.ema_every, start=config.ema_start)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)

    @property
    def executions(self) -> tuple[Execution, ...]:
        if self.config.conditioning == "mixed":
            return ("centralized", "decentralized")
        return (self.config.conditioning,)

    @classmethod
    def window(cls, config: CoFlowConfig) -> WindowSpec:
        return WindowSpec(history=config.history, horizon=config.horizon, discount=config.discount)

    @classmethod
    def normalizer_kind(cls, config: CoFlowConfig) -> str:
        return config.normalizer

    # Training

    def losses(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Total loss (scalar) and its parts for one batch."""
        config = self.config
        data = frames_of(batch.observations, config, self.spec, self.normalizers)
        returns = scale_returns(batch.returns_to_go, config, self.normalizers)
        seen = self._draw_seen(batch.size, generator)
        known, values = condition(data, config.history, seen)
        targets = plan_space(values, seen, config, self.normalizers).encode(data)
        t, r = objectives.draw_times(
            batch.size, generator, full_noise_share=config.full_noise_share, device=self.device
        )
        noise = torch.randn(data.shape, generator=generator, device=self.device)
        keep = None
        if config.condition_dropout:
            keep = torch.rand(batch.size, 1, generator=generator, device=self.device) >= config.condition_dropout
        flow = self.flow_loss(targets, values, known, noise, t, r, returns, batch.valid, keep)
        inverse = self.inverse_loss(data, batch)
        total = (1 - config.inverse_weight) * flow + config.inverse_weight * inverse
        return total, {"loss": total.detach(), "flow_loss": flow.detach(), "inverse_loss": inverse.detach()}

    def flow_loss(
        self,
        data: Tensor,
        values: Tensor,
        known: Tensor,
        noise: Tensor,
        t: Tensor,
        r: Tensor,
        returns: Tensor,
        valid: Tensor,
        keep_returns: Tensor | None,
    ) -> Tensor:
        """Mean squared distance of V from noise - data; over unknown real entries when `masked`, else over everything.

        data [B, F, N, O] in the plan space, values [B, F, N, O] and known [B, F, N] what is given of it, noise like
        data, t and r [B], returns [B, N] scaled, valid [B, H], keep_returns [B, 1] or None.
        With output `data` it is weighted by t^2, which makes it the squared error of the plan.
        """
        config = self.config
        guidance = config.guidance_weight if config.guidance_in_loss else 1.0

        def u(z: Tensor, time: Tensor, label: Tensor) -> Tensor:
            return self.model.velocity(z, time, label, returns, known, keep_returns=keep_returns, guidance=guidance)

        velocity = noise - data
        noisy = torch.where(known[..., None], values, objectives.interpolate(data, noise, t))
        moving = ~known
        if config.masked:  # frames past the end of an episode stay noise: nothing of the padding enters
            real = functional.pad(valid, (config.history + 1, 0), value=True)[..., None]  # [B, F, 1]
            noisy = torch.where(real[..., None], noisy, noise)
            moving = moving & real
        tangent = torch.where(moving[..., None], velocity, 0.0)  # how noisy moves with t
        squared = (objectives.regressand(config.objective, u, noisy, tangent, t, r) - velocity) ** 2
        if config.output == "data":
            squared = squared * objectives.expand(t.clamp_min(config.time_floor), squared) ** 2
        return objectives.masked_mean(squared, moving[..., None]) if config.masked else squared.mean()

    def inverse_loss(self, data: Tensor, batch: Batch) -> Tensor:
        """Mean error of the action between true consecutive frames, current one on: squared, or cross-entropy.

        Deviations of the release that `masked` False keeps: legal actions are ignored, padding counts, and
        per-agent heads are summed over agents instead of averaged.
        """
        config, now = self.config, self.config.history
        predicted = self.model.inverse(data[:, now:-1], data[:, now + 1 :])  # [B, H, N, A]
        if self.spec.action.is_discrete:
            if config.masked and batch.action_mask is not None:
                predicted = predicted.masked_fill(~batch.action_mask[:, :-1], torch.finfo(predicted.dtype).min)
            errors = functional.cross_entropy(predicted.flatten(0, 2), batch.actions.long().flatten(), reduction="none")
            errors = errors.reshape(batch.actions.shape)
        else:
            assert self.normalizers.actions is not None
            errors = ((predicted - self.normalizers.actions.apply(batch.actions)) ** 2).mean(-1)
        if config.masked:
            return objectives.masked_mean(errors, batch.valid[..., None])
        return errors.mean() * (self.spec.num_agents if config.inverse_per_agent else 1)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.model.network, self.model.inverse)

    def update(self, batch: Batch, generator: torch.Generator, micro_batches: int = 1) -> Metrics:
        """One step of Adam on the mean gradient of the micro-batches, then of the running average."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        parts, clip = batch.split(micro_batches), self.config.gradient_clip
        metrics = descend(self.optimizer, lambda part: self.losses(part, generator), parts, clip)
        self.updates_done += 1
        self.average.step(self.model, self.updates_done)
        return metrics

    def learning_rate(self) -> float:
        """Cosine from `learning_rate` to its final share over the budget, constant after."""
        done = torch.tensor(min(1.0, self.updates_done / max(1, self.config.updates)), dtype=torch.float64)
        floor = self.config.final_learning_rate_share
        return self.config.learning_rate * float(floor + (1 - floor) * 0.5 * (1 + torch.cos(torch.pi * done)))

    def _draw_seen(self, batch: int, generator: torch.Generator) -> Tensor:
        """Which agents training shows, [B, N]: all, one at random, or either with even odds."""
        agents = self.spec.num_agents
        if self.config.conditioning == "centralized":
            return torch.ones(batch, agents, dtype=torch.bool, device=self.device)
        one = torch.randint(agents, (batch, 1), generator=generator, device=self.device)
        seen = one == torch.arange(agents, device=self.device)
        if self.config.conditioning == "mixed":
            seen = seen | (torch.rand(batch, 1, generator=generator, device=self.device) < 0.5)
        return seen

    # Acting and state

    def policy(self, acting: ActingConfig) -> FlowPolicy:
        if acting.execution not in self.executions:
            raise UserError(
                f"this run was trained with conditioning {self.config.conditioning!r} and can be evaluated in "
                f"{', '.join(self.executions)} execution, not {acting.execution}; train with conditioning="
                f"{acting.execution} or mixed"
            )
        if acting.num_sampling_steps is None or acting.target_return is None:
            raise UserError(f"coflow needs a number of sampling steps and a target return, got {acting}")
        return FlowPolicy(self.average.module, self.spec, self.normalizers, acting)

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"model": self.model, "average": self.average.module, "optimizer": self.optimizer}
