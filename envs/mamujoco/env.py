"""The MA-MuJoCo tasks of the published datasets behind the `VectorEnv` protocol, stepped by the MuJoCo engine.

Stepping. E robots are stepped by `mujoco.batch.Batch`, the engine's own thread pool over simulations, which gives bit
for bit what `mj_step` gives for one robot. Two alternatives were measured, which `python -m marl_flow.benchmarks.speed
mamujoco` prints for this machine: `mj_step` in a pool of Python threads is as exact but slower, most where a step is
short, since the threads wait for the interpreter between steps; `mujoco.rollout` starts every call without the
solver's last solution and does not return it, so that episodes drift from the engine's own.

Numbers. Positions, velocities and rewards are float64 whatever the dtype of the tensors handed out, and equal
gymnasium's `Ant-v4` and `HalfCheetah-v4` exactly (the v2 tasks of the datasets over today's MuJoCo).
Nothing was compared with MuJoCo 2.1, under which the data were collected: expect equal statistics, not equal steps.

Starts are drawn as gymnasium draws them (every coordinate of the state moved by U(-0.1, 0.1), velocities 0.1 N(0, 1)),
from a generator of the row's own seed: the same distribution, but other numbers than gymnasium's for the same seed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.envs.base import BaseEnv, refuse_opponent
from marl_flow.envs.mamujoco import engine
from marl_flow.envs.mamujoco.tasks import find_partition, task_spec
from marl_flow.interfaces import Policy, TaskSpec, TimeStep, VectorEnv

if TYPE_CHECKING:
    from marl_flow.envs.mamujoco.render import Camera

log = logging.getLogger(__name__)

FRAME_SKIP = 5
"""Engine steps per control step."""
NOISE = 0.1
"""Of first positions (half width of a uniform draw) and velocities (standard deviation)."""


@dataclass(frozen=True, kw_only=True)
class RobotState:
    """State of E robots: positions [E, Q] and velocities [E, V] float64 as the engine orders them, steps [E] int64 into
    their episodes. The solver's last solution is missing, so that the steps that follow differ by rounding."""

    positions: Tensor
    velocities: Tensor
    steps: Tensor


