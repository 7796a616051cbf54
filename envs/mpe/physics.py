"""Batched particle physics of the multi-agent particle environments, as pure functions of a world state.

The numbers are those of the copy that OMAR published (`ling-pan/OMAR: multiagent-particle-envs/multiagent/core.py`),
whose dynamics differ from PettingZoo's: the acceleration counts twice and the position moves with the new velocity.

Here coordinates come first and episodes last, so that every operation runs along contiguous memory:
positions [2, M, E] of all M entities, agents before landmarks, and velocities [2, A, E] of the A agents, the only
entities that move. `ParticleState` is the same state in the order of `marl_flow.interfaces`, episodes first.
Every function is differentiable, so that a return has exact gradients with respect to the actions.
Lengths are in world units (the arena spans -1 to 1, with no walls), times in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TIME_STEP = 0.1
DAMPING = 0.25  # fraction of the velocity lost in one step
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 1e-3  # depth over which a contact hardens
SMALLEST_DISTANCE = 1e-12


@dataclass(frozen=True, kw_only=True)
class ParticleState:
    """Everything an episode continues from.

    positions [E, M, 2]; velocities [E, A, 2]; steps [E] int64, the number of steps already made.
    """

    positions: Tensor
    velocities: Tensor
    steps: Tensor


@dataclass(frozen=True, kw_only=True)
class Bodies:
    """The physical constants of a world, on the device and in the precision it is simulated in.

    force_scale [A, 1] force per unit of action; speed_limit [A, 1], or None when there is none; contact_distance
    [A, M, 1] distance of the centres below which an agent and an entity touch, minus infinity to itself. The first
    `num_solid` entities push each other apart on contact, the others let everything through. Every mass is 1.
    """

    force_scale: Tensor
    speed_limit: Tensor | None
    contact_distance: Tensor
    num_solid: int


def build_bodies(
    *,
    radii: Sequence[float],
    force_scales: Sequence[float],
    speed_limits: Sequence[float] | None,
    num_solid: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Bodies:
    """Bodies of M entities with the given radii, of which the first len(force_scales) are agents."""
    count = len(force_scales)
    radius = torch.tensor(radii, dtype=torch.float64)
    contact_distance = radius[:count, None] + radius[None, :]
    contact_distance[:, :count].fill_diagonal_(-torch.inf)
    limits = None if speed_limits is None else torch.tensor(speed_limits, dtype=dtype, device=device)[:, None]
    return Bodies(
        force_scale=torch.tensor(force_scales, dtype=dtype, device=device)[:, None],
        speed_limit=limits,
        contact_distance=contact_distance.to(device=device, dtype=dtype)[:, :, None],
        num_solid=num_solid,
    )


def separations(positions: Tensor, num_agents: int) -> tuple[Tensor, Tensor]:
    """Offsets [2, A, M, E] from each agent to each entity, and their lengths [A, M, E], of positions [2, M, E].

    Lengths are at least 1e-12, where the root still has a gradient.
    """
    offsets = positions[:, None] - positions[:, :num_agents, None]
    return offsets, (offsets * offsets).sum(0).clamp_min(SMALLEST_DISTANCE**2).sqrt()


def contact_forces(bodies: Bodies, offsets: Tensor, distances: Tensor) -> Tensor:
    """Force [2, A, E] on each agent from all solid entities it touches.

    Its size is 100 m log(1 + exp(depth / m)) with m = 0.001, along the line of centres. Two entities in exactly the
    same place, where the reference divides by zero, exert none here.
    """
    solid = bodies.num_solid
    centre_distances = distances[:, :solid]
    penetration = F.softplus(
        bodies.contact_distance[:, :solid] - centre_distances, beta=1.0 / CONTACT_MARGIN, threshold=30.0
    )
    strength = penetration.mul_(-CONTACT_FORCE).div_(centre_distances)
    return (offsets[:, :, :solid] * strength).sum(2)


def advance(
    bodies: Bodies, positions: Tensor, velocities: Tensor, actions: Tensor, contacts: Tensor
) -> tuple[Tensor, Tensor]:
    """Positions [2, A, E] and velocities [2, A, E] of the agents after one time step (semi-implicit Euler).

    positions, velocities [2, A, E] before the step; actions [2, A, E], not clipped; contacts [2, A, E] contact forces
    at the positions before the step.
    """
    force = torch.addcmul(contacts, actions, bodies.force_scale)
    new_velocities = torch.add(velocities * (1.0 - DAMPING), force, alpha=TIME_STEP)
    if bodies.speed_limit is not None:
        speed = (new_velocities * new_velocities).sum(0).clamp_min(SMALLEST_DISTANCE**2).sqrt()
        new_velocities = new_velocities * (bodies.speed_limit / speed).clamp(max=1.0)
    return torch.add(positions, new_velocities, alpha=TIME_STEP), new_velocities
