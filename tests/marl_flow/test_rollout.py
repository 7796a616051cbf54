"""The loop that plays policies: its observer, and the contract it insists on (its numbers: test_evaluation.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from marl_flow.interfaces import ActionSpec, TaskSpec, TimeStep, UserError
from marl_flow.rollout import rollout, rollout_together


class Countdown:
    """Row with seed s ends after s steps; every step of a running row gives each agent its action as the reward."""

    num_envs, device = 2, torch.device("cpu")
    spec = TaskSpec(
        task_id="toy/countdown",
        agents=("a", "b"),
        observation_size=1,
        action=ActionSpec(kind="continuous", size=1, low=(-9.0,), high=(9.0,)),
        max_steps=3,
        team_reward="sum",
    )

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        self.left = torch.tensor(seeds)
        return self._show(torch.zeros(len(seeds), 2))

    def step(self, actions: Tensor) -> TimeStep:
        running = self.left > 0
        self.left = self.left - running.long()
        return self._show(actions[..., 0] * running[:, None])

    def _show(self, rewards: Tensor) -> TimeStep:
        seen = self.left[:, None, None].expand(-1, 2, 1).float()
        return TimeStep(
            observations=seen, rewards=rewards, terminated=self.left == 0, truncated=torch.zeros(len(seen), dtype=bool)
        )


class Constant:
    """Always the same number; counts how often it is asked."""

    network_passes = 0

    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        """Nothing to clear."""

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        self.calls += 1
        return torch.full((*observations.shape[:2], 1), self.value)


def test_the_observer_sees_every_moment_and_what_led_there() -> None:
    """Catches an observer that misses the first or the last moment, or gets another step's actions."""
    seen: list[tuple[list[float], float | None]] = []

    def observe(step: TimeStep, actions: Tensor | None) -> None:
        seen.append((step.observations[:, 0, 0].tolist(), None if actions is None else float(actions[0, 0, 0])))

    episodes = rollout(Countdown(), Constant(2.0), [1, 3], observe)
    assert seen == [([1, 3], None), ([0, 2], 2.0), ([0, 1], 2.0), ([0, 0], 2.0)]
    assert episodes.agent_returns.tolist() == [[2, 2], [6, 6]] and episodes.lengths.tolist() == [1, 3]
    assert episodes.won is None


def test_policies_share_an_environment_and_stop_with_their_own_rows() -> None:
    """Catches rows given to another policy, and a policy that still acts when its episodes are over."""
    first, second = Constant(1.0), Constant(5.0)
    ours, theirs = rollout_together(Countdown(), [(first, [1]), (second, [3])])
    assert ours.agent_returns.tolist() == [[1, 1]] and theirs.agent_returns.tolist() == [[15, 15]]
    assert (first.calls, second.calls) == (1, 3)


def test_what_breaks_the_contract_is_refused() -> None:
    """Catches an endless episode, and actions that are no numbers."""
    env = Countdown()
    with pytest.raises(UserError, match=r"expected finite actions in toy/countdown, found .*nan"):
        rollout(env, Constant(float("nan")), [1, 2])
    with pytest.raises(ValueError, match="1 of 2 episodes go on after max_steps = 3"):
        rollout(env, Constant(0.0), [2, 4])
    env.spec = replace(env.spec, max_steps=4)
    assert rollout(env, Constant(0.0), [2, 4]).lengths.tolist() == [2, 4]
