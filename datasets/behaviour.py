"""The behaviour policies of native datasets: stacks of snapshots of a small network, taken while it was trained.

They are stored in `policies/<suite>_<task>.safetensors`, for each quality:

    <quality>/layer<i>.weight           [S, out, in]    i = 0, 1, ...; tanh after every hidden layer
    <quality>/layer<i>.bias             [S, out]
    <quality>/episodes_share            [S]             part of the episodes each snapshot collects, in training order

and, where actions are continuous (benchmarks/behaviour/mpe.py, mamujoco.py),

    <quality>/log_std                   [S, A]          log of the exploration noise's standard deviation
    <quality>/observation_mean, _std    [S, O]          input = (observation - mean) / std

or, where they are discrete (benchmarks/behaviour/smac.py),

    <quality>/epsilon                   [S]             probability of a uniform legal action
    <quality>/temperature               [S]             what outputs are divided by

Every agent acts by the same network. Continuous: clip(tanh(output) + exp(log_std) * noise, bounds), and the clipped
action is what is stored. Discrete: the input ends with the agent's number, one-hot; the choice is drawn from the
softmax of the divided outputs over legal actions, or, with probability epsilon, uniformly from these.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from marl_flow.interfaces import ActionSpec, Policy, UserError

CONTINUOUS = ("log_std", "observation_mean", "observation_std")
DISCRETE = ("epsilon", "temperature")


def behaviour_file(task_id: str) -> Path:
    """The behaviour policies shipped for a task."""
    return Path(str(files("marl_flow.datasets") / "policies" / f"{task_id.replace('/', '_')}.safetensors"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """S snapshots of a network: layers of (weight [S, out, in], bias [S, out]), and the rest as drawn above."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    episodes_share: Tensor
    log_std: Tensor | None = None
    observation_mean: Tensor | None = None
    observation_std: Tensor | None = None
    epsilon: Tensor | None = None
    temperature: Tensor | None = None

    @property
    def size(self) -> int:
        return len(self.episodes_share)

    @property
    def noise(self) -> str:
        """How the policies explore, in words."""
        if self.epsilon is None:
            return "Gaussian, clipped to the bounds"
        assert self.temperature is not None
        return (
            f"uniform over legal actions with probability {_numbers(self.epsilon)}, else drawn from the policy "
            f"at temperature {_numbers(self.temperature)}"
        )

    def snapshots_of(self, batch: range, episodes: int) -> Tensor:
        """Which snapshot plays each episode of a batch, [E]: training order, `episodes` split by their shares.

        Surplus episodes (numbers from `episodes` on) go to the last one.
        """
        ends = torch.round(self.episodes_share.double().cumsum(0) * episodes).long()
        numbers = torch.arange(batch.start, batch.stop)
        return torch.searchsorted(ends, numbers, right=True).clamp_max(self.size - 1)

    def policy(self, snapshots: Tensor, action: ActionSpec) -> Policy:
        """Plays each row with its own snapshot [E]."""
        if action.is_discrete != (self.epsilon is not None):
            raise UserError(
                f"expected behaviour policies with {'epsilon' if action.is_discrete else 'log_std'} for "
                f"{action.kind} actions, found those of the other kind"
            )
        return (ChoosingPolicy if action.is_discrete else SnapshotPolicy)(self, snapshots, action)

    def outputs(self, inputs: Tensor, snapshots: Tensor) -> Tensor:
        """Outputs [E, N, A] before any last tanh, of inputs [E, N, I], for the snapshot [E] that plays each row."""
        result = inputs.new_empty(*inputs.shape[:2], self.layers[-1][1].shape[-1])
        for s in snapshots.unique().tolist():
            rows = snapshots == s
            x = inputs[rows]
            if self.observation_mean is not None and self.observation_std is not None:
                x = (x - self.observation_mean[s]) / self.observation_std[s]
            for weight, bias in self.layers[:-1]:
                x = torch.tanh(x @ weight[s].t() + bias[s])
            weight, bias = self.layers[-1]
            result[rows] = x @ weight[s].t() + bias[s]
        return result


def read_stack(path: Path, quality: str) -> Stack:
    """The snapshots of one quality; what does not fit together is a UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"expected behaviour policies in the package's {path.name}, found: {error}; install marl_flow again"
        ) from error
    prefix = f"{quality}/"
    own = {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}
    names = ("episodes_share", *(DISCRETE if "epsilon" in own else CONTINUOUS))
    num_layers = sum(name.endswith(".weight") for name in own)
    expected = {*names, *(f"layer{i}.{part}" for i in range(num_layers) for part in ("weight", "bias"))}
    if not num_layers or set(own) != expected:
        raise UserError(f"{path.name}: expected {sorted(expected)} under {prefix}, found {sorted(own)}")
    stack = Stack(
        layers=tuple((own[f"layer{i}.weight"], own[f"layer{i}.bias"]) for i in range(num_layers)),
        **{name: own[name] for name in names},
    )
    total = float(stack.episodes_share.double().sum())
    sizes = {value.shape[0] for value in own.values()}
    if sizes != {stack.size} or abs(total - 1.0) > 1e-4 or (stack.episodes_share < 0).any():
        raise UserError(
            f"{path.name}: expected {stack.size} snapshots with shares that sum to 1 under {prefix}, "
            f"found {sorted(sizes)} and {total:g}"
        )
    return stack


class SnapshotPolicy:
    """Continuous actions, each row by its own snapshot [E] of the stack, noise from the generator of `reset`."""

    network_passes = 1

    def __init__(self, stack: Stack, snapshots: Tensor, action: ActionSpec) -> None:
        assert stack.log_std is not None
        self.stack, self.snapshots, self.action = stack, snapshots, action
        self.std = stack.log_std.exp()[snapshots][:, None]  # [E, 1, A]

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        assert num_envs == len(self.snapshots)
        self.generator = generator

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        mean = torch.tanh(self.stack.outputs(observations.float(), self.snapshots))
        return self.action.clip(mean + self.std * torch.randn(mean.shape, generator=self.generator))


class ChoosingPolicy:
    """Discrete choices, each row by its own snapshot [E] of the stack, drawn with the generator of `reset`."""

    network_passes = 1

    def __init__(self, stack: Stack, snapshots: Tensor, action: ActionSpec) -> None:
        assert stack.epsilon is not None and stack.temperature is not None
        self.stack, self.snapshots = stack, snapshots
        self.epsilon = stack.epsilon[snapshots][:, None, None]  # [E, 1, 1]
        self.temperature = stack.temperature[snapshots][:, None, None]

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        assert num_envs == len(self.snapshots)
        self.generator = generator

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        assert action_mask is not None
        numbers = torch.eye(observations.shape[1]).expand(len(observations), -1, -1)
        outputs = self.stack.outputs(torch.cat([observations.float(), numbers], dim=-1), self.snapshots)
        own = (outputs / self.temperature).masked_fill(~action_mask, -torch.inf).softmax(-1)
        uniform = action_mask / action_mask.sum(-1, keepdim=True)
        chances = (1 - self.epsilon) * own + self.epsilon * uniform
        waits = -torch.log1p(-torch.rand(chances.shape, generator=self.generator, dtype=torch.float64))
        return (waits / chances.double()).masked_fill(~action_mask, torch.inf).argmin(-1)  # exponential race


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in sorted({round(float(value), 4) for value in values}))
