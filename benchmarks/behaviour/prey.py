"""Trains the prey of tag and world that this package ships, and measures prey against scripted hunts.

The prey climbs the exact gradient of what it is paid, back through the differentiable physics, while three scripted
predators of random skill hunt it; the contact penalty, which is a step, is replaced by a smooth one. Gradients are cut
every few steps: through many contacts they explode. It learns to evade better than the published one, against which
predators could never earn the published returns; so its drive is scaled by `effort`, one number for both tasks, chosen
such that it is caught about as often as OMAR's prey by two scripted hunts (straight at the prey, and 0.2 s ahead).

    python -m marl_flow.benchmarks.behaviour.prey train mpe/simple_tag --out DIR
    python -m marl_flow.benchmarks.behaviour.prey measure [--omar FOLDER]

`measure` prints what the hunts earn against the shipped prey, the scripted one, and OMAR's if its files
`<folder>/simple_tag.pt`, `simple_world.pt` are at hand.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from marl_flow import seeding
from marl_flow.envs.mpe.env import ParticleEnv
from marl_flow.envs.mpe.prey import FleeingPrey, NetworkPrey
from marl_flow.envs.mpe.scenarios import Scenario, find_scenario, observation_fields
from marl_flow.interfaces import Policy, UserError

log = logging.getLogger(__name__)

TASKS = ("mpe/simple_tag", "mpe/simple_world")
BONUS = {"mpe/simple_tag": 10.0, "mpe/simple_world": 5.0}
"""What a predator is paid, and the prey pays, for a contact."""
SOFTNESS = 0.05
"""Width of the sigmoid that stands for a contact, in world units."""
LEADS = (0.0, 0.2)
"""Seconds ahead of the prey that the scripted hunts aim: two anchors measured against OMAR's prey."""
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
    """Added penalty per unit of depth beyond 0.9 and axis: the task's own charges little far outside."""
    longest_lead: float = 0.4
    """Hunters aim uniformly 0 to this many seconds ahead, one draw per episode."""
    largest_noise: float = 1.0
    """Standard deviation of their action noise, likewise."""
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

    lead and noise are numbers or tensors [E, 1, 1]; what `benchmarks/behaviour/prey.py measure` reports has no noise.
    """

    network_passes = 0

    def __init__(self, task_id: str, lead: float | Tensor, noise: float | Tensor = 0.0) -> None:
        kind = find_scenario(task_id)
        self.prey = prey_columns(kind)
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


def prey_columns(kind: Scenario) -> slice:
    """Where a predator's observation holds the prey: relative position (2), then velocity (2)."""
    forests = len(kind.indices("forest"))
    stop = len(observation_fields(kind, 0)) - forests
    return slice(stop - 4, stop)


def contact(distances: Tensor, reach: float) -> Tensor:
    """A contact as a number from 0 to 1, smooth in the distance."""
    return torch.sigmoid((reach - distances) / SOFTNESS)


def evasion(kind: Scenario, observations: Tensor, bonus: float, border_price: float) -> Tensor:
    """What the prey is trained to earn per step [E], of its observations [E, 1, O] after the step.

    The task's own terms (a tenth of the distances, the contacts, here smooth) and a steeper border.
    """
    first = 4 + 2 * (kind.num_entities - kind.num_agents)
    distances = observations[:, 0, first : first + 6].unflatten(-1, (3, 2)).square().sum(-1).add(1e-8).sqrt()
    beyond = (observations[:, 0, 2:4].abs() - 0.9).clamp_min(0.0).sum(-1)
    caught = contact(distances, kind.radii[0] + kind.radii[3]).sum(-1)
    return 0.1 * distances.sum(-1) - bonus * caught - (10.0 + border_price) * beyond


def cut_gradient(env: ParticleEnv) -> Tensor:
    """Continues the episodes from where they are, as numbers without a past; returns the observations [E, 3, O]."""
    state = env.state
    fields = {name: getattr(state, name).detach() for name in ("positions", "velocities", "steps")}
    return env.set_state(type(state)(**fields)).observations


