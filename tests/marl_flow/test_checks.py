"""The contract of methods: those of the suite keep it, and every way to break it is named."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marl_flow import baselines
from marl_flow.algorithm import Algorithm
from marl_flow.checks import check_algorithm
from marl_flow.coflow.config import CoFlowConfig
from marl_flow.interfaces import ActingConfig, Batch, ContractError, Metrics, TaskSpec
from marl_flow.normalize import Normalizers
from marl_flow.policies import from_unit_box, to_unit_box

SMALL = CoFlowConfig(width=16, heads=1, token_blocks=1, embedding_width=8, horizon=2, history=1, conditioning="mixed")
UNET = dataclasses.replace(SMALL, backbone="unet", unet_multipliers=(1, 2), output="velocity", plan_space="absolute")


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    updates: int = 5
    batch_size: int = 8
    noise: float = 0.1


class Own(Algorithm):
    """A method from outside: clones behaviour with noise on the observations, the fewest members there can be."""

    name = "own"
    presets: Mapping[str, Any] = {"default": OwnConfig()}

    def __init__(self, config: OwnConfig, spec: TaskSpec, normalizers: Normalizers, device: torch.device) -> None:
        super().__init__(config, spec, normalizers, device)
        self.network: nn.Module = nn.Linear(spec.observation_size, spec.action.size).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-2)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        seen, spec = self.normalizers.observations.apply(batch.observations[:, 0]), self.spec
        predicted = self.network(seen + self.config.noise * self.draw(seen, generator))
        if spec.action.is_discrete:
            loss = nn.functional.cross_entropy(predicted.flatten(0, 1), batch.actions[:, 0].flatten())
        else:
            loss = (predicted - to_unit_box(spec.action, batch.actions[:, 0])).square().mean()
        return loss, {"loss": loss.detach()}

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    def decide(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        out = self.network(self.normalizers.observations.apply(observations))
        if not self.spec.action.is_discrete:
            return from_unit_box(self.spec.action, out)
        return (out if action_mask is None else out.masked_fill(~action_mask, -torch.inf)).argmax(-1)


@pytest.mark.parametrize("name", baselines.NAMES)
def test_the_suites_methods_keep_the_contract(name: str) -> None:
    """Catches state that is not saved, global randomness, other agents' observations in a decentralized action,
    illegal actions, and history that survives a reset, in any method of the suite."""
    check_algorithm(baselines.get(name), SMALL if name == "coflow" else None)


def test_the_published_network_keeps_the_contract() -> None:
    """Catches the same in CoFlow's other network."""
    check_algorithm(baselines.get("coflow"), UNET)


def test_a_method_of_a_few_members_keeps_the_contract() -> None:
    """Catches a base class that needs more than it says."""
    check_algorithm(Own)


class GlobalDraw(Own):
    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn_like(like)


class HiddenCounter(Own):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls = 0

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        self.calls += 1
        loss, metrics = super().loss(batch, generator)
        return loss * self.calls, metrics


