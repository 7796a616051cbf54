"""Tasks of other packages: factories of environments, found by entry point, by registration or as `module:factory`.

A factory is a callable of one of two forms:
- `factory(num_envs)` returns a `VectorEnv` of that many episodes. Of the parameters `device`, `dtype` and `opponent`
  it gets those that it has. An environment on another device than the one requested has its tensors moved.
- `factory()` returns a PettingZoo `ParallelEnv`; it is called once for each episode. The environment's `metadata` says
  the rest: "name", "max_steps" (the step limit) and optionally "team_reward" ("mean", "sum" or "shared"; default mean).
Which form it is follows from whether the factory has a parameter named `num_envs`.

A task id is `suite/task` in letters, digits, - and _. It is the entry point's name, or the registered one; the spec of
a VectorEnv must have the same. For `module:factory` alone it is the spec's, or the "name" in a ParallelEnv's metadata;
a name without a suite becomes `<module>/<name>`, with the first part of the module's name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from marl_flow import tasks
from marl_flow.envs.base import check_num_envs, refuse_opponent
from marl_flow.interfaces import Policy, TaskSpec, TimeStep, UserError, VectorEnv
from marl_flow.plugins import load_object, offered_names, offered_reference

if TYPE_CHECKING:
    from pettingzoo import ParallelEnv

GROUP = "marl_flow.tasks"
"""Entry point group: name = task id, value = `module:factory`."""
Factory = Callable[..., Any]
_TASK_ID = re.compile(r"[\w-]+/[\w-]+")
_TEAM_REWARDS = ("mean", "sum", "shared")
_registered: dict[str, Factory] = {}


def register(task_id: str, factory: Factory) -> None:
    """Makes `envs.make(task_id, ...)` call this factory, in this process. A second registration replaces the first."""
    _check_task_id(task_id)
    if not callable(factory):
        raise UserError(f"task {task_id}: expected a callable factory, got {factory!r}")
    _registered[task_id] = factory


def load_factory(reference: str) -> str:
    """Registers the factory `module:factory` under its task's id, and returns the id.

    The environment is built, reset and stepped once, so that one that breaks the contract is refused here.
    """
    from marl_flow.envs.checks import ContractError, check_first_steps

    factory = resolve(reference)
    env = build(reference, factory, 1)
    try:
        check_first_steps(env)
    except ContractError as error:
        raise UserError(
            f"{reference} breaks the contract of environments: {error}; `marl_flow.envs.checks.check_vector_env` runs "
            "all checks"
        ) from error
    task_id = env.spec.task_id
    register(task_id, factory)
    return task_id


def names() -> tuple[str, ...]:
    """Ids of all tasks that are registered or installed from other packages."""
    return tuple(dict.fromkeys([*_registered, *offered_names(GROUP)]))


def find(task_id: str) -> Factory | None:
    """The factory of a task id, registered ones first; None if there is none."""
    if task_id in _registered:
        return _registered[task_id]
    reference = offered_reference(GROUP, task_id)
    return None if reference is None else resolve(reference)


def resolve(reference: str) -> Factory:
    """The callable that `module:factory` names, by importing the module."""
    factory = load_object(reference, example="mygame.tasks:make_duel")
    if not callable(factory):
        raise UserError(f"{reference}: expected a callable factory, got {factory!r}")
    return factory


def build(
    name: str,
    factory: Factory,
    num_envs: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    opponent: Policy | None = None,
) -> VectorEnv:
    """The environment of a factory, checked as far as that is possible without playing; name: task id or reference."""
    check_num_envs(name, num_envs)
    device, parameters = torch.empty(0, device=device).device, _parameters(name, factory)
    given = {"device": device, "dtype": dtype, "opponent": opponent}
    arguments = {key: value for key, value in given.items() if key in parameters and value is not None}
    if "opponent" not in parameters:
        refuse_opponent(name, opponent)
    if "num_envs" in parameters:
        env = factory(num_envs=num_envs, **arguments)
        if not isinstance(env, VectorEnv):
            raise UserError(
                f"{name}: the factory has a parameter `num_envs`, so it must return a VectorEnv (spec, num_envs, "
                f"device, reset, step); it returned {_described(env)}"
            )
    else:
        env = _vectorized(name, factory, arguments, num_envs, device, dtype)
    _check_built(name, env, num_envs)
    return env if env.device == device else MovedEnv(env, device)


def _parameters(name: str, factory: Factory) -> set[str]:
    """Names of the parameters that a factory can be given."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # some builtins have no signature
        return set()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in variadic
        and parameter.name not in ("num_envs", "device", "dtype", "opponent")
    ]
    if required:
        raise UserError(
            f"{name}: expected a factory with a parameter `num_envs` that returns a VectorEnv, or one without required "
            f"parameters that returns a PettingZoo ParallelEnv; it requires {', '.join(required)}"
        )
    return {parameter.name for parameter in parameters if parameter.kind not in variadic}


