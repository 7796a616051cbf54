"""Trains the behaviour policies of the native SMAC datasets: MAPPO on the embedded simulator.

    python -m marl_flow.benchmarks.behaviour.smac train smac/3m --out runs/behaviour
    python -m marl_flow.benchmarks.behaviour.smac select smac/3m --out runs/behaviour

`train` takes a snapshot of the actor every few iterations and measures its return; a killed training resumes. `select`
mixes, for each quality, two snapshots around the published mean so that they meet it, and writes the policy file that
datasets/native.py reads, with the choices beside it.

MAPPO (mappo.py): the actor sees an agent's own observation and its number and takes legal actions only; the critic sees
the global state. Both are feed-forward: the shipped policies then depend on the present observation alone. Every
iteration plays whole episodes, so that no value is needed where a batch ends.

The policy that acts is a mixture: with probability epsilon a uniform legal action, else one drawn from the network's
softmax. Policies trained without the uniform part are brittle here: they win nearly always, and half as often with it.
Training draws at temperature 1. Measurements and datasets nearly take the most likely action, as the published
behaviour does, whose exploration is epsilon alone. Data drawn at temperature 1 would mislead: early in training the
most likely action wins battles that sampled actions lose, so that cloning the data beats them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from marl_flow import seeding
from marl_flow.benchmarks import suite
from marl_flow.benchmarks.behaviour import mappo
from marl_flow.benchmarks.behaviour.mappo import Batch, MappoConfig, clipped_objective, generalized_advantages
from marl_flow.benchmarks.behaviour.snapshots import EvaluatedSnapshots, PolicyNetwork, policy_tensors, read_record
from marl_flow.envs.smac.env import SmacEnv
from marl_flow.interfaces import TaskSpec, TimeStep
from marl_flow.rollout import rollout

QUALITIES = ("good", "medium", "poor")
SELECT_EPISODES = 4000
SHORTFALL = 0.25
"""By how much a dataset's mean return may stay below the published one, of a tolerance of 0.5."""
REWARD_UNIT = 10.0
"""Rewards are divided by this for the critic: a clean win is worth 2."""


@dataclass(frozen=True, kw_only=True)
class BattleConfig(MappoConfig):
    """Settings of the training."""

    iterations: int = 300
    episodes: int = 256
    """Whole episodes per iteration."""
    critic_hidden: int = 128
    learning_rate: float = 7e-4
    epochs: int = 5
    minibatches: int = 8
    """Minibatches per epoch."""
    epsilon: float = 0.05
    """Probability of a uniform legal action: the published behaviour policies' (`instadeepai/og-marl:
    docs/dataset_cards/og_marl.md`)."""
    temperature: float = 0.05
    """Logits are divided by this where snapshots are measured and data collected."""
    entropy: float = 0.01
    """Weight of the policy's entropy in the objective."""
    gradient_clip: float = 10.0
    snapshot_every: int = 1
    measure_episodes: int = 512


CONFIGS: dict[str, BattleConfig] = {
    "smac/3m": BattleConfig(iterations=100),
    "smac/8m": BattleConfig(iterations=70),
    "smac/2s3z": BattleConfig(iterations=50),
    # with an epsilon of 0.05 the best policy returned 13; the published good data have 16.6
    "smac/5m_vs_6m": BattleConfig(iterations=590, snapshot_every=5, minibatches=12, learning_rate=1e-3, epsilon=0.02),
}


class Actor(PolicyNetwork):
    """Logits [..., N, A] of observations [..., N, O], to which the agents' numbers are appended, one-hot."""

    def __init__(self, spec: TaskSpec, hidden: int) -> None:
        super().__init__([spec.observation_size + spec.num_agents, hidden, hidden, spec.action.size], 0.01)
        self.num_agents = spec.num_agents

    def forward(self, observations: Tensor) -> Tensor:
        agent_ids = torch.eye(self.num_agents).expand(*observations.shape[:-1], self.num_agents)
        return super().forward(torch.cat([observations, agent_ids], dim=-1))


