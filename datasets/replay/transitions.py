"""Stored transitions, one step of each played again, and where the outcome is not the one that was stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import Restorable, TransitionChecker

Env = Restorable | TransitionChecker

Outcome = dict[str, Tensor]
"""What a step shows, float64 on the CPU, one entry per key of TOLERANCES that the task has: `views` [R, N, O] and
`action_mask` [R, N, A] of the moment before it, `observations` [R, N, O], `state` [R, S], `rewards` [R, N] and
`terminated` [R] of the moment after."""

TOLERANCES: Mapping[str, float] = MappingProxyType(
    {"views": 1e-5, "action_mask": 0.5, "observations": 1e-4, "state": 1e-4, "rewards": 1e-4, "terminated": 0.5}
)
"""By how much a stored number may differ from the one computed, as a share of it where it is above 1.

Stored numbers are float32, which moves a place by up to 2e-7; a contact passes that on tenfold to a velocity, bodies
nearly in one place and an opponent's network more, and the inverse distances of spread a hundredfold to a reward.
Largest differences over 5 M transitions of spread, tag and world (shipped and scripted behaviour, scripted and network
prey, float32 and float64): views 2e-7, observations 4e-5 (one in a thousand above 5e-6), rewards 2e-5. A slip in
dynamics or layout is thousands of times larger.
"""
MOMENTS = ("views", "observations", "state")
"""The quantities that a moment consists of."""
ROUNDING = 1e-6
"""Half width of the box of moments that float32 cannot tell from a stored one, as a share of numbers above 1."""
NON_FINITE = 1e30
"""Stands for what an environment computes that is not a number: unlike anything stored, and arithmetic survives it."""
NEIGHBOURS = 16
"""Moments of that box that are played where the stored one leads elsewhere."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Transitions:
    """R stored steps. rows, episodes, steps [R] int64 say where from (`rows` counts steps through all episodes).

    observations, next_observations [R, N, O], rewards [R, N], state, next_state [R, S] float64; actions as stored;
    action_mask [R, N, A] bool before the step; terminated [R] bool: the step ended the episode by the task's rules;
    shown [R] bool: the next frame is real.
    """

    rows: Tensor
    episodes: Tensor
    steps: Tensor
    observations: Tensor
    next_observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    shown: Tensor
    state: Tensor | None = None
    next_state: Tensor | None = None
    action_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor | slice) -> Self:
        """The transitions of these positions [R'], in this order."""
        changes: dict[str, Any] = {
            field.name: None if (value := getattr(self, field.name)) is None else value[index] for field in fields(self)
        }
        return replace(self, **changes)

    def repeat(self, times: int) -> Self:
        """The transitions that often, one copy after the other."""
        return self.take(torch.arange(len(self)).repeat(times))

    def with_frames(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The transitions with their observations [R, N, O], before and after the step, changed alike."""
        return replace(self, observations=change(self.observations), next_observations=change(self.next_observations))


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What was stored of transitions beside what the environment makes of them.

    difference: absolute, flattened to [R, numbers]; zero where the next frame was not stored.
    """

    stored: Outcome
    computed: Outcome
    difference: Outcome

    @property
    def mismatched(self) -> dict[str, Tensor]:
        """Which rows [R] bool disagree by more than rounding explains, per quantity."""
        return {
            name: (value > TOLERANCES[name] * self.stored[name].abs().clamp(min=1.0).reshape(value.shape)).any(1)
            for name, value in self.difference.items()
        }

    def share_of_fitting_moments(self, ignored: Tensor | None = None) -> float:
        """Of the rows, those whose moments agree; `ignored` [N O] bool: entries of what follows that need not."""
        difference = {name: value for name, value in self.difference.items() if name in MOMENTS}
        if ignored is not None:
            difference["observations"] = difference["observations"].masked_fill(ignored, 0.0)
        wrong = replace(self, difference=difference).mismatched
        return float((~torch.stack(list(wrong.values())).any(0)).double().mean())

    @property
    def residual(self) -> Tensor:
        """Stored less computed observations, before and after the step, [R, 2 N O]."""
        views = (self.stored["views"] - self.computed["views"]).flatten(1)
        after = (self.stored["observations"] - self.computed["observations"]).flatten(1)
        return torch.cat([views, torch.where(self.difference["observations"] > 0.0, after, 0.0)], 1)


def compare(env: Env, steps: Transitions) -> Comparison:
    """Plays the transitions again, each on its own."""
    stored, computed = stored_outcome(steps), predict(env, steps)
    return Comparison(stored=stored, computed=computed, difference=differences(stored, computed, steps.shown))


def gather(store: EpisodeStore, rows: np.ndarray) -> Transitions:
    """The transitions of these rows [R] of `store.actions`."""
    episodes = np.searchsorted(store.offsets, rows, side="right") - 1
    frames, last = rows + episodes, rows == store.offsets[episodes + 1] - 1

    def real(array: np.ndarray, index: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(array[index], dtype=np.float64))

    actions = store.actions[rows]
    return Transitions(
        rows=torch.from_numpy(rows),
        episodes=torch.from_numpy(episodes),
        steps=torch.from_numpy(rows - store.offsets[episodes]),
        observations=real(store.observations, frames),
        next_observations=real(store.observations, frames + 1),
        actions=torch.from_numpy(actions.astype(np.int64 if store.spec.action.is_discrete else np.float32)),
        rewards=real(store.rewards, rows),
        terminated=torch.from_numpy(last & store.terminated[episodes]),
        shown=torch.from_numpy(~last | store.has_final_observation),
        state=None if store.state is None else real(store.state, frames),
        next_state=None if store.state is None else real(store.state, frames + 1),
        action_mask=None if store.action_mask is None else torch.from_numpy(store.action_mask[frames]),
    )


def stored_outcome(of: Transitions) -> Outcome:
    """What was stored of the transitions, in the terms of `predict`."""
    outcome = {
        "views": of.observations,
        "action_mask": of.action_mask,
        "observations": of.next_observations,
        "state": of.next_state,
        "rewards": of.rewards,
        "terminated": of.terminated,
    }
    return {name: value.double() for name, value in outcome.items() if value is not None}


@torch.no_grad()
def predict(env: Env, of: Transitions) -> Outcome:
    """What the environment makes of the transitions' moments and actions, `env.num_envs` at a time.

    A `TransitionChecker` makes it of both moments; where the second was not stored, nothing about it can be wrong.
    """
    parts: list[Outcome] = []
    for start in range(0, len(of), env.num_envs):
        index = torch.arange(start, start + env.num_envs).clamp(max=len(of) - 1)  # the last one fills the batch
        count, part = min(env.num_envs, len(of) - start), of.take(index)
        state = None if part.state is None else part.state.to(env.device)
        if isinstance(env, Restorable):
            before = env.restore(part.observations.to(env.device), state, part.steps.to(env.device))
        else:
            assert state is not None and part.next_state is not None
            before, after = env.expected_transition(state, part.actions.to(env.device), part.next_state.to(env.device))
        seen = {"views": before.observations.clone(), "action_mask": before.action_mask}
        if isinstance(env, Restorable):
            after = env.step(part.actions.to(env.device))
        else:
            shown = part.shown.to(env.device)
            after = replace(
                after,
                rewards=torch.where(shown[:, None], after.rewards, part.rewards.to(env.device)),
                terminated=torch.where(shown, after.terminated, part.terminated.to(env.device)),
            )
        outcome = seen | {
            "observations": after.observations,
            "state": after.state,
            "rewards": after.rewards,
            "terminated": after.terminated,
        }
        parts.append({name: value[:count].double().cpu() for name, value in outcome.items() if value is not None})
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {
        name: value.nan_to_num(nan=NON_FINITE, posinf=NON_FINITE, neginf=-NON_FINITE) for name, value in joined.items()
    }


def differences(stored: Outcome, computed: Outcome, shown: Tensor) -> Outcome:
    """Absolute differences, flattened to [R, numbers]; zero where the next frame [R] was not stored."""
    result = {}
    for name, value in stored.items():
        result[name] = (computed[name] - value).abs().reshape(len(shown), -1)
        if name in ("observations", "state") and not shown.all():
            result[name] = result[name].masked_fill(~shown[:, None], 0.0)
    return result


def within_float32_noise(env: Env, of: Transitions, generator: torch.Generator) -> Tensor:
    """Which transitions [R] bool fit moments that float32 cannot tell from the stored one.

    A reward jumps where a distance passes a threshold, an opponent turns where two ways are equally good, and bodies
    almost in one place part in any direction: there a stored outcome may be none that the stored moment leads to. It
    must lie within those of its neighbours, which may be widened by half their own range: where they agree with
    each other, nothing is excused.
    """
    copies = of.repeat(NEIGHBOURS)

    def moved(values: Tensor) -> Tensor:
        noise = 2.0 * torch.rand(values.shape, generator=generator, dtype=torch.float64) - 1.0
        noise[: len(of)] = 0.0  # the stored moment is one of them
        return values + ROUNDING * noise * values.abs().clamp(min=1.0) * (values != 0)  # a zero is exact

    near: dict[str, Tensor] = {"observations": moved(copies.observations)}
    near |= {name: moved(value) for name in ("state", "next_state") if (value := getattr(copies, name)) is not None}
    outcome = predict(env, replace(copies, **near))
    explained = torch.ones(len(of), dtype=torch.bool)
    for name, value in stored_outcome(of).items():
        around = outcome[name].view(NEIGHBOURS, *value.shape)
        low, high = around.amin(0), around.amax(0)
        room = 0.5 * (high - low) + TOLERANCES[name] * value.abs().clamp(min=1.0)
        fits = (value >= low - room) & (value <= high + room)
        if name in ("observations", "state"):
            fits |= ~of.shown.view(-1, *[1] * (value.ndim - 1))
        explained &= fits.reshape(len(of), -1).all(1)
    return explained