def _vectorized(
    name: str,
    factory: Factory,
    arguments: dict[str, Any],
    num_envs: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> VectorEnv:
    """Episodes of a factory of ParallelEnvs."""
    first = factory(**arguments)
    if isinstance(first, VectorEnv):
        raise UserError(f"{name}: the factory returned a VectorEnv, so it needs a parameter `num_envs`; add it")
    from pettingzoo import ParallelEnv

    from marl_flow.envs.pettingzoo import ParallelVectorEnv

    if not isinstance(first, ParallelEnv):
        advice = "; convert it with pettingzoo.utils.aec_to_parallel" if hasattr(first, "agent_iter") else ""
        raise UserError(
            f"{name}: expected a factory that returns a PettingZoo ParallelEnv, or one with a parameter `num_envs` "
            f"that returns a VectorEnv; it returned {_described(first)}{advice}"
        )
    task_id, max_steps, team_reward = _metadata(name, first)
    rows = [first, *(factory(**arguments) for _ in range(num_envs - 1))]
    return ParallelVectorEnv(
        iter(rows).__next__,
        num_envs,
        task_id=task_id,
        max_steps=max_steps,
        team_reward=team_reward,
        device=device,
        dtype=dtype or torch.float32,
    )


def _metadata(name: str, env: ParallelEnv[Any, Any, Any]) -> tuple[str, int, Any]:
    """Task id, step limit and team reward of a ParallelEnv."""
    metadata = getattr(env, "metadata", None) or {}
    task_id = name
    if ":" in name:
        task_id = str(metadata.get("name", "")) or type(env).__name__
        if "/" not in task_id:
            task_id = f"{name.partition(':')[0].partition('.')[0]}/{task_id}"
    max_steps, team_reward = metadata.get("max_steps"), metadata.get("team_reward", "mean")
    wrap = (
        "or return marl_flow.envs.pettingzoo.ParallelVectorEnv(constructor, num_envs, task_id=..., max_steps=...) from "
        "a factory(num_envs)"
    )
    if not isinstance(max_steps, int) or isinstance(max_steps, bool) or max_steps < 1:
        raise UserError(
            f"{name}: expected the step limit as `metadata['max_steps']` of {_described(env)}, got {max_steps!r}; "
            f"add it, {wrap}"
        )
    if team_reward not in _TEAM_REWARDS:
        raise UserError(
            f"{name}: expected `metadata['team_reward']` as one of {', '.join(_TEAM_REWARDS)}, got {team_reward!r}; "
            f"change it, {wrap}"
        )
    return task_id, max_steps, team_reward


def _check_built(name: str, env: VectorEnv, num_envs: int) -> None:
    if not isinstance(env.spec, TaskSpec):
        raise UserError(f"{name}: expected the environment's `spec` to be a TaskSpec, got {env.spec!r}")
    if env.num_envs != num_envs:
        raise UserError(f"{name}: expected an environment of {num_envs} episodes, got num_envs={env.num_envs}")
    if not isinstance(env.device, torch.device):
        raise UserError(f"{name}: expected the environment's `device` to be a torch.device, got {env.device!r}")
    if ":" in name:
        _check_task_id(env.spec.task_id)
    elif env.spec.task_id != name:
        raise UserError(f"{name}: expected an environment whose spec has this task id, got {env.spec.task_id!r}")


def _check_task_id(task_id: str) -> None:
    if not _TASK_ID.fullmatch(task_id):
        raise UserError(f"expected a task id suite/task of letters, digits, - and _, got {task_id!r}; rename the task")
    if task_id.partition("/")[0] in {card.suite for card in tasks.CARDS.values()}:
        raise UserError(f"task id {task_id!r}: its suite is marl_flow's own; choose another name before the slash")


def _described(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


class MovedEnv:
    """A `VectorEnv` whose tensors are moved to another device, and actions back."""

    def __init__(self, env: VectorEnv, device: torch.device) -> None:
        self.env, self._device = env, device

    @property
    def spec(self) -> TaskSpec:
        return self.env.spec

    @property
    def num_envs(self) -> int:
        return self.env.num_envs

    @property
    def device(self) -> torch.device:
        return self._device

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        return self._moved(self.env.reset(seeds))

    def step(self, actions: Tensor) -> TimeStep:
        return self._moved(self.env.step(actions.to(self.env.device)))

    def _moved(self, step: TimeStep) -> TimeStep:
        values = {field.name: getattr(step, field.name) for field in fields(step)}
        return replace(step, **{name: value.to(self._device) for name, value in values.items() if value is not None})
