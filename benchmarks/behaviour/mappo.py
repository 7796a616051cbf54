"""Multi-agent PPO (Yu et al. 2022, arXiv 2103.01955): what the trainings of SMAC and MA-MuJoCo behaviour share.

One actor shared by the agents, on what an agent observes; one critic on the global state. An iteration collects steps,
works out generalised advantages (Schulman et al. 2016, arXiv 1506.02438), and takes some epochs of minibatch steps on
the clipped objective (Schulman et al. 2017, arXiv 1707.06347). smac.py and mamujoco.py say how steps are collected and
what a minibatch's loss is: they differ in actions, in how values are scaled and in what counts as an end.
"""

from __future__ import annotations

import argparse
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from marl_flow.benchmarks.behaviour.snapshots import SnapshotFolder, write_policies
from marl_flow.interfaces import UserError
from marl_flow.module_state import pack_state, unpack_state

log = logging.getLogger(__name__)

MASKED_STD = 1e6
"""Standard deviation that a masked feature is divided by, so that nothing can be read from it."""


@dataclass(frozen=True, kw_only=True)
class MappoConfig:
    """Settings that both trainings have; discounts per step."""

    iterations: int
    hidden: int = 64
    learning_rate: float
    epochs: int
    clip: float = 0.2
    """How far a probability ratio may move from 1 before its gradient is cut."""
    discount: float = 0.99
    gae_lambda: float = 0.95
    gradient_clip: float
    """Largest norm of a gradient."""
    snapshot_every: int
    """Iterations between snapshots."""
    measure_episodes: int
    """Episodes that training measures a snapshot by."""
    seed: int = 0


class RunningMeanStd(nn.Module):
    """Running mean and variance of features [..., D]; normalises by them. Masked features [D] are hidden, constant
    ones only shifted."""

    mean: Tensor
    variance: Tensor
    count: Tensor
    masked_features: Tensor

    def __init__(self, masked_features: Tensor) -> None:
        super().__init__()
        size = len(masked_features)
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("masked_features", masked_features)

    def update(self, values: Tensor) -> None:
        values = values.double().flatten(0, -2)
        mean, variance = values.mean(0), values.var(0, correction=0)
        fraction = len(values) / (self.count + len(values))
        shift = mean - self.mean
        self.variance += fraction * (variance - self.variance) + fraction * (1 - fraction) * shift.square()
        self.mean += fraction * shift
        self.count += len(values)

    @property
    def shift_and_scale(self) -> tuple[Tensor, Tensor]:
        """What features are reduced by, then divided by, [D] each, float32."""
        std = self.variance.sqrt()
        std = torch.where(std < 1e-6, 1.0, std)
        shift = torch.where(self.masked_features, 0.0, self.mean)
        return shift.float(), torch.where(self.masked_features, MASKED_STD, std).float()

    def forward(self, values: Tensor) -> Tensor:
        shift, scale = self.shift_and_scale
        return (values - shift) / scale


