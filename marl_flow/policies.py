"""Policies that need no method of their own: one network pass per decision, and uniformly random play."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from marl_flow.interfaces import ActionSpec


def to_unit_box(action: ActionSpec, actions: Tensor) -> Tensor:
    """Continuous actions [..., A] as numbers in [-1, 1] of each dimension's range; outside it they are clipped."""
    low, high = _bounds(action, actions)
    return (2 * (actions - low) / (high - low) - 1).clamp(-1, 1)


def from_unit_box(action: ActionSpec, unit: Tensor) -> Tensor:
    """The inverse of `to_unit_box`."""
    low, high = _bounds(action, unit)
    return action.clip(low + (unit + 1) / 2 * (high - low))


def _bounds(action: ActionSpec, like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.tensor([action.low, action.high], dtype=like.dtype, device=like.device)
    return low, high


class OnePassPolicy:
    """Acts by one call of `decide(observations [E, N, O] float32, action_mask)` on the device; keeps no history."""

    network_passes = 1

    def __init__(self, decide: Callable[[Tensor, Tensor | None], Tensor], device: torch.device) -> None:
        self._decide, self._device = decide, device

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        """Nothing to clear."""

    @torch.no_grad()
    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        """Actions [E, N, A] or choices [E, N] for observations [E, N, O]."""
        mask = None if action_mask is None else action_mask.to(self._device)
        return self._decide(observations.to(self._device, torch.float32), mask).to(observations.device)


class UniformPolicy:
    """Uniform in the box of continuous actions, or among the legal choices."""

    network_passes = 0

    def __init__(self, action: ActionSpec) -> None:
        self.action = action

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self._generator = generator

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        """Actions [E, N, A] or choices [E, N] for observations [E, N, O]."""
        envs, agents = observations.shape[:2]
        draw, device = self._generator, self._generator.device
        if not self.action.is_discrete:
            fraction = torch.rand(envs, agents, self.action.size, generator=draw, device=device)
            low, high = _bounds(self.action, fraction)
            return (low + (high - low) * fraction).to(observations.device)
        if action_mask is None:
            choices = torch.randint(self.action.size, (envs, agents), generator=draw, device=device)
        else:
            legal = action_mask.to(device, torch.float32).flatten(0, 1)
            choices = torch.multinomial(legal, 1, generator=draw).reshape(envs, agents)
        return choices.to(observations.device)
