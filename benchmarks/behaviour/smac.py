"""Trains the behaviour policies of the native SMAC datasets: MAPPO on the embedded simulator.

Multi-agent PPO (Yu et al. 2022, arXiv 2103.01955): one actor shared by the agents, on an agent's own observation and
its number, legal actions only; one critic on the global state. Feed-forward: the shipped policies then depend on the
present observation alone. Every iteration plays whole episodes, so that no value is needed where a batch ends.

    python -m marl_flow.benchmarks.behaviour.smac train smac/3m --out runs/battles
    python -m marl_flow.benchmarks.behaviour.smac select smac/3m --out runs/battles

What plays is a mixture: with probability epsilon a uniform legal action, else one drawn from the network's softmax.
Policies that are trained without the uniform part are brittle here: they win nearly always, and half as often with it.
Training draws at temperature 1; measurements and datasets nearly take the likeliest action, as the published behaviour
does, whose exploration is epsilon alone. Data drawn at 1 would mislead: in early training the likeliest action wins
battles that draws lose, so that cloning the data beats them.

`train` keeps an actor every few iterations, with what it returns; a killed one continues. `select` mixes, for each
quality, two actors around the published mean so that they meet it, and writes the policy file that datasets/native.py
reads, with the choices beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from marl_flow import seeding
from marl_flow.benchmarks import suite
from marl_flow.benchmarks.behaviour.snapshots import KeptActors, actor_file, read_record, write_policies
from marl_flow.envs.smac.env import SmacEnv
from marl_flow.interfaces import TaskSpec, TimeStep, UserError
from marl_flow.module_state import pack_state, unpack_state

log = logging.getLogger(__name__)

QUALITIES = ("good", "medium", "poor")
SELECT_EPISODES = 4000
SHORTFALL = 0.25
"""By how much a dataset's mean return may stay below the published one, of a tolerance of 0.5."""


@dataclass(frozen=True, kw_only=True)
class BattleConfig:
    """Settings of MAPPO; discounts per step."""

    iterations: int = 300
    episodes: int = 256
    """Whole episodes per iteration."""
    hidden: int = 64
    critic_hidden: int = 128
    learning_rate: float = 7e-4
    epochs: int = 5
    minibatches: int = 8
    clip: float = 0.2
    epsilon: float = 0.05
    """Probability of a uniform legal action: the published behaviour policies' (`instadeepai/og-marl:
    docs/dataset_cards/og_marl.md`)."""
    temperature: float = 0.05
    """Logits are divided by this where actors are measured and data collected."""
    entropy: float = 0.01
    discount: float = 0.99
    trace: float = 0.95
    """Lambda of the generalised advantages."""
    gradient_clip: float = 10.0
    keep_every: int = 1
    """Iterations between kept actors."""
    measure_episodes: int = 512
    seed: int = 0


CONFIGS: dict[str, BattleConfig] = {
    "smac/3m": BattleConfig(iterations=100),
    "smac/8m": BattleConfig(iterations=70),
    "smac/2s3z": BattleConfig(iterations=50),
    # with 0.05 the best policy found returned 13, and the published good data 16.6
    "smac/5m_vs_6m": BattleConfig(iterations=590, keep_every=5, minibatches=12, learning_rate=1e-3, epsilon=0.02),
}
REWARD_UNIT = 10.0
"""Rewards are divided by this for the critic: a clean win is worth 2."""


class Actor(nn.Module):
    """Logits [..., N, A] of observations [..., N, O] and the agents' numbers; a tanh after every hidden layer."""

    def __init__(self, spec: TaskSpec, hidden: int) -> None:
        super().__init__()
        self.num_agents = spec.num_agents
        sizes = [spec.observation_size + spec.num_agents, hidden, hidden, spec.action.size]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))
        with torch.no_grad():
            self.layers[-1].get_parameter("weight").mul_(0.01)

    def forward(self, observations: Tensor) -> Tensor:
        numbers = torch.eye(self.num_agents).expand(*observations.shape[:-1], self.num_agents)
        x = torch.cat([observations, numbers], dim=-1)
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)


