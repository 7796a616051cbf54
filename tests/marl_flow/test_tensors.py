"""Closed forms of the shared tensor helpers."""

from __future__ import annotations

import pytest
import torch

from marl_flow.tensors import append_dims, masked_mean


def test_append_dims_broadcasts_along_the_first_axis() -> None:
    """Catches rows' values spread over another axis, which broadcasting would not refuse in a cube."""
    cube = torch.ones(2, 2, 2) * append_dims(torch.tensor([3.0, 5.0]), torch.zeros(2, 2, 2))
    assert torch.equal(cube[0], torch.full((2, 2), 3.0)) and torch.equal(cube[1], torch.full((2, 2), 5.0))


def test_masked_mean() -> None:
    """Catches a mean divided by the number of all entries, or a padded entry that counts."""
    values = torch.tensor([[1.0, 3.0], [100.0, float(5)]])
    mask = torch.tensor([[True, True], [False, True]])
    assert float(masked_mean(values, mask)) == pytest.approx(3.0)
    assert float(masked_mean(values, torch.zeros_like(mask))) == 0.0
