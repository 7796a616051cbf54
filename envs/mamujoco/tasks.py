"""The MA-MuJoCo tasks of the published datasets: which joints and observations each agent has, and rewards. No engine.

Partitions, the order of observations and of actions: `schroederdewitt/multiagent_mujoco: multiagent_mujoco/obsk.py`,
as `Guowei-Zou/coflow-release: diffuser/datasets/mamujoco.py` calls it (agent_obsk 1, global categories qvel then qpos,
one-hot agent ids in front). Rewards and ends: `openai/gym: gym/envs/mujoco/{ant,half_cheetah}.py` (the v2 tasks).

In the datasets' engine (MuJoCo 2.1 under gym's v2 tasks) contact forces were never computed (`openai/gym` issue 1541):
an ant's agents observe zeros in their place, here too, and there is no contact cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

from marl_flow import tasks
from marl_flow.config import nearest
from marl_flow.interfaces import TaskSpec, UserError


@dataclass(frozen=True, kw_only=True)
class Robot:
    """A body and its single-robot task; reward = forward speed - control_cost * sum(action ** 2) + survival_reward.

    model: file among gymnasium's MuJoCo assets, which are gym's. forward_body: the body whose x gives the forward speed
    (metres per second, over one control step); None: the first coordinate of the state. survival_reward is received in
    every step, also in the one that ends the episode. height_range: metres within which the third coordinate must stay,
    None: no rule.
    """

    model: str
    control_cost: float
    survival_reward: float
    forward_body: str | None
    height_range: tuple[float, float] | None
    num_positions: int
    num_velocities: int


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A robot shared by N agents.

    actuators: for each agent, the actuators that its A actions drive, in this order. views: for each agent, what it
    observes after its one-hot id, as words: q<i> is coordinate i of the state, v<i> velocity i, 0*<n> is n zeros.
    """

    robot: Robot
    actuators: tuple[tuple[int, ...], ...]
    views: tuple[str, ...]

    @property
    def fields(self) -> tuple[tuple[str, ...], ...]:
        """What each of the N agents observes, one word per number (q<i>, v<i>, "0" or "1"), agent ids included."""
        agents = len(self.views)
        return tuple(
            tuple("1" if other == agent else "0" for other in range(agents)) + _spelled_out(view)
            for agent, view in enumerate(self.views)
        )

    @cached_property
    def constants(self) -> np.ndarray:
        """The constant entries of the observations of all agents, [N * O]: ids and zeros; zero in all other entries."""
        return np.array([float(word == "1") for view in self.fields for word in view])

    @cached_property
    def state_entries(self) -> np.ndarray:
        """Which entries of the observations of all agents, [N * O], are numbers of the state: n indices, ascending."""
        words = [word for view in self.fields for word in view]
        return np.array([entry for entry, word in enumerate(words) if word not in ("0", "1")])

    @cached_property
    def state_columns(self) -> np.ndarray:
        """Which number of the state [Q + V], positions first, each of the n `state_entries` is."""
        words, first_velocity = [word for view in self.fields for word in view], self.robot.num_positions
        observed = [words[entry] for entry in self.state_entries]
        return np.array([int(word[1:]) + first_velocity * (word[0] == "v") for word in observed])

    @property
    def observes_whole_state(self) -> bool:
        """Whether the agents together observe every coordinate and every velocity."""
        return len(set(self.state_columns.tolist())) == self.robot.num_positions + self.robot.num_velocities

    def observe(self, states: np.ndarray) -> np.ndarray:
        """Observations [R, N, O] of states [R, Q + V]: positions, then velocities."""
        observed = np.tile(self.constants, (len(states), 1))
        observed[:, self.state_entries] = states[:, self.state_columns]
        return observed.reshape(len(states), len(self.views), -1)

    def divide(self, controls: np.ndarray) -> np.ndarray:
        """The agents' actions [R, N, A] for controls [R, U] of the robot's actuators."""
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
    survival_reward=1.0,
    forward_body="torso",
    height_range=(0.2, 1.0),
    num_positions=15,
    num_velocities=14,
)
HALF_CHEETAH = Robot(
    model="half_cheetah.xml",
    control_cost=0.1,
    survival_reward=0.0,
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


def find_partition(task_id: str) -> Partition:
    """The partition of a task of the datasets, by its id such as `mamujoco/2ant`."""
    if task_id not in PARTITIONS:
        raise UserError(f"unknown task {task_id!r}; {nearest(task_id, PARTITIONS)}")
    return PARTITIONS[task_id]


def task_spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task of the datasets."""
    find_partition(task_id)
    return tasks.find_card(task_id).spec