class RobotEnv(BaseEnv):
    """E episodes of an MA-MuJoCo task. The control cost is that of actions [E, N, A] as given; the engine clamps them
    to [-1, 1].

    An episode ends when the robot's height leaves its range (ants), at the step limit, or when the engine fails: then
    `failures` has the reason, the row is terminated, keeps its last valid observation and receives zero reward for
    that step. num_threads: of the engine, None means as many as torch uses; results do not depend on it.
    """

    _steps: np.ndarray  # [E] int64
    _terminated: np.ndarray  # [E] bool
    _truncated: np.ndarray  # [E] bool
    _failed: np.ndarray  # [E] bool, where `failures` has a reason
    _observations: np.ndarray  # [E, N, O], each row's last ones

    def __init__(
        self,
        task_id: str,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_threads: int | None = None,
    ) -> None:
        self._partition = find_partition(task_id)
        robot = self._partition.robot
        super().__init__(task_spec(task_id), num_envs, device=device, dtype=dtype)
        self._model = engine.load_model(robot.model)
        self._batch = engine.make_batch(self._model, num_envs, num_threads or torch.get_num_threads())
        self._positions = self._batch.bind("qpos")  # [E, Q] and so on: live arrays of the engine
        self._velocities = self._batch.bind("qvel")
        self._controls = self._batch.bind("ctrl")
        if robot.forward_body is None:
            self._forward = self._positions[:, 0]
        else:
            body = self._model.body(robot.forward_body).id
            self._forward = self._batch.bind("xpos")[:, body, 0]
        self._step_seconds = self._model.opt.timestep * FRAME_SKIP
        self._order = np.argsort(
            np.array(self._partition.actuators).ravel()
        )  # from the agents' actions to the actuators
        self._failures: list[str | None] = [None] * num_envs
        self._camera: Camera | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies: before the first episode one that plays the same; later they are refused."""
        if self._has_begun:
            self._refuse_copy(
                "the engine's state in an episode", "copy it before reset(), or play the same seeds and actions again"
            )
        return _made_again, (type(self), self._spec.task_id, self._num_envs, self._device, self._dtype)

    @property
    def failures(self) -> tuple[str | None, ...]:
        """For each of the E rows, why the engine failed in its current episode; None where it did not."""
        return tuple(self._failures)

    @property
    def state(self) -> RobotState:
        """A copy of the state, which `set_state` continues from; meaningless in rows that failed."""
        self._require_started()
        return RobotState(
            positions=torch.tensor(self._positions),
            velocities=torch.tensor(self._velocities),
            steps=torch.tensor(self._steps),
        )

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        """First step of E new episodes."""
        seeds = self._check_seeds(seeds)
        uniform = seeding.row_uniform(seeds, 0, self._model.nq).numpy()
        positions = self._model.qpos0 + NOISE * (2.0 * uniform - 1.0)
        return self._begin(positions, NOISE * _normal(seeds, self._model.nv), np.zeros(self._num_envs, dtype=np.int64))

    def set_state(self, state: RobotState) -> TimeStep:
        """Continues from a state as after a reset: no rewards yet; a row restored at the step limit is finished."""
        shapes = {"positions": (self._num_envs, self._model.nq), "velocities": (self._num_envs, self._model.nv)}
        self._check_state(state, shapes)
        positions, velocities = state.positions.double().cpu().numpy(), state.velocities.double().cpu().numpy()
        return self._begin(positions, velocities, state.steps.cpu().numpy().astype(np.int64))

    def step(self, actions: Tensor) -> TimeStep:
        """One control step (0.05 s) under actions [E, N, A]; finished rows do not move and receive zero reward."""
        self._require_started()
        controls = self._to_controls(actions)
        robot, running = self._partition.robot, ~(self._terminated | self._truncated)
        before = self._forward.copy()
        self._controls[...] = controls
        all_running = bool(running.all())
        if all_running or running.any():
            rows = None if all_running else np.flatnonzero(running)
            self._run(lambda: self._batch.step(rows, nstep=FRAME_SKIP))
        self._steps += running
        with np.errstate(invalid="ignore", over="ignore"):  # failed rows may hold any numbers
            speed = (self._forward - before) / self._step_seconds
            rewards = speed + robot.survival_reward - robot.control_cost * np.square(controls).sum(1)
        valid = running & ~self._failed
        self._terminated |= self._failed | (valid & self._fallen())
        self._truncated |= running & ~self._terminated & (self._steps >= self._spec.max_steps)
        self._observe(valid)
        return self._time_step(np.where(valid, rewards, 0.0))

    def render(self, row: int = 0, size: int = 400) -> np.ndarray:
        """RGB picture uint8 [size, size, 3] of one episode, by MuJoCo's renderer, without a screen."""
        from marl_flow.envs.mamujoco.render import Camera

        self._check_picture(row, size)
        if self._camera is None or self._camera.size != size:
            self._camera = Camera(self._model, size)
        return self._camera.picture(self._batch.get_data(row))

    def _begin(self, positions: np.ndarray, velocities: np.ndarray, steps: np.ndarray) -> TimeStep:
        self._has_begun, self._steps = True, steps
        self._failures = [None] * self._num_envs
        self._terminated, self._truncated, self._failed = np.zeros((3, self._num_envs), dtype=bool)
        self._batch.reset(stage=0)  # clears the solver's last solution too
        self._positions[...], self._velocities[...] = positions, velocities
        self._observe(np.ones(self._num_envs, dtype=bool))
        self._run(self._batch.forward)
        self._terminated |= self._failed
        self._truncated |= ~self._terminated & (steps >= self._spec.max_steps)
        return self._time_step(np.zeros(self._num_envs))

    def _run(self, call: Callable[[], None]) -> None:
        """Makes a call on the engine, and marks the rows that failed in it."""
        failures = engine.run(self._batch, call)
        finite = np.isfinite(self._positions).all(1) & np.isfinite(self._velocities).all(1)
        for row in np.flatnonzero(~finite).tolist():
            failures.setdefault(row, "the state is not finite")
        for row, reason in failures.items():
            if not self._failed[row]:
                self._failed[row], self._failures[row] = True, reason
                log.warning(
                    "%s: MuJoCo failed in row %d after step %d: %s; its episode ends there",
                    self.spec.task_id,
                    row,
                    self._steps[row],
                    reason,
                )

    def _fallen(self) -> np.ndarray:
        """Rows [E] bool whose height is outside the robot's range."""
        heights = self._partition.robot.height_range
        if heights is None:
            return np.zeros(self._num_envs, dtype=bool)
        (low, high), height = heights, self._positions[:, 2]
        return ~((height >= low) & (height <= high))

    def _observe(self, rows: np.ndarray) -> None:
        """Updates the observations of these rows [E] bool; all others keep their last ones."""
        observed = self._partition.observe(np.concatenate([self._positions, self._velocities], axis=1))
        self._observations = observed if rows.all() else np.where(rows[:, None, None], observed, self._observations)

    def _time_step(self, rewards: np.ndarray) -> TimeStep:
        spec = self.spec
        return TimeStep(
            observations=torch.tensor(self._observations, dtype=self._dtype, device=self._device),
            rewards=torch.tensor(rewards, dtype=self._dtype, device=self._device)[:, None].repeat(1, spec.num_agents),
            terminated=torch.tensor(self._terminated, device=self._device),
            truncated=torch.tensor(self._truncated, device=self._device),
        )

    def _to_controls(self, actions: Tensor) -> np.ndarray:
        """Controls [E, actuators] float64 in the engine's order, of actions [E, N, A]."""
        chosen = self._check_continuous(actions).detach().cpu().double().numpy().reshape(self._num_envs, -1)
        return np.ascontiguousarray(chosen[:, self._order])


