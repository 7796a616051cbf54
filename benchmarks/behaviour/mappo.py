"""MAPPO on the batched engine: the networks, the statistics and the updates that mamujoco.py runs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from marl_flow import seeding
from marl_flow.envs.mamujoco.env import RobotEnv, RobotState
from marl_flow.envs.mamujoco.tasks import find_partition
from marl_flow.interfaces import TaskSpec, TimeStep
from marl_flow.module_state import pack_state, unpack_state

FIRST_STATES = 4096
"""How many first states training draws from."""
UNSEEN = 1e6
"""Standard deviation by which an observed number is divided that the actor shall not see."""


@dataclass(frozen=True, kw_only=True)
class RobotConfig:
    """Settings of MAPPO; discounts per step."""

    iterations: int = 600
    robots: int = 32
    steps: int = 256
    """Of every robot, per iteration."""
    hidden: int = 64
    learning_rate: float = 3e-4
    """Falls linearly to nothing at `decay_until` iterations."""
    decay_until: int = 1200
    epochs: int = 10
    minibatch: int = 256
    clip: float = 0.2
    first_std: float = 0.5
    first_weight: float = 0.01
    """What the first weights of the last layer are multiplied by."""
    noise: float = 0.2
    """Standard deviation where actors are measured and data collected, and the least while training: actors that learn
    with less noise fall over under this."""
    discount: float = 0.99
    trace: float = 0.95
    """Lambda of the generalised advantages."""
    gradient_clip: float = 0.5
    keep_every: int = 5
    """Iterations between kept actors."""
    measure_episodes: int = 16
    seed: int = 0


class Standard(nn.Module):
    """Running mean and variance of numbers [..., D]; those of `blind` [D] are hidden, constants are left alone."""

    mean: Tensor
    variance: Tensor
    count: Tensor
    blind: Tensor

    def __init__(self, blind: Tensor) -> None:
        super().__init__()
        size = len(blind)
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("blind", blind)

    def update(self, values: Tensor) -> None:
        values = values.double().flatten(0, -2)
        new, variance = values.mean(0), values.var(0, correction=0)
        share = len(values) / (self.count + len(values))
        shift = new - self.mean
        self.variance += share * (variance - self.variance) + share * (1 - share) * shift.square()
        self.mean += share * shift
        self.count += len(values)

    @property
    def shift_and_scale(self) -> tuple[Tensor, Tensor]:
        std = self.variance.sqrt()
        std = torch.where(std < 1e-6, 1.0, std)
        return torch.where(self.blind, 0.0, self.mean).float(), torch.where(self.blind, UNSEEN, std).float()

    def forward(self, values: Tensor) -> Tensor:
        shift, scale = self.shift_and_scale
        return (values - shift) / scale


class Actor(nn.Module):
    """Means [..., N, A] in (-1, 1) of normalised observations [..., N, O]; a tanh after every layer."""

    def __init__(self, spec: TaskSpec, config: RobotConfig) -> None:
        super().__init__()
        sizes = [spec.observation_size, config.hidden, config.hidden, spec.action.size]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))
        self.log_std = nn.Parameter(torch.full((spec.num_agents, spec.action.size), math.log(config.first_std)))
        with torch.no_grad():
            self.layers[-1].get_parameter("weight").mul_(config.first_weight)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x

    def log_chance(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """Log density [...] of the team's actions [..., N, A]."""
        distance = (actions - self(inputs)) * (-self.log_std).exp()
        return (-0.5 * distance.square() - self.log_std).sum((-2, -1))


class Critic(nn.Sequential):
    """Value [..., 1] of a normalised state [..., S], in standard deviations of `Learner.returns`."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__(nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What E robots showed in T steps: inputs [T, E, N, O], states [T, E, S], actions [T, E, N, A], log_chances,
    advantages and targets [T, E]."""

    inputs: Tensor
    states: Tensor
    actions: Tensor
    log_chances: Tensor
    advantages: Tensor
    targets: Tensor


def advantages(
    config: RobotConfig, rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, over: Tensor
) -> Tensor:
    """Generalised advantages, all [T, E]. next_values are those of what a step led to, which count as 0 where the robot
    fell (`terminated`) and not at the time limit; episodes end, for either reason, where `over`."""
    surprises = rewards + config.discount * torch.where(terminated, 0.0, next_values) - values
    result, carried = torch.zeros_like(values), torch.zeros_like(values[0])
    for t in reversed(range(len(values))):
        carried = surprises[t] + config.discount * config.trace * carried * ~over[t]
        result[t] = carried
    return result


def whole(state: RobotState) -> Tensor:
    """Positions and velocities [E, S], of which the critic sees all but the first."""
    return torch.cat([state.positions, state.velocities], dim=-1).float()


