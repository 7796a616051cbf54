"""The two directions of PettingZoo's parallel API: our tasks as `ParallelEnv`, and any `ParallelEnv` as `VectorEnv`."""

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

    Observations are arrays [O], in discrete tasks {"observation": [O], "action_mask": int8 [A]}. `reset(seed)` plays
    the episode that the row plays from this seed; without a seed the n-th episode's derives from the last one given
    (at first the constructor's), so that a program without seeds repeats itself.
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
        """The team starts and finishes together: after the last step `agents` is empty."""
        acting, spec = self.agents, self.env.spec
        if not acting:
            raise UserError(f"{spec.task_id}: no episode is running; call reset() first")
        if set(actions) != set(acting):
            raise UserError(f"{spec.task_id}: expected actions of {acting}, got {sorted(actions)}")
        kind = np.int64 if spec.action.is_discrete else np.float64
        joint = np.stack([np.asarray(actions[agent]).astype(kind) for agent in acting])
        self._time_step = step = self.env.step(torch.as_tensor(joint, device=self.env.device)[None])
        over, cut = bool(step.terminated[0]), bool(step.truncated[0])
        if over or cut:
            self.agents = []
        return (
            self._observations(step),
            dict(zip(acting, step.rewards[0].tolist(), strict=True)),
            dict.fromkeys(acting, over),
            dict.fromkeys(acting, cut),
            {agent: {} for agent in acting},
        )

    def state(self) -> np.ndarray:
        if self._time_step is None or self._time_step.state is None:
            raise NotImplementedError(f"{self.env.spec.task_id} has no state before reset, or none at all")
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


class ParallelVectorEnv:
    """E instances of a PettingZoo `ParallelEnv` whose agents all see and do the same kind of thing, stepped in turn.

    Observations are flat boxes, bare or under "observation" in a dict; actions finite flat boxes or `Discrete`. Legal
    actions are read from "action_mask" in the observation dict or in an agent's info; without one all are legal. A row
    is over when its last agent is; an agent that leaves earlier repeats its observation, is paid zero and may only
    choose action 0, which is not passed on. A row still running at `max_steps` is truncated. Continuous actions are
    passed on as given.
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
        if num_envs < 1:
            raise UserError(f"{task_id}: expected at least one environment, got num_envs={num_envs}")
        self._rows = [constructor() for _ in range(num_envs)]
        first = self._rows[0]
        names = list(first.possible_agents)
        self._names = names
        box = _same(task_id, names, {name: _seen(first.observation_space(name)) for name in names}, "observation")
        choice = _same(task_id, names, {name: first.action_space(name) for name in names}, "action")
        if not isinstance(box, gymnasium.spaces.Box) or len(box.shape) != 1:
            raise UserError(f"{task_id}: expected observations in a flat Box, got {box}; flatten them first")
        self._spec = TaskSpec(
            task_id=task_id,
            agents=tuple(str(name) for name in names),
            observation_size=box.shape[0],
            action=_action_spec(task_id, choice),
            max_steps=max_steps,
            team_reward=team_reward,
        )
        self._first_choice = int(choice.start) if isinstance(choice, gymnasium.spaces.Discrete) else 0
        self._action_type = choice.dtype
        self._device, self._dtype = torch.empty(0, device=device).device, dtype
        agents, size = len(names), self._spec.action.size
        self._observations = np.zeros((num_envs, agents, self._spec.observation_size))
        self._masks = np.ones((num_envs, agents, size), dtype=bool)
        self._rewards = np.zeros((num_envs, agents))
        self._terminated, self._truncated = np.zeros(num_envs, dtype=bool), np.zeros(num_envs, dtype=bool)
        self._steps: int | None = None

    @property
    def spec(self) -> TaskSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return len(self._rows)

    @property
    def device(self) -> torch.device:
        return self._device

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        seeds = [int(seed) for seed in seeds]
        if len(seeds) != self.num_envs or min(seeds) < 0 or max(seeds) >= 2**63:
            raise UserError(f"{self._spec.task_id}: expected {self.num_envs} seeds in [0, 2**63), got {seeds[:8]}")
        for value in (self._observations, self._rewards, self._terminated, self._truncated):
            value[...] = 0
        self._masks[...] = True
        for row, (env, seed) in enumerate(zip(self._rows, seeds, strict=True)):
            observations, infos = env.reset(seed=seed)
            if list(env.agents) != self._names:
                raise UserError(f"{self._spec.task_id}: expected agents {self._names} at reset, got {env.agents}")
            self._read(row, self._names, observations, infos)
        self._steps = 0
        return self._time_step()

    def step(self, actions: Tensor) -> TimeStep:
        if self._steps is None:
            raise UserError(f"{self._spec.task_id}: no episode has begun; call reset(seeds) first")
        chosen = self._checked(actions)
        self._steps += 1
        self._rewards[...] = 0
        for row, env in enumerate(self._rows):
            if not (self._terminated[row] or self._truncated[row]):
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
        for name in acting:
            self._rewards[row, self._names.index(name)] = rewards[name]
        self._read(row, acting, observations, infos)
        left = [name for name in acting if name in env.agents and not (terminated[name] or truncated[name])]
        for name in set(self._names) - set(left):
            self._masks[row, self._names.index(name)] = np.arange(self._spec.action.size) == 0
        if not left:
            self._truncated[row] = any(truncated[name] for name in acting)
            self._terminated[row] = not self._truncated[row]
        elif self._steps == self._spec.max_steps:
            self._truncated[row] = True

    def _read(self, row: int, names: list[Any], observations: Mapping[Any, Any], infos: Mapping[Any, Any]) -> None:
        for name in names:
            seen, index = observations[name], self._names.index(name)
            mask = infos.get(name, {}).get(MASK)
            if isinstance(seen, Mapping):
                seen, mask = seen["observation"], seen.get(MASK, mask)
            self._observations[row, index] = seen
            if mask is not None and self._spec.action.is_discrete:
                self._masks[row, index] = np.asarray(mask, dtype=bool)

    def _checked(self, actions: Tensor) -> np.ndarray:
        spec = self._spec
        shape: tuple[int, ...] = (self.num_envs, len(self._names))
        if spec.action.is_discrete:
            kind = "integers"
            fits = not actions.is_floating_point() and not actions.is_complex() and actions.dtype != torch.bool
        else:
            kind, fits, shape = "floats", actions.is_floating_point(), (*shape, spec.action.size)
        if not fits or tuple(actions.shape) != shape:
            raise UserError(
                f"{spec.task_id}: expected actions as {kind} of shape {shape}, "
                f"got {actions.dtype} of shape {tuple(actions.shape)}"
            )
        chosen = actions.detach().cpu().numpy()
        if not spec.action.is_discrete:
            if not np.isfinite(chosen).all():
                raise UserError(f"{spec.task_id}: expected finite actions; check the policy")
            return chosen.astype(self._action_type)
        in_range = (chosen >= 0) & (chosen < spec.action.size)
        legal = in_range & np.take_along_axis(self._masks, np.where(in_range, chosen, 0)[..., None], -1)[..., 0]
        legal |= in_range & (self._terminated | self._truncated)[:, None]
        if not legal.all():
            row, agent = np.argwhere(~legal)[0]
            allowed = np.flatnonzero(self._masks[row, agent]).tolist()
            raise UserError(
                f"{spec.task_id}: row {row}, {spec.agents[agent]}: expected one of the legal actions {allowed}, "
                f"got {chosen[row, agent]}"
            )
        return chosen

    def _time_step(self) -> TimeStep:
        def tensor(value: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.tensor(value, dtype=dtype, device=self._device)

        return TimeStep(
            observations=tensor(self._observations, self._dtype),
            rewards=tensor(self._rewards, self._dtype),
            terminated=tensor(self._terminated, torch.bool),
            truncated=tensor(self._truncated, torch.bool),
            action_mask=tensor(self._masks, torch.bool) if self._spec.action.is_discrete else None,
        )


def _seen(space: gymnasium.Space[Any]) -> gymnasium.Space[Any]:
    """What an agent observes, without the mask that may stand beside it."""
    return space.spaces.get("observation", space) if isinstance(space, gymnasium.spaces.Dict) else space


def _same(task_id: str, names: list[Any], spaces: dict[Any, gymnasium.Space[Any]], what: str) -> gymnasium.Space[Any]:
    """The one space all agents share. Bounds of observations may differ: nothing reads them."""
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
