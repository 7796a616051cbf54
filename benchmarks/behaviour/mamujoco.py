"""Trains the behaviour policies of the native MA-MuJoCo datasets: MAPPO on the batched engine.

    python -m marl_flow.benchmarks.behaviour.mamujoco train mamujoco/2ant --out runs/behaviour
    python -m marl_flow.benchmarks.behaviour.mamujoco select mamujoco/2ant --out runs/behaviour

`train` takes a snapshot of the actor every few iterations and measures its return; a killed training resumes. `select`
takes, for each quality, snapshots that meet the published mean: the best one, two around the mean or, for poor ants,
all of the first snapshots of a training that starts badly. It writes the policy file that datasets/native.py reads,
with the choices beside it.

MAPPO (mappo.py) in its continuous form: the actor sees what an agent observes except the absolute x position, the
critic the robot's state except the same; a Gaussian whose standard deviation is learned; one probability ratio for the
team. Measurements and datasets play the mean with Gaussian noise of 0.2 added, clipped to the bounds: the exploration
of the published behaviour (`instadeepai/og-marl: docs/dataset_cards/og_marl.md`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from marl_flow import seeding
from marl_flow.benchmarks import suite
from marl_flow.benchmarks.behaviour import mappo
from marl_flow.benchmarks.behaviour.mappo import (
    Batch,
    MappoConfig,
    RunningMeanStd,
    clipped_objective,
    generalized_advantages,
)
from marl_flow.benchmarks.behaviour.snapshots import EvaluatedSnapshots, PolicyNetwork, policy_tensors, read_record
from marl_flow.envs.mamujoco.env import RobotEnv, RobotState
from marl_flow.envs.mamujoco.tasks import find_partition
from marl_flow.interfaces import TaskSpec, TimeStep
from marl_flow.rollout import rollout

INITIAL_STATES = 4096
"""Size of the pool of initial states that training draws from."""
SELECT_EPISODES, BEGINNER_EPISODES = 400, 100
"""Episodes that `select` measures a snapshot by; of a beginner many snapshots are taken, whose errors average out."""
SHORTFALL = 0.03
"""Fraction of the published mean by which a dataset's may stay below it, of a tolerance of 0.05."""


@dataclass(frozen=True, kw_only=True)
class RobotConfig(MappoConfig):
    """Settings of the training."""

    iterations: int = 600
    num_envs: int = 32
    steps: int = 256
    """Steps of every environment per iteration."""
    learning_rate: float = 3e-4
    """Falls linearly to zero at `decay_until` iterations."""
    decay_until: int = 1200
    epochs: int = 10
    minibatch: int = 256
    initial_std: float = 0.5
    output_scale: float = 0.01
    """What the first weights of the actor's last layer are multiplied by."""
    noise: float = 0.2
    """Standard deviation where snapshots are measured and data collected, and the smallest while training: actors that
    learn with less noise fall over under this much."""
    gradient_clip: float = 0.5
    snapshot_every: int = 5
    measure_episodes: int = 16


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, and the qualities whose snapshots are taken from it."""

    qualities: tuple[str, ...]
    config: RobotConfig
    beginner: bool = False
    """Whether all of its first snapshots are taken, not one or two."""

    def folder(self, task_id: str, out: Path) -> Path:
        return out / f"{task_id.replace('/', '_')}_{'_'.join(self.qualities)}"


_BEGINNER = RobotConfig(iterations=25, snapshot_every=1, output_scale=5.0)
TRAININGS: dict[str, tuple[Training, ...]] = {
    "mamujoco/2ant": (
        Training(qualities=("good", "medium"), config=RobotConfig(iterations=1150)),
        Training(qualities=("poor",), config=_BEGINNER, beginner=True),
    ),
    "mamujoco/4ant": (
        Training(qualities=("good", "medium"), config=RobotConfig(iterations=745)),
        Training(qualities=("poor",), config=replace(_BEGINNER, output_scale=3.0), beginner=True),
    ),
    "mamujoco/2halfcheetah": (Training(qualities=("good", "medium", "poor"), config=RobotConfig(iterations=775)),),
}
"""Poor ants return less than an ant that does nothing: standing still for 1000 steps returns 1000, and about 850 with
the noise. Training from small first weights starts there and never falls as low as the published poor data. A network
whose outputs are large at the start of its training does: it presses the joints against their stops, which costs
reward."""


class Actor(PolicyNetwork):
    """Means [..., N, A] in (-1, 1) of normalised observations [..., N, O], and one standard deviation [N, A]."""

    def __init__(self, spec: TaskSpec, config: RobotConfig) -> None:
        sizes = [spec.observation_size, config.hidden, config.hidden, spec.action.size]
        super().__init__(sizes, config.output_scale)
        self.log_std = nn.Parameter(torch.full((spec.num_agents, spec.action.size), math.log(config.initial_std)))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(super().forward(inputs))

    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """Log density [...] of the team's actions [..., N, A], up to a constant."""
        distance = (actions - self(inputs)) * (-self.log_std).exp()
        return (-0.5 * distance.square() - self.log_std).sum((-2, -1))