def train(task_id: str, config: PreyConfig) -> NetworkPrey:
    """A prey trained against the scripted hunters."""
    kind = find_scenario(task_id)
    generator = seeding.generator(config.seed, "prey", task_id)
    with seeding.global_scope(generator):
        evader = Evader(len(observation_fields(kind, kind.entities.index("prey"))), config)
    env = ParticleEnv(task_id, config.episodes, opponent=evader)
    optimizer = torch.optim.Adam(evader.parameters(), lr=config.learning_rate)
    for iteration in range(config.iterations):
        skill = torch.rand(2, config.episodes, 1, 1, generator=generator)
        hunter = Hunter(task_id, config.longest_lead * skill[0], config.largest_noise * skill[1])
        hunter.reset(config.episodes, generator)
        start = iteration * config.episodes
        seen = env.reset(seeding.environment_seeds("behaviour", config.seed, config.episodes, start=start)).observations
        parts = []
        for step in range(env.spec.max_steps):
            if step and step % config.gradient_steps == 0:
                seen = cut_gradient(env)
            seen = env.step(hunter.act(seen, None, seen)).observations
            parts.append(evasion(kind, env.opponent_observations, BONUS[task_id], config.border_price))
        objective = torch.stack(parts).sum(0).mean()
        optimizer.zero_grad(set_to_none=True)
        (-objective).backward()
        nn.utils.clip_grad_norm_(evader.parameters(), config.gradient_clip)
        optimizer.step()
        if iteration % 20 == 0:
            log.info("iteration %d: the prey earns %.1f", iteration, float(objective.detach()))
    return NetworkPrey(evader.weights(), output="tanh", effort=config.effort)


@torch.no_grad()
def hunt(task_id: str, prey: Policy | None, hunter: Policy, seed: int = 1) -> dict[str, float]:
    """Over fresh episodes: the predators' mean return with its 95 % half-width, the share of steps without any contact
    (escape rate), and of episodes without any."""
    env = ParticleEnv(task_id, MEASURE_EPISODES, opponent=prey)
    step = env.reset(seeding.environment_seeds("behaviour", seed, MEASURE_EPISODES))
    hunter.reset(MEASURE_EPISODES, seeding.generator(seed, "hunt"))
    returns, free, never = torch.zeros(MEASURE_EPISODES), 0.0, torch.ones(MEASURE_EPISODES, dtype=torch.bool)
    while not bool(step.finished.all()):
        step = env.step(hunter.act(step.observations, None, step.rewards))
        missed = step.rewards[:, 0] < 0.5 * BONUS[task_id]  # distances cost at most a few tenths
        returns, free, never = returns + step.rewards[:, 0], free + float(missed.float().mean()), never & missed
    return {
        "return": float(returns.mean()),
        "half_width": 1.96 * float(returns.std()) / MEASURE_EPISODES**0.5,
        "escape_rate": free / env.spec.max_steps,
        "never_caught": float(never.float().mean()),
    }


class UniformHunter:
    """Predators that act at random."""

    network_passes = 0

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self.generator = generator

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        return 2.0 * torch.rand((*observations.shape[:2], 2), generator=self.generator) - 1.0


def comparison(omar: Path | None) -> str:
    """Every prey against every hunt, as a table."""
    lines = [f"{'task':<18}{'prey':<16}{'hunt':<14}{'predators earn':>20}{'escape rate':>13}{'never caught':>14}"]
    for task_id in TASKS:
        kind = find_scenario(task_id)
        scripted = FleeingPrey(
            num_obstacles=len(kind.indices("obstacle")), num_landmarks=kind.num_entities - kind.num_agents
        )
        preys: list[Policy] = [NetworkPrey.native(task_id), scripted]
        if omar is not None:
            preys.insert(1, NetworkPrey.from_omar(omar / f"{task_id.partition('/')[2]}.pt"))
        for prey in preys:
            hunts: Sequence[tuple[str, Policy]] = [
                *((f"lead {lead:g} s", Hunter(task_id, lead)) for lead in LEADS),
                ("random", UniformHunter()),
            ]
            for name, hunter in hunts:
                found = hunt(task_id, prey, hunter)
                earned = f"{found['return']:.1f} +- {found['half_width']:.1f}"
                lines.append(
                    f"{task_id:<18}{prey.name:<16}{name:<14}{earned:>20}"  # type: ignore[attr-defined]
                    f"{100 * found['escape_rate']:>11.1f} %{100 * found['never_caught']:>12.1f} %"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("task", choices=TASKS)
    training.add_argument("--out", type=Path, required=True, help="folder for the weights")
    measuring = commands.add_parser("measure")
    measuring.add_argument("--omar", type=Path, help="folder with OMAR's simple_tag.pt and simple_world.pt")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # the sum order, hence the weights, must not depend on the machine's core count
    try:
        if arguments.command == "measure":
            log.info("%s", comparison(arguments.omar))
            return
        prey = train(arguments.task, PreyConfig())
    except UserError as error:
        parser.error(str(error))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.task.replace('/', '_')}.safetensors"
    path.write_bytes(save(prey.weights, metadata={"effort": repr(prey.effort)}))
    for lead in LEADS:
        found = hunt(arguments.task, prey, Hunter(arguments.task, lead))
        log.info("lead %g s: %s", lead, found)
    log.info("%s", path)


if __name__ == "__main__":
    main()
