"""Evaluation against closed forms: an environment whose returns can be worked out from seed and actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from marl_flow import evaluation, seeding
from marl_flow.checkpoint import Header
from marl_flow.evaluation import block_rows, decision_latency, evaluate, evaluation_seeds, play, rollout_frames
from marl_flow.interfaces import ActingConfig, ActionSpec, TaskSpec, TimeStep, UserError
from marl_flow.run_log import BlockLog

BOX = ActionSpec(kind="continuous", size=1, low=(-100.0,), high=(100.0,))
CHOICE = ActionSpec(kind="discrete", size=3)
SEEDS = tuple(range(10))


def spec(action: ActionSpec = BOX, **changes: Any) -> TaskSpec:
    plain = {"task_id": "test/known", "agents": ("a", "b"), "observation_size": 2, "max_steps": 5, "team_reward": "sum"}
    return TaskSpec(**{**plain, **changes}, action=action)


class KnownEnv:
    """Seed s lasts 1 + s % 5 steps; agent i is paid (i + 1) * its action; observations are (seed, step).

    Against its contract, a finished row goes on paying a fortune and says that it was won: that must not count.
    """

    device = torch.device("cpu")

    def __init__(self, num_envs: int, action: ActionSpec = BOX) -> None:
        self.num_envs, self.spec = num_envs, spec(action)

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        assert len(seeds) == self.num_envs
        self.seeds, self.steps = torch.tensor(seeds), 0
        return self.now(torch.zeros(self.num_envs, 2))

    def step(self, actions: Tensor) -> TimeStep:
        if self.spec.action.is_discrete:
            assert actions.shape == (self.num_envs, 2) and not actions.is_floating_point()
            assert bool(self.legal().gather(-1, actions[..., None]).all())
            paid = actions.float()
        else:
            assert actions.shape == (self.num_envs, 2, 1)
            paid = actions[..., 0]
        over = self.steps >= 1 + self.seeds % 5
        self.steps += 1
        return self.now(torch.where(over[:, None], 1e6, paid * torch.tensor([1.0, 2.0])))

    def legal(self) -> Tensor:
        """Of three choices all but (seed + step) % 3."""
        return (torch.arange(3) != (self.seeds[:, None] + self.steps) % 3)[:, None].expand(-1, 2, -1)

    def now(self, rewards: Tensor) -> TimeStep:
        length = 1 + self.seeds % 5
        seen = torch.stack([self.seeds.float(), torch.full((self.num_envs,), float(self.steps))], dim=-1)
        return TimeStep(
            observations=seen[:, None].expand(-1, 2, -1),
            rewards=rewards,
            terminated=(self.steps >= length) & (self.seeds % 2 == 0),
            truncated=(self.steps >= length) & (self.seeds % 2 == 1),
            action_mask=self.legal() if self.spec.action.is_discrete else None,
            won=(self.steps > length) | ((self.steps == length) & (self.seeds % 3 == 0)),
        )


class KnownPolicy:
    """Acts k + step, plus `noise` times a normal draw per row and agent; as a choice: the first legal one."""

    network_passes = 7

    def __init__(self, acting: ActingConfig, noise: float, discrete: bool) -> None:
        self.base, self.noise, self.discrete = float(acting.num_sampling_steps or 0), noise, discrete

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self.num_envs, self.generator = num_envs, generator

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        assert observations.shape == (self.num_envs, 2, 2) and rewards.shape == (self.num_envs, 2)
        if self.discrete:
            assert action_mask is not None
            return action_mask.float().argmax(-1)
        draw = torch.randn(self.num_envs, 2, 1, generator=self.generator)
        return self.base + observations[..., 1:] + self.noise * draw


def algorithm(noise: float = 0.0, action: ActionSpec = BOX) -> Any:
    return SimpleNamespace(
        spec=spec(action), networks=(), policy=lambda acting: KnownPolicy(acting, noise, action.is_discrete)
    )


@pytest.fixture
def header(tiny: ModuleType) -> Header:
    from marl_flow.training import describe

    run = describe(tiny.baselines.get("ma_td3_bc"), "default", tiny.config(), tiny.training(), tiny.data())
    return Header(run=run, update=12, seconds={})


K = [
    ActingConfig(num_sampling_steps=1),
    ActingConfig(num_sampling_steps=10, target_return=5.0, gate_scale=0.5, actions_per_plan=2),
]


def test_returns_lengths_and_wins_are_the_known_ones(header: Header) -> None:
    """Catches rewards off by one step, finished rows that still count, the wrong team rule and mixed-up requests."""
    results = evaluate(algorithm(), header, KnownEnv, K, seeds=SEEDS, latency_calls=3, target_rule="constant 5")
    for result, k in zip(results, (1, 10), strict=True):
        lengths = [1 + seed % 5 for seed in SEEDS]
        single = [sum(k + step for step in range(length)) for length in lengths]
        assert result.lengths == tuple(lengths) and result.seeds == SEEDS
        assert result.agent_returns == tuple((float(r), 2.0 * r) for r in single)
        assert result.team_returns == tuple(3.0 * r for r in single)
        assert result.won == tuple(seed % 3 == 0 for seed in SEEDS)
        assert result.num_sampling_steps == k and result.network_passes == 7
    assert [r.target_rule for r in results] == ["none", "constant 5"]
    assert [r.target_return for r in results] == [None, 5.0] and [r.gate_scale for r in results] == [1.0, 0.5]
    assert [r.actions_per_plan for r in results] == [1, 2]
    first = results[0]
    assert (first.update, first.training_seed, first.algorithm) == (12, 3, "ma_td3_bc")
    assert (first.dataset_id, first.task_id) == ("test/tiny/random-v1", "test/known")
    assert first.dataset_digest == header.run.dataset_digest
    assert first.dataset_digest == header.run.dataset_digest
    assert first.config_digest == header.run.config_digest and 0 < first.latency_ms_p50 <= first.latency_ms_p95


def test_masked_choices_are_passed_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches masks given to the wrong rows, and illegal choices that an environment would quietly replace."""
    monkeypatch.setattr(evaluation, "BLOCK", 4)
    (played,) = play(algorithm(action=CHOICE), lambda n: KnownEnv(n, CHOICE), [ActingConfig()], SEEDS)
    first_legal = [[1 if (seed + step) % 3 == 0 else 0 for step in range(1 + seed % 5)] for seed in SEEDS]
    assert played.agent_returns[:, 0].tolist() == [float(sum(choices)) for choices in first_legal]
    wrong = algorithm(action=CHOICE)
    wrong.policy = lambda acting: SimpleNamespace(
        reset=lambda rows, generator: None, act=lambda seen, mask, rewards: (~mask).float().argmax(-1)
    )
    with pytest.raises(UserError, match="expected legal actions"):
        play(wrong, lambda n: KnownEnv(n, CHOICE), [ActingConfig()], SEEDS)


