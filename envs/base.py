"""What all environments have in common: their description, and the checks of whatever a caller passes in."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from marl_flow.interfaces import Policy, TaskSpec, TimeStep, UserError

MAX_SEED = 2**63 - 1
MIN_PICTURE_SIZE = 64
"""Pixels on each side; smaller pictures cannot be read."""


class BaseEnv:
    """E episodes of one task. A subclass adds `reset` and `step`, and sets `_has_begun` once an episode has begun."""

    _has_begun = False

    def __init__(
        self, spec: TaskSpec, num_envs: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """dtype: of observations, rewards and states, float32 or float64."""
        check_num_envs(spec.task_id, num_envs)
        check_dtype(spec.task_id, dtype)
        self._spec, self._num_envs = spec, num_envs
        self._device, self._dtype = torch.empty(0, device=device).device, dtype

    @property
    def spec(self) -> TaskSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._num_envs

    @property
    def device(self) -> torch.device:
        return self._device

    def _error(self, message: str) -> UserError:
        """An error about this environment, to be raised."""
        return UserError(f"{self._spec.task_id}: {message}")

    def _refuse_copy(self, what_is_lost: str, remedy: str) -> NoReturn:
        """Raises, instead of a pickle or a copy that would be another environment."""
        raise self._error(f"expected to copy or pickle all of it, but {what_is_lost} cannot be copied; {remedy}")

    def _require_started(self) -> None:
        if not self._has_begun:
            raise self._error("no episode has begun; call reset(seeds) first")

    def _check_seeds(self, seeds: Sequence[int]) -> list[int]:
        """E seeds as plain integers."""
        try:
            seeds = [operator.index(seed) for seed in seeds]
        except TypeError as error:
            raise self._error(f"expected a whole number as seed of each environment, got {seeds!r}") from error
        if len(seeds) != self._num_envs:
            raise self._error(f"expected {self._num_envs} seeds, one per environment, got {len(seeds)}")
        if min(seeds) < 0 or max(seeds) > MAX_SEED:
            raise self._error(f"seeds must be in [0, 2**63), got {min(seeds)} to {max(seeds)}")
        return seeds

    def _check_continuous(self, actions: Tensor, name: str = "actions", num_agents: int | None = None) -> Tensor:
        """Continuous actions [E, N, A], unchanged; num_agents: N, None means the task's."""
        shape = (self._num_envs, num_agents or self._spec.num_agents, self._spec.action.size)
        if tuple(actions.shape) != shape or not actions.is_floating_point() or actions.device != self._device:
            raise self._error(f"expected {name} as floats of shape {shape} on {self._device}, got {describe(actions)}")
        if not math.isfinite(float(actions.detach().abs().amax())):
            raise self._error(f"expected finite {name}, got {describe(actions)}; check the policy")
        return actions

    def _check_discrete(self, actions: Tensor, legal: Tensor, ignored: Tensor | None = None) -> Tensor:
        """Integer actions [E, N] as int64, all legal [E, N, A] bool; rows `ignored` [E] bool may hold any of the A."""
        spec, shape = self._spec, (self._num_envs, self._spec.num_agents)
        is_integer = not (actions.is_floating_point() or actions.is_complex() or actions.dtype == torch.bool)
        if not is_integer or tuple(actions.shape) != shape or actions.device != self._device:
            raise self._error(
                f"expected actions as integers of shape {shape} on {self._device}, "
                f"got {actions.dtype} of shape {tuple(actions.shape)} on {actions.device}"
            )
        actions, size = actions.long(), spec.action.size
        in_range = (actions >= 0) & (actions < size)
        allowed = legal.gather(2, actions.clamp(0, size - 1)[..., None])[..., 0]
        if ignored is not None:
            allowed = allowed | ignored[:, None]
        if not bool((in_range & allowed).all()):
            row, agent = (~(in_range & allowed)).nonzero()[0].tolist()
            choices = legal[row, agent].nonzero()[:, 0].tolist()
            raise self._error(
                f"row {row}, {spec.agents[agent]}: expected one of the legal actions {choices}, "
                f"got {int(actions[row, agent])}; choose where action_mask is true"
            )
        return actions

    def _check_state(self, state: object, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Attributes of a state: finite tensors of these shapes, and `steps`, integers [E] from 0."""
        for name, shape in {**shapes, "steps": (self._num_envs,)}.items():
            value = getattr(state, name)
            if tuple(value.shape) != shape or not bool(torch.isfinite(value).all()):
                raise self._error(f"expected finite state.{name} of shape {shape}, got {describe(value)}")
        steps: Tensor = state.steps  # type: ignore[attr-defined]
        if steps.is_floating_point() or int(steps.min()) < 0:
            raise self._error(f"state.steps must be integers from 0, got {describe(steps)}")

    def _check_restored(self, observations: Tensor, state: Tensor | None) -> None:
        """Arguments of `restore` in a task without state: observations [E, N, O]."""
        shape = (self._num_envs, self._spec.num_agents, self._spec.observation_size)
        if tuple(observations.shape) != shape or state is not None:
            raise self._error(
                f"expected observations of shape {shape} and no state to restore, "
                f"got {describe(observations)}{'' if state is None else f' and a state, {describe(state)}'}"
            )

    def _check_picture(self, row: int, size: int) -> None:
        """Arguments of `render`, which needs an episode to draw."""
        if not 0 <= row < self._num_envs:
            raise self._error(f"expected a row from 0 to {self._num_envs - 1}, got {row}")
        if size < MIN_PICTURE_SIZE:
            raise self._error(f"expected a picture of at least {MIN_PICTURE_SIZE} pixels, got {size}")
        self._require_started()


class ArrayEnv(BaseEnv):
    """An environment that simulates its rows one by one, and collects their results in NumPy arrays.

    _observations [E, N, O] float, _masks [E, N, A] bool, _states [E, S] float32, _rewards [E, N], _terminated and
    _truncated [E] bool, _won [E] bool or None where the task cannot be won.
    """

    def __init__(
        self,
        spec: TaskSpec,
        num_envs: int,
        *,
        won: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        array_dtype: type[np.floating] = np.float32,
    ) -> None:
        """won: whether time steps have `won`; array_dtype: of the collected observations."""
        super().__init__(spec, num_envs, device=device, dtype=dtype)
        agents = spec.num_agents
        self._observations = np.zeros((num_envs, agents, spec.observation_size), dtype=array_dtype)
        self._masks = np.ones((num_envs, agents, spec.action.size), dtype=bool)
        self._states = np.zeros((num_envs, spec.state_size or 0), dtype=np.float32)
        self._rewards = np.zeros((num_envs, agents))
        self._terminated, self._truncated = np.zeros((2, num_envs), dtype=bool)
        self._won = np.zeros(num_envs, dtype=bool) if won else None

    def _clear(self) -> None:
        """Removes all results of the last episodes."""
        for values in (self._observations, self._states, self._rewards, self._terminated, self._truncated, self._won):
            if values is not None:
                values[...] = 0
        self._masks[...] = True

    def _finished(self) -> np.ndarray:
        """Rows [E] bool whose episode is over."""
        return self._terminated | self._truncated

    def _check_legal(self, actions: Tensor) -> np.ndarray:
        """Integer actions [E, N], each legal or in a finished row."""
        legal, finished = (torch.tensor(value, device=self._device) for value in (self._masks, self._finished()))
        return self._check_discrete(actions, legal, finished).cpu().numpy()

    def _time_step(self) -> TimeStep:
        def tensor(values: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self._device)

        return TimeStep(
            observations=tensor(self._observations, self._dtype),
            rewards=tensor(self._rewards, self._dtype),
            terminated=tensor(self._terminated, torch.bool),
            truncated=tensor(self._truncated, torch.bool),
            action_mask=tensor(self._masks, torch.bool) if self._spec.action.is_discrete else None,
            state=None if self._spec.state_size is None else tensor(self._states, self._dtype),
            won=None if self._won is None else tensor(self._won, torch.bool),
        )


def check_num_envs(task_id: str, num_envs: int) -> None:
    """Raises a UserError below one environment."""
    if num_envs < 1:
        raise UserError(f"{task_id}: expected at least one environment, got num_envs={num_envs}")


def check_dtype(
    task_id: str, dtype: torch.dtype, allowed: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
) -> None:
    """Raises a UserError for a precision that the environment does not have."""
    if dtype not in allowed:
        names = " or ".join(str(choice).removeprefix("torch.") for choice in allowed)
        raise UserError(f"{task_id}: expected dtype {names}, got {dtype}")


def refuse_opponent(task_id: str, opponent: Policy | None) -> None:
    """Raises a UserError if an opponent is passed to a task that does not take one."""
    if opponent is not None:
        raise UserError(f"{task_id} has no opponent to choose; leave `opponent` out")


def describe(value: Tensor) -> str:
    """Type, shape, device and, if there are any, the number of non-finite entries of a tensor, for error messages."""
    broken = int((~torch.isfinite(value)).sum())
    text = f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
    return f"{text} with {broken} non-finite entries" if broken else text
