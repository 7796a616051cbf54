"""Both directions of PettingZoo's parallel API: our tasks as `ParallelEnv`, and any `ParallelEnv` as `VectorEnv`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from pettingzoo import ParallelEnv
from torch import Tensor

from marl_flow import seeding
from marl_flow.envs import make
from marl_flow.envs.base import ArrayEnv, check_num_envs
from marl_flow.interfaces import ActionSpec, Policy, TaskSpec, TimeStep, UserError, VectorEnv

MASK = "action_mask"


def to_parallel_env(
    task_id: str,
    *,
    dtype: torch.dtype = torch.float32,
    opponent: Policy | None = None,
    seed: int = 0,
    render_mode: str | None = None,
) -> SingleEpisode:
    """One of our tasks as a PettingZoo environment; arguments as in `marl_flow.envs.make` and `SingleEpisode`."""
    return SingleEpisode(make(task_id, 1, dtype=dtype, opponent=opponent), seed=seed, render_mode=render_mode)


class SingleEpisode(ParallelEnv[str, Any, Any]):
    """A `VectorEnv` of one row as a PettingZoo environment.

    Observations are arrays [O], in discrete tasks {"observation": [O], "action_mask": int8 [A]}. `reset(seed)` starts
    the episode that the row plays from this seed; without one, the n-th episode's seed derives from the last seed given
    (at first the constructor's), so that a program without seeds is repeatable.
    """

    def __init__(self, env: VectorEnv, *, seed: int = 0, render_mode: str | None = None) -> None:
        if env.num_envs != 1:
            raise UserError(f"{env.spec.task_id}: expected a VectorEnv of one row, got {env.num_envs}")
        if render_mode not in (None, "rgb_array") or (render_mode and not hasattr(env, "render")):
            raise UserError(f"{env.spec.task_id}: expected render_mode None or 'rgb_array', got {render_mode!r}")
        self.metadata = {
            "name": env.spec.task_id,
            "render_modes": ["rgb_array"] if hasattr(env, "render") else [],
            "render_fps": 10,
            "is_parallelizable": True,
        }
        self.env, self.render_mode = env, render_mode
        self.possible_agents = list(env.spec.agents)
        self.agents: list[str] = []
        self._root, self._episodes = seed, 0
        self._time_step: TimeStep | None = None
        self._observation_spaces = {agent: _observation_space(env.spec) for agent in env.spec.agents}
        self._action_spaces = {agent: _action_space(env.spec.action) for agent in env.spec.agents}

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Observations and empty infos; no option changes anything."""
        if seed is None:
            self._episodes += 1
            row_seed = seeding.derive_seed(self._root, "parallel", self._episodes)
        else:
            row_seed, self._root, self._episodes = seed, seed, 0
        self._time_step = self.env.reset([row_seed])
        self.agents = list(self.possible_agents)
        return self._observations(self._time_step), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """The team starts and finishes together: after the last step `agents` is empty, and `step({})` gives empty
        dicts, as in PettingZoo's own environments. At the end infos have `won`, where the task can be won."""
        acting, spec = self.agents, self.env.spec
        if not acting and not actions and self._time_step is not None:
            return {}, {}, {}, {}, {}
        if not acting:
            raise UserError(f"{spec.task_id}: no episode is running; call reset() first")
        if set(actions) != set(acting):
            raise UserError(f"{spec.task_id}: expected actions of {acting}, got {sorted(actions)}")
        dtype = np.int64 if spec.action.is_discrete else np.float64
        joint = np.stack([np.asarray(actions[agent]).astype(dtype) for agent in acting])
        self._time_step = step = self.env.step(torch.as_tensor(joint, device=self.env.device)[None])
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        info: dict[str, Any] = {}
        if terminated or truncated:
            self.agents = []
            info = {} if step.won is None else {"won": bool(step.won[0])}
        return (
            self._observations(step),
            dict(zip(acting, step.rewards[0].tolist(), strict=True)),
            dict.fromkeys(acting, terminated),
            dict.fromkeys(acting, truncated),
            {agent: dict(info) for agent in acting},
        )

    def state(self) -> np.ndarray:
        if self._time_step is None or self._time_step.state is None:
            raise NotImplementedError(f"{self.env.spec.task_id} has no state, or none before reset")
        return self._time_step.state[0].cpu().numpy().copy()

    def render(self) -> np.ndarray | None:
        return None if self.render_mode is None else self.env.render(0)  # type: ignore[attr-defined]

    def _observations(self, step: TimeStep) -> dict[str, Any]:
        rows = step.observations[0].to(torch.float32).cpu().numpy().copy()
        if step.action_mask is None:
            return dict(zip(self.possible_agents, rows, strict=True))
        masks = step.action_mask[0].to(torch.int8).cpu().numpy().copy()
        return {
            agent: {"observation": row, MASK: mask}
            for agent, row, mask in zip(self.possible_agents, rows, masks, strict=True)
        }


def _observation_space(spec: TaskSpec) -> gymnasium.Space[Any]:
    box = gymnasium.spaces.Box(-np.inf, np.inf, shape=(spec.observation_size,), dtype=np.float32)
    if not spec.action.is_discrete:
        return box
    mask = gymnasium.spaces.Box(0, 1, shape=(spec.action.size,), dtype=np.int8)
    return gymnasium.spaces.Dict({"observation": box, MASK: mask})


def _action_space(action: ActionSpec) -> gymnasium.Space[Any]:
    if action.is_discrete:
        return gymnasium.spaces.Discrete(action.size)
    low, high = (np.array(bound, dtype=np.float32) for bound in (action.low, action.high))
    return gymnasium.spaces.Box(low, high, dtype=np.float32)


class ParallelVectorEnv(ArrayEnv):
    """E instances of a PettingZoo `ParallelEnv` whose agents have equal spaces, stepped one after the other.

    Observations are flat boxes, either the whole observation or under "observation" in a dict; actions are bounded flat
    boxes or `Discrete`. Legal actions are read from "action_mask" in the observation dict or in an agent's info;
    without one all are legal. A row ends when its last agent does; an agent that leaves earlier repeats its last
    observation, receives zero reward and may only choose action 0, which is not passed on; one that comes back is
    refused. A row that is still running at
    `max_steps` is truncated. Continuous actions are passed on unchanged.
    """

    def __init__(
        self,
        constructor: Callable[[], ParallelEnv[Any, Any, Any]],
        num_envs: int,
        *,
        task_id: str,
        max_steps: int,
        team_reward: Literal["shared", "mean", "sum"] = "mean",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_num_envs(task_id, num_envs)
        self._rows = [constructor() for _ in range(num_envs)]
        first = self._rows[0]
        names = list(first.possible_agents)
        self._names = names
        observation_spaces = {name: _without_mask(first.observation_space(name)) for name in names}
        box = _common_space(task_id, names, observation_spaces, "observation")
        choice = _common_space(task_id, names, {name: first.action_space(name) for name in names}, "action")
        if not isinstance(box, gymnasium.spaces.Box) or len(box.shape) != 1:
            raise UserError(f"{task_id}: expected observations in a flat Box, got {box}; flatten them first")
        spec = TaskSpec(
            task_id=task_id,
            agents=tuple(str(name) for name in names),
            observation_size=box.shape[0],
            action=_action_spec(task_id, choice),
            max_steps=max_steps,
            team_reward=team_reward,
        )
        super().__init__(spec, num_envs, device=device, dtype=dtype, array_dtype=np.float64)
        self._first_choice = int(choice.start) if isinstance(choice, gymnasium.spaces.Discrete) else 0
        self._action_type = choice.dtype
        self._num_steps = 0

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        seeds = self._check_seeds(seeds)
        self._clear()
        for row, (env, seed) in enumerate(zip(self._rows, seeds, strict=True)):
            observations, infos = env.reset(seed=seed)
            if list(env.agents) != self._names:
                raise self._error(f"expected agents {self._names} at reset, got {env.agents}")
            self._store(row, self._names, observations, infos)
        self._num_steps, self._has_begun = 0, True
        return self._time_step()

    def step(self, actions: Tensor) -> TimeStep:
        self._require_started()
        if self._spec.action.is_discrete:
            chosen = self._check_legal(actions)
        else:
            chosen = self._check_continuous(actions).detach().cpu().numpy().astype(self._action_type)
        self._num_steps += 1
        self._rewards[...] = 0
        finished = self._finished()
        for row, env in enumerate(self._rows):
            if not finished[row]:
                self._advance(row, env, chosen[row])
        return self._time_step()

    def close(self) -> None:
        for env in self._rows:
            env.close()

    def _advance(self, row: int, env: ParallelEnv[Any, Any, Any], chosen: np.ndarray) -> None:
        acting = list(env.agents)
        joint = {name: chosen[self._names.index(name)] for name in acting}
        if self._spec.action.is_discrete:
            joint = {name: int(action) + self._first_choice for name, action in joint.items()}
        observations, rewards, terminated, truncated, infos = env.step(joint)
        if returning := [name for name in env.agents if name not in acting]:
            raise self._error(
                f"expected agents that leave to stay away until the episode ends, found {returning[0]} (row {row}) "
                f"acting again after step {self._num_steps}: while it is away nothing would say what it sees or may "
                "do; keep every agent in `agents`, with an action that does nothing"
            )
        running = [
            name
            for name in acting
            if name in env.agents and not (terminated.get(name, False) or truncated.get(name, False))
        ]
        for name in acting:
            if name not in rewards and name in running:
                raise self._error(f"expected a reward of every acting agent, got none for {name} (row {row})")
            self._rewards[row, self._names.index(name)] = rewards.get(name, 0.0)
        self._store(row, [name for name in acting if name in running or name in observations], observations, infos)
        for name in set(self._names) - set(running):
            self._masks[row, self._names.index(name)] = np.arange(self._spec.action.size) == 0
        if not running:
            self._truncated[row] = any(truncated.get(name, False) for name in acting)
            self._terminated[row] = not self._truncated[row]
        elif self._num_steps == self._spec.max_steps:
            self._truncated[row] = True

    def _store(self, row: int, names: list[Any], observations: Mapping[Any, Any], infos: Mapping[Any, Any]) -> None:
        size = self._spec.observation_size
        for name in names:
            if name not in observations:
                raise self._error(f"expected an observation of every acting agent, got none for {name} (row {row})")
            observation, index = observations[name], self._names.index(name)
            mask = infos.get(name, {}).get(MASK)
            if isinstance(observation, Mapping):
                observation, mask = observation["observation"], observation.get(MASK, mask)
            if np.shape(observation) != (size,):
                raise self._error(
                    f"expected observations of shape ({size},) as in their space, got {np.shape(observation)} "
                    f"for {name}"
                )
            self._observations[row, index] = observation
            if mask is not None and self._spec.action.is_discrete:
                self._masks[row, index] = np.asarray(mask, dtype=bool)


def _without_mask(space: gymnasium.Space[Any]) -> gymnasium.Space[Any]:
    """The space of an agent's observation, without the mask that may be beside it."""
    return space.spaces.get("observation", space) if isinstance(space, gymnasium.spaces.Dict) else space


def _common_space(
    task_id: str, names: list[Any], spaces: dict[Any, gymnasium.Space[Any]], what: str
) -> gymnasium.Space[Any]:
    """The one space that all agents have. Bounds of observations may differ: they are not used."""
    first = spaces[names[0]]
    for name in names[1:]:
        space = spaces[name]
        same_form = type(space) is type(first) and space.shape == first.shape
        if not same_form or (what == "action" and space != first):
            raise UserError(
                f"{task_id}: expected one {what} space for all agents, got {first} for {names[0]} and {space} for "
                f"{name}; pad them first (SuperSuit has pad_observations_v0 and pad_action_space_v0)"
            )
    return first


def _action_spec(task_id: str, space: gymnasium.Space[Any]) -> ActionSpec:
    if isinstance(space, gymnasium.spaces.Discrete):
        return ActionSpec(kind="discrete", size=int(space.n))
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        low, high = tuple(map(float, space.low)), tuple(map(float, space.high))
        return ActionSpec(kind="continuous", size=space.shape[0], low=low, high=high)
    raise UserError(f"{task_id}: expected actions in a Discrete or a flat bounded Box, got {space}")
