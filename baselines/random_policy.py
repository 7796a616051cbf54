"""Uniformly random legal actions: the zero of every normalised score. Nothing is learned."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch

from marl_flow.algorithm import Algorithm
from marl_flow.interfaces import ActingConfig, Batch, Metrics
from marl_flow.policies import UniformPolicy


@dataclass(frozen=True, kw_only=True)
class RandomConfig:
    updates: int = 0
    """There is nothing to train; more updates change nothing."""
    batch_size: int = 1
    """Windows per update, >= 1; nothing looks at them."""


class RandomChoice(Algorithm):
    """The algorithm without a network."""

    name = "random"
    presets = MappingProxyType({"default": RandomConfig()})

    def update(self, batch: Batch, generator: torch.Generator, micro_batches: int = 1) -> Metrics:
        return {}

    def policy(self, acting: ActingConfig) -> UniformPolicy:
        self.refuse_settings_of_planners(acting)
        return UniformPolicy(self.spec.action)