class Critic(nn.Sequential):
    """Value [..., 1] of a state [..., S] and the share of the time that has passed."""

    def __init__(self, spec: TaskSpec, hidden: int) -> None:
        assert spec.state_size is not None
        super().__init__(
            nn.Linear(spec.state_size + 1, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 1),
        )


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """What E whole episodes of T steps showed; entries past an episode's end are not `real` [T, E].

    observations [T, E, N, O], states [T, E, S + 1], masks [T, E, N, A], actions [T, E, N], rewards [T, E];
    returns [E] undiscounted, won [E].
    """

    observations: Tensor
    states: Tensor
    masks: Tensor
    actions: Tensor
    rewards: Tensor
    real: Tensor
    returns: Tensor
    won: Tensor


@torch.no_grad()
def play(
    env: SmacEnv,
    actor: Actor,
    seeds: tuple[int, ...],
    generator: torch.Generator,
    epsilon: float,
    temperature: float = 1.0,
) -> Episodes:
    """Whole episodes."""
    step = env.reset(seeds)
    frames: list[tuple[Tensor, ...]] = []
    while not step.finished.all():
        actions = choose(actor, step, generator, epsilon, temperature)
        real = ~step.finished
        assert step.state is not None and step.action_mask is not None
        now = step.state.new_full((len(seeds), 1), len(frames) / env.spec.max_steps)
        after = env.step(actions)
        seen = (step.observations, torch.cat([step.state, now], dim=-1), step.action_mask)
        frames.append((*seen, actions, after.rewards[:, 0], real))
        step = after
    observations, states, masks, actions, rewards, real = (torch.stack(part) for part in zip(*frames, strict=True))
    assert step.won is not None
    return Episodes(
        observations=observations,
        states=states,
        masks=masks,
        actions=actions,
        rewards=rewards,
        real=real,
        returns=rewards.sum(0),
        won=step.won,
    )


def choose(actor: Actor, step: TimeStep, generator: torch.Generator, epsilon: float, temperature: float) -> Tensor:
    """Legal actions [E, N]; only rows that are not over are worked out, the others take their first legal action."""
    assert step.action_mask is not None
    legal = step.action_mask
    actions = legal.float().argmax(-1)
    rows = (~step.finished).nonzero()[:, 0]
    chances = log_chances(actor(step.observations[rows]) / temperature, legal[rows], epsilon)
    noise = -torch.log(-torch.log(torch.rand(chances.shape, generator=generator).clamp_(1e-9, 1 - 1e-7)))
    actions[rows] = (chances + noise).argmax(-1)
    return actions


def log_chances(logits: Tensor, legal: Tensor, epsilon: float) -> Tensor:
    """Log probabilities [..., A] of the mixture that plays; a large negative number where an action is not legal."""
    own = logits.masked_fill(~legal, torch.finfo(logits.dtype).min).softmax(-1)
    uniform = legal / legal.sum(-1, keepdim=True)
    return ((1 - epsilon) * own + epsilon * uniform).clamp_min(1e-12).log()


