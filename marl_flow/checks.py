"""The contract of `Algorithm` as a callable check, for methods of the suite and for yours.

    from marl_flow.checks import check_algorithm
    check_algorithm(MyMethod)                        # raises a ContractError that says what is broken, and why

It trains a few updates on tiny random data of every action kind that the method serves; a few seconds in all. That a
method learns anything is not checked. `marl_flow.envs.checks.check_vector_env` is the same for environments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.algorithm import Algorithm
from marl_flow.config import from_json, to_json
from marl_flow.datasets.store import EpisodeStore
from marl_flow.datasets.windows import WindowSampler
from marl_flow.interfaces import (
    EXECUTIONS,
    ActingConfig,
    ActionSpec,
    Batch,
    ContractError,
    Execution,
    Policy,
    TaskSpec,
    UserError,
)
from marl_flow.normalize import Normalizers

AGENTS, OBSERVATION, CHOICES, STEPS, EPISODES, BATCH, ENVS = 3, 4, 5, 6, 8, 8, 4
SPECS = {
    "continuous": ActionSpec(kind="continuous", size=2, low=(-1.0, 0.0), high=(1.0, 4.0)),
    "discrete": ActionSpec(kind="discrete", size=CHOICES),
}
CPU = torch.device("cpu")


def check_algorithm(algorithm: type[Algorithm], config: Any = None) -> None:
    """Raises a ContractError at the first clause of the contract that the method breaks.

    config: None takes the first preset. A small one makes the check fast.
    """
    _check_class(algorithm)
    config = next(iter(algorithm.presets.values())) if config is None else config
    _check_config(algorithm, config)
    for kind in SPECS:
        data = tiny_store(kind)
        if kind in algorithm.action_kinds:
            _Check(algorithm, config, data).run()
            continue
        try:
            build(algorithm, config, data, seed=0)
        except UserError:
            continue
        raise ContractError(
            f"{algorithm.name} serves {algorithm.action_kinds} actions, but builds for a task with {kind} ones: "
            "`build` must refuse it with a UserError"
        )


def tiny_store(kind: str, seed: int = 0) -> EpisodeStore:
    """Random episodes of up to 6 steps of three agents, with continuous or discrete actions (some of them illegal)."""
    draw = np.random.default_rng(seed)
    lengths = np.array([STEPS, 2, *draw.integers(1, STEPS + 1, EPISODES - 2)])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    frames, steps, action = int(offsets[-1]) + EPISODES, int(offsets[-1]), SPECS[kind]
    mask = None
    if action.is_discrete:
        actions = draw.integers(CHOICES, size=(steps, AGENTS))
        mask = draw.random((frames, AGENTS, CHOICES)) < 0.5
        rows = np.arange(steps) + np.repeat(np.arange(EPISODES), lengths)
        mask[rows[:, None], np.arange(AGENTS), actions] = True
        mask[..., 0] |= ~mask.any(-1)
    else:
        actions = draw.uniform(action.low, action.high, (steps, AGENTS, action.size)).astype(np.float32)
    return EpisodeStore(
        spec=TaskSpec(
            task_id="check/tiny",
            agents=tuple(f"agent_{i}" for i in range(AGENTS)),
            observation_size=OBSERVATION,
            action=action,
            max_steps=STEPS,
            team_reward="mean",
        ),
        dataset_id="user/check/tiny/random-v1",
        observations=draw.normal(size=(frames, AGENTS, OBSERVATION)).astype(np.float32),
        actions=actions,
        rewards=draw.normal(size=(steps, AGENTS)).astype(np.float32),
        offsets=offsets,
        terminated=np.arange(EPISODES) % 2 == 0,
        action_mask=mask,
    )


def build(algorithm: type[Algorithm], config: Any, data: EpisodeStore, seed: int) -> Algorithm:
    """An instance for the data, on the CPU."""
    window, kind = algorithm.window(config), algorithm.normalizer_kind(config)
    normalizers = Normalizers.fit(kind, data, discount=window.discount)
    weights = seeding.generator(seed, "weights")
    return algorithm.build(config, data.spec, normalizers, device=CPU, generator=weights)


def _check_class(algorithm: type[Algorithm]) -> None:
    if not (isinstance(algorithm, type) and issubclass(algorithm, Algorithm)):
        raise ContractError(f"expected a subclass of marl_flow.algorithm.Algorithm, found {algorithm!r}")
    name = getattr(algorithm, "name", None)
    if not isinstance(name, str) or not name:
        raise ContractError(f"{algorithm.__qualname__}.name: expected the method's name as text, found {name!r}")
    presets = getattr(algorithm, "presets", None)
    if not isinstance(presets, Mapping) or not presets:
        raise ContractError(f"{name}.presets: expected a mapping from names to configs, found {presets!r}")
    if not algorithm.action_kinds or not set(algorithm.action_kinds) <= set(SPECS):
        raise ContractError(f"{name}.action_kinds: expected some of {tuple(SPECS)}, found {algorithm.action_kinds}")


def _check_config(algorithm: type[Algorithm], config: Any) -> None:
    for preset, values in {**algorithm.presets, "the config given": config}.items():
        where = f"{algorithm.name}, {preset}"
        if not dataclasses.is_dataclass(values) or isinstance(values, type):
            raise ContractError(f"{where}: expected an instance of a frozen dataclass, found {values!r}")
        if not type(values).__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise ContractError(
                f"{where}: {type(values).__name__} must be frozen: @dataclass(frozen=True, kw_only=True)"
            )
        if type(values) is not type(config):
            raise ContractError(
                f"{where}: every preset must be a {type(config).__name__}, found a {type(values).__name__}"
            )
        for field in ("updates", "batch_size"):
            if not isinstance(getattr(values, field, None), int):
                raise ContractError(f"{where}: expected a whole number as the field `{field}`, the method's own budget")
        try:
            same = from_json(type(values), to_json(values)) == values
        except (TypeError, ValueError) as error:
            raise ContractError(f"{where}: the config must survive its JSON form, found: {error}") from error
        if not same:
            raise ContractError(f"{where}: the config comes back from its JSON form with other values")


class _Check:
    """The clauses that need an instance, for one kind of actions."""

    def __init__(self, algorithm: type[Algorithm], config: Any, data: EpisodeStore) -> None:
        self.algorithm, self.config, self.data = algorithm, config, data
        self.name = f"{algorithm.name} ({data.spec.action.kind} actions)"
        self.sampler = WindowSampler(data, algorithm.window(config), CPU)

    def fail(self, message: str) -> ContractError:
        return ContractError(f"{self.name}: {message}")

    def run(self) -> None:
        first = self.trained(seed=0)
        again = self.trained(seed=0)
        otherwise = "the same seeds give other weights: a number is drawn from neither of the generators given"
        self.same(first.state_dict(), again.state_dict(), otherwise)
        if not first.executions or not set(first.executions) <= set(EXECUTIONS):
            raise self.fail(f"executions: expected some of {EXECUTIONS}, found {first.executions!r}")
        self.check_state(first)
        for execution in first.executions:
            self.check_policy(first, execution)

    # Training

    def trained(self, seed: int, updates: int = 3) -> Algorithm:
        with self.untouched_global_state("`build`"):
            instance = build(self.algorithm, self.config, self.data, seed)
        self.train(instance, torch.Generator().manual_seed(seed), updates)
        return instance

    def train(self, instance: Algorithm, generator: torch.Generator, updates: int) -> None:
        for update in range(updates):
            batch = self.sampler.draw(BATCH, generator)
            before = _copied(batch)
            with self.untouched_global_state("`update`"):
                metrics = instance.update(batch, generator, 1 + update % 2)
            self.same(before, _copied(batch), "`update` modifies its batch: work on a copy")
            for name, value in metrics.items():
                if not isinstance(value, Tensor) or value.dim() or value.requires_grad:
                    raise self.fail(f"metric {name!r}: expected a detached tensor of shape [], found {value!r}")

    def check_state(self, instance: Algorithm) -> None:
        state = {name: value.clone() for name, value in instance.state_dict().items()}
        other = self.trained(seed=1, updates=1)
        other.load_state_dict(state)
        for each in (instance, other):
            self.train(each, torch.Generator().manual_seed(5), 3)
        otherwise = (
            "training continues differently from a loaded state: something that training changes is not in "
            "`state_dict`, e.g. a counter, a target or an optimiser that no attribute holds"
        )
        self.same(instance.state_dict(), other.state_dict(), otherwise)
        for execution in other.executions:
            acted, again = self.first_actions(instance, execution), self.first_actions(other, execution)
            if not torch.equal(acted, again):
                raise self.fail(
                    f"{execution}: a loaded instance acts differently from the trained one: something that acting "
                    "needs is not in `state_dict`"
                )
        unknown = {**state, "unknown/entry": torch.zeros(1)}
        missing = [{name: value for name, value in state.items() if name != left_out} for left_out in [*state][:1]]
        for kind, broken in [("an unknown entry", unknown), *(("a missing entry", one) for one in missing)]:
            try:
                build(self.algorithm, self.config, self.data, seed=2).load_state_dict(broken)
            except (KeyError, ValueError, RuntimeError):
                continue
            raise self.fail(f"`load_state_dict` accepts {kind}: it must be strict")

    # Acting

    def policy(self, instance: Algorithm, execution: Execution) -> Policy:
        return instance.policy(
            ActingConfig(
                execution=execution,
                num_sampling_steps=2 if instance.samples_in_steps else None,
                target_return=1.0 if instance.return_conditioned else None,
            )
        )

    def first_actions(self, instance: Algorithm, execution: Execution) -> Tensor:
        draw, policy = np.random.default_rng(2), self.policy(instance, execution)
        observations = torch.from_numpy(draw.normal(size=(1, ENVS, AGENTS, OBSERVATION)).astype(np.float32))
        mask = None
        if self.data.spec.action.is_discrete:
            mask = torch.ones(1, ENVS, AGENTS, CHOICES, dtype=torch.bool)
        policy.reset(ENVS, torch.Generator().manual_seed(4))
        return self.act(policy, observations, mask, torch.zeros(1, ENVS, AGENTS), 0)

    def check_policy(self, instance: Algorithm, execution: Execution) -> None:
        draw = np.random.default_rng(1)
        observations = torch.from_numpy(draw.normal(size=(STEPS, ENVS, AGENTS, OBSERVATION)).astype(np.float32))
        rewards = torch.from_numpy(draw.normal(size=(STEPS, ENVS, AGENTS)).astype(np.float32))
        mask = None
        if self.data.spec.action.is_discrete:
            mask = torch.from_numpy(draw.random((STEPS, ENVS, AGENTS, CHOICES)) < 0.5)
            mask[..., 1] |= ~mask.any(-1)
        policy = self.policy(instance, execution)

        def play(seen: Tensor, paid: Tensor) -> Tensor:
            """Actions [T, E, N, ...] of an episode."""
            policy.reset(ENVS, torch.Generator().manual_seed(3))
            with self.untouched_global_state("the policy"):
                return torch.stack([self.act(policy, seen, mask, paid, step) for step in range(STEPS)])

        actions = play(observations, rewards)
        if not torch.equal(actions, play(observations, rewards)):
            raise self.fail(f"{execution}: a second episode with the same seed differs: `reset` must clear all history")
        other_row = observations.clone()
        other_row[:, 1:] += 1.0
        if not torch.equal(actions[:, 0], play(other_row, rewards)[:, 0]):
            raise self.fail(f"{execution}: an episode's actions depend on the episodes beside it in the batch")
        if execution == "decentralized":
            for agent in range(AGENTS):
                changed, richer = observations + 1.0, rewards + 5.0
                changed[:, :, agent], richer[:, :, agent] = observations[:, :, agent], rewards[:, :, agent]
                if not torch.equal(actions[:, :, agent], play(changed, rewards)[:, :, agent]):
                    raise self.fail(f"decentralized: agent {agent}'s action depends on the other agents' observations")
                if not torch.equal(actions[:, :, agent], play(observations, richer)[:, :, agent]):
                    raise self.fail(f"decentralized: agent {agent}'s action depends on the other agents' rewards")

    def act(self, policy: Policy, seen: Tensor, mask: Tensor | None, paid: Tensor, step: int) -> Tensor:
        given = seen[step].clone()
        legal = None if mask is None else mask[step]
        actions = policy.act(given, legal, paid[step] if step else torch.zeros_like(paid[step]))
        if not torch.equal(given, seen[step]):
            raise self.fail("the policy modifies the observations it is given: work on a copy")
        action = self.data.spec.action
        shape = (ENVS, AGENTS) if action.is_discrete else (ENVS, AGENTS, action.size)
        if not isinstance(actions, Tensor) or tuple(actions.shape) != shape:
            found = tuple(actions.shape) if isinstance(actions, Tensor) else type(actions).__name__
            raise self.fail(f"the policy returns actions {found}, expected a tensor {shape}")
        if actions.requires_grad:
            raise self.fail("the policy returns actions that carry gradients: act under torch.no_grad()")
        if legal is not None:
            if actions.is_floating_point() or not bool(legal.gather(-1, actions.long()[..., None]).all()):
                raise self.fail("the policy chooses illegal actions, or not by whole numbers; use `action_mask`")
        elif not torch.equal(action.clip(actions), actions):
            raise self.fail("the policy's actions are not finite or leave the bounds of the task's ActionSpec")
        return actions

    # Comparing

    def same(self, left: Mapping[str, Tensor], right: Mapping[str, Tensor], otherwise: str) -> None:
        names = {**left, **right}
        differ = [n for n in names if n not in left or n not in right or not torch.equal(left[n], right[n])]
        if differ:
            raise self.fail(f"{otherwise} (first difference in {differ[0]!r})")

    @contextmanager
    def untouched_global_state(self, where: str) -> Iterator[None]:
        before = torch.get_rng_state()
        yield
        if not torch.equal(before, torch.get_rng_state()):
            raise self.fail(f"{where} draws from torch's global generator: draw from the generator it is given")


def _copied(batch: Batch) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value.clone() for name, value in values.items() if value is not None}