def test_actions_that_are_not_finite_are_refused() -> None:
    """Catches damaged weights scored as if they were a policy."""
    with pytest.raises(UserError, match=r"expected finite actions in test/known, found \[\[inf\]"):
        play(algorithm(noise=float("inf")), KnownEnv, [ActingConfig()], SEEDS)


def test_neither_chunking_nor_company_changes_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches noise that depends on how many episodes share an environment, and results in the wrong order."""
    monkeypatch.setattr(evaluation, "BLOCK", 4)
    sizes: list[int] = []

    def make_env(num_envs: int) -> KnownEnv:
        sizes.append(num_envs)
        return KnownEnv(num_envs)

    whole = play(algorithm(noise=1.0), make_env, K, SEEDS)
    assert sizes == [8, 8, 4]
    for steps, expected in ((1, [4, 4, 4, 4, 2, 2]), (20, [4, 4, 4, 4, 4]), (40, [8, 8, 4])):
        sizes.clear()
        parts = play(algorithm(noise=1.0), make_env, K, SEEDS, steps_at_once=steps)
        assert sizes == expected
        for one, other in zip(whole, parts, strict=True):
            assert torch.equal(one.agent_returns, other.agent_returns) and torch.equal(one.lengths, other.lengths)
    (alone,) = play(algorithm(noise=1.0), KnownEnv, K[1:], SEEDS)
    assert torch.equal(alone.agent_returns, whole[1].agent_returns)


def test_requests_are_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches step counts compared on other noise or other seeds; blocks must not repeat each other's noise."""
    monkeypatch.setattr(evaluation, "BLOCK", 5)
    one, ten = play(algorithm(noise=1.0), KnownEnv, K, SEEDS)
    gained = (ten.agent_returns - one.agent_returns)[:, 0]  # the noise cancels: 9 per step
    torch.testing.assert_close(gained, 9.0 * one.lengths.double(), rtol=0, atol=1e-4)
    plain, _ = play(algorithm(), KnownEnv, K, SEEDS)
    noise = one.agent_returns - plain.agent_returns
    assert not torch.allclose(noise[:5], noise[5:])
    (other,) = play(algorithm(noise=1.0), KnownEnv, K[:1], SEEDS, noise_seed=1)
    assert not torch.equal(other.agent_returns, one.agent_returns)


