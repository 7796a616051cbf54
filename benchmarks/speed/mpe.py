"""Speed of the particle environments, in environment steps (one joint step of one episode).

Steps include resets, observations and rewards; actions are drawn beforehand. `benchmarks/bench.py` prints the rows.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from marl_flow import envs, seeding
from marl_flow.commands import opponents
from marl_flow.interfaces import Policy, VectorEnv

LARGE_BATCH = 4096
TARGETS = {"mpe/simple_spread": 600_000, "mpe/simple_tag": 120_000, "mpe/simple_world": 80_000}
SINGLE_TARGET = 1_500
REPEATS = 5


class StillPrey:
    """A prey that does nothing: what remains is the cost of the simulator itself."""

    network_passes = 0
    name = "still"

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        """Nothing is remembered."""

    def act(self, observations: torch.Tensor, action_mask: torch.Tensor | None, rewards: torch.Tensor) -> torch.Tensor:
        return observations.new_zeros(observations.shape[0], 1, 2)


def steps_per_second(env: VectorEnv, num_episodes: int) -> tuple[float, float]:
    """Environment steps per CPU-second and per second of wall time: the medians of REPEATS runs."""
    steps, size = env.spec.max_steps, env.num_envs
    source = seeding.generator(0, "bench_mpe", "actions")
    actions = 2.0 * torch.rand(steps, size, env.spec.num_agents, 2, generator=source) - 1.0
    seeds = seeding.environment_seeds("collect", 0, size)
    per_cpu, per_wall = [], []
    for repeat in range(REPEATS + 1):  # the first warms up
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(num_episodes):
            env.reset(seeds)
            for step in range(steps):
                env.step(actions[step])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if repeat:
            per_cpu.append(num_episodes * steps * size / cpu)
            per_wall.append(num_episodes * steps * size / wall)
    return sorted(per_cpu)[REPEATS // 2], sorted(per_wall)[REPEATS // 2]


def rows() -> list[dict[str, Any]]:
    """One record per task, opponent and batch size: task, opponent, num_envs, steps_per_cpu_second, steps_per_second,
    and the target (per CPU-second at LARGE_BATCH, per second at one environment). One thread, float32."""
    records = []
    with seeding.one_thread():
        for task_id, target in TARGETS.items():
            policies: dict[str, Policy | None] = {"none": None}
            if envs.spec(task_id).opponent is not None:
                policies = {"still": StillPrey(), "scripted": opponents.opponent(task_id, "scripted"), "network": None}
            for opponent, policy in policies.items():
                for num_envs, num_episodes in ((LARGE_BATCH, 2), (1, 20)):
                    env = envs.make(task_id, num_envs, opponent=policy)
                    per_cpu, per_wall = steps_per_second(env, num_episodes)
                    records.append(
                        {
                            "task": task_id,
                            "opponent": opponent,
                            "num_envs": num_envs,
                            "steps_per_cpu_second": round(per_cpu),
                            "steps_per_second": round(per_wall),
                            "target": target if num_envs > 1 else SINGLE_TARGET,
                        }
                    )
    return records