class ExportedActor:
    """A policy of exported weights (float16, and the normalisation of observations) with Gaussian noise added."""

    network_passes = 1

    def __init__(self, weights: Mapping[str, Tensor], noise: float) -> None:
        self.weights, self.noise = weights, noise

    def mean(self, observations: Tensor) -> Tensor:
        """Means [E, N, A] of observations [E, N, O]."""
        x = (observations - self.weights["observation_mean"]) / self.weights["observation_std"]
        for i in range(3):
            weight, bias = (self.weights[f"layers.{i}.{name}"].float() for name in ("weight", "bias"))
            x = torch.tanh(x @ weight.t() + bias)
        return x

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self.generator = generator

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        mean = self.mean(observations)
        return (mean + self.noise * torch.randn(mean.shape, generator=self.generator)).clamp(-1.0, 1.0)


def measure(env: RobotEnv, weights: Mapping[str, Tensor], config: RobotConfig) -> dict[str, float]:
    """What an exported actor returns, played as in the datasets, over episodes that no training and no dataset uses."""
    policy, returns = ExportedActor(weights, config.noise), torch.zeros(env.num_envs)
    policy.reset(env.num_envs, seeding.generator(config.seed, "measure"))

    def add_rewards(step: TimeStep, actions: Tensor | None) -> None:
        returns.add_(step.rewards[:, 0])  # in float32, as when the shipped policies were chosen

    seeds = seeding.environment_seeds("behaviour", config.seed + 1, env.num_envs)
    episodes = rollout(env, policy, seeds, add_rewards)
    return {
        "return": round(float(returns.mean()), 1),
        "std": round(float(returns.std()), 1),
        "length": round(float(episodes.lengths.float().mean()), 1),
    }


def state_vector(state: RobotState) -> Tensor:
    """Positions and velocities [E, S]; the first is the x position."""
    return torch.cat([state.positions, state.velocities], dim=-1).float()


