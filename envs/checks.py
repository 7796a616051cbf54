"""The `VectorEnv` contract as a callable check: every suite's simulators must pass it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from marl_flow.interfaces import ActionSpec, ContractError, TaskSpec, TimeStep, UserError, VectorEnv
from marl_flow.seeding import derive_seed, row_uniform

MakeEnv = Callable[[int], VectorEnv]
ROWS = 3
STEPS_AFTER_THE_END = 3


@dataclass(frozen=True)
class Episode:
    """Actions [T, E, ...], the T + 1 time steps that were returned, and copies of them made at once."""

    actions: list[Tensor]
    steps: list[TimeStep]
    copies: list[TimeStep]


def check_vector_env(
    make_env: MakeEnv, *, seed: int = 0, seeds_matter: bool = True, tolerance: float = 1e-4, compared_steps: int = 10
) -> None:
    """Raises a ContractError at the first rule that `make_env(num_envs)` breaks; plays a few whole episodes.

    seeds_matter: whether episodes of different seeds start differently (false for simulators with a single start).
    tolerance: how far a row may be from the same episode in a batch of another size over the first `compared_steps`
    (matrix products round differently with the size, and chaotic dynamics then amplify the difference).
    """
    env = make_env(ROWS)
    _check_description(env, ROWS)
    seeds = [derive_seed(seed, "check", index) for index in range(2 * ROWS)]
    first, second = seeds[:ROWS], seeds[ROWS:]

    episode = _play(env, first)
    _check_end(env, episode)
    _check_unchanged(episode)
    _check_same(
        episode,
        _play(env, first),
        "a second episode of the same seeds and actions differs: something survives `reset`, or is drawn from a global "
        "generator",
    )
    _check_same(
        episode,
        _play(make_env(ROWS), first),
        "another instance with the same seeds and actions differs: something is drawn when an instance is built",
    )
    if seeds_matter and torch.equal(episode.copies[0].observations, env.reset(second).observations):
        raise ContractError("episodes of different seeds start with the same observations: `reset` ignores its seeds")
    other_neighbours = [first[0], *second[1:]]
    _check_same(
        episode,
        _play(env, other_neighbours),
        "row 0 changed although only its neighbours' seeds and actions did: something is drawn, averaged or indexed "
        "across rows",
        slice(0, 1),
    )
    _check_alone(make_env, first, episode, tolerance, compared_steps)
    _check_refusals(env, first)


def check_first_steps(env: VectorEnv, *, seed: int = 0) -> None:
    """Raises a ContractError if the description or one of the first two time steps breaks a rule: a quick check."""
    _check_description(env, env.num_envs)
    seeds = [derive_seed(seed, "check", index) for index in range(env.num_envs)]
    step = env.reset(seeds)
    _check_step(env, step, 0)
    _check_step(env, env.step(_random_actions(env, step, seeds, 0)), 1)


def _check_description(env: VectorEnv, num_envs: int) -> None:
    if not isinstance(env, VectorEnv):
        raise ContractError(f"{type(env).__name__} lacks a part of the VectorEnv protocol")
    if env.num_envs != num_envs:
        raise ContractError(f"num_envs: {num_envs} requested, the environment says {env.num_envs}")
    if not isinstance(env.spec, TaskSpec):
        raise ContractError(f"spec: expected a TaskSpec, got {env.spec!r}")
    if not isinstance(env.device, torch.device):
        raise ContractError(f"device: expected a torch.device, got {env.device!r}")


def _random_actions(env: VectorEnv, step: TimeStep, seeds: list[int], index: int) -> Tensor:
    """Uniform legal actions, [E, N, A] or [E, N]; each row's depend on its own seed, the step and its mask."""
    action, shape = env.spec.action, (env.num_envs, env.spec.num_agents, env.spec.action.size)
    action_seeds = [derive_seed(seed, "actions") for seed in seeds]
    draws = row_uniform(action_seeds, index, shape[1] * shape[2], device=env.device).to(torch.float32).view(shape)
    if not action.is_discrete:
        low, high = (torch.tensor(bound, device=env.device) for bound in (action.low, action.high))
        return low + (high - low) * draws
    legal = torch.ones_like(draws, dtype=torch.bool) if step.action_mask is None else step.action_mask
    return draws.masked_fill(~legal, -1.0).argmax(-1)


