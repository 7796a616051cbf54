"""CoFlow (arXiv 2605.01457): generate the team's next observations in few steps, read actions off by inverse dynamics.

Training draws windows of a team's observations, adds noise to the frames to come, and fits one joint velocity field;
an inverse-dynamics head learns the action between two frames (loss.py). Acting holds what is given fixed, integrates
the field from noise in k steps (sampler.py) and takes the action from the current frame to the first planned one.

Centralized (C): one plan from everybody's observations. Decentralized (D): every agent plans the whole team from its
own observations alone (team-mates' histories are zeros, their current frame is generated) and keeps its own part.
The presets are in config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from marl_flow import seeding
from marl_flow.checkpoint import pack_state, unpack_state
from marl_flow.coflow.config import PRESETS, CoFlowConfig
from marl_flow.coflow.inputs import draw_flow_sample, encode_actions, encode_observations
from marl_flow.coflow.loss import flow_loss, inverse_loss
from marl_flow.coflow.model import CoFlowModel
from marl_flow.coflow.network import PolyakAverage
from marl_flow.coflow.policy import FlowPolicy
from marl_flow.interfaces import (
    ActingConfig,
    Batch,
    Execution,
    Metrics,
    TaskSpec,
    UserError,
    WindowSpec,
    mean_metrics,
)
from marl_flow.normalize import Normalizers


class CoFlow:
    """The algorithm: config and networks in, updates and policies out."""

    name: ClassVar[str] = "coflow"
    presets: ClassVar[Mapping[str, CoFlowConfig]] = PRESETS
    action_kinds: ClassVar[tuple[str, ...]] = ("continuous", "discrete")
    samples_in_steps = True
    return_conditioned = True

    def __init__(self, config: CoFlowConfig, spec: TaskSpec, normalizers: Normalizers, model: CoFlowModel) -> None:
        self.config, self.spec, self.normalizers, self.model = config, spec, normalizers, model
        self.device = next(model.parameters()).device
        self.average = PolyakAverage(model, config.ema_decay, every=config.ema_every, start=config.ema_start)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        self.updates_done = 0

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

    @classmethod
    def build(
        cls,
        config: CoFlowConfig,
        spec: TaskSpec,
        normalizers: Normalizers,
        *,
        device: torch.device,
        generator: torch.Generator,
    ) -> CoFlow:
        with seeding.global_scope(generator):
            model = CoFlowModel(config, spec)
        return cls(config, spec, normalizers.to(device), model.to(device))

    # Training

    def losses(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
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
        self.optimizer.zero_grad(set_to_none=True)
        collected = []
        for micro_batch in batch.split(micro_batches):
            total, metrics = self.losses(micro_batch, generator)
            (total / micro_batches).backward()
            collected.append(metrics)
        metrics = mean_metrics(collected)
        if self.config.gradient_clip is not None:
            metrics["gradient_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
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

    def state_dict(self) -> dict[str, Tensor]:
        return pack_state(self._parts(), self.updates_done)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.updates_done = unpack_state(self._parts(), state)

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"model": self.model, "average": self.average.module, "optimizer": self.optimizer}
