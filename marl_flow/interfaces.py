"""Every shared record and protocol. Letters used for shapes everywhere:

B batch, E environments, H steps in a window, L = H + 1 frames in it, C history frames, T episode length,
N agents, O observation, A action, S state, D feature, K evaluation episodes.

Everything that crosses a border between packages is in raw units: normalisation belongs to an algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Execution = Literal["centralized", "decentralized"]
EXECUTIONS: tuple[Execution, ...] = ("centralized", "decentralized")

Metrics = dict[str, Tensor]
"""Name to detached scalar tensor, still on the training device (shape [])."""


class UserError(ValueError):
    """Bad input. The message names what was expected, what was found and what to do; the CLI prints it and exits 2."""


class ContractError(AssertionError):
    """An environment or a method breaks its contract. The message says where, and the likely cause."""


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """What one agent may do: a box of `size` numbers with bounds per dimension, or one of `size` choices."""

    kind: Literal["continuous", "discrete"]
    size: int
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"ActionSpec.size must be at least 1, got {self.size}")
        expected = self.size if self.kind == "continuous" else 0
        if len(self.low) != expected or len(self.high) != expected:
            raise ValueError(
                f"a {self.kind} ActionSpec of size {self.size} needs {expected} lower and upper bounds, "
                f"got {len(self.low)} and {len(self.high)}"
            )
        if any(low >= high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"every lower bound must be below its upper bound, got {self.low} and {self.high}")

    @property
    def is_discrete(self) -> bool:
        return self.kind == "discrete"

    def clip(self, actions: Tensor) -> Tensor:
        """Continuous actions [..., A] inside the bounds."""
        low = torch.tensor(self.low, dtype=actions.dtype, device=actions.device)
        high = torch.tensor(self.high, dtype=actions.dtype, device=actions.device)
        return actions.clamp(low, high)


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What a simulator is: nothing about how well anyone does in it.

    `team_reward` says how the N agents' rewards become one: `shared` (all equal, one of them counts), `mean` or `sum`.
    `opponent` names who moves the part of the world that is not controlled, None where there is no such part: returns
    against two opponents are returns of two tasks.
    """

    task_id: str
    agents: tuple[str, ...]
    observation_size: int
    action: ActionSpec
    max_steps: int
    team_reward: Literal["shared", "mean", "sum"]
    state_size: int | None = None
    opponent: str | None = None

    def __post_init__(self) -> None:
        if not self.agents or self.observation_size < 1 or self.max_steps < 1:
            raise ValueError(
                f"a task needs agents, observations and steps, got {len(self.agents)} agents, "
                f"observation_size {self.observation_size}, max_steps {self.max_steps}"
            )

    @property
    def num_agents(self) -> int:
        return len(self.agents)

    def team_return(self, agent_returns: Tensor) -> Tensor:
        """Team return [...] of per-agent returns [..., N]."""
        return agent_returns.sum(-1) if self.team_reward == "sum" else agent_returns.mean(-1)

    def to_json(self) -> dict[str, Any]:
        record = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "action"}
        record["agents"] = list(self.agents)
        if self.opponent is None:
            del record["opponent"]
        action = self.action
        record["action"] = {
            "kind": action.kind,
            "size": action.size,
            "low": list(action.low),
            "high": list(action.high),
        }
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TaskSpec:
        action = record["action"]
        spec = ActionSpec(
            kind=action["kind"], size=action["size"], low=tuple(action["low"]), high=tuple(action["high"])
        )
        return cls(**{**record, "agents": tuple(record["agents"]), "action": spec})


@dataclass(frozen=True, kw_only=True)
class TimeStep:
    """What a `VectorEnv` returns from `reset` and `step`.

    observations [E, N, O]; rewards [E, N] of the step just made (zero after reset, zero in frozen rows);
    terminated, truncated [E] bool, both staying true in a finished row; action_mask [E, N, A] bool, true = legal,
    discrete tasks only; state [E, S] when the task has one; won [E] bool when the task can be won.
    """

    observations: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    action_mask: Tensor | None = None
    state: Tensor | None = None
    won: Tensor | None = None

    @property
    def finished(self) -> Tensor:
        """Rows whose episode is over, [E] bool."""
        return self.terminated | self.truncated