def _play(env: VectorEnv, seeds: list[int]) -> Episode:
    """An episode of random actions, continued for some steps after all rows have finished or the step limit."""
    with _untouched_global_state("reset"):
        steps = [env.reset(seeds)]
    _check_step(env, steps[0], 0)
    copies, actions = [_copied(steps[0])], []
    for index in range(env.spec.max_steps + STEPS_AFTER_THE_END):
        chosen = _random_actions(env, copies[-1], seeds, index)
        given = chosen.clone()
        with _untouched_global_state("step"):
            step = env.step(given)
        _check_step(env, step, index + 1)
        if not torch.equal(given, chosen):
            raise ContractError(f"step {index + 1}: the caller's actions were modified: work on a copy")
        actions.append(chosen)
        steps.append(step)
        copies.append(_copied(step))
        ended = [bool(copy.finished.all()) for copy in copies[-STEPS_AFTER_THE_END - 1 :]]
        if len(ended) > STEPS_AFTER_THE_END and all(ended):
            break
    return Episode(actions, steps, copies)


@contextmanager
def _untouched_global_state(where: str) -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    if not torch.equal(before, torch.get_rng_state()):
        raise ContractError(
            f"{where} draws from torch's global generator: pass a generator, or use seeding.row_uniform"
        )


def _copied(step: TimeStep) -> TimeStep:
    values = {field.name: getattr(step, field.name) for field in fields(step)}
    return replace(step, **{name: value.clone() for name, value in values.items() if isinstance(value, Tensor)})


def _check_step(env: VectorEnv, step: TimeStep, index: int) -> None:
    spec, rows, agents, action = env.spec, env.num_envs, env.spec.num_agents, env.spec.action
    where = "reset" if index == 0 else f"step {index}"
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "observations": ((rows, agents, spec.observation_size), "floating"),
        "rewards": ((rows, agents), "floating"),
        "terminated": ((rows,), "bool"),
        "truncated": ((rows,), "bool"),
    }
    if action.is_discrete:
        expected["action_mask"] = ((rows, agents, action.size), "bool")
    if spec.state_size is not None:
        expected["state"] = ((rows, spec.state_size), "floating")
    if step.won is not None:
        expected["won"] = ((rows,), "bool")
    for name in ("action_mask", "state"):
        if name not in expected and getattr(step, name) is not None:
            reason = "continuous tasks have no masks" if name == "action_mask" else "the spec has no state_size"
            raise ContractError(f"{where}: {name} is given although {reason}")
    for name, (shape, dtype) in expected.items():
        value = getattr(step, name)
        if not isinstance(value, Tensor):
            raise ContractError(f"{where}: {name} is {type(value).__name__}, expected a tensor {list(shape)}")
        if tuple(value.shape) != shape:
            raise ContractError(f"{where}: {name} has shape {list(value.shape)}, the spec makes it {list(shape)}")
        if (value.dtype == torch.bool) != (dtype == "bool") or (dtype == "floating") != value.is_floating_point():
            raise ContractError(f"{where}: {name} is {value.dtype}, expected a {dtype} type")
        if value.device != env.device:
            raise ContractError(f"{where}: {name} is on {value.device}, the environment on {env.device}")
        if not bool(torch.isfinite(value).all()):
            raise ContractError(f"{where}: {name} is not finite: a division by zero or an unset entry")
    if step.action_mask is not None and not bool(step.action_mask.any(-1).all()):
        raise ContractError(f"{where}: action_mask has no legal action for some agent; finished agents need one too")
    if index == 0 and (bool(step.rewards.any()) or bool(step.finished.any())):
        raise ContractError("reset: rewards or finished rows remain from the last episode")


