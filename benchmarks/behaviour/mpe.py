"""Trains the behaviour policies of the native MPE datasets: analytic policy gradients.

    python -m marl_flow.benchmarks.behaviour.mpe mpe/simple_spread --out runs/behaviour

trains, selects the snapshots that meet the published dataset means, and writes the policy file that datasets/native.py
reads, with a log of every choice beside it.

The particle environments are differentiable torch programs, so the actor climbs the exact gradient of its episodes'
return, back through the physics. Homogeneous agents share one actor on their own observations; exploration noise is
added to its action and falls over training. A shaping term helps where the reward's gradient leads nowhere, and is
never part of a reported return. Every iteration's actor is kept, so that a medium-replay dataset can be what its name
says: the data that training had collected when it reached the medium policy, in training order.

Predators of tag and world hunt the prey that this package ships (prey.py); their gradients are cut every few steps,
because they explode through many contacts.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from marl_flow import seeding
from marl_flow.benchmarks import suite
from marl_flow.benchmarks.behaviour.prey import BONUS, contact, cut_gradient, prey_columns
from marl_flow.benchmarks.behaviour.snapshots import PolicyNetwork, policy_tensors, write_policies
from marl_flow.envs.mpe.env import ParticleEnv
from marl_flow.envs.mpe.scenarios import find_scenario
from marl_flow.interfaces import TaskSpec, UserError

log = logging.getLogger(__name__)

MEASURE_EPISODES = 4000


@dataclass(frozen=True, kw_only=True)
class BehaviourConfig:
    """Settings of behaviour training; the defaults are those of spread."""

    iterations: int = 450
    schedule_iterations: int = 1000
    """The learning rate falls linearly to zero over this many iterations; training stops earlier."""
    warmup_iterations: int = 0
    """The learning rate also rises linearly from zero over these."""
    episodes: int = 512
    hidden: int = 128
    learning_rate: float = 4e-3
    gradient_clip: float = 0.5
    first_noise: float = 1.5
    last_noise: float = 0.3
    noise_iterations: int = 200
    """Exploration noise (standard deviation, before clipping to the bounds) falls linearly over these."""
    gradient_steps: int = 25
    """Steps that a gradient passes back through."""
    replay_stride: int = 5
    """Every such actor of those that collected replay data is shipped; it plays the skipped ones' episodes too."""
    seed: int = 0

    def rate(self, iteration: int) -> float:
        warm = min(1.0, (iteration + 1) / (self.warmup_iterations + 1))
        return self.learning_rate * warm * (1 - iteration / self.schedule_iterations)

    def noise(self, iteration: int) -> float:
        progress = min(1.0, iteration / self.noise_iterations)
        return self.first_noise + (self.last_noise - self.first_noise) * progress


class Actor(PolicyNetwork):
    """Mean action in [-1, 1]^A of observations [..., O]."""

    def __init__(self, spec: TaskSpec, hidden: int) -> None:
        super().__init__([spec.observation_size, hidden, hidden, spec.action.size], 0.01)
        self.observation_mean = nn.Buffer(torch.zeros(spec.observation_size))
        self.observation_std = nn.Buffer(torch.ones(spec.observation_size))

    def forward(self, observations: Tensor) -> Tensor:
        return torch.tanh(super().forward((observations - self.observation_mean) / self.observation_std))

    def export(self) -> dict[str, Tensor]:
        """Tensors as policy files hold them."""
        statistics = {"observation_mean": self.observation_mean, "observation_std": self.observation_std}
        return {**self.float16_layers(), **statistics}


def spread_shaping(observations: Tensor) -> Tensor:
    """Per-agent shaping [E, N] of simple_spread observations [E, N, 18], post-step.

    Nearness to the landmark that the cheapest assignment of agents to landmarks gives the agent: the reward itself
    pulls only each landmark's nearest agent. Landmarks relative to the agent are entries 4 to 10.
    """
    agents = observations.shape[1]
    distances = observations[..., 4:10].unflatten(-1, (3, 2)).norm(dim=-1)  # [E, N, landmark]
    orders = torch.tensor(list(itertools.permutations(range(agents))))
    costs = distances[:, torch.arange(agents), orders].sum(-1)  # [E, orders]
    own = orders[costs.detach().argmin(-1)]  # [E, N]
    distance = distances.gather(2, own[..., None])[..., 0]
    return 0.1 * (0.1 / (distance + 0.1) - distance)


