"""The MA-MuJoCo tasks of the published datasets behind the `VectorEnv` protocol, stepped by the MuJoCo engine.

Stepping. E robots are stepped by `mujoco.batch.Batch`, the engine's own pool of threads over simulations, which gives
bit for bit what `mj_step` gives one robot. Two ways were measured beside it, which `python -m
marl_flow.benchmarks.speed mamujoco` prints for this machine: `mj_step` in a pool of Python threads is as exact but
slower, most where a step is short, for the threads wait for the interpreter between steps; `mujoco.rollout` begins
every call with a cold solver and hands its solution back to nobody, so that episodes drift from the engine's own.

Numbers. Positions, velocities and rewards are float64 whatever the dtype of the tensors handed out, and equal
gymnasium's `Ant-v4` and `HalfCheetah-v4` exactly (the v2 tasks of the datasets over today's MuJoCo).
Against MuJoCo 2.1, under which the data were collected, nothing was compared: expect equal statistics, not equal steps.

Starts are drawn as gymnasium draws them (every coordinate of the state moved by U(-0.1, 0.1), velocities 0.1 N(0, 1)),
from a generator of the row's own seed: other draws than gymnasium's for the same seed, the same distribution.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.envs.mamujoco import engine
from marl_flow.envs.mamujoco.tasks import MAX_STEPS, partition, task_spec
from marl_flow.interfaces import Policy, TaskSpec, TimeStep, UserError, VectorEnv

if TYPE_CHECKING:
    from marl_flow.envs.mamujoco.render import Camera

log = logging.getLogger(__name__)

FRAME_SKIP = 5
"""Engine steps per control step."""
NOISE = 0.1
"""Of first positions (half width of a uniform draw) and velocities (standard deviation)."""


@dataclass(frozen=True, kw_only=True)
class RobotState:
    """Where E robots are: positions [E, Q] and velocities [E, V] float64 as the engine orders them, steps [E] int64
    into their episodes. What it lacks is the solver's last solution, without which what follows differs by rounding."""

    positions: Tensor
    velocities: Tensor
    steps: Tensor