def advantages(config: BattleConfig, episodes: Episodes, values: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised advantages and value targets, [T, E]; values [T, E]. What follows an episode's end is worth 0."""
    rewards, real = episodes.rewards / REWARD_UNIT, episodes.real.float()
    following = torch.zeros_like(values[0])
    carried = torch.zeros_like(values[0])
    result = torch.zeros_like(values)
    for t in reversed(range(len(values))):
        surprise = rewards[t] + config.discount * following - values[t]
        carried = (surprise + config.discount * config.trace * carried) * real[t]
        result[t] = carried
        following = values[t] * real[t]
    return result, result + values


def improve(
    config: BattleConfig,
    actor: Actor,
    critic: Critic,
    optimizer: torch.optim.Optimizer,
    episodes: Episodes,
    generator: torch.Generator,
) -> dict[str, float]:
    """One iteration's epochs of PPO; returns the last losses."""
    with torch.no_grad():
        values = critic(episodes.states)[..., 0]
        advantage, target = advantages(config, episodes, values)
        chosen = episodes.real
        observations, masks, actions = episodes.observations[chosen], episodes.masks[chosen], episodes.actions[chosen]
        states, advantage, target = episodes.states[chosen], advantage[chosen], target[chosen]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-5)
        alive = ~masks[..., 0]  # the dead may do nothing else than nothing
        before = log_chances(actor(observations), masks, config.epsilon).gather(-1, actions[..., None])[..., 0]
    last = {}
    for _ in range(config.epochs):
        order = torch.randperm(len(states), generator=generator)
        for part in order.chunk(config.minibatches):
            chances = log_chances(actor(observations[part]), masks[part], config.epsilon)
            own = alive[part].float()
            ratio = (chances.gather(-1, actions[part][..., None])[..., 0] - before[part]).exp()
            gain = advantage[part][:, None]
            kept = torch.minimum(ratio * gain, ratio.clamp(1 - config.clip, 1 + config.clip) * gain)
            entropy = -(chances.exp() * chances).sum(-1)
            actor_loss = -((kept + config.entropy * entropy) * own).sum() / own.sum()
            value_loss = functional.huber_loss(critic(states[part])[..., 0], target[part])
            optimizer.zero_grad(set_to_none=True)
            (actor_loss + value_loss).backward()
            nn.utils.clip_grad_norm_(actor.parameters(), config.gradient_clip)
            nn.utils.clip_grad_norm_(critic.parameters(), config.gradient_clip)
            optimizer.step()
            last = {
                "entropy": float((entropy.detach() * own).sum() / own.sum()),
                "value_loss": float(value_loss.detach()),
            }
    return last


def train(task_id: str, config: BattleConfig, folder: Path) -> None:
    """Trains to the last iteration, keeping actors and their record under `folder`; continues what is there."""
    env = SmacEnv(task_id, config.episodes)
    judge = SmacEnv(task_id, config.measure_episodes)
    generator = seeding.generator(config.seed, "battles", task_id)
    with seeding.global_scope(generator):
        actor, critic = Actor(env.spec, config.hidden), Critic(env.spec, config.critic_hidden)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=config.learning_rate, eps=1e-5)
    parts: dict[str, nn.Module | torch.optim.Optimizer] = {"actor": actor, "critic": critic, "optimizer": optimizer}
    kept, first = KeptActors(folder, task_id, config), 0
    if (state := kept.resume()) is not None:
        generator.set_state(state.pop("generator"))
        first = unpack_state(parts, state)
    for iteration in range(first, config.iterations + 1):
        if iteration % config.keep_every == 0:
            now = {**pack_state(parts, iteration), "generator": generator.get_state()}
            row = kept.keep(iteration, rounded(actor), measure(judge, actor, config), now)
            log.info("%s %s", task_id, json.dumps(row))
        if iteration == config.iterations:
            return
        seeds = seeding.environment_seeds("behaviour", config.seed, config.episodes, start=iteration * config.episodes)
        episodes = play(env, actor, seeds, generator, config.epsilon)
        losses = improve(config, actor, critic, optimizer, episodes, generator)
        log.info("%d: return %.2f %s", iteration, float(episodes.returns.mean()), losses)


def rounded(actor: Actor) -> dict[str, Tensor]:
    """An actor's weights as shipped, float16."""
    return {name: value.half() for name, value in actor.state_dict().items()}


def measure(env: SmacEnv, actor: Actor, config: BattleConfig) -> dict[str, float]:
    """What the rounded actor returns, as the datasets play it, over episodes that no training and no dataset uses."""
    judged = Actor(env.spec, config.hidden)
    judged.load_state_dict({name: value.float() for name, value in rounded(actor).items()})
    seeds = seeding.environment_seeds("behaviour", config.seed + 1, env.num_envs)
    generator = seeding.generator(config.seed, "measure")
    episodes = play(env, judged, seeds, generator, config.epsilon, config.temperature)
    return {
        "return": round(float(episodes.returns.mean()), 3),
        "std": round(float(episodes.returns.std()), 3),
        "won": round(float(episodes.won.float().mean()), 3),
        "length": round(float(episodes.real.sum(0).float().mean()), 2),
    }