def test_blocks_are_those_of_the_protocol() -> None:
    """Catches other noise than published results were drawn with, and a block of long episodes too long to lose."""
    assert [block_rows(steps) for steps in (25, 120, 195, 200, 1000, 25_000, 30_000)] == [128, 128, 128, 125, 25, 1, 1]
    seeds = tuple(range(130))
    (played,) = play(algorithm(noise=1.0), KnownEnv, K[:1], seeds)
    for number, block in enumerate((seeds[:128], seeds[128:])):
        policy = KnownPolicy(K[0], 1.0, False)
        policy.reset(len(block), seeding.generator(0, "acting", number))
        (expected,) = evaluation.rollout_together(KnownEnv(len(block)), [(policy, block)])
        assert torch.equal(played.agent_returns[list(block)], expected.agent_returns)


@pytest.mark.parametrize("winnable", [True, False])
def test_finished_blocks_are_not_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winnable: bool) -> None:
    """Catches blocks lost or played twice, put into another place, request or precision, or drawn with other noise."""
    monkeypatch.setattr(evaluation, "BLOCK", 4)
    sizes: list[int] = []

    class Env(KnownEnv):
        def now(self, rewards: Tensor) -> TimeStep:
            return super().now(rewards) if winnable else dataclasses.replace(super().now(rewards), won=None)

    def make_env(num_envs: int, stop_at: int | None = None) -> KnownEnv:
        if len(sizes) == stop_at:
            raise KeyboardInterrupt
        sizes.append(num_envs)
        return Env(num_envs)

    whole = play(algorithm(noise=1 / 3), Env, K, SEEDS)
    logs = [BlockLog(tmp_path, name) for name in ("one", "ten")]
    with pytest.raises(KeyboardInterrupt):  # one block of both requests, and the second of the first
        play(algorithm(noise=1 / 3), lambda n: make_env(n, 3), K, SEEDS, steps_at_once=1, logs=logs)
    assert [sorted(log.read()) for log in logs] == [[0, 1], [0]]
    sizes.clear()
    parts = play(algorithm(noise=1 / 3), make_env, K, SEEDS, logs=logs)
    assert sizes == [4, 4]  # the second block of the second request; the third one, of two episodes, of both
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.agent_returns, other.agent_returns) and torch.equal(one.lengths, other.lengths)
        assert (one.won is None) == (other.won is None) == (not winnable)
        assert one.won is None or torch.equal(one.won, other.won)
        assert one.lengths.dtype == other.lengths.dtype and one.agent_returns.dtype == other.agent_returns.dtype


def test_every_method_is_given_the_same_seeds() -> None:
    """Catches evaluation seeds that depend on anything, or that training data were collected with."""
    assert evaluation_seeds(3) == evaluation_seeds(100)[:3] == seeding.environment_seeds("evaluate", 0, 3)
    assert not set(evaluation_seeds(100)) & set(seeding.environment_seeds("collect", 0, 100))
    with pytest.raises(UserError, match="at least one"):
        evaluation_seeds(0)


