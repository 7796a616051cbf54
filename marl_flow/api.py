"""What `import marl_flow` offers: train a run, evaluate it, read its results, and play its policy anywhere.

import marl_flow

run = marl_flow.train("mpe/simple_spread/expert", "bc", out="runs/bc", updates=200)
for row in marl_flow.evaluate(run, episodes=20):
    print(row.execution, row.team_return_mean)

policy = marl_flow.load_policy(run)
policy.reset(num_envs=1)
actions = policy.act(observations)             # [N, O] -> [N, A], or integers [N]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from marl_flow import baselines, checkpoint, envs, seeding
from marl_flow.algorithm import Algorithm
from marl_flow.commands import evaluate as evaluation_command
from marl_flow.commands import train as train_command
from marl_flow.commands.evaluate import EvalConfig
from marl_flow.commands.targets import target_return as target_return_of
from marl_flow.files import user_path
from marl_flow.interfaces import ActingConfig, Execution, Policy, TaskSpec, UserError
from marl_flow.results import Results, load
from marl_flow.training import checked_device

Array = TypeVar("Array", np.ndarray, Tensor)


def train(
    dataset: str,
    algorithm: str,
    *,
    out: str | Path | None = None,
    preset: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    task: str | None = None,
    progress: bool = False,
    **settings: Any,
) -> Path:
    """Trains as `marl-flow train` does and returns the run folder; continues a folder that holds the same run.

    dataset: its id; a native one that is absent is built first. algorithm: a name, or module:Class. out: the run
    folder, by default runs/<dataset>/<algorithm>-<preset>-seed<seed>. task: the environment of the data as
    module:factory, for tasks of your own. settings: of the algorithm or of training, e.g. `updates=200`.
    """
    if task is not None:
        envs.load_factory(task)
    run = train_command.make_run(
        dataset,
        algorithm,
        folder=None if out is None else user_path(out),
        preset=preset,
        settings=[f"{name}={_text(value)}" for name, value in settings.items()],
        seed=seed,
        device=device,
    )
    train_command.train(run, progress=progress)
    return run.folder


def evaluate(
    run: str | Path,
    *,
    k: Sequence[int] = (1, 2, 3, 5, 10),
    actions_per_plan: Sequence[int] = (1,),
    episodes: int = 100,
    executions: Sequence[Execution] = (),
    target: str = "quantile:0.9",
    device: str = "cpu",
    task: str | None = None,
) -> Results:
    """Evaluates a run as `marl-flow eval` does, plays what is not there yet, and returns all results of its folder.

    run: a run folder, or a checkpoint file in one. The other arguments are the options of the command.
    """
    if task is not None:
        envs.load_factory(task)
    config = EvalConfig(
        steps=tuple(k),
        actions_per_plan=tuple(actions_per_plan),
        episodes=episodes,
        executions=tuple(executions),
        target=target,
        device=device,
    )
    folder = user_path(run)
    evaluation_command.evaluate(folder, config)
    return load(evaluation_command.locate(folder)[1])


def load_policy(
    run_or_checkpoint: str | Path,
    execution: Execution | None = None,
    k: int | None = None,
    target_return: str | float = "quantile:0.9",
    device: str = "cpu",
    seed: int = 0,
) -> LoadedPolicy:
    """The trained policy of a run folder (its newest checkpoint) or of a checkpoint file, ready to act.

    execution: centralized or decentralized; None where the run was trained for one of them only. k: sampling steps,
    of methods that sample in steps; None means 1 there. target_return: of return-conditioned methods, the discounted
    return per agent to reach from the start of an episode, as a number or as in `marl-flow eval --target`. A run
    folder keeps the returns of its data, so that the dataset is not needed; of older folders, and of files moved out of
    theirs, it is, unless target_return is a number. seed: of the noise that the policy draws.
    """
    file, folder = evaluation_command.locate(user_path(run_or_checkpoint))
    algorithm, header = checkpoint.load_algorithm(file, baselines.get, device=checked_device(device))
    if execution is None:
        execution, *others = algorithm.executions
        if others:
            raise UserError(
                f"{run_or_checkpoint} can act in {' and '.join(algorithm.executions)} execution; choose one with "
                f"execution={algorithm.executions[0]!r}"
            )
    target = None
    if algorithm.return_conditioned:
        if not isinstance(target_return, str | int | float):
            raise UserError(f"target_return: expected a number, or text such as quantile:0.9, got {target_return!r}")
        rule = target_return if isinstance(target_return, str) else f"raw:{float(target_return)!r}"
        _, target = target_return_of(rule, algorithm, header, folder, execution)
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise UserError(f"k: expected a whole number of sampling steps from 1 on, got {k!r}")
    steps = 1 if k is None and algorithm.samples_in_steps else k
    acting = ActingConfig(execution=execution, num_sampling_steps=steps, target_return=target)
    return LoadedPolicy(algorithm, acting, seed)


class LoadedPolicy:
    """A trained policy that needs nothing else: arrays in, arrays of the same kind out.

    spec: the task it was trained for. acting: how it acts.
    """

    def __init__(self, algorithm: Algorithm, acting: ActingConfig, seed: int) -> None:
        self.algorithm, self.acting, self.seed = algorithm, acting, seed
        self.policy: Policy = algorithm.policy(acting)
        self._num_envs: int | None = None
        self._resets = 0

    def __repr__(self) -> str:
        return f"<{self.algorithm.name} trained for {self.spec.task_id}, acting as {self.acting}>"

    @property
    def spec(self) -> TaskSpec:
        return self.algorithm.spec

    def reset(self, num_envs: int = 1, generator: torch.Generator | None = None) -> None:
        """Begins E = `num_envs` episodes. generator: of the policy's noise; None: one made from the policy's seed and
        the number of resets before, so that episodes differ and a program repeats itself."""
        if num_envs < 1:
            raise UserError(f"num_envs: expected at least 1, got {num_envs}")
        if generator is None:
            generator = seeding.generator(self.seed, "acting", self._resets)
        self._resets += 1
        self._num_envs = num_envs
        self.policy.reset(num_envs, generator)

    def act(self, observations: Array, action_mask: Array | None = None, rewards: Array | None = None) -> Array:
        """Actions [E, N, A], or integer choices [E, N], for raw observations [E, N, O].

        With one episode the axis E may be left out everywhere. action_mask [E, N, A] bool: legal choices, in tasks that
        have a mask. rewards [E, N]: of the previous step, for methods that count the return down as they go; None
        means zero, which is right after a reset.
        """
        if self._num_envs is None:
            raise UserError("no episode has begun; call reset(num_envs) before act")
        shape: tuple[int, int, int] = (self._num_envs, self.spec.num_agents, self.spec.observation_size)
        single = observations.ndim == 2
        seen = self._rows("observations", observations, shape, torch.float32, single)
        mask = None
        if action_mask is not None:
            mask = self._rows("action_mask", action_mask, (*shape[:2], self.spec.action.size), torch.bool, single)
        paid = torch.zeros(shape[:2])
        if rewards is not None:
            paid = self._rows("rewards", rewards, shape[:2], torch.float32, single)
        actions = self.policy.act(seen, mask, paid.to(seen.device))
        if single:
            actions = actions[0]
        if isinstance(observations, np.ndarray):
            return actions.cpu().numpy()
        return actions

    def _rows(self, name: str, array: Any, shape: tuple[int, ...], dtype: torch.dtype, single: bool) -> Tensor:
        """An array as a tensor of that shape, its axis E added where it was left out."""
        tensor = torch.as_tensor(array)
        expected = shape[1:] if single and shape[0] == 1 else shape
        if tuple(tensor.shape) != expected:
            raise UserError(
                f"{name}: expected the shape {list(expected)} of {self.spec.task_id} in {shape[0]} episodes, got "
                f"{list(tensor.shape)}"
            )
        return (tensor[None] if expected != shape else tensor).to(dtype)


def _text(value: Any) -> str:
    """A setting's value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
