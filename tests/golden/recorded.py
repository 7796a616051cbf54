"""Reads recorded vectors: this folder's, or the full recordings they were cut from (README.md says what they hold)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CONV_BLOCK_NORM = ".block.2."  # the group norm inside the reference's convolution blocks
GATE = ".gamma"


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file; weights that it describes instead of storing are drawn again, under `weights/<key>`."""
    with np.load(path) as file:
        arrays = dict(file)
    if "weights_recipe" in arrays:
        recipe = json.loads(str(arrays.pop("weights_recipe")))
        arrays |= {f"weights/{name}": value.numpy() for name, value in draw_weights(**recipe).items()}
    return arrays


def draw_weights(seed: int, shapes: dict[str, list[int]], sums: dict[str, float]) -> dict[str, Tensor]:
    """The random weights of a recorded network, by the reference's state-dict keys.

    They were torch's initial values under `seed` (uniform below 1 / sqrt(fan in); norms and gates draw nothing), plus
    normal noise under `seed + 1`: deviation 0.5 on gates, 0.05 on everything else. `shapes` is in state-dict order,
    that of the noise; initial values are drawn in the order of construction, in which the U-Net's way up comes after
    its middle. `sums` holds each tensor's sum, which the draws must reproduce.
    """
    way_up = [name for name in shapes if ".ups." in name]
    others = [name for name in shapes if ".ups." not in name]
    after_middle = next(index for index, name in enumerate(others) if ".final_conv." in name)
    source = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name in others[:after_middle] + way_up + others[after_middle:]:
        layer, _, part = name.rpartition(".")
        weights[name] = torch.empty(shapes[name])
        if name.endswith(GATE):
            weights[name].zero_()
        elif CONV_BLOCK_NORM in name:
            weights[name].fill_(1.0 if part == "weight" else 0.0)
        else:
            bound = 1.0 / math.sqrt(math.prod(shapes[f"{layer}.weight"][1:]))
            weights[name].uniform_(-bound, bound, generator=source)
    source = torch.Generator().manual_seed(seed + 1)
    for name, shape in shapes.items():
        weights[name] += (0.5 if name.endswith(GATE) else 0.05) * torch.randn(shape, generator=source)
        found = float(weights[name].double().sum())
        assert math.isclose(found, sums[name], abs_tol=1e-4), (
            f"{name} sums to {found}, the recorded weights to {sums[name]}: torch {torch.__version__} draws other "
            "numbers than the torch 2.15 of the recording; test with the full vectors, or with the pinned torch"
        )
    return {name: weights[name] for name in shapes}