class RobotEnv:
    """E episodes of an MA-MuJoCo task. Actions [E, N, A] are costed as given; the engine clamps them to [-1, 1].

    An episode ends when the robot's height leaves its range (ants), at the step limit, or when the engine breaks down:
    then `failures` has the reason, the row is terminated, keeps its last sound observation and is paid nothing for
    that step. num_threads: of the engine, None takes as many as torch does; results do not depend on it.
    """

    _steps: np.ndarray  # [E] int64
    _terminated: np.ndarray  # [E] bool
    _truncated: np.ndarray  # [E] bool
    _broken: np.ndarray  # [E] bool, where `failures` has a reason
    _seen: np.ndarray  # [E, N, O], what each row observed last

    def __init__(
        self,
        task_id: str,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_threads: int | None = None,
    ) -> None:
        kind = partition(task_id)
        if num_envs < 1:
            raise UserError(f"{task_id}: expected at least one environment, got num_envs={num_envs}")
        if dtype not in (torch.float32, torch.float64):
            raise UserError(f"{task_id}: expected dtype float32 or float64, got {dtype}")
        self._spec, self._partition, self._num_envs = task_spec(task_id), kind, num_envs
        self._device, self._dtype = torch.empty(0, device=device).device, dtype
        self._model = engine.load_model(kind.robot.model)
        self._batch = engine.make_batch(self._model, num_envs, num_threads or torch.get_num_threads())
        self._positions = self._batch.bind("qpos")  # [E, Q] and so on: live arrays of the engine
        self._velocities = self._batch.bind("qvel")
        self._controls = self._batch.bind("ctrl")
        if kind.robot.forward_body is None:
            self._forward = self._positions[:, 0]
        else:
            body = self._model.body(kind.robot.forward_body).id
            self._forward = self._batch.bind("xpos")[:, body, 0]
        self._step_seconds = self._model.opt.timestep * FRAME_SKIP
        self._order = np.argsort(np.array(kind.actuators).ravel())  # from the agents' actions to the actuators
        self._failures: list[str | None] = [None] * num_envs
        self._camera: Camera | None = None
        self._started = False

    @property
    def spec(self) -> TaskSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._num_envs

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def failures(self) -> tuple[str | None, ...]:
        """For each of the E rows, why the engine broke down in its present episode; None where it did not."""
        return tuple(self._failures)

    @property
    def state(self) -> RobotState:
        """A copy of the state, which `set_state` takes back. Of a row whose engine broke down it means nothing."""
        self._check_started()
        return RobotState(
            positions=torch.tensor(self._positions),
            velocities=torch.tensor(self._velocities),
            steps=torch.tensor(self._steps),
        )

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        """First step of E new episodes."""
        seeds = [int(seed) for seed in seeds]
        if len(seeds) != self._num_envs:
            raise UserError(f"{self.spec.task_id}: expected {self._num_envs} seeds, got {len(seeds)}")
        if min(seeds) < 0 or max(seeds) >= 2**63:
            raise UserError(f"{self.spec.task_id}: seeds must be in [0, 2**63), got {min(seeds)} to {max(seeds)}")
        uniform = seeding.row_uniform(seeds, 0, self._model.nq).numpy()
        positions = self._model.qpos0 + NOISE * (2.0 * uniform - 1.0)
        return self._begin(positions, NOISE * _normal(seeds, self._model.nv), np.zeros(self._num_envs, dtype=np.int64))

    def set_state(self, state: RobotState) -> TimeStep:
        """Continues from a state as after a reset: no rewards yet; a row restored at the step limit is finished."""
        expected = {
            "positions": (self._num_envs, self._model.nq),
            "velocities": (self._num_envs, self._model.nv),
            "steps": (self._num_envs,),
        }
        for name, shape in expected.items():
            value = getattr(state, name)
            if tuple(value.shape) != shape or not bool(torch.isfinite(value).all()):
                raise UserError(
                    f"{self.spec.task_id}: expected finite state.{name} of shape {shape}, got {_describe(value)}"
                )
        if state.steps.is_floating_point() or int(state.steps.min()) < 0:
            raise UserError(f"{self.spec.task_id}: state.steps must be integers from 0, got {_describe(state.steps)}")
        positions, velocities = state.positions.double().cpu().numpy(), state.velocities.double().cpu().numpy()
        return self._begin(positions, velocities, state.steps.cpu().numpy().astype(np.int64))

    def step(self, actions: Tensor) -> TimeStep:
        """One control step (0.05 s) under actions [E, N, A]; finished rows do not move and are paid nothing."""
        self._check_started()
        controls = self._checked(actions)
        robot, running = self._partition.robot, ~(self._terminated | self._truncated)
        before = self._forward.copy()
        self._controls[...] = controls
        everybody = bool(running.all())
        if everybody or running.any():
            rows = None if everybody else np.flatnonzero(running)
            self._run(lambda: self._batch.step(rows, nstep=FRAME_SKIP))
        self._steps += running
        with np.errstate(invalid="ignore", over="ignore"):  # rows that broke down hold anything
            speed = (self._forward - before) / self._step_seconds
            rewards = speed + robot.survival - robot.control_cost * np.square(controls).sum(1)
        sound = running & ~self._broken
        self._terminated |= self._broken | (sound & self._fallen())
        self._truncated |= running & ~self._terminated & (self._steps >= MAX_STEPS)
        self._look(sound)
        return self._time_step(np.where(sound, rewards, 0.0))

    def render(self, row: int = 0, size: int = 400) -> np.ndarray:
        """RGB picture uint8 [size, size, 3] of one episode, by MuJoCo's renderer, without a screen."""
        from marl_flow.envs.mamujoco.render import Camera

        if not 0 <= row < self._num_envs:
            raise UserError(f"{self.spec.task_id}: expected a row from 0 to {self._num_envs - 1}, got {row}")
        self._check_started()
        if self._camera is None or self._camera.size != size:
            self._camera = Camera(self._model, size)
        return self._camera.picture(self._batch.get_data(row))

    def _check_started(self) -> None:
        if not self._started:
            raise UserError(f"{self.spec.task_id}: no episode has begun; call reset(seeds) first")

    def _begin(self, positions: np.ndarray, velocities: np.ndarray, steps: np.ndarray) -> TimeStep:
        self._started, self._steps, self._failures = True, steps, [None] * self._num_envs
        self._terminated, self._truncated, self._broken = np.zeros((3, self._num_envs), dtype=bool)
        self._batch.reset(stage=0)  # clears the solver's last solution too
        self._positions[...], self._velocities[...] = positions, velocities
        self._look(np.ones(self._num_envs, dtype=bool))
        self._run(self._batch.forward)
        self._terminated |= self._broken
        self._truncated |= ~self._terminated & (steps >= MAX_STEPS)
        return self._time_step(np.zeros(self._num_envs))

    def _run(self, call: Callable[[], None]) -> None:
        """Lets the engine work; rows that it broke down in have their reason afterwards."""
        found = engine.run(self._batch, call)
        whole = np.isfinite(self._positions).all(1) & np.isfinite(self._velocities).all(1)
        for row in np.flatnonzero(~whole).tolist():
            found.setdefault(row, "the state is not finite")
        for row, reason in found.items():
            if not self._broken[row]:
                self._broken[row], self._failures[row] = True, reason
                log.warning(
                    "%s: MuJoCo broke down in row %d after step %d: %s; its episode ends there",
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

    def _look(self, rows: np.ndarray) -> None:
        """What the agents of these rows [E] bool observe now; of all others, what they observed last stays."""
        seen = self._partition.observe(np.concatenate([self._positions, self._velocities], axis=1))
        self._seen = seen if rows.all() else np.where(rows[:, None, None], seen, self._seen)

    def _time_step(self, rewards: np.ndarray) -> TimeStep:
        spec = self.spec
        return TimeStep(
            observations=torch.tensor(self._seen, dtype=self._dtype, device=self._device),
            rewards=torch.tensor(rewards, dtype=self._dtype, device=self._device)[:, None].repeat(1, spec.num_agents),
            terminated=torch.tensor(self._terminated, device=self._device),
            truncated=torch.tensor(self._truncated, device=self._device),
        )

    def _checked(self, actions: Tensor) -> np.ndarray:
        """Controls [E, actuators] float64 in the engine's order."""
        shape = (self._num_envs, self.spec.num_agents, self.spec.action.size)
        if tuple(actions.shape) != shape or not actions.is_floating_point() or actions.device != self._device:
            raise UserError(
                f"{self.spec.task_id}: expected actions as floats of shape {shape} on {self._device}, "
                f"got {_describe(actions)}"
            )
        chosen = actions.detach().cpu().double().numpy().reshape(self._num_envs, -1)
        if not np.isfinite(chosen).all():
            raise UserError(f"{self.spec.task_id}: expected finite actions, got {_describe(actions)}; check the policy")
        return np.ascontiguousarray(chosen[:, self._order])


class RestorableRobotEnv(RobotEnv):
    """A task whose agents together see the whole state (2halfcheetah), which can begin in the middle of an episode.

    An ant's agents see neither its height nor how it lies nor most of its body's velocity, and no moment can be read
    back from what they see: 2ant and 4ant are not restorable.
    """

    @property
    def opponent_entries(self) -> None:
        """Nobody moves but the agents."""
        return

    def restore(self, observations: Tensor, state: Tensor | None, steps: Tensor) -> TimeStep:
        """Continues from the state that the team sees as observations [E, N, O], after steps [E] of each episode.

        What several agents see is taken from all of them in equal parts. Contact forces follow from the state. Two
        things are not observed and cannot come back: what float32 lost of stored numbers, which contacts magnify (a
        test holds the step that follows below 1e-4 of each number), and the solver's last solution, from which it
        would have begun (below 1e-11).
        """
        spec = self.spec
        shape = (self.num_envs, spec.num_agents, spec.observation_size)
        if tuple(observations.shape) != shape or state is not None:
            raise UserError(
                f"{spec.task_id}: expected observations of shape {shape} and no state to restore, "
                f"got {_describe(observations)}{'' if state is None else f' and a state, {_describe(state)}'}"
            )
        kind = self._partition
        seen = observations.double().cpu().numpy().reshape(self.num_envs, -1)[:, kind.places]
        shares = kind.columns[:, None] == np.arange(self._model.nq + self._model.nv)  # [n, Q + V]
        whole = torch.from_numpy(seen @ (shares / shares.sum(0)))
        return self.set_state(
            RobotState(positions=whole[:, : self._model.nq], velocities=whole[:, self._model.nq :], steps=steps)
        )


def make(
    task_id: str, num_envs: int, device: torch.device | str, dtype: torch.dtype | None, opponent: Policy | None
) -> VectorEnv:
    """The environment of any id that begins with `mamujoco/`; arguments as in `marl_flow.envs.make`."""
    if opponent is not None:
        raise UserError(f"{task_id} has no opponent: leave `opponent` out")
    if task_id.startswith("mamujoco/v1/"):
        from marl_flow.envs.mamujoco.v1 import make_scenario

        return make_scenario(task_id, num_envs, device=device, dtype=dtype or torch.float32)
    kind = RestorableRobotEnv if partition(task_id).tells_state else RobotEnv
    return kind(task_id, num_envs, device=device, dtype=dtype or torch.float32)


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of any id that begins with `mamujoco/`. Those of `mamujoco/v1/` are built once to look at them."""
    if task_id.startswith("mamujoco/v1/"):
        return make(task_id, 1, "cpu", None, None).spec
    return task_spec(task_id)


def _normal(seeds: Sequence[int], count: int) -> np.ndarray:
    """Standard normal numbers [E, count] of each row's own seed, by Box and Muller's transform."""
    pairs = -(-count // 2)
    first, second = seeding.row_uniform(seeds, 1, 2 * pairs).numpy().reshape(len(seeds), 2, pairs).transpose(1, 0, 2)
    radius = np.sqrt(-2.0 * np.log1p(-first))
    angle = 2.0 * np.pi * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]


def _describe(value: Tensor) -> str:
    """Shape, type, place and, if any, the number of non-finite entries."""
    broken = int((~torch.isfinite(value)).sum())
    text = f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
    return f"{text} with {broken} non-finite entries" if broken else text
