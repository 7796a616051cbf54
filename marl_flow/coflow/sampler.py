"""Few-step integration of any velocity callable from noise (t = 1) to data (t = 0), given entries held fixed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    num_steps: int,
    given_mask: Tensor,
    given_values: Tensor,
) -> Tensor:
    """Data [B, F, N, O] from noise of that shape by `num_steps` Euler steps of equal length.

    velocity(z [B, F, N, O], t [B]) is evaluated at the start of each step; given_mask (bool, broadcastable to z) marks
    the entries that are given: they hold `given_values` before every step and at the end. One step is exact for a
    velocity that is constant along its path (CoFlow, arXiv 2605.01457: data = noise - u(noise, 1)).
    """
    if num_steps < 1:
        raise ValueError(f"sampling needs at least 1 step, got {num_steps}")
    z = torch.where(given_mask, given_values, noise)
    for step in range(num_steps):
        t = torch.full((noise.shape[0],), 1.0 - step / num_steps, dtype=noise.dtype, device=noise.device)
        z = torch.where(given_mask, given_values, z - velocity(z, t) / num_steps)
    return z
