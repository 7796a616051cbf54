"""CoFlow (arXiv 2605.01457): generate the team's next observations in few steps, read actions off by inverse dynamics.

Training draws windows of a team's observations, adds noise to the frames to come, and fits one joint velocity field;
an inverse-dynamics head learns the action between two frames (loss.py). Acting holds what is given fixed, integrates
the field from noise in k steps (sampler.py) and takes the action from the current frame to the first planned one.

Centralized (C): one plan from everybody's observations. Decentralized (D): every agent plans the whole team from its
own observations alone (team-mates' histories are zeros, their current frame is generated) and keeps its own part.
The presets are in config.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from marl_flow.algorithm import Algorithm, descend
from marl_flow.coflow.config import PRESETS, CoFlowConfig
from marl_flow.coflow.inputs import draw_flow_sample, encode_actions, encode_observations
from marl_flow.coflow.loss import flow_loss, inverse_loss
from marl_flow.coflow.model import CoFlowModel
from marl_flow.coflow.network import PolyakAverage
from marl_flow.coflow.policy import FlowPolicy
from marl_flow.interfaces import (
    EXECUTIONS,
    ActingConfig,
    Batch,
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
        self.executions = EXECUTIONS if config.conditioning == "mixed" else (config.conditioning,)
        self.model = CoFlowModel(config, spec).to(device)
        self.average = PolyakAverage(self.model, config.ema_decay, every=config.ema_every, start=config.ema_start)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)

    @classmethod
    def window(cls, config: CoFlowConfig) -> WindowSpec:
        return WindowSpec(history=config.history, horizon=config.horizon, discount=config.discount)

    @classmethod
    def normalizer_kind(cls, config: CoFlowConfig) -> str:
        return config.normalizer

    # Training

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Total loss (scalar) and its two parts for one batch; loss.py has the equations."""
        config = self.config
        frames = encode_observations(batch.observations, config, self.spec, self.normalizers)
        actions = encode_actions(batch.actions, self.spec, self.normalizers)
        legal = None if batch.action_mask is None else batch.action_mask[:, :-1]
        sample = draw_flow_sample(frames, batch, config, self.normalizers, generator)
        flow = flow_loss(self.model, sample, config)
        inverse = inverse_loss(self.model, frames, actions, legal, batch.valid, config)
        total = (1 - config.inverse_weight) * flow + config.inverse_weight * inverse
        return total, {"loss": total.detach(), "flow_loss": flow.detach(), "inverse_loss": inverse.detach()}

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.model.network, self.model.inverse)

    def update(self, batch: Batch, generator: torch.Generator, micro_batches: int = 1) -> Metrics:
        """One step of Adam on the mean gradient of the micro-batches, then of the running average."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        parts, clip = batch.split(micro_batches), self.config.gradient_clip
        metrics = descend(self.optimizer, lambda part: self.loss(part, generator), parts, clip)
        self.updates_done += 1
        self.average.step(self.model, self.updates_done)
        return metrics

    def learning_rate(self) -> float:
        """Cosine decay from `learning_rate` to its final fraction over the budget `updates`, constant after."""
        done = torch.tensor(min(1.0, self.updates_done / max(1, self.config.updates)), dtype=torch.float64)
        floor = self.config.final_learning_rate_share
        return self.config.learning_rate * float(floor + (1 - floor) * 0.5 * (1 + torch.cos(torch.pi * done)))

    # Acting and state

    def policy(self, acting: ActingConfig) -> FlowPolicy:
        if acting.execution not in self.executions:
            raise UserError(
                f"this run was trained with conditioning={self.config.conditioning}, so it can be evaluated in "
                f"{', '.join(self.executions)} execution, not {acting.execution}; train with conditioning="
                f"{acting.execution} or conditioning=mixed"
            )
        if acting.num_sampling_steps is None or acting.target_return is None:
            raise UserError(
                f"coflow needs a number of sampling steps and a target return, got num_sampling_steps="
                f"{acting.num_sampling_steps} and target_return={acting.target_return}; set both in ActingConfig"
            )
        return FlowPolicy(self.average.module, self.spec, self.normalizers, acting)

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"model": self.model, "average": self.average.module, "optimizer": self.optimizer}