class Learner:
    """MAPPO on one task: networks, statistics, robots on their way and the generator of everything drawn."""

    def __init__(self, task_id: str, config: RobotConfig) -> None:
        self.config = config
        self.env = RobotEnv(task_id, config.robots, num_threads=1)
        self.generator = seeding.generator(config.seed, "robots", task_id)
        pool = RobotEnv(task_id, FIRST_STATES, num_threads=1)
        pool.reset(seeding.environment_seeds("behaviour", config.seed, FIRST_STATES))
        self.first = pool.state
        spec, kind = self.env.spec, find_partition(task_id)
        x_of_state = torch.arange(kind.robot.num_positions + kind.robot.num_velocities) == 0
        with seeding.global_scope(self.generator):
            self.actor = Actor(spec, config)
            self.critic = Critic(len(x_of_state), config.hidden)
        self.seen = Standard(torch.tensor([word == "q0" for word in kind.fields[0]]))
        self.known = Standard(x_of_state)
        self.returns = Standard(torch.tensor([False]))
        self.optimizer = torch.optim.Adam(
            [*self.actor.parameters(), *self.critic.parameters()], lr=config.learning_rate, eps=1e-5
        )
        self.running = torch.zeros(config.robots)  # discounted sum of each robot's rewards so far
        self.state = self._drawn(config.robots)

    @property
    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "seen": self.seen,
            "known": self.known,
            "returns": self.returns,
            "optimizer": self.optimizer,
        }

    def pack(self, iteration: int) -> dict[str, Tensor]:
        """Everything a killed training continues from, bit for bit."""
        robots = {"positions": self.state.positions, "velocities": self.state.velocities, "steps": self.state.steps}
        own = {**robots, "running": self.running, "generator": self.generator.get_state()}
        return {**pack_state(self.parts, iteration), **own}

    def unpack(self, tensors: dict[str, Tensor]) -> int:
        """Continues from what `pack` gave; the iteration."""
        self.generator.set_state(tensors.pop("generator"))
        self.running = tensors.pop("running")
        self.state = RobotState(**{name: tensors.pop(name) for name in ("positions", "velocities", "steps")})
        return unpack_state(self.parts, tensors)

    def _drawn(self, count: int) -> RobotState:
        rows = torch.randint(FIRST_STATES, (count,), generator=self.generator)
        return RobotState(
            positions=self.first.positions[rows], velocities=self.first.velocities[rows], steps=self.first.steps[rows]
        )

    def _restart(self, over: Tensor) -> TimeStep:
        """New episodes in the rows that are over [E]; the solver forgets its last solution in all of them."""
        now, new = self.env.state, self._drawn(int(over.sum()))
        now.positions[over], now.velocities[over], now.steps[over] = new.positions, new.velocities, new.steps
        return self.env.set_state(now)

    @torch.no_grad()
    def collect(self) -> tuple[Batch, float]:
        """One iteration's steps, and the mean reward of one."""
        config = self.config
        step = self.env.set_state(self.state)  # also between iterations that are not interrupted: the same bits
        std = self.actor.log_std.exp()
        frames: list[tuple[Tensor, ...]] = []
        for _ in range(config.steps):
            seen, state = step.observations, whole(self.env.state)
            inputs = self.seen(seen)
            mean = self.actor(inputs)
            actions = mean + std * torch.randn(mean.shape, generator=self.generator)
            after = self.env.step(actions.clamp(-1.0, 1.0))
            reward, following = after.rewards[:, 0], whole(self.env.state)
            self.running = config.discount * self.running + reward
            frames.append(
                (seen, inputs, state, actions, reward, following, after.terminated, after.finished, self.running)
            )
            self.running = self.running * ~after.finished
            step = self._restart(after.finished) if after.finished.any() else after
        self.state = self.env.state
        all_seen, all_inputs, states, chosen, rewards, next_states, terminated, over, running = (
            torch.stack(part) for part in zip(*frames, strict=True)
        )
        self.returns.update(running[..., None])
        normal = self.known(states)
        values, next_values = self.critic(normal)[..., 0], self.critic(self.known(next_states))[..., 0]
        unit = self.returns.variance.sqrt().float()
        gains = advantages(config, rewards / unit, values, next_values, terminated, over)
        batch = Batch(
            inputs=all_inputs,
            states=normal,
            actions=chosen,
            log_chances=self.actor.log_chance(all_inputs, chosen),
            advantages=gains,
            targets=gains + values,
        )
        self.seen.update(all_seen)
        self.known.update(states)
        return batch, float(rewards.mean())

    def improve(self, batch: Batch, iteration: int) -> dict[str, float]:
        """One iteration's epochs of PPO; what is worth a line of log."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * max(0.0, 1 - iteration / config.decay_until)
        flat = {name: getattr(batch, name).flatten(0, 1) for name in Batch.__dataclass_fields__}
        gains = flat["advantages"]
        gains = (gains - gains.mean()) / (gains.std() + 1e-8)
        losses, clipped = torch.zeros(()), torch.zeros(())
        for _ in range(config.epochs):
            order = torch.randperm(len(gains), generator=self.generator)
            for part in order.split(config.minibatch):
                chances = self.actor.log_chance(flat["inputs"][part], flat["actions"][part])
                ratio = (chances - flat["log_chances"][part]).exp()
                gain = gains[part]
                kept = torch.minimum(ratio * gain, ratio.clamp(1 - config.clip, 1 + config.clip) * gain)
                value_loss = functional.mse_loss(self.critic(flat["states"][part])[..., 0], flat["targets"][part])
                self.optimizer.zero_grad(set_to_none=True)
                (0.5 * value_loss - kept.mean()).backward()
                nn.utils.clip_grad_norm_([*self.actor.parameters(), *self.critic.parameters()], config.gradient_clip)
                self.optimizer.step()
                self.actor.log_std.data.clamp_(min=math.log(config.noise))
                losses, clipped = value_loss.detach(), ((ratio - 1).abs() > config.clip).float().mean()
        return {
            "value_loss": round(float(losses), 4),
            "clipped": round(float(clipped), 3),
            "std": round(float(self.actor.log_std.detach().exp().mean()), 3),
        }
