"""A task of your own as a `VectorEnv`: many episodes in one torch program. Checked, recorded, learned from, drawn.

python examples/own_vector_env.py

A recording that is there already is used again; to make another, remove its folder below ~/.cache/marl_flow/datasets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

import marl_flow
from marl_flow import datasets, envs, seeding
from marl_flow.datasets import catalog
from marl_flow.envs.base import BaseEnv
from marl_flow.envs.checks import check_vector_env
from marl_flow.interfaces import ActionSpec, TaskSpec, TimeStep

TASK = "own_vector_env:Meeting"  # module:factory
DATASET = "user/mygame/meeting/noisy-v1"

# task: begin
CELLS = 10
SPEC = TaskSpec(
    task_id="mygame/meeting",
    agents=("left", "right"),
    observation_size=2,
    action=ActionSpec(kind="discrete", size=3),  # stay, step left, step right
    max_steps=20,
    team_reward="shared",
)


class Meeting(BaseEnv):
    """Two agents on a row of cells become neighbours. Each sees both cells; the reward is minus the distance."""

    cells: Tensor  # [E, 2]
    steps: Tensor  # [E]
    opponent_entries = None  # nobody else moves; with `restore` this makes the task `Restorable`

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(SPEC, num_envs, device=device, dtype=dtype)

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        draws = seeding.row_uniform(self._check_seeds(seeds), 0, 2, device=self.device)  # [E, 2], stream 0
        start = (4 * draws).long() + torch.tensor([0, CELLS - 4], device=self.device)
        return self._begin(start, torch.zeros(self.num_envs, dtype=torch.int64, device=self.device))

    def restore(self, observations: Tensor, state: Tensor | None, steps: Tensor) -> TimeStep:
        self._check_restored(observations, state)
        return self._begin((observations[..., 0] * (CELLS - 1)).round().long(), steps.clone())

    def step(self, actions: Tensor) -> TimeStep:
        self._require_started()
        finished = self.met | (self.steps >= SPEC.max_steps)
        actions = self._check_discrete(actions, self._legal(), finished)
        moves = torch.tensor([0, -1, 1], device=self.device)[actions]
        self.cells = torch.where(finished[:, None], self.cells, self.cells + moves)  # a finished row freezes
        self.steps = self.steps + ~finished
        distance = (self.cells[:, 0] - self.cells[:, 1]).abs().to(self._dtype) / CELLS
        return self._time_step(-distance.masked_fill(finished, 0.0))

    def render(self, row: int = 0, size: int = 400) -> np.ndarray:
        """RGB picture uint8 [size, size, 3] of one episode; `--gif` needs it."""
        self._check_picture(row, size)
        picture = np.full((size, size, 3), 255, np.uint8)
        for cell, color in zip(self.cells[row].tolist(), ([200, 60, 40], [40, 90, 200]), strict=True):
            picture[size // 3 : size // 2, cell * size // CELLS : (cell + 1) * size // CELLS] = color
        return picture

    @property
    def met(self) -> Tensor:
        return (self.cells[:, 0] - self.cells[:, 1]).abs() <= 1

    def _begin(self, cells: Tensor, steps: Tensor) -> TimeStep:
        self.cells, self.steps, self._has_begun = cells, steps, True
        return self._time_step(torch.zeros(self.num_envs, dtype=self._dtype, device=self.device))

    def _legal(self) -> Tensor:
        return torch.stack([self.cells >= 0, self.cells > 0, self.cells < CELLS - 1], -1)  # [E, N, A] bool

    def _time_step(self, rewards: Tensor) -> TimeStep:
        seen = self.cells.to(self._dtype) / (CELLS - 1)
        return TimeStep(
            observations=torch.stack([seen, seen.flip(1)], -1),  # [E, N, O]
            rewards=rewards[:, None].repeat(1, 2),  # [E, N]
            terminated=self.met,
            truncated=(self.steps >= SPEC.max_steps) & ~self.met,
            action_mask=self._legal(),
        )


# task: end


def main(updates: int = 500, data_episodes: int = 500, episodes: int = 100, out: Path = Path("runs/meeting")) -> None:
    """Checks the task, records a noisy policy, trains BC on the recording and evaluates it.

    Args:
        updates: Gradient steps.
        data_episodes: Episodes to record, where the dataset is not there yet.
        episodes: Evaluation episodes.
        out: Run folder.
    """
    check_vector_env(lambda rows: envs.make(TASK, rows))
    if not catalog.folder_of(DATASET).exists():  # otherwise the recording of the last time is used again
        env = datasets.Recorder(envs.make(TASK, num_envs=data_episodes))
        noise = torch.Generator().manual_seed(0)
        step = env.reset(range(data_episodes))
        while not step.finished.all():
            step = env.step(noisy_policy(step, noise))
        env.save(DATASET)
    # the task has `restore`, so training replays some of the stored steps first and refuses data that do not fit
    run = marl_flow.train(DATASET, "bc", task=TASK, out=out, updates=updates)
    for row in marl_flow.evaluate(run, task=TASK, episodes=episodes):
        data = datasets.load(DATASET).team_returns().mean()
        print(f"BC: return {row.team_return_mean:.2f}, the data: {data:.2f}, score: {row.score}")


def noisy_policy(step: TimeStep, generator: torch.Generator) -> Tensor:
    """Choices [E, N]: towards the other, every third time any legal one."""
    assert step.action_mask is not None
    own, other = step.observations.unbind(-1)
    towards = torch.where(own < other, 2, torch.where(own > other, 1, 0))
    scores = torch.rand(step.action_mask.shape, generator=generator).masked_fill(~step.action_mask, -1.0)
    chance = torch.rand(towards.shape, generator=generator) < 1 / 3
    return torch.where(chance, scores.argmax(-1), towards)


if __name__ == "__main__":
    tyro.cli(main)
