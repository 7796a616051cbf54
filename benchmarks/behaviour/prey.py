"""Trains the prey of tag and world that this package ships, and measures prey against scripted hunts.

    python -m marl_flow.benchmarks.behaviour.prey train mpe/simple_tag --out runs/prey
    python -m marl_flow.benchmarks.behaviour.prey measure [--omar FOLDER] [--out DIR]

`train` writes the weights that envs/mpe/prey.py reads. `measure` prints the returns of scripted and random predators
against the shipped prey, the scripted one, and OMAR's where FOLDER has its files, `simple_tag.pt` and
`simple_world.pt`; with --out the table is also written into DIR/results.csv.

The prey climbs the exact gradient of its reward, back through the differentiable physics, while three scripted
predators of random skill hunt it; the contact penalty, which is a step, is replaced by a smooth one. Gradients are cut
every few steps, because they explode through many contacts. Unlimited, it would learn to evade better than the
published prey, and predators could never earn the published returns; so its drive is scaled by `effort`, one number
for both tasks, chosen such that two scripted hunts (straight at the prey, and 0.2 s ahead) catch it about as often as
OMAR's prey.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from marl_flow import seeding
from marl_flow.benchmarks.report import csv_text, table
from marl_flow.envs.mpe.env import ParticleEnv
from marl_flow.envs.mpe.prey import FleeingPrey, NetworkPrey
from marl_flow.envs.mpe.scenarios import Scenario, find_scenario, observation_fields
from marl_flow.interfaces import Policy, TimeStep, UserError
from marl_flow.policies import UniformPolicy
from marl_flow.rollout import rollout
from marl_flow.tasks import find_card

log = logging.getLogger(__name__)

TASKS = ("mpe/simple_tag", "mpe/simple_world")
BONUS = {"mpe/simple_tag": 10.0, "mpe/simple_world": 5.0}
"""Reward of a predator, and penalty of the prey, for a contact."""
SOFTNESS = 0.05
"""Width of the sigmoid that stands for a contact, in world units."""
LEADS = {"straight at it": 0.0, "0.2 s ahead": 0.2}
"""How many seconds ahead of the prey the scripted predators aim that prey are measured with."""
MEASURE_EPISODES = 4000


@dataclass(frozen=True, kw_only=True)
class PreyConfig:
    """Settings of prey training, the same for both tasks."""

    effort: float = 0.1
    """The prey's action is this times a tanh: a terminal speed of 0.64 where the predators' limit is 1."""
    iterations: int = 200
    episodes: int = 256
    hidden: int = 64
    learning_rate: float = 1e-3
    gradient_clip: float = 0.5
    gradient_steps: int = 5
    """Steps that a gradient passes back through."""
    border_price: float = 20.0
    """Added penalty per axis and unit of distance beyond 0.9: the task's own penalty is small far outside."""
    longest_lead: float = 0.4
    """Predators aim from 0 to this many seconds ahead, uniform, drawn once per episode."""
    largest_noise: float = 1.0
    """Largest standard deviation of their action noise, drawn likewise."""
    seed: int = 0