class RestorableRobotEnv(RobotEnv):
    """A task whose agents together observe the whole state (2halfcheetah), which can begin in the middle of an episode.

    An ant's agents observe neither its height nor its orientation nor most of its body's velocity, and no state can be
    computed from their observations: 2ant and 4ant are not restorable.
    """

    @property
    def opponent_entries(self) -> None:
        """Only the agents move."""
        return

    def restore(self, observations: Tensor, state: Tensor | None, steps: Tensor) -> TimeStep:
        """Continues from the state that the team observes as [E, N, O], after steps [E] of each episode.

        A number that several agents observe is the mean of their observations. Contact forces follow from the state.
        Two things are not observed and are lost: the digits that float32 cuts off stored numbers, which contacts
        magnify (a test keeps the error of the next step below 1e-4 of each number), and the solver's last solution,
        where its next search would have started (below 1e-11).
        """
        self._check_restored(observations, state)
        partition = self._partition
        observed = observations.double().cpu().numpy().reshape(self.num_envs, -1)[:, partition.state_entries]
        weights = partition.state_columns[:, None] == np.arange(self._model.nq + self._model.nv)  # [n, Q + V]
        states = torch.from_numpy(observed @ (weights / weights.sum(0)))
        return self.set_state(
            RobotState(positions=states[:, : self._model.nq], velocities=states[:, self._model.nq :], steps=steps)
        )


def _made_again(env_class: type[RobotEnv], task_id: str, num_envs: int, device: Any, dtype: torch.dtype) -> RobotEnv:
    """A new environment, from a pickle."""
    return env_class(task_id, num_envs, device=device, dtype=dtype)


def make(
    task_id: str, num_envs: int, device: torch.device | str, dtype: torch.dtype | None, opponent: Policy | None
) -> VectorEnv:
    """The environment of any id that begins with `mamujoco/`; arguments as in `marl_flow.envs.make`."""
    refuse_opponent(task_id, opponent)
    if task_id.startswith("mamujoco/v1/"):
        from marl_flow.envs.mamujoco.v1 import make_scenario

        return make_scenario(task_id, num_envs, device=device, dtype=dtype or torch.float32)
    env_class = RestorableRobotEnv if find_partition(task_id).observes_whole_state else RobotEnv
    return env_class(task_id, num_envs, device=device, dtype=dtype or torch.float32)


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of any id that begins with `mamujoco/`. Those of `mamujoco/v1/` are built once to read it."""
    if task_id.startswith("mamujoco/v1/"):
        return make(task_id, 1, "cpu", None, None).spec
    return task_spec(task_id)


def _normal(seeds: Sequence[int], count: int) -> np.ndarray:
    """Standard normal numbers [E, count] of each row's own seed, by the Box-Muller transform."""
    pairs = -(-count // 2)
    first, second = seeding.row_uniform(seeds, 1, 2 * pairs).numpy().reshape(len(seeds), 2, pairs).transpose(1, 0, 2)
    radius = np.sqrt(-2.0 * np.log1p(-first))
    angle = 2.0 * np.pi * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]