def hunt_shaping(task_id: str, observations: Tensor) -> Tensor:
    """Per-agent shaping [E, N] of a predator's observations [E, N, O] in tag or world, post-step.

    The bonus for a contact of its own, made smooth, and the nearness of the prey.
    """
    layout = find_scenario(task_id)
    distance = observations[..., prey_columns(layout)][..., :2].square().sum(-1).add(1e-8).sqrt()
    return BONUS[task_id] * contact(distance, layout.radii[0] + layout.radii[3]) - 0.3 * distance


SHAPING: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "mpe/simple_spread": (spread_shaping, 0.003),
    "mpe/simple_tag": (partial(hunt_shaping, "mpe/simple_tag"), 0.0),
    "mpe/simple_world": (partial(hunt_shaping, "mpe/simple_world"), 0.0),
}
"""Task id -> (shaping, weight of the task's own reward beside it)."""

_HUNT = BehaviourConfig(
    iterations=280,
    schedule_iterations=450,
    warmup_iterations=120,
    first_noise=4.0,
    last_noise=0.2,
    noise_iterations=110,
    gradient_steps=6,
)
CONFIGS: dict[str, BehaviourConfig] = {
    "mpe/simple_spread": BehaviourConfig(),
    "mpe/simple_tag": _HUNT,
    "mpe/simple_world": _HUNT,
}


def play(
    env: ParticleEnv,
    actor: Callable[[Tensor], Tensor],
    noise: float,
    seeds: tuple[int, ...],
    generator: torch.Generator,
    gradient_steps: int = 25,
) -> tuple[Tensor, list[Tensor]]:
    """Per-agent returns [E, N] and the observations [E, N, O] after each step; differentiable through the actor.

    Actions are clipped to the bounds in value, while the gradient passes as if they were not. It is cut every
    gradient_steps steps.
    """
    first = env.reset(seeds)
    observations, returns = [first.observations], torch.zeros_like(first.rewards)
    for count in range(env.spec.max_steps):
        mean = actor(cut_gradient(env) if count and count % gradient_steps == 0 else observations[-1])
        action = mean + noise * torch.randn(mean.shape, generator=generator)
        action = action + (env.spec.action.clip(action) - action).detach()
        step = env.step(action)
        returns = returns + step.rewards
        observations.append(step.observations)
    return returns, observations[1:]


