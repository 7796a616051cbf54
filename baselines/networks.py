"""What the baselines share: perceptrons, stacks of them run as one, the gradient step, the one-pass policy, state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Perceptron(nn.Module):
    """ReLU network [..., inputs] -> [..., outputs]. A class of our own: torch.compile passes over nn.Sequential."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        sizes = itertools.pairwise([inputs, *hidden, outputs])
        self.layers = nn.ModuleList([nn.Linear(before, after) for before, after in sizes])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        output: Tensor = self.layers[-1](x)
        return output


class StackedLinear(nn.Module):
    """M linear layers of one shape, each with its own weights, run as one batched product."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs))
        for parameter in (self.weight, self.bias):  # the range of torch.nn.Linear
            nn.init.uniform_(parameter, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[: len(x)], x, self.weight[: len(x)])


class StackedPerceptron(nn.Module):
    """M ReLU networks of one shape: [m, B, inputs] -> [m, B, outputs] through the first m <= M of them.

    With `layer_norm`, each hidden layer is normalised over its features before the ReLU (no scale or shift to learn).
    """

    def __init__(
        self, members: int, inputs: int, hidden: Sequence[int], outputs: int, *, layer_norm: bool = False
    ) -> None:
        super().__init__()
        sizes = itertools.pairwise([inputs, *hidden, outputs])
        self.layers = nn.ModuleList([StackedLinear(members, before, after) for before, after in sizes])
        self.layer_norm = layer_norm

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x)
            if self.layer_norm:
                x = functional.layer_norm(x, x.shape[-1:])
            x = functional.relu(x)
        output: Tensor = self.layers[-1](x)
        return output


@torch.no_grad()
def move_towards(target: nn.Module, source: nn.Module, rate: float) -> None:
    """target <- (1 - rate) * target + rate * source, parameter by parameter."""
    sources = [p.detach() for p in source.parameters()]
    torch._foreach_lerp_(list(target.parameters()), sources, rate)  # pyright: ignore[reportPrivateImportUsage]
