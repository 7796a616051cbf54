"""Uniformly random legal actions: the zero of every normalised score. Nothing is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from marl_flow.baselines.networks import check_acting, from_unit_box
from marl_flow.interfaces import ActingConfig, ActionSpec, Batch, Execution, Metrics, TaskSpec, WindowSpec
from marl_flow.normalize import Normalizers


@dataclass(frozen=True, kw_only=True)
class RandomConfig:
    updates: int = 0
    """There is nothing to train; more updates change nothing."""
    batch_size: int = 1


class RandomChoice:
    """The algorithm without a network."""

    name: ClassVar[str] = "random"
    presets: ClassVar[Mapping[str, RandomConfig]] = MappingProxyType({"default": RandomConfig()})
    action_kinds: ClassVar[tuple[str, ...]] = ("continuous", "discrete")
    executions: tuple[Execution, ...] = ("decentralized",)
    samples_in_steps = False
    return_conditioned = False
    networks: tuple[nn.Module, ...] = ()

    def __init__(self, config: RandomConfig, spec: TaskSpec) -> None:
        self.config, self.spec = config, spec

    @classmethod
    def window(cls, config: RandomConfig) -> WindowSpec:
        return WindowSpec(history=0, horizon=1, discount=1.0)

    @classmethod
    def normalizer_kind(cls, config: RandomConfig) -> str:
        return "standard"

    @classmethod
    def build(
        cls,
        config: RandomConfig,
        spec: TaskSpec,
        normalizers: Normalizers,
        *,
        device: torch.device,
        generator: torch.Generator,
    ) -> RandomChoice:
        return cls(config, spec)

    def update(self, batch: Batch, generator: torch.Generator, micro_batches: int = 1) -> Metrics:
        return {}

    def policy(self, acting: ActingConfig) -> UniformPolicy:
        check_acting(self.name, acting, self.executions)
        return UniformPolicy(self.spec.action)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            raise ValueError(f"the random policy has no state, found {sorted(state)}")


class UniformPolicy:
    """Uniform in the box of actions, or among the legal choices."""

    network_passes = 0

    def __init__(self, action: ActionSpec) -> None:
        self.action = action

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self._generator = generator

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        """Actions [E, N, A] or choices [E, N] for observations [E, N, O]."""
        rows, agents = observations.shape[:2]
        draw, device = self._generator, self._generator.device
        if not self.action.is_discrete:
            unit = 2 * torch.rand(rows, agents, self.action.size, generator=draw, device=device) - 1
            return from_unit_box(self.action, unit).to(observations.device)
        if action_mask is None:
            choices = torch.randint(self.action.size, (rows, agents), generator=draw, device=device)
        else:
            legal = action_mask.to(device, torch.float32).flatten(0, 1)
            choices = torch.multinomial(legal, 1, generator=draw).reshape(rows, agents)
        return choices.to(observations.device)
