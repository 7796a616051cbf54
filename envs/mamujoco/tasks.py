"""What the MA-MuJoCo tasks of the published datasets are: who moves which joint, who sees what, what pays. No engine.

Partitions, the order of observations and of actions: `schroederdewitt/multiagent_mujoco: multiagent_mujoco/obsk.py`,
as `Guowei-Zou/coflow-release: diffuser/datasets/mamujoco.py` calls it (agent_obsk 1, global categories qvel then qpos,
one-hot agent ids in front). Rewards and ends: `openai/gym: gym/envs/mujoco/{ant,half_cheetah}.py` (the v2 tasks).

In the datasets' engine (MuJoCo 2.1 under gym's v2 tasks) contact forces were never filled in (`openai/gym` issue 1541):
where an ant's agent would see them are zeros, here as there, and they cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

from marl_flow.config import nearest
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError

MAX_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class Robot:
    """A body and its single-robot task; reward = forward speed - control_cost * sum(action ** 2) + survival.

    model: file among gymnasium's MuJoCo assets, which are gym's. forward_body: whose x the forward speed is of (metres
    per second, over one control step); None: the first coordinate of the state. survival is paid in every step, also
    in the one that ends the episode. height_range: metres within which the third coordinate must stay, None: no rule.
    """

    model: str
    control_cost: float
    survival: float
    forward_body: str | None
    height_range: tuple[float, float] | None
    num_positions: int
    num_velocities: int


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A robot shared by N agents.

    actuators: for each agent, the actuators that its A actions drive, in this order. views: for each agent, what it
    sees after its one-hot id, as words: q<i> is coordinate i of the state, v<i> velocity i, 0*<n> is n zeros.
    """

    robot: Robot
    actuators: tuple[tuple[int, ...], ...]
    views: tuple[str, ...]

    @property
    def fields(self) -> tuple[tuple[str, ...], ...]:
        """What each of the N agents sees, one word per number (q<i>, v<i>, "0" or "1"), agent ids included."""
        agents = len(self.views)
        return tuple(
            tuple("1" if other == agent else "0" for other in range(agents)) + _spelled_out(view)
            for agent, view in enumerate(self.views)
        )

    @cached_property
    def constants(self) -> np.ndarray:
        """What never changes in the observations of all agents, [N * O]: ids and zeros; zero where something does."""
        return np.array([float(word == "1") for view in self.fields for word in view])

    @cached_property
    def places(self) -> np.ndarray:
        """Where in the observations of all agents, [N * O], numbers of the state stand: n places, ascending."""
        words = [word for view in self.fields for word in view]
        return np.array([place for place, word in enumerate(words) if word not in ("0", "1")])

    @cached_property
    def columns(self) -> np.ndarray:
        """Which number of the state [Q + V], positions first, stands at each of the n places."""
        words, first_velocity = [word for view in self.fields for word in view], self.robot.num_positions
        found = [words[place] for place in self.places]
        return np.array([int(word[1:]) + first_velocity * (word[0] == "v") for word in found])

    @property
    def tells_state(self) -> bool:
        """Whether the agents together see every coordinate and every velocity."""
        return len(set(self.columns.tolist())) == self.robot.num_positions + self.robot.num_velocities

    def observe(self, states: np.ndarray) -> np.ndarray:
        """What the agents see, [R, N, O], of states [R, Q + V]: positions, then velocities."""
        seen = np.tile(self.constants, (len(states), 1))
        seen[:, self.places] = states[:, self.columns]
        return seen.reshape(len(states), len(self.views), -1)

    def divide(self, controls: np.ndarray) -> np.ndarray:
        """The agents' actions [R, N, A] that are these controls [R, U] of the robot's actuators."""
        return controls[:, np.array(self.actuators)]


def _spelled_out(view: str) -> tuple[str, ...]:
    words: list[str] = []
    for word in view.split():
        name, _, count = word.partition("*")
        words += [name] * int(count or 1)
    return tuple(words)


ANT = Robot(
    model="ant.xml",
    control_cost=0.5,
    survival=1.0,
    forward_body="torso",
    height_range=(0.2, 1.0),
    num_positions=15,
    num_velocities=14,
)
HALF_CHEETAH = Robot(
    model="half_cheetah.xml",
    control_cost=0.1,
    survival=0.0,
    forward_body=None,
    height_range=None,
    num_positions=9,
    num_velocities=9,
)

PARTITIONS: Mapping[str, Partition] = MappingProxyType(
    {
        "mamujoco/2ant": Partition(  # the two front legs, the two back legs
            robot=ANT,
            actuators=((2, 3, 4, 5), (6, 7, 0, 1)),
            views=(
                "q8 v7 0*18 q10 v9 0*18 q7 v6 0*6 q9 v8 q11 q13 v0 q0",
                "q12 v11 0*18 q14 v13 0*18 q11 v10 0*6 q13 v12 q7 q9 v0 q0",
            ),
        ),
        "mamujoco/4ant": Partition(  # a leg each
            robot=ANT,
            actuators=((2, 3), (4, 5), (6, 7), (0, 1)),
            views=(
                "q8 v7 0*18 q7 v6 0*6 q9 q11 q13 v0 q0",
                "q10 v9 0*18 q9 v8 0*6 q7 q11 q13 v0 q0",
                "q12 v11 0*18 q11 v10 0*6 q7 q9 q13 v0 q0",
                "q14 v13 0*18 q13 v12 0*6 q7 q9 q11 v0 q0",
            ),
        ),
        "mamujoco/2halfcheetah": Partition(  # the back leg, the front leg, each from the foot up
            robot=HALF_CHEETAH,
            actuators=((2, 1, 0), (5, 4, 3)),
            views=("q5 v5 q4 v4 q3 v3 q6 v0 v2 v1 q0 q2 q1", "q8 v8 q7 v7 q6 v6 q3 v0 v2 v1 q0 q2 q1"),
        ),
    }
)


def partition(task_id: str) -> Partition:
    """The partition of a task of the datasets, by its id such as `mamujoco/2ant`."""
    if task_id not in PARTITIONS:
        raise UserError(f"unknown task {task_id!r}; {nearest(task_id, PARTITIONS)}")
    return PARTITIONS[task_id]


def task_spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task of the datasets."""
    kind = partition(task_id)
    size = len(kind.actuators[0])
    return TaskSpec(
        task_id=task_id,
        agents=tuple(f"agent_{index}" for index in range(len(kind.actuators))),
        observation_size=len(kind.fields[0]),
        action=ActionSpec(kind="continuous", size=size, low=(-1.0,) * size, high=(1.0,) * size),
        max_steps=MAX_STEPS,
        team_reward="shared",
    )