def _check_end(env: VectorEnv, episode: Episode) -> None:
    limit = env.spec.max_steps
    for index, (before, after) in enumerate(zip(episode.copies, episode.copies[1:], strict=False), 1):
        finished, rule = before.finished, "finished rows must freeze"
        if bool(
            (after.terminated != before.terminated)[finished].any()
            | (after.truncated != before.truncated)[finished].any()
        ):
            raise ContractError(f"step {index}: the flags of a finished row changed: {rule} until the next reset")
        if bool(after.rewards[finished].any()):
            raise ContractError(f"step {index}: a finished row receives a reward: {rule}, with zero reward")
        if not torch.equal(after.observations[finished], before.observations[finished]):
            raise ContractError(
                f"step {index}: a finished row's observation changed: {rule}; is there an automatic reset?"
            )
        if index < limit and bool(after.truncated[~finished].any()):
            raise ContractError(
                f"step {index}: truncated before the spec's limit of {limit} steps: is max_steps wrong?"
            )
        if index == limit and not bool(after.finished.all()):
            raise ContractError(f"step {index}: rows are neither terminated nor truncated at the spec's limit of steps")


def _check_unchanged(episode: Episode) -> None:
    for index, (step, copy) in enumerate(zip(episode.steps, episode.copies, strict=True)):
        if name := _difference(step, copy, slice(None)):
            raise ContractError(f"{name} returned at step {index} changed later: a buffer is reused; return copies")


def _difference(step: TimeStep, other: TimeStep, rows: slice, tolerance: float = 0.0) -> str | None:
    """The first field in which the given rows differ, or None."""
    for field in fields(step):
        a, b = getattr(step, field.name), getattr(other, field.name)
        if (a is None) != (b is None):
            return field.name
        if a is not None:
            a, b = a[rows], b[rows]
            if a.shape != b.shape or not torch.allclose(a.double(), b.double(), tolerance, tolerance):
                return field.name
    return None


def _check_same(episode: Episode, other: Episode, cause: str, rows: slice = slice(None)) -> None:
    for index, (step, other_step) in enumerate(zip(episode.copies, other.copies, strict=False)):
        if name := _difference(step, other_step, rows):
            raise ContractError(f"{name} at step {index}: {cause}")


def _check_alone(make_env: MakeEnv, seeds: list[int], episode: Episode, tolerance: float, compared_steps: int) -> None:
    """The last row's episode again, alone."""
    env = make_env(1)
    step = env.reset(seeds[-1:])
    for index in range(min(compared_steps, len(episode.actions)) + 1):
        copy = episode.copies[index]
        last = replace(copy, **{f.name: v[-1:] for f in fields(copy) if (v := getattr(copy, f.name)) is not None})
        if name := _difference(last, step, slice(None), tolerance):
            raise ContractError(
                f"{name} at step {index}: the same seed and actions alone give another episode than in a batch: "
                "something depends on the number or the order of rows"
            )
        if index < len(episode.actions):
            step = env.step(episode.actions[index][-1:])


def _check_refusals(env: VectorEnv, seeds: list[int]) -> None:
    _refused(lambda: env.reset(seeds[:-1]), "a missing seed")
    step = env.reset(seeds)
    actions = _random_actions(env, step, seeds, 0)
    _refused(lambda: env.step(actions[:, :-1]), "actions of too few agents")
    _refused(lambda: env.step(actions[:-1]), "actions of too few rows")
    for name, wrong in _wrong_values(env.spec.action, actions):
        _refused(lambda wrong=wrong: env.step(wrong), name)  # type: ignore[misc]
    if step.action_mask is not None and not bool(step.action_mask.all()):
        row, agent, choice = (~step.action_mask).nonzero()[0].tolist()
        actions[row, agent] = choice
        _refused(lambda: env.step(actions), "an illegal action")


def _wrong_values(action: ActionSpec, actions: Tensor) -> Iterator[tuple[str, Tensor]]:
    wrong = actions.clone()
    if action.is_discrete:
        wrong[0, 0] = action.size
        yield "an action number beyond the last", wrong
        yield "floating point actions in a discrete task", actions.float()
    else:
        wrong[0, 0, 0] = torch.nan
        yield "an action that is not a number", wrong


def _refused(call: Callable[[], TimeStep], what: str) -> None:
    try:
        call()
    except UserError:
        return
    except Exception as error:
        raise ContractError(f"{what} raises {type(error).__name__} ({error}); expected a UserError") from error
    raise ContractError(f"{what} is accepted; expected a UserError")
