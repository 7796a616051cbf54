"""Speed of the particle environments, in environment steps (one joint step of one episode).

Steps include resets, observations and rewards; actions are drawn beforehand. One thread, float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from marl_flow import envs, seeding
from marl_flow.benchmarks.speed.timing import Row, Run, steps_per_second
from marl_flow.commands import opponents
from marl_flow.interfaces import Policy, VectorEnv

LARGE_BATCH = 4096
TARGETS = {"mpe/simple_spread": 600_000, "mpe/simple_tag": 120_000, "mpe/simple_world": 80_000}
"""Steps per CPU-second of LARGE_BATCH environments."""
SINGLE_TARGET = 1_500
"""Steps per second of one environment."""


class StillPrey:
    """A prey that does nothing: what remains is the cost of the simulator itself."""

    network_passes = 0
    name = "still"

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        """Nothing is remembered."""

    def act(self, observations: torch.Tensor, action_mask: torch.Tensor | None, rewards: torch.Tensor) -> torch.Tensor:
        return observations.new_zeros(observations.shape[0], 1, 2)


def random_episodes(env: VectorEnv, num_episodes: int) -> Run:
    """Plays whole episodes in every environment."""
    steps, size = env.spec.max_steps, env.num_envs
    source = seeding.generator(0, "bench_mpe", "actions")
    actions = 2.0 * torch.rand(steps, size, env.spec.num_agents, 2, generator=source) - 1.0
    seeds = seeding.environment_seeds("collect", 0, size)

    def run() -> int:
        for _ in range(num_episodes):
            env.reset(seeds)
            for step in range(steps):
                env.step(actions[step])
        return num_episodes * steps * size

    return run


def rows() -> Iterator[Row]:
    """Per task and opponent: steps per CPU-second of a large batch, and per second of one environment."""
    with seeding.one_thread():
        for task_id, target in TARGETS.items():
            preys: dict[str, Policy | None] = {"": None}
            if envs.spec(task_id).opponent is not None:
                preys = {
                    ", still prey": StillPrey(),
                    ", scripted prey": opponents.opponent(task_id, "scripted"),
                    ", network prey": None,
                }
            for prey, policy in preys.items():
                large, single = (envs.make(task_id, num_envs, opponent=policy) for num_envs in (LARGE_BATCH, 1))
                _, per_cpu = steps_per_second({"": random_episodes(large, 2)})
                yield Row(f"{task_id}{prey}, {LARGE_BATCH:,} at once", per_cpu[""], "steps/CPU-s", target)
                per_second, _ = steps_per_second({"": random_episodes(single, 20)})
                yield Row(f"{task_id}{prey}, 1 at once", per_second[""], "steps/s", SINGLE_TARGET)