class RobotLearner(mappo.Learner):
    """MAPPO on one robot: besides the networks it has running statistics and environments in the middle of episodes.

    Values are in standard deviations of the discounted return.
    """

    config: RobotConfig

    def __init__(self, task_id: str, config: RobotConfig) -> None:
        self.env = RobotEnv(task_id, config.num_envs, num_threads=1)
        self.measure_env = RobotEnv(task_id, config.measure_episodes, num_threads=1)
        generator = seeding.generator(config.seed, "robots", task_id)
        pool = RobotEnv(task_id, INITIAL_STATES, num_threads=1)
        pool.reset(seeding.environment_seeds("behaviour", config.seed, INITIAL_STATES))
        self.initial_states = pool.state
        spec, layout = self.env.spec, find_partition(task_id)
        is_x = torch.arange(layout.robot.num_positions + layout.robot.num_velocities) == 0
        with seeding.global_scope(generator):
            self.actor = Actor(spec, config)
            self.critic = mappo.critic_network(len(is_x), config.hidden)
        super().__init__(
            task_id,
            config,
            self.actor,
            self.critic,
            generator,
            [[*self.actor.parameters(), *self.critic.parameters()]],
        )
        self.observation_stats = RunningMeanStd(torch.tensor([field == "q0" for field in layout.fields[0]]))
        self.state_stats = RunningMeanStd(is_x)
        self.return_stats = RunningMeanStd(torch.tensor([False]))
        self.parts |= {
            "observation_stats": self.observation_stats,
            "state_stats": self.state_stats,
            "return_stats": self.return_stats,
        }
        self.discounted = torch.zeros(config.num_envs)  # discounted sum of each environment's rewards so far
        self.state = self._draw_initial(config.num_envs)

    def pack(self, iteration: int) -> dict[str, Tensor]:
        robots = {"positions": self.state.positions, "velocities": self.state.velocities, "steps": self.state.steps}
        return {**super().pack(iteration), **robots, "discounted": self.discounted}

    def unpack(self, tensors: dict[str, Tensor]) -> int:
        self.discounted = tensors.pop("discounted")
        self.state = RobotState(**{name: tensors.pop(name) for name in ("positions", "velocities", "steps")})
        return super().unpack(tensors)

    def _draw_initial(self, count: int) -> RobotState:
        rows, pool = torch.randint(INITIAL_STATES, (count,), generator=self.generator), self.initial_states
        return RobotState(positions=pool.positions[rows], velocities=pool.velocities[rows], steps=pool.steps[rows])

    def _restart(self, finished: Tensor) -> TimeStep:
        """New episodes in the finished rows [E]; the solver forgets its last solution in all of them."""
        now, new = self.env.state, self._draw_initial(int(finished.sum()))
        now.positions[finished], now.velocities[finished] = new.positions, new.velocities
        now.steps[finished] = new.steps
        return self.env.set_state(now)

    @torch.no_grad()
    def collect(self, iteration: int) -> tuple[Batch, dict[str, float]]:
        config = self.config
        step = self.env.set_state(self.state)  # in every iteration, so that a resumed training has the same bits
        std = self.actor.log_std.exp()
        frames: list[tuple[Tensor, ...]] = []
        for _ in range(config.steps):
            shown, state = step.observations, state_vector(self.env.state)
            mean = self.actor(self.observation_stats(shown))
            actions = mean + std * torch.randn(mean.shape, generator=self.generator)
            after = self.env.step(actions.clamp(-1.0, 1.0))
            reward, next_state = after.rewards[:, 0], state_vector(self.env.state)
            self.discounted = config.discount * self.discounted + reward
            ends = (after.terminated, after.finished)
            frames.append((shown, state, actions, reward, next_state, *ends, self.discounted))
            self.discounted = self.discounted * ~after.finished
            step = self._restart(after.finished) if after.finished.any() else after
        self.state = self.env.state
        observations, states, actions, rewards, next_states, terminated, finished, discounted = (
            torch.stack(values) for values in zip(*frames, strict=True)
        )
        self.return_stats.update(discounted[..., None])
        inputs, normal_states = self.observation_stats(observations), self.state_stats(states)
        values = self.critic(normal_states)[..., 0]
        next_values = self.critic(self.state_stats(next_states))[..., 0]
        next_values = torch.where(terminated, 0.0, next_values)  # where the robot fell; not at the time limit
        rewards_in_std = rewards / self.return_stats.variance.sqrt().float()
        advantages = generalized_advantages(config, rewards_in_std, values, next_values, finished).flatten()
        batch = Batch(
            observations=inputs.flatten(0, 1),
            states=normal_states.flatten(0, 1),
            actions=actions.flatten(0, 1),
            log_probs=self.actor.log_prob(inputs, actions).flatten(),
            advantages=(advantages - advantages.mean()) / (advantages.std() + 1e-8),
            value_targets=advantages + values.flatten(),
        )
        self.observation_stats.update(observations)
        self.state_stats.update(states)
        return batch, {"reward": round(float(rewards.mean()), 3)}

    def minibatch_size(self, num_steps: int) -> int:
        return self.config.minibatch

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_probs = self.actor.log_prob(batch.observations, batch.actions)
        objective = clipped_objective(self.config, log_probs, batch.log_probs, batch.advantages)
        value_loss = functional.mse_loss(self.critic(batch.states)[..., 0], batch.value_targets)
        logged = {"value_loss": value_loss, "std": self.actor.log_std.exp().mean()}
        return 0.5 * value_loss - objective.mean(), logged

    def step_optimizer(self) -> None:
        super().step_optimizer()
        self.actor.log_std.data.clamp_(min=math.log(self.config.noise))

    def update(self, batch: Batch, iteration: int) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * max(0.0, 1 - iteration / self.config.decay_until)
        return super().update(batch, iteration)

    def export(self) -> dict[str, Tensor]:
        mean, std = self.observation_stats.shift_and_scale
        return {**self.actor.float16_layers(), "observation_mean": mean, "observation_std": std}

    def measure(self) -> dict[str, float]:
        return measure(self.measure_env, self.export(), self.config)


def train(task_id: str, out: Path) -> None:
    """Trains everything that the task's datasets take snapshots from, each in a folder below `out`."""
    for training in TRAININGS[task_id]:
        RobotLearner(task_id, training.config).train(training.folder(task_id, out))


def select(task_id: str, out: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The policy file's tensors and the choices that led to them, of the trainings below `out`."""
    tensors: dict[str, Tensor] = {}
    choices: dict[str, object] = {}
    for training in TRAININGS[task_id]:
        folder = training.folder(task_id, out)
        config = RobotConfig(**read_record(folder)["config"])
        episodes = BEGINNER_EPISODES if training.beginner else SELECT_EPISODES
        env = RobotEnv(task_id, episodes, num_threads=os.cpu_count())
        snapshots = EvaluatedSnapshots(folder, partial(measure, env, config=config))
        for quality in training.qualities:
            target = suite.dataset_means()[f"{task_id}/{quality}"]
            if training.beginner:
                fractions = snapshots.beginning(target)
            else:
                fractions = snapshots.single_or_neighbours(target, SHORTFALL * target)
            weights = [snapshots.weights(index) for index in fractions]
            tensors |= pack(quality, weights, list(fractions.values()), config.noise)
            choices[quality] = {"config": asdict(config), **snapshots.choices(target, fractions)}
    return tensors, choices


def pack(
    quality: str, snapshots: Sequence[Mapping[str, Tensor]], fractions: Sequence[float], noise: float
) -> dict[str, Tensor]:
    """The policy file's tensors of one quality."""
    log_std = torch.full((len(snapshots), len(snapshots[0]["layers.2.bias"])), math.log(noise))
    return policy_tensors(quality, snapshots, fractions, log_std=log_std)


if __name__ == "__main__":
    mappo.main(__doc__, TRAININGS, train, select)