class AverageInADict(Own):
    """Acts with a running average that no attribute of its own holds."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.averages = {"actor": copy.deepcopy(self.network)}


class AverageOutOfSight(Own):
    """The same, hidden in an object."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.hidden = types.SimpleNamespace(actor=copy.deepcopy(self.network))

    def update(self, batch: Batch, generator: torch.Generator, micro_batches: int = 1) -> Metrics:
        metrics = super().update(batch, generator, micro_batches)
        with torch.no_grad():
            for average, weight in zip(self.hidden.actor.parameters(), self.network.parameters(), strict=True):
                average.lerp_(weight, 0.5)
        return metrics

    def decide(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        network, self.network = self.network, self.hidden.actor
        try:
            return super().decide(observations, action_mask)
        finally:
            self.network = network


class BareParameter(Own):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.offset = nn.Parameter(torch.zeros(1))


class NoTuple(Own):
    def loss(self, batch: Batch, generator: torch.Generator) -> Any:
        return super().loss(batch, generator)[0]


class NotScalar(Own):
    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(batch, generator)
        return loss[None], metrics


class LooseState(Own):
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        super().load_state_dict({name: state.get(name, own[name]) for name in own})


class NoisyBatch(Own):
    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        batch.observations.add_(1.0)
        return super().loss(batch, generator)


class AttachedMetric(Own):
    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        loss, _ = super().loss(batch, generator)
        return loss, {"loss": loss}


class FloatMetric(Own):
    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        loss, _ = super().loss(batch, generator)
        return loss, {"loss": float(loss.detach())}  # type: ignore[dict-item]


class OtherName(Own):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.adam = self.optimizer
        del self.optimizer


class SeesOthers(Own):
    def decide(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        return super().decide(observations + observations.mean(1, keepdim=True), action_mask)


class MixesRows(Own):
    def decide(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        return super().decide(observations - observations.mean(0), action_mask)


class IgnoresTheMask(Own):
    action_kinds = ("discrete",)

    def decide(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        return super().decide(observations, None)


class LeavesTheBounds(Own):
    action_kinds = ("continuous",)

    def decide(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        return super().decide(observations, action_mask) + 9.0


class WrongShape(Own):
    def decide(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        return super().decide(observations, action_mask)[:, :1]


class ReadsOthersRewards(Own):
    def policy(self, acting: ActingConfig) -> Any:
        inner, decide = super().policy(acting), self.decide

        def act(observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
            with torch.no_grad():
                return decide(observations + rewards.sum(1)[:, None, None], action_mask)

        inner.act = act  # type: ignore[method-assign]
        return inner


class Remembers(Own):
    def policy(self, acting: ActingConfig) -> Any:
        inner, decide, calls = super().policy(acting), self.decide, [0.0]

        def act(observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
            calls[0] += 1.0
            with torch.no_grad():
                return decide(observations * calls[0], action_mask)

        inner.act = act  # type: ignore[method-assign]
        return inner


class ServesLess(Own):
    action_kinds = ("continuous",)

    @classmethod
    def build(cls, config: Any, spec: TaskSpec, normalizers: Any, **how: Any) -> Any:
        with torch.random.fork_rng():
            return cls(config, spec, normalizers, how["device"])


class Nameless(Own):
    name = ""


class NoBudget(Own):
    presets: Mapping[str, Any] = {"default": ActingConfig()}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (GlobalDraw, "draws from torch's global generator"),
        (HiddenCounter, "not in `state_dict`"),
        (AverageInADict, "averages is a dict that holds weights"),
        (AverageOutOfSight, "a loaded instance acts differently"),
        (BareParameter, "offset is a Parameter that holds weights"),
        (NoTuple, "must return .scalar tensor, metrics by name., found Tensor"),
        (NotScalar, "must return a scalar tensor with a gradient"),
        (LooseState, "accepts an unknown entry"),
        (NoisyBatch, "modifies its batch"),
        (AttachedMetric, "detached"),
        (FloatMetric, "expected a detached tensor of shape"),
        (OtherName, "expected an optimiser as the attribute `optimizer`, found NoneType"),
        (SeesOthers, r"agent 0's action depends on the other agents' observations"),
        (MixesRows, "episodes beside it"),
        (IgnoresTheMask, "illegal actions"),
        (LeavesTheBounds, "leave the bounds"),
        (WrongShape, r"returns actions \(4, 1, 2\), expected a tensor \(4, 3, 2\)"),
        (ReadsOthersRewards, "other agents' rewards"),
        (Remembers, "`reset` must clear all history"),
        (ServesLess, "must refuse it"),
        (Nameless, "name as text"),
        (NoBudget, "the field `updates`"),
        (int, "subclass"),
    ],
)
def test_what_breaks_the_contract_is_named(broken: type, message: str) -> None:
    """Catches a check that passes everything, and a message about something else."""
    with pytest.raises(ContractError, match=message):
        check_algorithm(broken)
