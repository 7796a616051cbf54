"""Team frames: what of a window is given, and the units in which the rest is generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


def with_numbers(observations: Tensor, kind: str) -> Tensor:
    """Normalised observations [..., N, O] behind the agents' one-hot numbers, [..., N, N + O].

    The numbers are normalised as a column of the data would be by that kind of normaliser: their two values become
    those the published loader's CDF gives them, the ends of [-1, 1], or standardised ones.
    """
    agents = observations.shape[-2]
    numbers = torch.eye(agents, device=observations.device, dtype=observations.dtype)
    share = 1.0 / agents
    if kind == "cdf":  # of N rows N - 1 are zero: cumulative probability 1 - 1/N, then 1
        numbers = torch.where(numbers > 0, 1.0, 2.0 * (1.0 - share) - 1.0)
    elif kind == "limits":
        numbers = 2.0 * numbers - 1.0
    elif agents > 1:
        numbers = (numbers - share) / (share * (1.0 - share)) ** 0.5
    return torch.cat([numbers.expand(*observations.shape[:-1], agents), observations], dim=-1)


def condition(data: Tensor, history: int, seen: Tensor) -> tuple[Tensor, Tensor]:
    """What is given of a window [B, F, N, O]: known [B, F, N] bool, values [B, F, N, O] (zero where not given).

    seen [B, N] bool: agents whose history and current frame are given. The others' histories are given as zeros and
    their current frame is unknown. Centralized: everybody is seen; decentralized: one agent.
    Source: `Guowei-Zou/coflow-release: diffuser/utils/mask_generator.py`, `diffuser/datasets/sequence.py`.
    """
    frame = torch.arange(data.shape[1], device=data.device)[None, :, None]
    given = (frame <= history) & seen[:, None]
    return given | (frame < history), torch.where(given[..., None], data, 0.0)


@dataclass(frozen=True, kw_only=True)
class PlanSpace:
    """Planned frames x [B, H, N, O] are generated as (x - origin) / unit.

    `absolute`: frames as they are. `residual`: a seen agent's frame h steps ahead is told from its current frame in
    units of step_scale * sqrt(h), step_scale [O] being the standard deviation of one step's change in the data. Without
    it the next frame, the one that decides the action, hardly counts beside the spread of the frames themselves. An
    unseen agent has no current frame to start from and stays absolute.
    """

    history: int
    origin: Tensor
    unit: Tensor

    @classmethod
    def absolute(cls, values: Tensor, history: int) -> Self:
        return cls(history=history, origin=values.new_zeros(()), unit=values.new_ones(()))

    @classmethod
    def residual(cls, values: Tensor, seen: Tensor, history: int, step_scale: Tensor) -> Self:
        """values [B, F, N, O] as `condition` gives them (zero where unseen), seen [B, N], step_scale [O]."""
        steps = torch.arange(1, values.shape[1] - history, device=values.device, dtype=values.dtype).sqrt()
        unit = (steps[:, None] * step_scale)[None, :, None]  # [1, H, 1, O]
        return cls(
            history=history,
            origin=values[:, history : history + 1],
            unit=torch.where(seen[:, None, :, None], unit, 1.0),
        )

    def encode(self, window: Tensor) -> Tensor:
        """Window [B, F, N, O] with its planned frames in plan units; history and current frame unchanged."""
        now = self.history + 1
        return torch.cat([window[:, :now], (window[:, now:] - self.origin) / self.unit], dim=1)

    def decode(self, window: Tensor) -> Tensor:
        """The inverse of `encode`."""
        now = self.history + 1
        return torch.cat([window[:, :now], window[:, now:] * self.unit + self.origin], dim=1)
