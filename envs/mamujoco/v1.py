"""Any scenario and partition of gymnasium-robotics' `mamujoco_v1` behind the `VectorEnv` protocol.

The id `mamujoco/v1/Ant/2x4` is scenario Ant, partition 2x4, with the library's own observations, rewards and ends
(`Farama-Foundation/Gymnasium-Robotics: gymnasium_robotics/envs/multiagent_mujoco`): not those of the published data,
which `marl_flow.envs.mamujoco` has. One object of the library per row, stepped one after the other: most of a step is
Python, which threads do not speed up. CoupledHalfCheetah is refused: gymnasium-robotics 1.4 reads its tendon in a form
that MuJoCo 4 no longer has.
"""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import numpy as np
import torch
from pettingzoo import ParallelEnv
from torch import Tensor

from marl_flow.envs.base import check_num_envs
from marl_flow.envs.mamujoco import engine
from marl_flow.envs.pettingzoo import ParallelVectorEnv
from marl_flow.interfaces import TimeStep, UserError

log = logging.getLogger(__name__)


class Scenario(ParallelEnv[str, np.ndarray, np.ndarray]):
    """One robot of the library whose agents get equal sizes: observations are padded with zeros to the widest agent's,
    and all actions are as wide as the widest agent's; the last entries of narrower agents are ignored.

    `failure` says why the engine failed in this episode, which ends there: the last valid observation repeats, the step
    has zero reward. None where it did not.
    """

    def __init__(self, task_id: str) -> None:
        from gymnasium_robotics.envs.multiagent_mujoco import MultiAgentMujocoEnv

        _, _, scenario, partition = task_id.split("/")
        self.metadata = {"name": task_id}
        try:
            with engine.quiet():
                self.inner: Any = MultiAgentMujocoEnv(scenario, partition)  # its annotations are not what it returns
        except Exception as error:  # the library's own class for unknown names
            raise UserError(
                f"{task_id}: expected a scenario and a partition of gymnasium-robotics' mamujoco_v1, such as "
                f"mamujoco/v1/Ant/2x4; it says: {error!r}"
            ) from error
        self.possible_agents = list(self.inner.possible_agents)
        self.agents: list[str] = []
        self.failure: str | None = None
        self._widths = {name: self.inner.action_space(name).shape[0] for name in self.possible_agents}
        spaces = [self.inner.action_space(name) for name in self.possible_agents]
        widest = max(spaces, key=lambda space: space.shape[0])
        size = max(self.inner.observation_space(name).shape[0] for name in self.possible_agents)
        self._action_space = gymnasium.spaces.Box(widest.low, widest.high, dtype=np.float32)
        self._observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), dtype=np.float64)
        self._observations: dict[str, np.ndarray] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies: before the first episode one that plays the same; later they are refused, since
        gymnasium's own copies begin another episode."""
        if self._observations:
            raise UserError(
                f"{self.metadata['name']}: expected to copy or pickle all of it, but the engine's state in an episode "
                "cannot be copied; copy it before reset(), or play the same seeds and actions again"
            )
        return Scenario, (self.metadata["name"],)

    @property
    def max_steps(self) -> int:
        """The step limit that the library, or gymnasium, sets."""
        limited = self.inner.single_agent_env
        while not isinstance(limited, gymnasium.wrappers.TimeLimit):
            limited = limited.env
        return limited._max_episode_steps

    @property
    def robot(self) -> Any:
        """gymnasium's environment underneath, with `model` and `data`."""
        return self.inner.single_agent_env.unwrapped

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return self._observation_space

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return self._action_space

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        observations, _ = self.inner.reset(seed=seed, options=options)
        self.agents, self.failure = list(self.possible_agents), None
        self._observations = self._padded(observations)
        return dict(self._observations), {name: {} for name in self.agents}

    def step(
        self, actions: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        acting, warnings = self.agents, self.robot.data.warning  # counted since the reset
        with engine.quiet():
            given = {name: actions[name][: self._widths[name]] for name in acting}
            observations, rewards, terminated, truncated, _ = self.inner.step(given)
        failures = [
            engine.FAILURES[name]
            for name, warning in zip(engine.warning_names(), warnings, strict=True)
            if warning.number
        ]
        if not all(np.isfinite(value).all() for value in observations.values()):
            failures.append("the state is not finite")
        if failures:
            self.failure = failures[0]
            rewards, terminated = dict.fromkeys(acting, 0.0), dict.fromkeys(acting, True)
            truncated = dict.fromkeys(acting, False)
        else:
            self._observations = self._padded(observations)
        if any(terminated.values()) or any(truncated.values()):
            self.agents = []
        return dict(self._observations), rewards, terminated, truncated, {name: {} for name in acting}

    def render(self) -> None:
        """Rows are drawn by `ScenarioEnv.render`."""

    def close(self) -> None:
        self.inner.close()

    def _padded(self, observations: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        size = self._observation_space.shape[0]
        return {name: np.pad(value, (0, size - len(value))) for name, value in observations.items()}


class ScenarioEnv(ParallelVectorEnv):
    """E episodes of a `mamujoco_v1` scenario; `failures` as in `marl_flow.envs.mamujoco`."""

    def __init__(self, task_id: str, num_envs: int, *, device: torch.device | str, dtype: torch.dtype) -> None:
        check_num_envs(task_id, num_envs)
        self._scenarios = [Scenario(task_id) for _ in range(num_envs)]
        super().__init__(
            iter(self._scenarios).__next__,
            num_envs,
            task_id=task_id,
            max_steps=self._scenarios[0].max_steps,
            team_reward="shared",
            device=device,
            dtype=dtype,
        )
        self._camera: Any = None

    @property
    def failures(self) -> tuple[str | None, ...]:
        """For each of the E rows, why the engine failed in its current episode; None where it did not."""
        return tuple(row.failure for row in self._scenarios)

    def step(self, actions: Tensor) -> TimeStep:
        before = self.failures
        step = super().step(actions)
        for row, (old, new) in enumerate(zip(before, self.failures, strict=True)):
            if new is not None and old is None:
                log.warning("%s: MuJoCo failed in row %d: %s; its episode ends there", self.spec.task_id, row, new)
        return step

    def render(self, row: int = 0, size: int = 400) -> np.ndarray:
        """RGB picture uint8 [size, size, 3] of one episode, by MuJoCo's renderer, without a screen."""
        from marl_flow.envs.mamujoco.render import Camera

        self._check_picture(row, size)
        robot = self._scenarios[row].robot
        if self._camera is None or self._camera.size != size:
            self._camera = Camera(self._scenarios[0].robot.model, size)
        return self._camera.picture(_copied(robot.model, robot.data))


def make_scenario(task_id: str, num_envs: int, *, device: torch.device | str, dtype: torch.dtype) -> ScenarioEnv:
    """The environment of an id `mamujoco/v1/<scenario>/<partition>`."""
    return ScenarioEnv(task_id, num_envs, device=device, dtype=dtype)


def _copied(model: Any, data: Any) -> Any:
    """A copy of the simulation: drawing recomputes what the next step starts from."""
    import mujoco

    copy, parts = mujoco.MjData(model), mujoco.mjtState.mjSTATE_INTEGRATION.value
    state = np.empty(mujoco.mj_stateSize(model, parts))
    mujoco.mj_getState(model, data, state, parts)
    mujoco.mj_setState(model, copy, state, parts)
    return copy
