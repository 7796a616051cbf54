"""Behaviour cloning: one feed-forward network, shared by the agents, maps an agent's observation to its action.

Continuous actions: tanh output over the action range, squared error, no noise when acting. Discrete actions:
cross-entropy over legal actions, the likeliest legal one when acting.

Deviations from published variants, on purpose:
- The legal-action mask is applied in training too; OG-MARL masks at selection only
  (`instadeepai/og-marl: og_marl/baselines/tf2_systems/offline/bc.py`), so its loss also pushes down illegal actions.
- Two ReLU layers of 256 at learning rate 1e-3 and batch 1024, instead of MADiff's six-layer bottle with a Gaussian
  likelihood at 2e-5 and batch 32 (`zbzhu99/madiff: diffuser/models/nontemporal.py`): trains in seconds on one core.
- No recurrence: an agent acts on its current observation alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from marl_flow.algorithm import Algorithm
from marl_flow.baselines.networks import Perceptron
from marl_flow.interfaces import Batch, Metrics, TaskSpec
from marl_flow.normalize import Normalizers
from marl_flow.policies import from_unit_box, to_unit_box
from marl_flow.tensors import masked_mean


@dataclass(frozen=True, kw_only=True)
class BCConfig:
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    agent_id: bool = True
    """Append a one-hot agent index to each observation, so that the shared network can tell agents apart."""
    learning_rate: float = 1e-3
    """Of Adam, > 0."""
    updates: int = 1000
    """Number of updates, >= 0."""
    batch_size: int = 1024
    """Windows per update, >= 1."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.updates < 0 or self.batch_size < 1 or min(self.hidden, default=0) < 1:
            raise ValueError(
                f"expected learning_rate > 0, updates >= 0, batch_size >= 1 and hidden widths >= 1, got "
                f"{self.learning_rate}, {self.updates}, {self.batch_size} and {self.hidden}"
            )


def continuous_loss(predicted: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error of actions [B, N, A], both in [-1, 1], over valid [B] rows."""
    return masked_mean((predicted.float() - actions).square(), valid[:, None, None])


def discrete_loss(logits: Tensor, choices: Tensor, legal: Tensor | None, valid: Tensor) -> Tensor:
    """Mean cross-entropy of choices [B, N] under logits [B, N, A] over the legal ones [B, N, A], valid [B] rows."""
    logits = mask_illegal(logits.float(), legal)
    errors = functional.cross_entropy(logits.flatten(0, 1), choices.flatten().long(), reduction="none")
    return masked_mean(errors.reshape(choices.shape), valid[:, None])


def mask_illegal(logits: Tensor, legal: Tensor | None) -> Tensor:
    """Logits [..., A] with the least finite number where an action is not legal."""
    return logits if legal is None else logits.masked_fill(~legal, torch.finfo(logits.dtype).min)


class BehaviourCloning(Algorithm):
    """The algorithm: one network, one optimiser."""

    name = "bc"
    presets = MappingProxyType({"default": BCConfig()})
    config: BCConfig

    def __init__(self, config: BCConfig, spec: TaskSpec, normalizers: Normalizers, device: torch.device) -> None:
        super().__init__(config, spec, normalizers, device)
        inputs = spec.observation_size + (spec.num_agents if config.agent_id else 0)
        self.network = Perceptron(inputs, config.hidden, spec.action.size).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)

    def predict(self, observations: Tensor) -> Tensor:
        """Actions in [-1, 1], or logits, [B, N, A] for raw observations [B, N, O]."""
        x = self.normalizers.observations.apply(observations)
        if self.config.agent_id:
            index = torch.eye(self.spec.num_agents, device=x.device).expand(x.shape[0], -1, -1)
            x = torch.cat([x, index], dim=-1)
        output: Tensor = self.network(x)
        return output if self.spec.action.is_discrete else output.tanh()

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        predicted, valid = self.predict(batch.observations[:, 0]), batch.valid[:, 0]
        if self.spec.action.is_discrete:
            legal = None if batch.action_mask is None else batch.action_mask[:, 0]
            loss = discrete_loss(predicted, batch.actions[:, 0], legal, valid)
        else:
            loss = continuous_loss(predicted, to_unit_box(self.spec.action, batch.actions[:, 0]), valid)
        return loss, {"loss": loss.detach()}

    def decide(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        predicted = self.predict(observations)
        if self.spec.action.is_discrete:
            return mask_illegal(predicted, action_mask).argmax(-1)
        return from_unit_box(self.spec.action, predicted)