def log_probabilities(logits: Tensor, legal: Tensor, epsilon: float) -> Tensor:
    """Log probabilities [..., A] of the mixture that acts; a large negative number where an action is not legal."""
    network = logits.masked_fill(~legal, torch.finfo(logits.dtype).min).softmax(-1)
    uniform = legal / legal.sum(-1, keepdim=True)
    return ((1 - epsilon) * network + epsilon * uniform).clamp_min(1e-12).log()


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """E whole episodes of T steps; entries after an episode's end are not `valid` [T, E].

    observations [T, E, N, O], states [T, E, S + 1] (the last: the fraction of the step limit that has passed), masks
    [T, E, N, A], actions [T, E, N], rewards [T, E]; returns [E] undiscounted, won [E].
    """

    observations: Tensor
    states: Tensor
    masks: Tensor
    actions: Tensor
    rewards: Tensor
    valid: Tensor
    returns: Tensor
    won: Tensor


class RecordingPlayer:
    """A policy that also observes its rollout, [E, ...] per step: it acts only in rows that are not over."""

    network_passes = 1

    def __init__(self, actor: Actor, max_steps: int, epsilon: float, temperature: float) -> None:
        self.actor, self.max_steps, self.epsilon, self.temperature = actor, max_steps, epsilon, temperature
        self.frames: list[tuple[Tensor, ...]] = []
        self.step: TimeStep | None = None

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self.generator = generator

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        """Legal choices [E, N]; rows that are over take their first legal one."""
        assert self.step is not None and action_mask is not None
        actions = action_mask.float().argmax(-1)
        rows = (~self.step.finished).nonzero()[:, 0]
        logits = self.actor(observations[rows]) / self.temperature
        log_probs = log_probabilities(logits, action_mask[rows], self.epsilon)
        uniform = torch.rand(log_probs.shape, generator=self.generator).clamp_(1e-9, 1 - 1e-7)
        actions[rows] = (log_probs - torch.log(-torch.log(uniform))).argmax(-1)  # the Gumbel trick
        return actions

    def observe(self, step: TimeStep, actions: Tensor | None) -> None:
        """Records a step: what was shown before it, the actions, and the rewards."""
        if actions is not None:
            before = self.step
            assert before is not None and before.state is not None and before.action_mask is not None
            time = before.state.new_full((len(actions), 1), len(self.frames) / self.max_steps)
            shown = (before.observations, torch.cat([before.state, time], dim=-1), before.action_mask)
            self.frames.append((*shown, actions, step.rewards[:, 0], ~before.finished))
        self.step = step

    def episodes(self) -> Episodes:
        observations, states, masks, actions, rewards, valid = (
            torch.stack(values) for values in zip(*self.frames, strict=True)
        )
        assert self.step is not None and self.step.won is not None
        return Episodes(
            observations=observations,
            states=states,
            masks=masks,
            actions=actions,
            rewards=rewards,
            valid=valid,
            returns=rewards.sum(0),
            won=self.step.won,
        )


def play(
    env: SmacEnv,
    actor: Actor,
    seeds: tuple[int, ...],
    generator: torch.Generator,
    epsilon: float,
    temperature: float = 1.0,
) -> Episodes:
    """One whole episode per seed."""
    player = RecordingPlayer(actor, env.spec.max_steps, epsilon, temperature)
    player.reset(len(seeds), generator)
    rollout(env, player, seeds, player.observe)
    return player.episodes()


