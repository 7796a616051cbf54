"""What the baselines share: perceptrons, stacks of them run as one, the gradient step, the one-pass policy, state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from marl_flow.interfaces import ActingConfig, ActionSpec, Batch, Execution, Metrics, UserError, mean_metrics


class Perceptron(nn.Module):
    """ReLU network [..., inputs] -> [..., outputs]. A class of our own: torch.compile passes over nn.Sequential."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        sizes = itertools.pairwise([inputs, *hidden, outputs])
        self.layers = nn.ModuleList([nn.Linear(before, after) for before, after in sizes])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


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
        return self.layers[-1](x)


def descend(
    optimizer: torch.optim.Optimizer, loss_of: Callable[[Batch], tuple[Tensor, Metrics]], parts: Sequence[Batch]
) -> Metrics:
    """Mean metrics of one optimiser step on the mean loss of equally large micro-batches.

    Gradients reach the optimiser's own parameters only.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    metrics = []
    for part in parts:
        loss, of_part = loss_of(part)
        (loss / len(parts)).backward(inputs=parameters)
        metrics.append(of_part)
    optimizer.step()
    return mean_metrics(metrics)


@torch.no_grad()
def move_towards(target: nn.Module, source: nn.Module, rate: float) -> None:
    """target <- (1 - rate) * target + rate * source, parameter by parameter."""
    torch._foreach_lerp_(list(target.parameters()), [p.detach() for p in source.parameters()], rate)


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


def check_acting(name: str, acting: ActingConfig, executions: Sequence[Execution]) -> None:
    """Raises unless the request is one that a policy of one deterministic pass can honour."""
    if acting != ActingConfig(execution=acting.execution) or acting.execution not in executions:
        raise UserError(
            f"{name} acts in {' or '.join(executions)} execution, without sampling steps, target return or gates; "
            f"got {acting}"
        )


class OnePassPolicy:
    """Acts by one call of `decide(observations [E, N, O] float32, action_mask)` on the device; keeps no history."""

    network_passes = 1

    def __init__(self, decide: Callable[[Tensor, Tensor | None], Tensor], device: torch.device) -> None:
        self._decide, self._device = decide, device

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        """Nothing to clear."""

    @torch.no_grad()
    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        mask = None if action_mask is None else action_mask.to(self._device)
        return self._decide(observations.to(self._device, torch.float32), mask).to(observations.device)
