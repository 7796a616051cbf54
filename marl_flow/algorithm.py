"""The base class of every trainable method: a new one states only what is its own.

Least of all (a method with one loss, whose policy is one pass of its network):

    class MyMethod(Algorithm):
        name = "my_method"
        presets = {"default": MyConfig()}            # a frozen dataclass with `updates` and `batch_size`

        def __init__(self, config, spec, normalizers, device):
            super().__init__(config, spec, normalizers, device)
            self.network = ...                       # modules and optimisers are found, saved and resumed
            self.optimizer = ...

        def loss(self, batch, generator): ...        # scalar, metrics
        def decide(self, observations, action_mask): ...

Methods that train in several steps override `update`, those that plan or remember override `policy`.
`marl_flow.checks.check_algorithm` says what of the contract a method breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from marl_flow import seeding
from marl_flow.interfaces import (
    ActingConfig,
    Batch,
    ContractError,
    Execution,
    Metrics,
    Policy,
    TaskSpec,
    UserError,
    WindowSpec,
)
from marl_flow.module_state import pack_state, unpack_state
from marl_flow.normalize import Normalizers
from marl_flow.policies import OnePassPolicy

ENTRY_POINTS = "marl_flow.algorithms"
"""Group of entry points under which installed packages offer methods: name = module:Class."""


class Algorithm:
    """A trainable method: one config, one update, one acting policy, one complete state.

    Its config is a frozen dataclass whose values are plain JSON, with the method's own budget as the fields `updates`
    and `batch_size`.
    """

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Any]]
    """Configs by name; the first is the default."""
    action_kinds: ClassVar[tuple[str, ...]] = ("continuous", "discrete")
    executions: tuple[Execution, ...] = ("decentralized",)
    """Executions that this trained configuration can honestly be evaluated in; an instance may set its own."""
    samples_in_steps: ClassVar[bool] = False
    """Whether the policy takes a number of sampling steps."""
    return_conditioned: ClassVar[bool] = False
    """Whether the policy takes a target return."""

    def __init__(self, config: Any, spec: TaskSpec, normalizers: Normalizers, device: torch.device) -> None:
        """Builds the networks, on `device`; torch's global generator is seeded here (see `build`) and nowhere else."""
        self.config, self.spec, self.device = config, spec, device
        self.normalizers = normalizers.to(device)
        self.updates_done = 0

    @classmethod
    def window(cls, config: Any) -> WindowSpec:
        """What training draws: here single steps, with the config's `discount` where it has one."""
        return WindowSpec(history=0, horizon=1, discount=getattr(config, "discount", 1.0))

    @classmethod
    def normalizer_kind(cls, config: Any) -> str:
        """Which normaliser training fits on the data: a kind of `marl_flow.normalize`."""
        return "standard"

    @classmethod
    def build(
        cls, config: Any, spec: TaskSpec, normalizers: Normalizers, *, device: torch.device, generator: torch.Generator
    ) -> Self:
        """A new instance with weights drawn from `generator`; refuses a task it cannot serve with a UserError."""
        if spec.action.kind not in cls.action_kinds:
            raise UserError(
                f"{cls.name} needs {' or '.join(cls.action_kinds)} actions, but {spec.task_id} has {spec.action.kind} "
                "ones; choose another algorithm there, e.g. bc or coflow"
            )
        with seeding.global_scope(generator):
            return cls(config, spec, normalizers, device)

    # Training

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """What `self.optimizer` descends: a scalar, and metrics as detached scalars on the device."""
        raise NotImplementedError(f"{type(self).__name__} must define `loss`, or its own `update`")

    def update(self, batch: Batch, generator: torch.Generator, micro_batches: int = 1) -> Metrics:
        """One gradient step on a batch.

        The gradient is the mean over the batch's `split(micro_batches)`, taken one after the other to save memory.
        May run under `torch.autocast` (bfloat16, weights float32); nothing in it waits for the device.
        """
        optimizer = self.parts().get("optimizer")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ContractError(
                f"{self.name}: expected an optimiser as the attribute `optimizer`, found {type(optimizer).__name__}; "
                "name it so, or define `update`"
            )
        metrics = descend(optimizer, lambda part: self.loss(part, generator), batch.split(micro_batches))
        self.updates_done += 1
        return metrics

    # Acting

    def policy(self, acting: ActingConfig) -> Policy:
        """A policy that acts as asked, with weights that later updates may move; refuses what it cannot honour."""
        self.refuse_settings_of_planners(acting)
        return OnePassPolicy(self.decide, self.device)

    def decide(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        """Actions [E, N, A] or choices [E, N] for raw observations [E, N, O] float32, without gradients.

        action_mask [E, N, A] bool in tasks with discrete actions that have one.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `decide`, or its own `policy`")

    def refuse_settings_of_planners(self, acting: ActingConfig) -> None:
        """Raises unless the request is one that a policy of one pass can honour: an execution, nothing else."""
        if acting != ActingConfig(execution=acting.execution) or acting.execution not in self.executions:
            raise UserError(
                f"{self.name} acts in {' or '.join(self.executions)} execution, without sampling steps, target return "
                f"or gates; got {acting}"
            )

    # State

    def parts(self) -> Mapping[str, nn.Module | torch.optim.Optimizer]:
        """The modules and optimisers that training continues from, by name: here every attribute that is one.

        An attribute that hides some, in a list or dict or as a bare parameter, is refused: it would not be saved.
        """
        for name, value in vars(self).items():
            if _hides_state(value):
                raise ContractError(
                    f"{self.name}.{name} is a {type(value).__name__} that holds weights or optimisers, which would not "
                    "be saved: hold networks in nn.ModuleList or nn.ModuleDict, parameters in an nn.Module, or define "
                    "`parts`"
                )
        return {
            name: value for name, value in vars(self).items() if isinstance(value, nn.Module | torch.optim.Optimizer)
        }

    @property
    def networks(self) -> Sequence[nn.Module]:
        """The trained modules, whose calls `torch.compile` may replace in place; not containers of torch.nn itself,
        which it passes over."""
        return [
            part
            for part in self.parts().values()
            if isinstance(part, nn.Module) and any(parameter.requires_grad for parameter in part.parameters())
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that training continues from: weights, targets, averages, optimisers, counters."""
        return pack_state(self.parts(), self.updates_done) if self.parts() else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Strict: a missing, unknown or misshapen entry is an error."""
        if self.parts():
            self.updates_done = unpack_state(self.parts(), state)
        elif state:
            raise ValueError(f"{self.name} has no state, found {sorted(state)}")


def _hides_state(value: Any) -> bool:
    if isinstance(value, nn.Parameter):
        return True
    items = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list | tuple) else []
    return any(
        isinstance(item, nn.Module | nn.Parameter | torch.optim.Optimizer) or _hides_state(item) for item in items
    )


def reference(algorithm: type[Algorithm]) -> str:
    """How runs and results name a method, so that `baselines.get` finds it again: the suite's by name, every other as
    `module:Class`, whatever entry points (`ENTRY_POINTS`) there are or will be."""
    if algorithm.__module__.startswith("marl_flow."):
        return algorithm.name
    return f"{algorithm.__module__}:{algorithm.__qualname__}"


def descend(
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Batch], tuple[Tensor, Metrics]],
    parts: Sequence[Batch],
    gradient_clip: float | None = None,
) -> Metrics:
    """Mean metrics of one optimiser step on the mean loss of equally large micro-batches.

    Gradients reach the optimiser's own parameters only. Their norm is held below `gradient_clip` where that is given,
    and reported as `gradient_norm`.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    by_part = []
    for part in parts:
        returned = loss_of(part)
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
            raise ContractError(f"`loss` must return (scalar tensor, metrics by name), found {type(returned).__name__}")
        loss, metrics = returned
        if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
            raise ContractError(f"`loss` must return a scalar tensor with a gradient, found {loss!r}")
        if odd := [name for name, value in metrics.items() if not isinstance(value, Tensor)]:
            raise ContractError(f"metric {odd[0]!r}: expected a detached tensor of shape [], found {metrics[odd[0]]!r}")
        (loss / len(parts)).backward(inputs=parameters)
        by_part.append(metrics)
    mean = {name: torch.stack([metrics[name] for metrics in by_part]).mean(0) for name in by_part[0]}
    if gradient_clip is not None:
        mean["gradient_norm"] = nn.utils.clip_grad_norm_(parameters, gradient_clip)
    optimizer.step()
    return mean
