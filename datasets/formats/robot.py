"""Data of one robot as data of the agents that share it: what they see is made again from the engine's states.

A single robot's observations leave out what its agents see (its x) and hold what they do not; the recorded state, an
array of positions and one of velocities, holds all. Rewards are taken as recorded, so the robot's task must give
the rewards of the agents'. Nobody recorded the state that a D4RL episode's last action led to: such stores have no
final observation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from marl_flow.datasets.formats.columns import Column
from marl_flow.datasets.formats.episodes import Part, Rows, Run, Source
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError

POSITIONS, VELOCITIES = "infos/qpos", "infos/qvel"
TOLERANCE = 1e-5
"""By which a robot's observation may differ from the state beside it, relative to 1 or its size: rounding."""
HARMLESS = {"render_mode", "width", "height", "include_cfrc_ext_in_observation"}
"""Settings of a recorded environment that change neither its rewards nor the observation entries that are checked."""


@dataclass(frozen=True, kw_only=True)
class SharedRobot:
    """How the N agents of `task` share a robot with Q positions, V velocities and U actuators in [-1, 1].

    unseen: how many leading positions the robot's own observation leaves out; the others and all velocities follow.
    recorded_as: names of its own task with the rewards of `task`. observe: what the agents see, [R, N, O], of
    states [R, Q + V]; divide: their actions [R, N, A], which are these controls [R, U].
    """

    task: TaskSpec
    num_positions: int
    num_velocities: int
    num_actuators: int
    unseen: int
    recorded_as: tuple[str, ...]
    observe: Callable[[np.ndarray], np.ndarray]
    divide: Callable[[np.ndarray], np.ndarray]

    def single(self, observation_size: int) -> TaskSpec:
        """The robot's own task, whose state is the engine's."""
        count = self.num_actuators
        return TaskSpec(
            task_id=f"{self.task.task_id} as one robot",
            agents=("robot",),
            observation_size=observation_size,
            action=ActionSpec(kind="continuous", size=count, low=(-1.0,) * count, high=(1.0,) * count),
            max_steps=self.task.max_steps,
            team_reward="shared",
            state_size=self.num_positions + self.num_velocities,
        )

    def state(self, positions: Column | None, velocities: Column | None) -> Column:
        """States [rows, Q + V] out of the two arrays, which must be there."""
        if positions is None or velocities is None:
            raise UserError(
                f"expected {POSITIONS} and {VELOCITIES}, from which the observations of {self.task.task_id} are made, "
                "found none: only a robot's data that carry them can be shared among agents"
            )
        positions.expect(positions.rows, self.num_positions)
        velocities.expect(positions.rows, self.num_velocities)

        def fetch(start: int, stop: int) -> np.ndarray:
            return np.concatenate([positions.fetch(start, stop), velocities.fetch(start, stop)], axis=1)

        return Column(
            name=f"{positions.name}, {VELOCITIES}",
            shape=(positions.rows, self.num_positions + self.num_velocities),
            dtype=np.result_type(positions.dtype, velocities.dtype),
            fetch=fetch,
        )

    def check_recording(self, environment: Mapping[str, Any]) -> None:
        """Raises unless a recorded environment, its `id` and `kwargs`, is the robot's task and has our rewards."""
        name, changed = environment.get("id"), set(environment.get("kwargs") or {}) - HARMLESS
        if name not in self.recorded_as or changed:
            raise UserError(
                f"expected data of {' or '.join(self.recorded_as)} as they are, whose rewards are those of "
                f"{self.task.task_id}, found {name!r}{f' with other {sorted(changed)}' if changed else ''}"
            )

    def divided(self, source: Source) -> Source:
        """The agents' data out of the single robot's, whose rows hold its state."""

        def part(of: Part) -> Part:
            return replace(of, read=lambda run: self._rows(of.read(run), run))

        return replace(
            source,
            spec=self.task,
            parts=[part(of) for of in source.parts],
            provenance={**source.provenance, "made_from": "one robot's data, by its recorded positions and velocities"},
        )

    def _rows(self, rows: Rows, run: Run) -> Rows:
        agents, states = self.task.num_agents, rows.steps["state"]
        self._check_views(rows.steps["observations"][:, 0], states, run)
        finals = {"observations": rows.finals["state"]} if "state" in rows.finals else {}
        return Rows(
            steps={
                "observations": self.observe(states).astype(np.float32),
                "actions": self.divide(rows.steps["actions"][:, 0]),
                "rewards": np.repeat(rows.steps["rewards"], agents, axis=1),
            },
            finals={name: self.observe(values).astype(np.float32) for name, values in finals.items()},
        )

    def _check_views(self, observations: np.ndarray, states: np.ndarray, run: Run) -> None:
        """Raises unless each state is the one that the robot observed in the same row, [R, ...] both."""
        expected = states[:, self.unseen :]
        if observations.shape[1] < expected.shape[1]:
            raise UserError(
                f"observations: expected {expected.shape[1]} numbers of the state or more, "
                f"found {observations.shape[1]}; these are another robot's"
            )
        far = np.abs(observations[:, : expected.shape[1]].astype(np.float64) - expected)
        wrong = far > TOLERANCE * np.maximum(1.0, np.abs(expected))
        if wrong.any():
            row, entry = (int(index) for index in np.argwhere(wrong)[0])
            raise UserError(
                f"{POSITIONS}, {VELOCITIES}: expected at row {run.rows.start + row} the state that the robot observes "
                f"there, found another (entry {entry}: {expected[row, entry]:.6g}, observed "
                f"{observations[row, entry]:.6g}); the arrays are shifted against each other, or another robot's"
            )