class Evader(nn.Module):
    """The network of `NetworkPrey` while it learns; no input statistics (a batch norm of mean 0 and variance 1)."""

    def __init__(self, observation_size: int, config: PreyConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(observation_size, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.hidden)
        self.fc3 = nn.Linear(config.hidden, 2)
        self.effort = config.effort
        with torch.no_grad():
            self.fc3.weight.mul_(0.01)

    network_passes = 1
    name = "learning"

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        """Nothing is remembered."""

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        hidden = torch.relu(self.fc2(torch.relu(self.fc1(observations))))
        return self.effort * torch.tanh(self.fc3(hidden))

    def weights(self) -> dict[str, Tensor]:
        """State dict in the layout of `NetworkPrey`."""
        size = self.fc1.in_features
        own = {name: value.detach().clone() for name, value in self.state_dict().items()}
        # eps inside the root: with a variance of 1 - eps the batch norm divides by exactly 1
        norm = {"weight": torch.ones(size), "bias": torch.zeros(size), "running_mean": torch.zeros(size)}
        norm["running_var"] = torch.full((size,), 1.0 - 1e-5)
        return own | {f"in_fn.{name}": value for name, value in norm.items()}


class Hunter:
    """Three scripted predators [E, 3, O]: full drive towards where the prey will be in `lead` seconds, plus noise.

    lead and noise are numbers or tensors [E, 1, 1].
    """

    network_passes = 0

    def __init__(self, task_id: str, lead: float | Tensor, noise: float | Tensor = 0.0) -> None:
        layout = find_scenario(task_id)
        self.prey = prey_columns(layout)
        self.lead, self.noise = lead, noise

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self.generator = generator

    @torch.no_grad()
    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        offset, velocity = observations[..., self.prey].split(2, dim=-1)
        aim = offset + self.lead * velocity
        drive = aim / aim.norm(dim=-1, keepdim=True).clamp_min(1e-9)
        noise = torch.randn(drive.shape, generator=self.generator, dtype=drive.dtype)
        return (drive + self.noise * noise).clamp(-1.0, 1.0)


def prey_columns(layout: Scenario) -> slice:
    """Where a predator's observation holds the prey: relative position (2), then velocity (2)."""
    forests = len(layout.indices("forest"))
    stop = len(observation_fields(layout, 0)) - forests
    return slice(stop - 4, stop)


def contact(distances: Tensor, reach: float) -> Tensor:
    """A contact as a number from 0 to 1, smooth in the distance."""
    return torch.sigmoid((reach - distances) / SOFTNESS)


def evasion_reward(layout: Scenario, observations: Tensor, bonus: float, border_price: float) -> Tensor:
    """The reward [E] that the prey is trained on, of its observations [E, 1, O] after a step.

    The task's own terms (a tenth of the distances, the contacts, here smooth) and a steeper border.
    """
    first = 4 + 2 * (layout.num_entities - layout.num_agents)
    distances = observations[:, 0, first : first + 6].unflatten(-1, (3, 2)).square().sum(-1).add(1e-8).sqrt()
    beyond = (observations[:, 0, 2:4].abs() - 0.9).clamp_min(0.0).sum(-1)
    caught = contact(distances, layout.radii[0] + layout.radii[3]).sum(-1)
    return 0.1 * distances.sum(-1) - bonus * caught - (10.0 + border_price) * beyond


def cut_gradient(env: ParticleEnv) -> Tensor:
    """Detaches the state of running episodes from how it came about; returns the observations [E, 3, O]."""
    state = env.state
    fields = {name: getattr(state, name).detach() for name in ("positions", "velocities", "steps")}
    return env.set_state(type(state)(**fields)).observations


def train(task_id: str, config: PreyConfig) -> NetworkPrey:
    """A prey trained against the scripted hunters."""
    layout = find_scenario(task_id)
    generator = seeding.generator(config.seed, "prey", task_id)
    with seeding.global_scope(generator):
        evader = Evader(len(observation_fields(layout, layout.entities.index("prey"))), config)
    env = ParticleEnv(task_id, config.episodes, opponent=evader)
    optimizer = torch.optim.Adam(evader.parameters(), lr=config.learning_rate)
    for iteration in range(config.iterations):
        skill = torch.rand(2, config.episodes, 1, 1, generator=generator)
        hunter = Hunter(task_id, config.longest_lead * skill[0], config.largest_noise * skill[1])
        hunter.reset(config.episodes, generator)
        start = iteration * config.episodes
        seeds = seeding.environment_seeds("behaviour", config.seed, config.episodes, start=start)
        observations, rewards = env.reset(seeds).observations, []
        for count in range(env.spec.max_steps):
            if count and count % config.gradient_steps == 0:
                observations = cut_gradient(env)
            step = env.step(hunter.act(observations, None, observations))
            observations, own = step.observations, env.opponent_observations
            rewards.append(evasion_reward(layout, own, BONUS[task_id], config.border_price))
        objective = torch.stack(rewards).sum(0).mean()
        optimizer.zero_grad(set_to_none=True)
        (-objective).backward()
        nn.utils.clip_grad_norm_(evader.parameters(), config.gradient_clip)
        optimizer.step()
        if iteration % 20 == 0:
            log.info("iteration %d: mean return of the prey %.1f", iteration, float(objective.detach()))
    return NetworkPrey(evader.weights(), output="tanh", effort=config.effort)


def hunt(task_id: str, prey: Policy | None, hunter: Policy, seed: int = 1) -> dict[str, float]:
    """Over fresh episodes: the predators' mean return with the half-width of its 95 % interval, and the fractions of
    steps and of episodes without any contact."""
    env = ParticleEnv(task_id, MEASURE_EPISODES, opponent=prey)
    hunter.reset(MEASURE_EPISODES, seeding.generator(seed, "hunt"))
    returns, untouched = torch.zeros(MEASURE_EPISODES), torch.ones(MEASURE_EPISODES, dtype=torch.bool)
    untouched_steps = 0.0

    def count_contacts(step: TimeStep, actions: Tensor | None) -> None:
        nonlocal returns, untouched, untouched_steps
        if actions is not None:
            missed = step.rewards[:, 0] < 0.5 * BONUS[task_id]  # distances cost at most a few tenths
            returns, untouched = returns + step.rewards[:, 0], untouched & missed
            untouched_steps += float(missed.float().mean())

    rollout(env, hunter, seeding.environment_seeds("behaviour", seed, MEASURE_EPISODES), count_contacts)
    return {
        "return": float(returns.mean()),
        "return_half_width": 1.96 * float(returns.std()) / MEASURE_EPISODES**0.5,
        "untouched_steps": untouched_steps / env.spec.max_steps,
        "untouched_episodes": float(untouched.float().mean()),
    }


def comparison(omar: Path | None) -> list[dict[str, Any]]:
    """Every prey against all predators: task, prey, predators, episodes and what `hunt` measures."""
    records = []
    for task_id in TASKS:
        layout = find_scenario(task_id)
        scripted = FleeingPrey(
            num_obstacles=len(layout.indices("obstacle")), num_landmarks=layout.num_entities - layout.num_agents
        )
        preys: list[NetworkPrey | FleeingPrey] = [NetworkPrey.native(task_id), scripted]
        if omar is not None:
            preys.insert(1, NetworkPrey.from_omar(omar / f"{task_id.partition('/')[2]}.pt"))
        predators: dict[str, Policy] = {name: Hunter(task_id, lead) for name, lead in LEADS.items()}
        predators["random"] = UniformPolicy(find_card(task_id).spec.action)
        for prey in preys:
            for name, hunter in predators.items():
                pairing = {"task": task_id, "prey": prey.name, "predators": name, "episodes": MEASURE_EPISODES}
                records.append({**pairing, **hunt(task_id, prey, hunter)})
    return records


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """A comparison as a table."""
    header = ["task", "prey", "predators", "return", "untouched steps", "untouched episodes"]
    body = [
        [
            *(row[column] for column in ("task", "prey", "predators")),
            f"{row['return']:.1f} ± {row['return_half_width']:.1f}",
            *(f"{100 * row[column]:.1f} %" for column in ("untouched_steps", "untouched_episodes")),
        ]
        for row in records
    ]
    return table(header, body, (3, 4, 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train the prey of a task")
    training.add_argument("task", choices=TASKS)
    training.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the weights")
    measuring = commands.add_parser("measure", help="scripted predators against every prey")
    measuring.add_argument("--omar", type=Path, metavar="FOLDER", help="has OMAR's simple_tag.pt and simple_world.pt")
    measuring.add_argument("--out", type=Path, metavar="DIR", help="folder for results.csv")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # the sum order, hence the weights, must not depend on the machine's core count
    try:
        if arguments.command == "measure":
            records = comparison(arguments.omar)
            if arguments.out is not None:
                arguments.out.mkdir(parents=True, exist_ok=True)
                (arguments.out / "results.csv").write_text(csv_text(records), encoding="utf-8")
            log.info("%s", markdown(records))
            return
        prey = train(arguments.task, PreyConfig())
    except UserError as error:
        parser.error(str(error))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.task.replace('/', '_')}.safetensors"
    path.write_bytes(save(prey.weights, metadata={"effort": repr(prey.effort)}))
    for name, lead in LEADS.items():
        log.info("%s: %s", name, hunt(arguments.task, prey, Hunter(arguments.task, lead)))
    log.info("%s", path)


if __name__ == "__main__":
    main()