def critic_network(state_size: int, hidden: int) -> nn.Sequential:
    """Value [..., 1] of a state [..., S]."""
    hidden_layers = (nn.Linear(state_size, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
    return nn.Sequential(*hidden_layers, nn.Linear(hidden, 1))


def generalized_advantages(
    config: MappoConfig, rewards: Tensor, values: Tensor, next_values: Tensor, ends: Tensor
) -> Tensor:
    """Generalised advantages, everything [T, E]. next_values: of what each step led to, 0 where nothing follows it;
    ends: where a row's next step belongs to another episode, so that none of its error counts."""
    td_errors = rewards + config.discount * next_values - values
    advantages, gae = torch.zeros_like(values), torch.zeros_like(values[0])
    for t in reversed(range(len(values))):
        gae = td_errors[t] + config.discount * config.gae_lambda * gae * ~ends[t]
        advantages[t] = gae
    return advantages


def clipped_objective(config: MappoConfig, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """PPO's objective per decision; log probabilities under the present policy and under the one that acted."""
    ratio = (log_probs - old_log_probs).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - config.clip, 1 + config.clip) * advantages)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """M joint steps of one iteration: observations [M, N, O] and states [M, S] as the networks take them, actions
    [M, N, A] or choices [M, N], log_probs of these under the policy that acted, [M] of the team's or [M, N] of each
    agent's, advantages (standardised) and value_targets [M], and action_mask [M, N, A] where actions are choices."""

    observations: Tensor
    states: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    value_targets: Tensor
    action_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.advantages)

    def rows(self, indices: Tensor) -> Batch:
        """The joint steps of these indices."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[indices] for name, value in values.items() if value is not None})


class Learner(ABC):
    """One training: its networks, its optimiser and the generator of everything that is drawn.

    norm_groups: parameters whose gradient norm is limited together.
    """

    config: MappoConfig

    def __init__(
        self,
        task_id: str,
        config: MappoConfig,
        actor: nn.Module,
        critic: nn.Module,
        generator: torch.Generator,
        norm_groups: Sequence[Sequence[nn.Parameter]],
    ) -> None:
        self.task_id, self.config = task_id, config
        self.generator, self.norm_groups = generator, norm_groups
        parameters = [*actor.parameters(), *critic.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, eps=1e-5)
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {
            "actor": actor,
            "critic": critic,
            "optimizer": self.optimizer,
        }
        """What a checkpoint holds besides the generator."""

    @abstractmethod
    def collect(self, iteration: int) -> tuple[Batch, dict[str, float]]:
        """One iteration's steps, and what to log of them."""

    @abstractmethod
    def minibatch_size(self, num_steps: int) -> int:
        """How many of an iteration's joint steps one step of the optimiser takes."""

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """A minibatch's loss, and what to log of it."""

    @abstractmethod
    def export(self) -> dict[str, Tensor]:
        """The actor as snapshots hold it."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """What the exported actor returns, over episodes that no training and no dataset uses."""

    def step_optimizer(self) -> None:
        """Takes one step along the gradients at hand."""
        self.optimizer.step()

    def pack(self, iteration: int) -> dict[str, Tensor]:
        """Everything a killed training resumes from, bit for bit."""
        return {**pack_state(self.parts, iteration), "generator": self.generator.get_state()}

    def unpack(self, tensors: dict[str, Tensor]) -> int:
        """Resumes from what `pack` returned; returns the iteration."""
        self.generator.set_state(tensors.pop("generator"))
        return unpack_state(self.parts, tensors)

    def update(self, batch: Batch, iteration: int) -> dict[str, float]:
        """One iteration's epochs; what to log of the last minibatch."""
        logged: dict[str, Tensor] = {}
        for _ in range(self.config.epochs):
            order = torch.randperm(len(batch), generator=self.generator)
            for indices in order.split(self.minibatch_size(len(batch))):
                loss, logged = self.loss(batch.rows(indices))
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                for group in self.norm_groups:
                    nn.utils.clip_grad_norm_(group, self.config.gradient_clip)
                self.step_optimizer()
        return {name: round(float(value.detach()), 4) for name, value in logged.items()}

    def train(self, folder: Path) -> None:
        """Trains to the last iteration, with snapshots and their record under `folder`; resumes what is there."""
        config = self.config
        snapshots, first = SnapshotFolder(folder, self.task_id, config), 0
        if (state := snapshots.resume()) is not None:
            first = self.unpack(state)
        for iteration in range(first, config.iterations + 1):
            if iteration % config.snapshot_every == 0:
                row = snapshots.add(iteration, self.export(), self.measure(), self.pack(iteration))
                log.info("%s %s", self.task_id, json.dumps(row))
            if iteration == config.iterations:
                return
            batch, collected = self.collect(iteration)
            log.info("%d: %s", iteration, {**collected, **self.update(batch, iteration)})


def main(
    description: str | None,
    tasks: Collection[str],
    train: Callable[[str, Path], None],
    select: Callable[[str, Path], tuple[Mapping[str, Tensor], Mapping[str, object]]],
) -> None:
    """The command line of a suite's training: `train TASK --out DIR` and `select TASK --out DIR`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "select"), help="train first; select when it has finished")
    parser.add_argument("task", choices=sorted(tasks))
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the trainings, the policy file and its log"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # the sum order, hence the weights, must not depend on the machine's core count
    try:
        if arguments.command == "train":
            train(arguments.task, arguments.out)
            return
        tensors, choices = select(arguments.task, arguments.out)
    except UserError as error:
        parser.error(str(error))
    log.info("%s", write_policies(arguments.out / arguments.task.replace("/", "_"), tensors, choices))
