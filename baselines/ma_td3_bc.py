"""MA-TD3+BC: every agent improves on its own critic while staying near the data (TD3+BC, arXiv 2106.06860, per agent).

Independent agents, as in OMAR's repository (`ling-pan/OMAR: algorithms/maddpg.py`): agent i has an actor pi_i(o_i) and
twin critics Q_i(o_i, a_i) of its own; nothing is shared. Agents and twins are stacked and run as one batched product.

    y_i = r_i + discount * (1 - terminated) * min over twins of Q'_i(o'_i, pi'_i(o'_i) + clipped noise)
    actor_i minimises   -lambda_i * mean Q_i(o_i, pi_i(o_i)) + mean (pi_i - a_i)^2,    lambda_i = alpha / mean |Q_i|

Settings and deviations (no code behind the published MPE column is public):
- Reaching the time limit bootstraps: MPE's 25 steps are a limit, not an end, and observations hold no clock.
- OMAR's input batch normalisation is replaced by the data's statistics (it keeps training statistics while acting);
  critics have layer norm instead, which holds their values down at actions the data never show.
- All agents learn from the same windows; OMAR draws a mini-batch per agent.
- A critic's output is in units of the data's returns-to-go (their mean and standard deviation), so that one learning
  rate serves every task; values, targets and lambda are in raw units as above.
- Discount .95 and rate .01 of the targets as OMAR on MPE; width 128, batch 512 and learning rate 3e-3 instead of 64,
  1024 and 1e-2, for 2500 updates: under a minute on one core. At 1e-3 the actors, which move at every second update,
  were still far from imitating expert data (400 of 540 in `mpe/simple_spread`). No gradient clipping: one norm over
  the stack would couple the agents.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from marl_flow.algorithm import Algorithm, descend
from marl_flow.baselines.networks import StackedPerceptron, move_towards
from marl_flow.interfaces import Batch, Metrics, TaskSpec
from marl_flow.normalize import Normalizers
from marl_flow.policies import from_unit_box, to_unit_box
from marl_flow.tensors import masked_mean

TWINS = 2


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig:
    alpha: float = 2.5
    """Weight of the critic against imitation, >= 0."""
    discount: float = 0.95
    """In [0, 1)."""
    target_rate: float = 0.01
    """Share of the way the targets move towards the networks at every actor update, in (0, 1]."""
    target_noise: float = 0.2
    """Standard deviation of the noise on target actions, in half action ranges, >= 0."""
    target_noise_clip: float = 0.5
    """Bound of that noise, in half action ranges, >= 0."""
    policy_delay: int = 2
    """Critic updates per actor update, >= 1."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers of actors and critics."""
    critic_layer_norm: bool = True
    """Layer normalisation in the hidden layers of the critics."""
    learning_rate: float = 3e-3
    """Of Adam, actors and critics alike, > 0."""
    updates: int = 2500
    """Number of critic updates, >= 0."""
    batch_size: int = 512
    """Windows per update, >= 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.discount < 1 or not 0 < self.target_rate <= 1 or self.policy_delay < 1 or self.alpha < 0:
            raise ValueError(
                f"expected 0 <= discount < 1, 0 < target_rate <= 1, policy_delay >= 1 and alpha >= 0, got "
                f"{self.discount}, {self.target_rate}, {self.policy_delay} and {self.alpha}"
            )


def bootstrapped(rewards: Tensor, terminated: Tensor, next_values: Tensor, discount: float) -> Tensor:
    """Targets y [B, N] of rewards [B, N], terminated [B] and both critics' values of the next step [2, B, N]."""
    return rewards + discount * next_values.amin(0) * ~terminated[:, None]


def actor_loss(values: Tensor, actions: Tensor, data_actions: Tensor, valid: Tensor, alpha: float) -> Tensor:
    """TD3+BC of values Q_i [B, N] at the actors' actions [B, N, A], both action sets in [-1, 1], over valid [B] rows.

    Mean over agents; each agent weighs its own values, lambda_i = alpha / mean |Q_i|.
    """
    weights = valid[:, None].to(values.dtype)
    size = (values.detach().abs() * weights).sum(0) / weights.sum(0).clamp_min(1.0)
    improvement = masked_mean(values * (alpha / size.clamp_min(1e-6)), valid[:, None])
    return masked_mean((actions - data_actions).square(), valid[:, None, None]) - improvement


