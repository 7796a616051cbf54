"""Tensor helpers that no method owns."""

from __future__ import annotations

from torch import Tensor


def append_dims(values: Tensor, like: Tensor) -> Tensor:
    """Values [B] as [B, 1, ..., 1], with as many dimensions as `like`, to broadcast against it."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean (scalar) of values over the entries where mask is true or, for weights, their weighted mean.

    mask is broadcastable to values; the mean over no entries is zero.
    """
    weights = mask.to(values.dtype).expand_as(values)
    return (values * weights).sum() / weights.sum().clamp_min(1e-12)