def test_play_stops_when_every_row_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches stepping to the limit although all have finished, and an endless episode."""
    steps: list[int] = []
    original = KnownEnv.step
    monkeypatch.setattr(KnownEnv, "step", lambda self, actions: (steps.append(1), original(self, actions))[1])
    play(algorithm(), KnownEnv, [ActingConfig()], (0, 1, 5))
    assert len(steps) == 2
    monkeypatch.setattr(
        KnownEnv,
        "now",
        lambda self, rewards, now=KnownEnv.now: dataclasses.replace(
            now(self, rewards), truncated=torch.zeros(self.num_envs, dtype=torch.bool)
        ),
    )
    with pytest.raises(ValueError, match="2 of 3 episodes go on after max_steps = 5"):
        play(algorithm(), KnownEnv, [ActingConfig()], (0, 1, 5))


def test_policies_of_finished_rows_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches paying for decisions that nobody needs: blocks end at different times."""
    monkeypatch.setattr(evaluation, "BLOCK", 1)
    calls: list[float] = []
    original = KnownPolicy.act

    def counted(self: KnownPolicy, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        calls.append(float(observations[0, 0, 0]))
        return original(self, observations, action_mask, rewards)

    monkeypatch.setattr(KnownPolicy, "act", counted)
    play(algorithm(), KnownEnv, [ActingConfig()], (0, 4))
    assert calls.count(0.0) == 1 and calls.count(4.0) == 5


def test_an_environment_of_another_task_is_refused(header: Header) -> None:
    """Catches scores of a checkpoint in a task it was not trained for."""
    other = algorithm()
    other.spec = dataclasses.replace(other.spec, observation_size=3, task_id="test/other")
    with pytest.raises(UserError, match=r"of task test/other, .*observation_size: 3 in training, 2 now"):
        evaluate(other, header, KnownEnv, K, seeds=SEEDS)


def test_latency_counts_decisions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches timing the environment, counting warm-up, and a batch that is not 1."""
    clock = [0.0]

    class Slow(KnownEnv):
        def step(self, actions: Tensor) -> TimeStep:
            clock[0] += 100.0
            return super().step(actions)

    class Timed(KnownPolicy):
        calls, rows = 0, 0

        def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
            Timed.calls, Timed.rows = Timed.calls + 1, len(observations)
            clock[0] += 50.0 if Timed.calls <= 10 else 0.001 * (Timed.calls - 10)
            return super().act(observations, action_mask, rewards)

    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: clock[0])
    policy = Timed(ActingConfig(), 0.0, False)
    p50, p95 = decision_latency(policy, Slow(1), SEEDS, torch.Generator(), calls=101)
    assert (Timed.calls, Timed.rows) == (111, 1)
    assert (p50, p95) == pytest.approx((51.0, 96.0))


def test_latency_of_reused_plans_counts_the_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a median over single decisions: where one in four plans, it would say that planning costs nothing."""
    clock = [0.0]

    class Planner(KnownPolicy):
        def reset(self, num_envs: int, generator: torch.Generator) -> None:
            super().reset(num_envs, generator)
            self.decisions = 0

        def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
            clock[0] += 0.009 if self.decisions % 4 == 0 else 0.001
            self.decisions += 1
            return super().act(observations, action_mask, rewards)

    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: clock[0])
    policy = Planner(ActingConfig(), 0.0, False)
    for together, expected in ((1, 1.0), (4, 3.0)):
        p50, _ = decision_latency(policy, KnownEnv(1), (3,), torch.Generator(), calls=100, together=together)
        assert p50 == pytest.approx(expected)


def test_frames_of_a_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a missing first or last picture, a thousand pictures of a long episode, and a traceback where an
    environment cannot draw."""
    env: Any = KnownEnv(1)
    with pytest.raises(UserError, match="has no `render`"):
        rollout_frames(KnownPolicy(ActingConfig(), 0.0, False), env, 3, torch.Generator())
    env.render = lambda row: np.full((2, 2, 3), env.steps, np.uint8)
    frames = rollout_frames(KnownPolicy(ActingConfig(), 0.0, False), env, 3, torch.Generator())
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 1, 2, 3, 4]
    monkeypatch.setattr(evaluation, "MAX_FRAMES", 2)
    length, most = 4, env.spec.max_steps
    frames = rollout_frames(KnownPolicy(ActingConfig(), 0.0, False), env, 3, torch.Generator())
    assert [int(frame[0, 0, 0]) for frame in frames] == sorted({*range(0, length + 1, -(-most // 2)), length})