def load(folder: Path, iteration: int, spec: TaskSpec, config: BattleConfig) -> Actor:
    """A kept actor, its weights as shipped."""
    actor = Actor(spec, config.hidden)
    weights = load_file(actor_file(folder, iteration))
    actor.load_state_dict({name: value.float() for name, value in weights.items()})
    return actor.requires_grad_(False)


def select(task_id: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The policy file's tensors and the choices behind them.

    Of each quality: the last kept actor before training first passed the published mean and the first from there on
    whose means, measured again over more episodes, lie below and above it; the later one plays as many of the episodes
    as brings the mean to the target. Where none of the later ones passes it but the best comes within SHORTFALL, that
    one plays alone.
    """
    record = read_record(folder)
    config = BattleConfig(**record["config"])
    kept = record["kept"]
    judge = SmacEnv(task_id, SELECT_EPISODES)
    measured: dict[int, dict[str, float]] = {}

    def actor(index: int) -> Actor:
        return load(folder, int(kept[index]["iteration"]), judge.spec, config)

    def mean(index: int) -> float:
        if index not in measured:
            measured[index] = measure(judge, actor(index), config)
        return measured[index]["return"]

    tensors: dict[str, Tensor] = {}
    choices: dict[str, object] = {"config": asdict(config)}
    for quality in QUALITIES:
        target = suite.dataset_means()[f"{task_id}/{quality}"]
        passed = next((index for index, row in enumerate(kept) if row["return"] >= target), len(kept))
        early = next((index for index in reversed(range(passed)) if mean(index) < target), None)
        late = next((index for index in range(passed, len(kept)) if mean(index) > target), None)
        if late is None:
            late = max(range(len(kept)), key=lambda index: kept[index]["return"])
        if early is None or mean(late) < target - SHORTFALL:
            best = max(row["return"] for row in kept)
            raise UserError(f"{task_id}: expected training to pass {target} ({quality}), it reached {best}; train on")
        share = min(1.0, (target - mean(early)) / (mean(late) - mean(early)))
        chosen = {early: 1 - share, late: share} if share < 1 else {late: 1.0}
        tensors |= _pack(quality, [actor(index) for index in chosen], list(chosen.values()), config)
        choices[quality] = {
            "target": target,
            "actors": [
                {"iteration": int(kept[index]["iteration"]), "share": part, **measured[index]}
                for index, part in chosen.items()
            ],
        }
    return tensors, choices


def _pack(quality: str, actors: list[Actor], shares: list[float], config: BattleConfig) -> dict[str, Tensor]:
    """The policy file's tensors of one quality (datasets/behaviour.py)."""
    tensors = {
        f"layer{i}.{part}": torch.stack([actor.layers[i].get_parameter(part) for actor in actors]).half()
        for i in range(len(actors[0].layers))
        for part in ("weight", "bias")
    }
    tensors["epsilon"] = torch.full((len(actors),), config.epsilon)
    tensors["temperature"] = torch.full((len(actors),), config.temperature)
    tensors["episodes_share"] = torch.tensor(shares)
    return {f"{quality}/{name}": value for name, value in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "select"))
    parser.add_argument("task", choices=sorted(CONFIGS))
    parser.add_argument("--out", type=Path, required=True, help="folder for kept actors, the policy file and its log")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # the sum order, hence the weights, must not depend on the machine's core count
    name = arguments.task.replace("/", "_")
    if arguments.command == "train":
        train(arguments.task, CONFIGS[arguments.task], arguments.out / name)
        return
    tensors, choices = select(arguments.task, arguments.out / name)
    log.info("%s", write_policies(arguments.out / name, tensors, choices))


if __name__ == "__main__":
    main()