class MATD3BC(Algorithm):
    """The algorithm: stacked actors and twin critics, their targets and two optimisers."""

    name = "ma_td3_bc"
    presets = MappingProxyType({"default": TD3BCConfig()})
    action_kinds = ("continuous",)
    config: TD3BCConfig

    def __init__(self, config: TD3BCConfig, spec: TaskSpec, normalizers: Normalizers, device: torch.device) -> None:
        super().__init__(config, spec, normalizers, device)
        agents, size, actions = spec.num_agents, spec.observation_size, spec.action.size
        actor = StackedPerceptron(agents, size, config.hidden, actions)
        inputs, members = size + actions, TWINS * agents
        critic = StackedPerceptron(members, inputs, config.hidden, 1, layer_norm=config.critic_layer_norm)
        self.actor, self.critic = actor.to(device), critic.to(device)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.learning_rate)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.learning_rate)

    def act_in_unit_box(self, actor: nn.Module, observations: Tensor) -> Tensor:
        """Actions [B, N, A] in [-1, 1] for normalised observations [B, N, O]."""
        output: Tensor = actor(observations.transpose(0, 1))  # one network per agent: [N, B, O] -> [N, B, A]
        return output.transpose(0, 1).float().tanh()

    def values(self, critic: nn.Module, observations: Tensor, actions: Tensor, twins: int) -> Tensor:
        """Raw values [twins, B, N] of normalised observations [B, N, O] and actions [B, N, A] in [-1, 1]."""
        inputs = torch.cat([observations, actions], dim=-1).transpose(0, 1)
        levels = critic(inputs.repeat(twins, 1, 1)).float()  # [twins * N, B, 1]
        levels = levels.reshape(twins, self.spec.num_agents, -1).transpose(1, 2)
        return self.normalizers.returns.invert(levels[..., None])[..., 0]

    @torch.no_grad()
    def targets(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """y [B, N]."""
        config = self.config
        after = self.normalizers.observations.apply(batch.observations[:, 1])
        actions = self.act_in_unit_box(self.target_actor, after)
        noise = torch.randn(actions.shape, generator=generator, device=actions.device) * config.target_noise
        actions = (actions + noise.clamp(-config.target_noise_clip, config.target_noise_clip)).clamp(-1, 1)
        values = self.values(self.target_critic, after, actions, TWINS)
        return bootstrapped(batch.rewards[:, 0], batch.terminated[:, 0], values, config.discount)

    def critic_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared error of both critics, in units of the returns' standard deviation."""
        observations = self.normalizers.observations.apply(batch.observations[:, 0])
        actions = to_unit_box(self.spec.action, batch.actions[:, 0])
        values = self.values(self.critic, observations, actions, TWINS)
        level = self.normalizers.returns.apply
        errors = level(values[..., None]) - level(self.targets(batch, generator)[..., None])
        loss = TWINS * masked_mean(errors.square(), batch.valid[:, :1, None])
        return loss, {"critic_loss": loss.detach(), "value": values.detach().mean()}

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        observations = self.normalizers.observations.apply(batch.observations[:, 0])
        actions = self.act_in_unit_box(self.actor, observations)
        values = self.values(self.critic, observations, actions, 1)[0]
        data_actions = to_unit_box(self.spec.action, batch.actions[:, 0])
        loss = actor_loss(values, actions, data_actions, batch.valid[:, 0], self.config.alpha)
        return loss, {"actor_loss": loss.detach()}

    def update(self, batch: Batch, generator: torch.Generator, micro_batches: int = 1) -> Metrics:
        """A critic step; every `policy_delay`-th update also an actor step and a move of the targets."""
        parts = batch.split(micro_batches)
        metrics = descend(self.critic_optimizer, lambda part: self.critic_loss(part, generator), parts)
        self.updates_done += 1
        if self.updates_done % self.config.policy_delay == 0:
            metrics |= descend(self.actor_optimizer, self.actor_loss, parts)
            move_towards(self.target_actor, self.actor, self.config.target_rate)
            move_towards(self.target_critic, self.critic, self.config.target_rate)
        return metrics

    def decide(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        unit = self.act_in_unit_box(self.actor, self.normalizers.observations.apply(observations))
        return from_unit_box(self.spec.action, unit)