def advantages(config: BattleConfig, episodes: Episodes, values: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised advantages and value targets, [T, E]; values [T, E]. What follows an episode's end is worth 0."""
    after_last = torch.zeros_like(values[:1])
    continues = torch.cat([episodes.valid[1:], torch.zeros_like(episodes.valid[:1])])
    next_values = torch.cat([values[1:], after_last]) * continues
    rewards = episodes.rewards / REWARD_UNIT
    result = generalized_advantages(config, rewards, values, next_values, ~continues) * episodes.valid
    return result, result + values


class BattleLearner(mappo.Learner):
    """MAPPO on one map."""

    config: BattleConfig

    def __init__(self, task_id: str, config: BattleConfig) -> None:
        self.env, self.measure_env = SmacEnv(task_id, config.episodes), SmacEnv(task_id, config.measure_episodes)
        assert self.env.spec.state_size is not None
        generator = seeding.generator(config.seed, "battles", task_id)
        with seeding.global_scope(generator):
            self.actor = Actor(self.env.spec, config.hidden)
            self.critic = mappo.critic_network(self.env.spec.state_size + 1, config.critic_hidden)
        groups = [list(self.actor.parameters()), list(self.critic.parameters())]
        super().__init__(task_id, config, self.actor, self.critic, generator, groups)

    @torch.no_grad()
    def collect(self, iteration: int) -> tuple[Batch, dict[str, float]]:
        config, count = self.config, self.config.episodes
        seeds = seeding.environment_seeds("behaviour", config.seed, count, start=iteration * count)
        episodes = play(self.env, self.actor, seeds, self.generator, config.epsilon)
        advantage, value_target = advantages(config, episodes, self.critic(episodes.states)[..., 0])
        valid = episodes.valid
        observations, masks, actions = episodes.observations[valid], episodes.masks[valid], episodes.actions[valid]
        advantage, log_probs = advantage[valid], log_probabilities(self.actor(observations), masks, config.epsilon)
        batch = Batch(
            observations=observations,
            states=episodes.states[valid],
            actions=actions,
            log_probs=log_probs.gather(-1, actions[..., None])[..., 0],
            advantages=(advantage - advantage.mean()) / (advantage.std() + 1e-5),
            value_targets=value_target[valid],
            action_mask=masks,
        )
        return batch, {"return": round(float(episodes.returns.mean()), 2)}

    def minibatch_size(self, num_steps: int) -> int:
        return -(-num_steps // self.config.minibatches)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.action_mask is not None
        alive = (~batch.action_mask[..., 0]).float()  # [M, N]; only the dead have action 0, and it alone
        log_probs = log_probabilities(self.actor(batch.observations), batch.action_mask, self.config.epsilon)
        chosen = log_probs.gather(-1, batch.actions[..., None])[..., 0]
        objective = clipped_objective(self.config, chosen, batch.log_probs, batch.advantages[:, None])
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        actor_loss = -((objective + self.config.entropy * entropy) * alive).sum() / alive.sum()
        value_loss = functional.huber_loss(self.critic(batch.states)[..., 0], batch.value_targets)
        return actor_loss + value_loss, {"entropy": (entropy * alive).sum() / alive.sum(), "value_loss": value_loss}

    def export(self) -> dict[str, Tensor]:
        return self.actor.float16_layers()

    def measure(self) -> dict[str, float]:
        return measure(self.measure_env, self.export(), self.config)


def measure(env: SmacEnv, weights: dict[str, Tensor], config: BattleConfig) -> dict[str, float]:
    """What an exported actor returns, played as in the datasets, over episodes that no training and no dataset uses."""
    actor = Actor(env.spec, config.hidden).requires_grad_(False)
    actor.load_state_dict({name: value.float() for name, value in weights.items()})
    seeds = seeding.environment_seeds("behaviour", config.seed + 1, env.num_envs)
    generator = seeding.generator(config.seed, "measure")
    episodes = play(env, actor, seeds, generator, config.epsilon, config.temperature)
    return {
        "return": round(float(episodes.returns.mean()), 3),
        "std": round(float(episodes.returns.std()), 3),
        "won": round(float(episodes.won.float().mean()), 3),
        "length": round(float(episodes.valid.sum(0).float().mean()), 2),
    }


def training_folder(task_id: str, out: Path) -> Path:
    return out / task_id.replace("/", "_")


def train(task_id: str, out: Path) -> None:
    """Trains to the last iteration, in a folder below `out`."""
    BattleLearner(task_id, CONFIGS[task_id]).train(training_folder(task_id, out))


def select(task_id: str, out: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The policy file's tensors and the choices that led to them, of the training below `out`."""
    folder = training_folder(task_id, out)
    config = BattleConfig(**read_record(folder)["config"])
    env = SmacEnv(task_id, SELECT_EPISODES)
    snapshots = EvaluatedSnapshots(folder, lambda weights: measure(env, weights, config))
    tensors: dict[str, Tensor] = {}
    choices: dict[str, object] = {"config": asdict(config)}
    for quality in QUALITIES:
        target = suite.dataset_means()[f"{task_id}/{quality}"]
        fractions = snapshots.around_first_pass(target, SHORTFALL)
        tensors |= policy_tensors(
            quality,
            [snapshots.weights(index) for index in fractions],
            list(fractions.values()),
            epsilon=torch.full((len(fractions),), config.epsilon),
            temperature=torch.full((len(fractions),), config.temperature),
        )
        choices[quality] = snapshots.choices(target, fractions)
    return tensors, choices


if __name__ == "__main__":
    mappo.main(__doc__, CONFIGS, train, select)