@runtime_checkable
class VectorEnv(Protocol):
    """E independent episodes of one task, stepped together.

    No automatic reset: a finished row freezes (its observation repeats, its reward is zero) until the next `reset`.
    A row's episode depends on its own seed and actions only, never on its neighbours.
    """

    @property
    def spec(self) -> TaskSpec: ...

    @property
    def num_envs(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        """First step of E new episodes; `seeds` holds E non-negative integers below 2**63."""
        ...

    def step(self, actions: Tensor) -> TimeStep:
        """Actions [E, N, A] (continuous) or integer choices [E, N] (discrete)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B windows of an episode store, raw units, on the training device.

    A window has C history frames, the current frame and H frames to come; H = 1 serves temporal-difference methods.

    observations [B, C + L, N, O], the current frame at index C; actions [B, H, N, A] or integers [B, H, N] and
    rewards [B, H, N] from the current step on; returns_to_go [B, N], discounted sum of rewards from the current step;
    terminated [B, H] bool, true where the step ended the episode by the task's own rules (never by a time limit);
    valid [B, H] bool, true where the step and the frame it leads to are real: padding repeats the last real entry;
    start_step [B], the current frame's index in its episode (fewer than C: that many history frames are real, the
    others repeat the first); action_mask [B, L, N, A] bool from the current frame on; state [B, L, S] likewise.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    returns_to_go: Tensor
    terminated: Tensor
    valid: Tensor
    start_step: Tensor
    action_mask: Tensor | None = None
    state: Tensor | None = None

    @property
    def size(self) -> int:
        return self.actions.shape[0]

    @property
    def horizon(self) -> int:
        return self.actions.shape[1]

    @property
    def history(self) -> int:
        return self.observations.shape[1] - self.horizon - 1

    def rows(self, start: int, stop: int) -> Batch:
        """Rows start (inclusive) to stop (exclusive), as views."""
        changes: dict[str, Any] = {
            field.name: None if (value := getattr(self, field.name)) is None else value[start:stop]
            for field in fields(self)
        }
        return replace(self, **changes)

    def split(self, parts: int) -> list[Batch]:
        """That many micro-batches of equal size, as views."""
        size, rest = divmod(self.size, parts)
        if rest:
            raise ValueError(f"a batch of {self.size} windows does not split into {parts} equal parts")
        return [self.rows(start, start + size) for start in range(0, self.size, size)]


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """The windows an algorithm trains on: C history frames, H steps, and the discount of the return-to-go label."""

    history: int
    horizon: int
    discount: float

    def __post_init__(self) -> None:
        if self.history < 0 or self.horizon < 1 or not 0.0 <= self.discount <= 1.0:
            raise ValueError(
                f"windows need history >= 0, horizon >= 1 and 0 <= discount <= 1, "
                f"got {self.history}, {self.horizon} and {self.discount}"
            )


class Policy(Protocol):
    """Chooses actions for E episodes at once. Any history is its own and is cleared by `reset`."""

    @property
    def network_passes(self) -> float:
        """Forward passes of the largest network a joint decision: a plan's are shared by the decisions that act on it.

        0 for a policy without a network.
        """
        ...

    def reset(self, num_envs: int, generator: torch.Generator) -> None: ...

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        """Actions [E, N, A], or integer choices [E, N], for observations [E, N, O].

        action_mask [E, N, A] bool for discrete tasks; rewards [E, N] of the previous step (zero after a reset),
        which return-conditioned policies may subtract from their target. In decentralized execution an agent's action
        depends neither on another agent's observation nor on another agent's reward.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ActingConfig:
    """How a trained algorithm is asked to act.

    num_sampling_steps: k, generative policies only, else None. target_return: raw discounted return-to-go asked for
    at the start of an episode, per agent, return-conditioned policies only, else None. gate_scale: multiplies every
    attention gate (0 = agents do not see each other inside the network), coordinated models only. actions_per_plan:
    m, decisions from one planning to the next, 1 to the planned steps, policies that plan only.
    """

    execution: Execution = "decentralized"
    num_sampling_steps: int | None = None
    target_return: float | None = None
    gate_scale: float = 1.0
    actions_per_plan: int = 1


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """One policy, one task, one execution, one step count, K episodes. Raw returns: scores are computed from files.

    agent_returns is K rows of N undiscounted sums, team_returns their reduction by the task's rule. Latencies are
    milliseconds a joint decision at batch 1, averaged over `actions_per_plan` decisions, which hold a planning; so are
    network_passes. `protocol` says which checkpoint was scored. `dataset_digest` is of
    the content that was trained on: builds of different size or from other behaviour policies share an id. `opponent`
    is that of the task, which was played against.
    """

    task_id: str
    opponent: str | None
    dataset_id: str
    dataset_digest: str
    algorithm: str
    preset: str
    config_digest: str
    training_seed: int
    update: int
    protocol: str
    execution: Execution
    num_sampling_steps: int | None
    target_return: float | None
    target_rule: str
    seeds: tuple[int, ...]
    agent_returns: tuple[tuple[float, ...], ...]
    team_returns: tuple[float, ...]
    lengths: tuple[int, ...]
    won: tuple[bool, ...] | None
    network_passes: float
    latency_ms_p50: float
    latency_ms_p95: float
    device: str
    model: str
    gate_scale: float = 1.0
    actions_per_plan: int = 1


@runtime_checkable
class Restorable(VectorEnv, Protocol):
    """A `VectorEnv` that can begin in the middle of an episode, so that stored transitions can be replayed."""

    @property
    def opponent_entries(self) -> Tensor | None:
        """Which entries of the observations depend on the opponent, [N, O] bool; None in a task without one."""
        ...

    def restore(self, observations: Tensor, state: Tensor | None, steps: Tensor) -> TimeStep:
        """Continues from the state that has observations [E, N, O] and state [E, S] (None if the task has none), after
        steps [E] int64 of its episode.

        Returns the first time step. Where its observations differ from those given, no state of this task has the
        given ones. The opponent acts on its observations of the restored state, as after a reset.
        """
        ...


@runtime_checkable
class TransitionChecker(VectorEnv, Protocol):
    """A `VectorEnv` whose states do not determine the next step, but restrict it: stored transitions can be checked
    without replaying them."""

    def expected_transition(self, state: Tensor, actions: Tensor, next_state: Tensor) -> tuple[TimeStep, TimeStep]:
        """The time steps before and after a step from state [E, S] to next_state [E, S] under actions.

        The second one's `state` is the possible state nearest to next_state; its rewards [E, N] and terminated are
        those of the step.
        """
        ...
