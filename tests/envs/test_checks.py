"""The contract check passes sound simulators and names the fault of each broken one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from marl_flow.envs.checks import check_vector_env
from marl_flow.interfaces import ActionSpec, ContractError, TaskSpec, TimeStep, UserError
from marl_flow.seeding import row_uniform

BOX = ActionSpec(kind="continuous", size=2, low=(-1.0, -2.0), high=(1.0, 2.0))
CHOICE = ActionSpec(kind="discrete", size=2)


class Drift:
    """Two agents whose numbers drift by their actions. Rows of even start end after four steps, others at the limit.
    In the discrete variant choice 1 is illegal in the first step."""

    discrete = False
    built = 0

    def __init__(self, num_envs: int) -> None:
        action = CHOICE if self.discrete else BOX
        self.spec = TaskSpec(
            task_id="toy/drift",
            agents=("a", "b"),
            observation_size=2,
            action=action,
            max_steps=6,
            team_reward="mean",
            state_size=4,
        )
        self.num_envs, self.device = num_envs, torch.device("cpu")

    def reset(self, seeds) -> TimeStep:
        if len(seeds) != self.num_envs:
            raise UserError(f"expected {self.num_envs} seeds, got {len(seeds)}")
        self.position = self.first_positions(list(seeds))
        self.short = torch.tensor([seed % 2 == 0 for seed in seeds])
        self.time, self.over = 0, torch.zeros(self.num_envs, dtype=torch.bool)
        self.cut = self.over.clone()
        return self.time_step(torch.zeros(self.num_envs, 2))

    def first_positions(self, seeds: list[int]) -> Tensor:
        return row_uniform(seeds, 0, 4).float().view(-1, 2, 2)

    def step(self, actions: Tensor) -> TimeStep:
        self.check(actions)
        frozen = self.over | self.cut
        push = actions[..., None].float() if self.discrete else actions
        self.position = torch.where(frozen[:, None, None], self.position, self.position + 0.1 * push)
        self.time += 1
        self.over = self.over | (~frozen & self.short & (self.time >= 4))
        self.cut = self.cut | (~frozen & ~self.over & (self.time >= self.spec.max_steps))
        return self.time_step(self.position.sum(-1).masked_fill(frozen[:, None], 0.0))

    def check(self, actions: Tensor) -> None:
        shape = (self.num_envs, 2) if self.discrete else (self.num_envs, 2, 2)
        if tuple(actions.shape) != shape or actions.is_floating_point() == self.discrete:
            raise UserError(f"expected actions of shape {shape}, got {tuple(actions.shape)}")
        if not torch.isfinite(actions).all() or (self.discrete and not actions.lt(2 if self.time else 1).all()):
            raise UserError("expected finite, legal actions")

    def time_step(self, rewards: Tensor) -> TimeStep:
        mask = torch.ones(self.num_envs, 2, 2, dtype=torch.bool)
        mask[..., 1] = self.time > 0
        return TimeStep(
            observations=self.position.clone(),
            rewards=rewards,
            terminated=self.over.clone(),
            truncated=self.cut.clone(),
            action_mask=mask if self.discrete else None,
            state=self.position.flatten(1),
        )


class Choices(Drift):
    discrete = True


@pytest.mark.parametrize("kind", [Drift, Choices])
def test_sound_simulators_pass(kind: type[Drift]) -> None:
    """Catches a check that refuses what the contract allows: early ends, masks, states, both action kinds."""
    check_vector_env(kind)


def altered(base: type[Drift], **methods: Callable) -> type[Drift]:
    return type("Broken", (base,), methods)


def time_step_with(change: Callable[[Drift, TimeStep], dict]) -> Callable:
    """A `told` whose time step is changed on the way out."""

    def time_step(self, rewards: Tensor) -> TimeStep:
        step = Drift.time_step(self, rewards)
        return replace(step, **change(self, step))

    return time_step


def late(env: Drift, value: Tensor, change: Tensor) -> Tensor:
    """The value, changed from the first step on."""
    return change if env.time else value


def mutating_step(self, actions: Tensor) -> TimeStep:
    step = Drift.step(self, actions)
    actions.clamp_(-0.1, 0.1)
    return step


def stale_reset(self, seeds) -> TimeStep:
    time = getattr(self, "time", 0)
    step = Drift.reset(self, seeds)
    return replace(step, observations=step.observations + time)


def unfrozen_step(self, actions: Tensor) -> TimeStep:
    step = Drift.step(self, actions)
    return replace(step, rewards=self.position.sum(-1))


def unequal_init(self, num_envs: int) -> None:
    Drift.built += 1
    self.number = Drift.built
    Drift.__init__(self, num_envs)


def careless(self, seeds) -> TimeStep:
    assert len(seeds) == self.num_envs
    return Drift.reset(self, seeds)


def reused_time_step(self, rewards: Tensor) -> TimeStep:
    if not hasattr(self, "buffer"):
        self.buffer = self.position.clone()
    self.buffer.copy_(self.position)
    return replace(Drift.time_step(self, rewards), observations=self.buffer)


def lenient(skipped: str) -> Callable:
    """A `check` that looks at all but one thing."""

    def check(self, actions: Tensor) -> None:
        rows = actions.shape[0] == self.num_envs or skipped == "rows"
        agents = actions.shape[1] == 2 or skipped == "agents"
        kind = actions.is_floating_point() != self.discrete or skipped == "type"
        finite = bool(torch.isfinite(actions).all()) or skipped == "finite"
        known = not self.discrete or bool((actions < 2).all()) or skipped == "known"
        legal = not self.discrete or self.time > 0 or not (actions == 1).any() or skipped == "legal"
        if not (rows and agents and kind and finite and known and legal):
            raise UserError("refused")
        if actions.shape[:2] != (self.num_envs, 2):
            actions.resize_((self.num_envs, *actions.shape[1:])).zero_()

    return check


def lenient_step(skipped: str) -> dict[str, Callable]:
    def step(self, actions: Tensor) -> TimeStep:
        lenient(skipped)(self, actions.clone())
        clean = torch.zeros(self.num_envs, 2, 2) if not self.discrete else torch.zeros(self.num_envs, 2).long()
        usable = actions.shape == clean.shape and actions.dtype == clean.dtype and torch.isfinite(actions).all()
        if usable and not (self.discrete and (actions >= (2 if self.time else 1)).any()):
            clean = actions
        return Drift.step(self, clean)

    return {"step": step}


NAN = torch.tensor(torch.nan)
BROKEN = {
    "num_envs: 3 requested, the environment says 4": altered(
        Drift, __init__=lambda self, n: Drift.__init__(self, n + 1)
    ),
    "expected a torch.device": altered(Drift, device=property(lambda s: "cpu", lambda s, v: None)),
    "lacks a part of the VectorEnv protocol": altered(Drift, step=property()),
    "observations has shape": altered(
        Drift, time_step=time_step_with(lambda e, s: {"observations": s.observations[..., :1]})
    ),
    "observations is torch.int64": altered(
        Drift, time_step=time_step_with(lambda e, s: {"observations": s.observations.long()})
    ),
    "terminated is torch.float32": altered(
        Drift, time_step=time_step_with(lambda e, s: {"terminated": s.terminated.float()})
    ),
    "state is NoneType": altered(Drift, time_step=time_step_with(lambda e, s: {"state": None})),
    "action_mask is NoneType": altered(Choices, time_step=time_step_with(lambda e, s: {"action_mask": None})),
    "continuous tasks have no masks": altered(
        Drift, time_step=time_step_with(lambda e, s: {"action_mask": s.terminated})
    ),
    "won has shape": altered(Drift, time_step=time_step_with(lambda e, s: {"won": torch.zeros(e.num_envs, 2).bool()})),
    "observations is on meta": altered(
        Drift,
        time_step=time_step_with(lambda e, s: {"observations": late(e, s.observations, s.observations.to("meta"))}),
    ),
    "rewards is not finite": altered(
        Drift, time_step=time_step_with(lambda e, s: {"rewards": late(e, s.rewards, s.rewards / 0)})
    ),
    "has no legal action for some agent": altered(
        Choices, time_step=time_step_with(lambda e, s: {"action_mask": s.action_mask & ~e.over[:, None, None]})
    ),
    "remain from the last episode": altered(Drift, time_step=time_step_with(lambda e, s: {"rewards": s.rewards + 1.0})),
    "the flags of a finished row changed": altered(
        Drift, time_step=time_step_with(lambda e, s: {"terminated": s.terminated & torch.tensor(e.time < 5)})
    ),
    "a finished row receives a reward": altered(Drift, step=unfrozen_step),
    "a finished row's observation changed": altered(
        Drift, time_step=time_step_with(lambda e, s: {"observations": s.observations + 0.1 * e.time})
    ),
    "truncated before the spec's limit": altered(
        Drift, time_step=time_step_with(lambda e, s: {"truncated": ~s.terminated if e.time >= 5 else s.truncated})
    ),
    "neither terminated nor truncated": altered(
        Drift, time_step=time_step_with(lambda e, s: {"truncated": torch.zeros_like(s.truncated)})
    ),
    "actions were modified": altered(Drift, step=mutating_step),
    "a buffer is reused": altered(Drift, time_step=reused_time_step),
    "a second episode of the same seeds": altered(Drift, reset=stale_reset),
    "another instance with the same seeds": altered(
        Drift,
        __init__=unequal_init,
        time_step=time_step_with(lambda e, s: {"state": s.state + e.number}),
    ),
    "`reset` ignores its seeds": altered(
        Drift, first_positions=lambda self, seeds: torch.arange(4.0).view(1, 2, 2).expand(len(seeds), 2, 2)
    ),
    "row 0 changed although only its neighbours'": altered(
        Drift, time_step=time_step_with(lambda e, s: {"state": s.state - s.state.mean(0)})
    ),
    "alone give another episode": altered(
        Drift, time_step=time_step_with(lambda e, s: {"observations": s.observations + 0.01 * e.num_envs})
    ),
    "reset draws from torch's global generator": altered(
        Drift, first_positions=lambda self, seeds: Drift.first_positions(self, seeds) + 0.0 * torch.rand(1)
    ),
    "step draws from torch's global generator": altered(
        Drift, step=lambda self, actions: Drift.step(self, actions + 0.0 * torch.rand(1))
    ),
    "a missing seed raises AssertionError": altered(Drift, reset=careless),
    "actions of too few agents is accepted": altered(Drift, **lenient_step("agents")),
    "actions of too few rows is accepted": altered(Drift, **lenient_step("rows")),
    "not a number is accepted": altered(Drift, **lenient_step("finite")),
    "beyond the last is accepted": altered(Choices, **lenient_step("known")),
    "floating point actions in a discrete task is accepted": altered(Choices, **lenient_step("type")),
    "an illegal action is accepted": altered(Choices, **lenient_step("legal")),
}


@pytest.mark.parametrize("message", BROKEN)
def test_each_broken_clause_is_named(message: str) -> None:
    """Catches a clause of the contract that the check does not look at."""
    with pytest.raises(ContractError) as raised:
        check_vector_env(BROKEN[message])
    assert message in str(raised.value)


def test_simulators_that_always_start_alike_can_be_checked() -> None:
    """Catches `seeds_matter` ignored: the real StarCraft starts every episode in one formation."""
    check_vector_env(BROKEN["`reset` ignores its seeds"], seeds_matter=False)