def train(task_id: str, config: BehaviourConfig) -> list[Actor]:
    """The actor before each iteration, in order, and the final one."""
    env = ParticleEnv(task_id, config.episodes)
    shaping, reward_weight = SHAPING[task_id]
    generator = seeding.generator(config.seed, "behaviour", task_id)
    with seeding.global_scope(generator):
        actor = Actor(env.spec, config.hidden)
    with torch.no_grad():  # fixed input statistics: those of agents that start at random positions and hardly move
        first = env.reset(seeding.environment_seeds("behaviour", config.seed, config.episodes))
        actor.observation_std.fill_(float(first.observations[..., 2:].std()))
    optimizer = torch.optim.Adam(actor.parameters(), lr=config.learning_rate)
    actors = []
    for iteration in range(config.iterations):
        actors.append(clone(actor))
        start = (iteration + 1) * config.episodes
        seeds = seeding.environment_seeds("behaviour", config.seed, config.episodes, start=start)
        returns, observations = play(env, actor, config.noise(iteration), seeds, generator, config.gradient_steps)
        objective = torch.stack([shaping(after_step) for after_step in observations]).sum(0).mean()
        objective = objective + reward_weight * returns.mean()
        optimizer.zero_grad(set_to_none=True)
        (-objective).backward()
        nn.utils.clip_grad_norm_(actor.parameters(), config.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = config.rate(iteration)
        optimizer.step()
        if iteration % 10 == 0:
            log.info(
                "iteration %d: return %.1f at noise %.2f", iteration, returns.detach().mean(), config.noise(iteration)
            )
    return [*actors, clone(actor)]


def clone(actor: Actor) -> Actor:
    """A frozen copy whose weights are rounded to float16, as shipped."""
    result = copy.deepcopy(actor).requires_grad_(False)
    for parameter in result.parameters():
        parameter.copy_(parameter.half().float())
    return result


@torch.no_grad()
def measure(task_id: str, actor: Actor, noise: float, seed: int) -> float:
    """Mean team return over episodes that no training and no dataset uses."""
    env = ParticleEnv(task_id, MEASURE_EPISODES)
    seeds = seeding.environment_seeds("behaviour", seed + 1, MEASURE_EPISODES)
    returns, _ = play(env, actor, noise, seeds, seeding.generator(seed, "measure", task_id))
    return float(env.spec.team_return(returns).mean())


def fit_noise(task_id: str, actor: Actor, target: float, seed: int) -> float:
    """The noise at which the actor's mean return is the target, by bisection (more noise, less return)."""
    low, high = 0.0, 2.0
    if not measure(task_id, actor, high, seed) < target < measure(task_id, actor, low, seed):
        raise UserError(
            f"{task_id}: expected an exploration noise in [{low}, {high}] at which the last actor returns {target}, "
            "found none; change the settings of its training"
        )
    for _ in range(12):
        middle = (low + high) / 2
        if measure(task_id, actor, middle, seed) > target:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def pack(quality: str, actors: list[Actor], noises: list[float]) -> dict[str, Tensor]:
    """The policy file's tensors of one quality; the snapshots collect equally many episodes."""
    size, action_size = len(actors), len(actors[0].layers[-1].get_parameter("bias"))
    log_std = torch.tensor(noises).log()[:, None].expand(size, action_size)
    return policy_tensors(quality, [actor.export() for actor in actors], [1.0 / size] * size, log_std=log_std)


def select(task_id: str, config: BehaviourConfig, actors: list[Actor]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The policy file's tensors and the choices that led to them.

    expert: the last actor, its noise fitted to the published mean. medium: the first actor whose return at its own
    training noise reaches the published mean. medium-replay: the actors before it, each with its own noise.
    """
    means = {quality: suite.dataset_means()[f"{task_id}/{quality}"] for quality in ("expert", "medium")}
    expert_noise = fit_noise(task_id, actors[-1], means["expert"], config.seed)
    medium = 0
    while (reached := measure(task_id, actors[medium], config.noise(medium), config.seed)) < means["medium"]:
        medium += 1
        if medium == len(actors):
            raise UserError(
                f"{task_id}: expected training to reach the medium mean {means['medium']}, found {reached:.1f} at its "
                "end; train for more iterations"
            )
    replay = list(range(0, medium, config.replay_stride))
    tensors = pack("expert", actors[-1:], [expert_noise])
    tensors |= pack("medium", [actors[medium]], [config.noise(medium)])
    tensors |= pack("medium-replay", [actors[i] for i in replay], [config.noise(i) for i in replay])
    returns = [measure(task_id, actors[i], config.noise(i), config.seed) for i in replay]
    return tensors, {
        "config": asdict(config),
        "expert": {"iteration": len(actors) - 1, "noise": expert_noise},
        "expert_return_without_noise": measure(task_id, actors[-1], 0.0, config.seed),
        "medium": {"iteration": medium, "noise": config.noise(medium), "return": reached},
        "medium-replay": {"iterations": replay, "mean_return": math.fsum(returns) / len(returns), "returns": returns},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(SHAPING))
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the policy file and the log of choices"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # the sum order, hence the weights, must not depend on the machine's core count
    config = CONFIGS[arguments.task]
    try:
        tensors, choices = select(arguments.task, config, train(arguments.task, config))
    except UserError as error:
        parser.error(str(error))
    log.info("%s", write_policies(arguments.out / arguments.task.replace("/", "_"), tensors, choices))


if __name__ == "__main__":
    main()
