"""Replay: true data fit, every kind of mismatch is named as what it is, and nothing but rounding is excused."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marl_flow import envs, seeding
from marl_flow.commands.data import training_data
from marl_flow.datasets.collect import collect_batch
from marl_flow.datasets.replay.check import Replay, draw_rows, replay
from marl_flow.datasets.replay.transitions import TOLERANCES
from marl_flow.datasets.store import EpisodeStore
from marl_flow.datasets.writer import write_store
from marl_flow.envs.mpe.env import ParticleEnv
from marl_flow.envs.mpe.physics import ParticleState
from marl_flow.envs.mpe.prey import FleeingPrey, NetworkPrey
from marl_flow.envs.mpe.scenarios import SCENARIOS, observation_fields
from marl_flow.interfaces import ActionSpec, Policy, TaskSpec, TimeStep, UserError

SPREAD, TAG, WORLD = TASKS = ("mpe/simple_spread", "mpe/simple_tag", "mpe/simple_world")
Change = Callable[[EpisodeStore], EpisodeStore]


class Chase:
    """Heads for the prey, or for one landmark each, with noise, so that agents meet, press and touch."""

    network_passes = 0

    def __init__(self, task_id: str) -> None:
        kind = SCENARIOS[task_id]
        fields = observation_fields(kind, 0)
        prey = len(fields) - 4 - 2 * len(kind.indices("forest")) // 2
        self.columns = [slice(prey, prey + 2)] * 3 if kind.has_prey else [slice(4 + 2 * i, 6 + 2 * i) for i in range(3)]

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self.generator = generator

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        ahead = torch.stack([observations[:, agent, columns] for agent, columns in enumerate(self.columns)], 1)
        noise = torch.randn(ahead.shape, generator=self.generator)
        return (2.0 * ahead.float() + 0.4 * noise).clamp(-1.0, 1.0)


def scripted(task_id: str, effort: float = 0.1) -> FleeingPrey | None:
    kind = SCENARIOS[task_id]
    if not kind.has_prey:
        return None
    landmarks = kind.num_entities - kind.num_agents
    return FleeingPrey(num_obstacles=len(kind.indices("obstacle")), num_landmarks=landmarks, effort=effort)


def network(task_id: str) -> NetworkPrey | None:
    """A prey of random weights that seldom reaches its bounds."""
    kind = SCENARIOS[task_id]
    if not kind.has_prey:
        return None
    seen, source = len(observation_fields(kind, 3)), torch.Generator().manual_seed(0)
    shapes = {"fc1.weight": (64, seen), "fc2.weight": (64, 64), "fc3.weight": (2, 64)}
    shapes |= {"fc1.bias": (64,), "fc2.bias": (64,), "fc3.bias": (2,)}
    weights = {name: 0.2 * torch.randn(shape, generator=source) for name, shape in shapes.items()}
    weights |= {f"in_fn.{name}": torch.zeros(seen) for name in ("bias", "running_mean")}
    weights |= {f"in_fn.{name}": torch.ones(seen) for name in ("weight", "running_var")}
    return NetworkPrey(weights)


def maker(task_id: str, prey: Policy | None = None) -> Callable[[int], ParticleEnv]:
    opponent = scripted(task_id) if prey is None else prey
    return lambda num_envs: envs.make(task_id, num_envs, dtype=torch.float64, opponent=opponent)


def collected(task_id: str, prey: Policy | None, episodes: int = 120) -> EpisodeStore:
    """Episodes as datasets are collected: single precision."""
    env = envs.make(task_id, episodes, opponent=prey)
    seeds = seeding.environment_seeds("collect", 3, episodes)
    name = f"native/{task_id}/expert-v1"
    return collect_batch(env, Chase(task_id), seeds, torch.Generator().manual_seed(0), dataset_id=name)


@cache
def true_store(task_id: str) -> EpisodeStore:
    return collected(task_id, scripted(task_id))


def checked(store: EpisodeStore, task_id: str, transitions: int | None = 1024) -> Replay:
    return replay(store, maker(task_id), transitions=transitions)


# True data


@pytest.mark.parametrize("make_prey", [scripted, network])
@pytest.mark.parametrize("task_id", TASKS)
def test_true_data_fit(task_id: str, make_prey) -> None:
    """Catches a tolerance below the rounding of float32, and figures that are not of the data."""
    store = collected(task_id, make_prey(task_id))
    found = replay(store, maker(task_id, make_prey(task_id)), transitions=None)
    assert found.fits and found.mismatches == 0 and found.diagnosis is None and found.steps == store.num_steps == 3000
    assert found.message.startswith(f"fits {task_id}: 3,000 steps played again, views within")
    assert found.opponent == maker(task_id, make_prey(task_id))(1).spec.opponent
    assert set(found.disagreement) == {"views", "observations", "rewards", "terminated"}
    for name, one in found.disagreement.items():
        assert 0.0 <= one.quantile_999 <= one.largest <= 0.5 * TOLERANCES[name]
    assert found.disagreement["observations"].largest > 0.0


@pytest.mark.parametrize("task_id", TASKS)
def test_the_recorded_episodes_fit(golden_folder: Path, omar_prey: Callable[[str], Path], task_id: str) -> None:
    """Catches our environment and our data agreeing with each other and not with the original."""
    task = task_id.partition("/")[2]
    prey = None if task_id == SPREAD else NetworkPrey.from_omar(omar_prey(task))
    with np.load(golden_folder / "mpe_trajectories.npz") as file:
        parts = {
            name: np.concatenate([file[f"{task}/{i}/{name}"][:, :3] for i in range(3)]).astype(np.float32)
            for name in ("observations", "actions", "rewards")
        }
    store = EpisodeStore(
        spec=maker(task_id, prey)(1).spec,
        dataset_id="original",
        offsets=np.array([0, 25, 50, 75]),
        terminated=np.zeros(3, bool),
        **parts,
    )
    found = replay(store, maker(task_id, prey), transitions=None)
    assert found.fits, found.message


def test_final_observations_that_are_absent_are_not_compared() -> None:
    """Catches a repeated frame taken for a real one, and rewards of last steps left out with it."""
    store = true_store(SPREAD)
    observations, last = store.observations.copy(), store.offsets[1:] + np.arange(store.num_episodes)
    observations[last] = observations[last - 1]
    absent = replace(store, observations=observations, has_final_observation=False)
    assert checked(absent, SPREAD, None).fits
    assert not checked(replace(absent, has_final_observation=True), SPREAD, None).fits
    rewards = store.rewards.copy()
    rewards[24] += 1.0
    found = checked(replace(absent, rewards=rewards), SPREAD, None)
    assert found.mismatches == 1 and "episode 0, step 24" in found.message


# Data that do not fit, each named as what it is


def with_columns(order: dict[int, int]) -> Change:
    def change(store: EpisodeStore) -> EpisodeStore:
        index = np.arange(store.spec.observation_size)
        index[list(order)] = list(order.values())
        return replace(store, observations=np.ascontiguousarray(store.observations[..., index]))

    return change


def with_offset(feature: int, by: float, agent: int | slice = slice(None)) -> Change:
    def change(store: EpisodeStore) -> EpisodeStore:
        observations = store.observations.copy()
        observations[:, agent, feature] += by
        return replace(store, observations=observations)

    return change


def with_rewards(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda store: replace(store, rewards=change(store.rewards).astype(np.float32))


def shuffled_in_time(store: EpisodeStore) -> EpisodeStore:
    """The rows of each episode in random order, the last frame in its place."""
    source = np.random.default_rng(0)
    steps = np.concatenate([25 * k + source.permutation(25) for k in range(store.num_episodes)])
    frames = np.concatenate([np.append(steps[25 * k :][:25] + k, 26 * k + 25) for k in range(store.num_episodes)])
    return replace(
        store, observations=store.observations[frames], actions=store.actions[steps], rewards=store.rewards[steps]
    )


def cut_at(length: int, skipped: int = 0) -> Change:
    """The same rows end to end, cut into episodes of another length or from another row on; no final frames."""

    def change(store: EpisodeStore) -> EpisodeStore:
        count = (store.num_steps - skipped) // length
        rows = skipped + np.arange(count * length)
        frames = skipped + (np.arange(count)[:, None] * length + np.minimum(np.arange(length + 1), length - 1)).ravel()
        return replace(
            store,
            observations=store.observations[frames + frames // 25],
            actions=store.actions[rows],
            rewards=store.rewards[rows],
            offsets=np.arange(count + 1) * length,
            terminated=np.zeros(count, bool),
            has_final_observation=False,
        )

    return change


NO_CAUSE = "no simple cause found"
MISMATCHES: list[tuple[str, tuple[str, ...], Change, str]] = [
    ("columns swapped", TASKS, with_columns({0: 2, 2: 0}), "feature 0 is stored as 2, feature 2 is stored as 0"),
    ("x and y swapped", TASKS, with_columns({0: 1, 1: 0}), "feature 0 is stored as 1, feature 1 is stored as 0"),
    ("columns rotated", (SPREAD, TAG), with_columns({i: (i + 3) % 16 for i in range(16)}), NO_CAUSE),
    ("one agent's view shifted", TASKS, with_offset(2, 0.3, 1), r"are shifted: \+0\.3 in feature 2 of agent_1;"),
    ("velocities shifted", (SPREAD, TAG), with_offset(1, -0.2), r"are shifted: -0\.2 in feature 1 of every agent;"),
    ("rewards x 0.1", TASKS, with_rewards(lambda r: 0.1 * r), "rewards: stored = 0.1 x computed;"),
    ("rewards + 3", TASKS, with_rewards(lambda r: r + 3.0), r"rewards: stored = computed \+3;"),
    ("rewards standardised", TASKS, with_rewards(lambda r: (r - 2) / 4), r"stored = 0\.25 x computed -0\.5;"),
    ("team rewards", (SPREAD,), with_rewards(lambda r: np.repeat(r.mean(1)[:, None], 3, 1)), NO_CAUSE),
    ("rewards late", TASKS, with_rewards(lambda r: np.roll(r, 1, 0)), NO_CAUSE),
    ("actions halved", TASKS, lambda s: replace(s, actions=s.actions * np.float32(0.5)), r"actions: stored = 0\.5 x"),
    (
        "everything halved",
        (SPREAD, TAG),
        lambda s: replace(s, observations=s.observations * np.float32(0.5)),
        NO_CAUSE,
    ),
    (
        "rows shuffled in time",
        TASKS,
        shuffled_in_time,
        r"rows are out of order: of 24 such steps, \d+ lead to what is stored elsewhere",
    ),
    ("cut from row 3 on", TASKS, cut_at(25, 3), NO_CAUSE),
    ("episodes of 20", TASKS, cut_at(20), r"150 of 150 episodes end early \(one after 20 .* after 25: .*another len"),
    ("episodes of 30", TASKS, cut_at(30), r"episode 0 has 30 steps, .* after 25: episodes of another length"),
]


@pytest.mark.parametrize(
    ("task_id", "change", "named"),
    [
        pytest.param(task_id, change, named, id=f"{task_id.partition('_')[2]}-{name}")
        for name, tasks, change, named in MISMATCHES
        for task_id in tasks
    ],
)
def test_mismatches_are_named(task_id: str, change: Change, named: str) -> None:
    """Catches a mismatch that passes, or is taken for another."""
    found = checked(change(true_store(task_id)), task_id)
    assert not found.fits
    assert found.message.startswith(f"does not fit {task_id} as installed here: ")
    assert found.message.endswith("; rebuild the dataset, or import it again")
    assert re.search(named, found.message), found.message


@pytest.mark.parametrize("task_id", [TAG, WORLD])
@pytest.mark.parametrize("make_prey", [network, lambda task_id: scripted(task_id, 0.2)])
def test_another_prey_is_named(task_id: str, make_prey) -> None:
    """Catches a prey taken for wrong dynamics, be it of another kind or the same one at another effort."""
    prey = make_prey(task_id)
    found = checked(collected(task_id, prey), task_id)
    other = "another opponent" if prey.name == "scripted" else prey.name
    wanted = f"only what the opponent moves differs: the data were collected against {other}, here it is scripted"
    assert found.diagnosis == wanted
    assert all(one.largest < TOLERANCES[name] for name, one in found.disagreement.items() if name == "views")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"agents": ("a", "b")}, "num_agents is 2 in the data and 3 in the environment"),
        ({"observation_size": 5}, "observation_size is 5 in the data and 18 in the environment"),
        ({"max_steps": 20}, "max_steps is 20 in the data and 25 in the environment"),
        ({"team_reward": "sum"}, "team_reward is sum in the data and mean in the environment"),
        ({"task_id": "mpe/other"}, "task_id is mpe/other in the data and mpe/simple_spread in the environment"),
    ],
)
def test_other_sizes_are_named_before_anything_is_played(changes: dict, named: str) -> None:
    """Catches an error of torch's where shapes differ, and terms of the task that no step shows."""
    store = true_store(SPREAD).select(slice(2))
    spec = replace(store.spec, **changes)
    sized = replace(
        store,
        spec=spec,
        observations=store.observations[:, : spec.num_agents, : spec.observation_size],
        actions=store.actions[:, : spec.num_agents],
        rewards=store.rewards[:, : spec.num_agents],
    )
    found = checked(sized, SPREAD)
    assert not found.fits and named in found.message and found.steps == 0


def test_one_wrong_number_is_found_and_placed() -> None:
    """Catches a quantile taken for the verdict, and a place that is not the number's."""
    store = true_store(WORLD)
    observations = store.observations.copy()
    observations[26 * 70 + 10, 1, 5] += 0.01
    found = checked(replace(store, observations=observations), WORLD, None)
    assert found.mismatches == 2 and not found.fits  # as the moment before a step, and as the one after
    worst = found.disagreement["observations"]
    assert (worst.agent, worst.feature, worst.episode, worst.step) == ("agent_1", 5, 70, 9)
    assert worst.stored - worst.computed == pytest.approx(0.01, abs=1e-5) and worst.quantile_999 < 1e-4
    assert "no simple cause found" in found.message


def test_an_environment_that_cannot_play_is_a_mismatch() -> None:
    """Catches an error of the environment's that escapes as one of the user's."""

    class Broken(Chase):
        name = "broken"

        def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
            return torch.full((len(observations), 1, 2), math.nan)

    found = replay(true_store(TAG), maker(TAG, Broken(TAG)), transitions=10)
    assert not found.fits and "its environment cannot play it (mpe/simple_tag: expected finite" in found.message


def test_guesses_that_the_environment_refuses_are_passed_over() -> None:
    """Catches a diagnosis that ends where one guess cannot be played: here what is ten times too far away."""

    class Shortsighted(FleeingPrey):
        def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
            actions = super().act(observations, action_mask, rewards)
            return torch.where(observations.abs().amax(-1, keepdim=True) > 10.0, torch.nan, actions)

    prey = Shortsighted(num_obstacles=2, num_landmarks=2)
    shifted = with_offset(2, 0.3, 1)(true_store(TAG))
    found = replay(shifted, maker(TAG, prey), transitions=1024)
    assert found.diagnosis == "observations are shifted: +0.3 in feature 2 of agent_1"


def test_an_environment_without_numbers_is_a_mismatch() -> None:
    """Catches a comparison that nothing fails because nothing is equal, and arithmetic that gives up on it."""

    class NotFinite(ParticleEnv):
        def step(self, actions: Tensor) -> TimeStep:
            step = super().step(actions)
            return replace(step, observations=step.observations * torch.nan)

    found = replay(true_store(SPREAD), lambda n: NotFinite(SPREAD, n, dtype=torch.float64), transitions=100)
    assert not found.fits and found.mismatches == 100 and found.diagnosis is None
    assert math.isfinite(found.disagreement["observations"].computed)


# Thresholds


@cache
def from_the_threshold(count: int) -> EpisodeStore:
    """Episodes of spread whose first step ends with two agents exactly where contact begins, in double precision."""
    env, source = envs.make(SPREAD, count, dtype=torch.float64), torch.Generator().manual_seed(1)
    positions = torch.rand(count, 6, 2, generator=source, dtype=torch.float64)
    velocities = torch.zeros(count, 3, 2, dtype=torch.float64)
    angles = 0.7 * torch.arange(count, dtype=torch.float64)
    headings = torch.stack([angles.cos(), angles.sin()], 1)
    positions[:, 2], velocities[:, 1] = 5.0, -headings  # agent 1 flies towards agent 0, the third is away
    still = torch.zeros(count, 3, 2, dtype=torch.float64)
    low, high = torch.full((count, 1), 0.35, dtype=torch.float64), torch.full((count, 1), 0.4, dtype=torch.float64)
    for _ in range(60):
        positions[:, 1] = positions[:, 0] + 0.5 * (low + high) * headings
        steps = torch.zeros(count, dtype=torch.int64)
        frames = [env.set_state(ParticleState(positions=positions, velocities=velocities, steps=steps))]
        frames.append(env.step(still))
        places = env.state.positions
        inside = (places[:, 0] - places[:, 1]).norm(dim=-1, keepdim=True) < 0.3
        low, high = torch.where(inside, 0.5 * (low + high), low), torch.where(inside, high, 0.5 * (low + high))
    frames += [env.step(still) for _ in range(24)]
    return EpisodeStore(
        spec=env.spec,
        dataset_id=true_store(SPREAD).dataset_id,
        observations=torch.stack([frame.observations.float() for frame in frames], 1).flatten(0, 1).numpy(),
        actions=np.zeros((25 * count, 3, 2), np.float32),
        rewards=torch.stack([frame.rewards.float() for frame in frames[1:]], 1).flatten(0, 1).numpy(),
        offsets=np.arange(count + 1) * 25,
        terminated=np.zeros(count, bool),
    )


def joined(first: EpisodeStore, second: EpisodeStore) -> EpisodeStore:
    arrays = {
        name: np.concatenate([getattr(first, name), getattr(second, name)])
        for name in ("observations", "actions", "rewards", "terminated")
    }
    return replace(first, offsets=np.append(first.offsets, second.offsets[1:] + first.num_steps), **arrays)


def test_steps_at_a_threshold_are_counted_and_do_not_fail() -> None:
    """Catches a bonus that rounding decides taken for a wrong reward, and the same bonus excused elsewhere."""
    store = joined(true_store(SPREAD), from_the_threshold(16))
    found = checked(store, SPREAD, None)
    assert found.fits and found.mismatches == 0 and 2 <= found.at_thresholds <= 16
    assert found.disagreement["rewards"].largest < TOLERANCES["rewards"]
    assert f"{found.at_thresholds} at thresholds" in found.message
    rewards = store.rewards.copy()
    rewards[5] += 5.0
    wrong = checked(replace(store, rewards=rewards), SPREAD, None)
    assert not wrong.fits and (wrong.mismatches, wrong.at_thresholds) == (1, found.at_thresholds)


def test_steps_at_thresholds_are_rare() -> None:
    """Catches a dataset that is excused step by step."""
    found = checked(from_the_threshold(64), SPREAD, None)
    assert not found.fits and found.at_thresholds == 0 and found.mismatches > 16
    assert "rewards differ by up to 5" in found.message


def test_a_remainder_is_forgiven() -> None:
    """Catches data refused for one episode that an import could not complete, and many taken for one."""
    store = true_store(SPREAD)
    last = store.num_steps - 10

    def cut(of: EpisodeStore) -> EpisodeStore:
        offsets = np.append(of.offsets[:-1], of.num_steps - 10)
        return replace(
            of, observations=of.observations[:-10], actions=of.actions[:-10], rewards=of.rewards[:-10], offsets=offsets
        )

    found = checked(cut(store), SPREAD, None)
    assert found.fits and found.cut_short == 1 and found.steps == last
    few = checked(cut(store.select(slice(99))), SPREAD, None)
    assert not few.fits and "1 of 99 episodes end early (one after 15 steps)" in few.message


# Which steps are played


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), count=st.integers(1, 300), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_drawn_rows(lengths: list[int], count: int, seed: int) -> None:
    """Catches rows drawn twice, too few of them, and a draw that leaves out the ends of episodes."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = draw_rows(offsets, count, seeding.generator(seed, "test"))
    assert len(rows) == min(count, offsets[-1]) and (np.diff(rows) > 0).all()
    assert rows[0] >= 0 and rows[-1] < offsets[-1]
    np.testing.assert_array_equal(rows, draw_rows(offsets, count, seeding.generator(seed, "test")))


def test_drawn_rows_cover_the_data() -> None:
    """Catches first or last steps that are missing, and episodes drawn from one end only."""
    offsets = np.arange(0, 25 * 401, 25)
    rows = draw_rows(offsets, 400, seeding.generator(0, "test"))
    steps = rows % 25
    assert 100 <= (steps == 0).sum() <= 130 and 100 <= (steps == 24).sum() <= 130 and len(set(steps)) == 25
    assert np.bincount(rows // 2500).tolist() == pytest.approx([100] * 4, abs=2)
    with pytest.raises(UserError, match="at least one step to replay, got 0"):
        draw_rows(offsets, 0, seeding.generator(0, "test"))


def test_the_same_seed_gives_the_same_record() -> None:
    """Catches a draw from global state, or an environment whose batch decides."""
    store = true_store(WORLD)
    assert checked(store, WORLD, 200) == checked(store, WORLD, 200)
    other = replay(store, maker(WORLD), transitions=200, seed=1)
    assert other.fits and other.disagreement != checked(store, WORLD, 200).disagreement


# Choices, masks, states, ends


class Ladder:
    """Climbs `state` by the agents' choices (0, 1 or 2 rungs each) and ends above 6; rung 1 is legal below 5 only.

    Agents see the height, and their own number; each is paid what it climbed. `float32` data hold all of it exactly.
    """

    device, opponent_entries = torch.device("cpu"), None
    spec = TaskSpec(
        task_id="toy/ladder",
        agents=("low", "high"),
        observation_size=2,
        action=ActionSpec(kind="discrete", size=3),
        max_steps=8,
        team_reward="sum",
        state_size=1,
    )

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        return self.restore(torch.empty(0), torch.zeros(len(seeds), 1), torch.zeros(len(seeds), dtype=torch.int64))

    def restore(self, observations: Tensor, state: Tensor | None, steps: Tensor) -> TimeStep:
        assert state is not None and len(state) == self.num_envs
        self.height, self.steps = state[:, 0].clone(), steps.clone()
        return self._time_step(torch.zeros(self.num_envs, 2))

    def step(self, actions: Tensor) -> TimeStep:
        assert actions.dtype == torch.int64
        live = ~((self.height > 6) | (self.steps >= 8))
        self.height, self.steps = self.height + actions.sum(1) * live, self.steps + live
        return self._time_step(actions * live[:, None])

    def _time_step(self, rewards: Tensor) -> TimeStep:
        ended = self.height > 6
        mask = torch.ones(self.num_envs, 2, 3, dtype=torch.bool)
        mask[:, :, 1] = (self.height < 5)[:, None]
        return TimeStep(
            observations=torch.stack([self.height[:, None].expand(-1, 2), torch.tensor([[0.0, 1.0]] * len(mask))], 2),
            rewards=rewards,
            terminated=ended,
            truncated=~ended & (self.steps >= 8),
            action_mask=mask,
            state=self.height[:, None],
        )


class Climber:
    network_passes = 0

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self.generator = generator

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        assert action_mask is not None
        weights = action_mask.float() * torch.tensor([3.0, 1.0, 0.3])
        return torch.multinomial(weights.flatten(0, 1), 1, generator=self.generator).view(-1, 2)


def climbed() -> EpisodeStore:
    return collect_batch(Ladder(40), Climber(), range(40), torch.Generator().manual_seed(0), dataset_id="toy")


def test_choices_masks_states_and_ends_are_compared() -> None:
    """Catches a quantity of discrete tasks that nobody looks at, and masks of final frames compared."""
    store = climbed()
    assert 0 < store.terminated.sum() < 40
    found = replay(store, Ladder, transitions=None)
    assert found.fits and found.cut_short == 0 and set(found.disagreement) == set(TOLERANCES)
    assert all(one.largest == 0.0 for one in found.disagreement.values()) and "all equal" in found.message
    masks, states, choices = store.action_mask.copy(), store.state.copy(), store.actions.copy()
    masks[store.offsets[1:] + np.arange(40)] = False
    assert replay(replace(store, action_mask=masks), Ladder, transitions=None).fits
    masks[3, 1, 0] = False
    states[5] += 1.0
    row = int(np.flatnonzero(choices[:, 0] != 1)[10])
    choices[row, 0] = 2 - choices[row, 0]  # both always legal
    episode = int(np.searchsorted(store.offsets, row, side="right")) - 1
    place = f"episode {episode}, step {row - store.offsets[episode]}"
    ended = np.flatnonzero(store.terminated)
    endless = store.terminated.copy()
    endless[ended[0]] = False
    last = f"episode {ended[0]}, step {store.lengths[ended[0]] - 1}"
    for changes, named in (
        ({"action_mask": masks}, "legal actions differ by up to 1 (high, feature 0, episode 0, step 3"),
        ({"state": states}, "the agents' views of one moment contradict each other or the task by up to 1 (low, fea"),
        ({"actions": choices}, f"the observations that follow differ by up to 2 (low, feature 0, {place}: "),
        ({"terminated": endless}, f"the ends of episodes differ by up to 1 ({last}: stored 0, computed 1)"),
    ):
        changed = replay(replace(store, **changes), Ladder, transitions=None)
        assert not changed.fits and named in changed.message, changed.message


def test_a_constant_is_told_where_rewards_do_not_vary() -> None:
    """Catches rewards of 3 explained as 0 x those computed, which are all zero."""

    class Still(Climber):
        def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
            return torch.zeros(observations.shape[:2], dtype=torch.int64)

    store = collect_batch(Ladder(8), Still(), range(8), torch.Generator(), dataset_id="toy")
    found = replay(with_rewards(lambda r: r + 3.0)(store), Ladder, transitions=None)
    assert found.diagnosis == "rewards: stored = computed +3"


# Any numbers at all


@given(
    task_id=st.sampled_from(TASKS),
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=4),
    whole=st.booleans(),
    final=st.booleans(),
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e3, 1e18, 1e37]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=15, deadline=None)
@pytest.mark.slow
def test_random_numbers_never_fit_and_never_fail(
    task_id: str, lengths: list[int], whole: bool, final: bool, scale: float, seed: int
) -> None:
    """Catches any error but a verdict, whatever is in a store of the right structure."""
    source = np.random.default_rng(seed)
    lengths = [25] * len(lengths) if whole else lengths
    steps, count = sum(lengths), len(lengths)
    spec = maker(task_id)(1).spec

    def numbers(*shape: int) -> np.ndarray:
        return (scale * source.standard_normal(shape)).astype(np.float32)

    store = EpisodeStore(
        spec=spec,
        dataset_id="random",
        observations=numbers(steps + count, 3, spec.observation_size),
        actions=source.uniform(-1, 1, (steps, 3, 2)).astype(np.float32),
        rewards=numbers(steps, 3),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        terminated=source.random(count) < 0.5,
        has_final_observation=final,
    )
    found = checked(store, task_id, None)
    assert not found.fits and found.message.startswith(f"does not fit {task_id}")


# The gate


def test_training_refuses_data_that_do_not_fit(tmp_path: Path) -> None:
    """Catches a gate that lets data of another scale through, or does not say what is wrong and where."""
    scaled = with_rewards(lambda r: 0.1 * r)(true_store(TAG))
    with pytest.raises(UserError) as error:
        training_data(write_store(tmp_path / "scaled", scaled))
    message = str(error.value)
    assert message.startswith("native/mpe/simple_tag/expert-v1 does not fit mpe/simple_tag as installed here: rewards ")
    assert "(agent_0, episode " in message and "stored = 0.1 x computed; rebuild" in message
    data = training_data(write_store(tmp_path / "true", true_store(TAG)))
    assert data.spec.task_id == TAG


def test_training_says_what_it_could_not_check(tmp_path: Path, caplog: pytest.LogCaptureFixture, make_store) -> None:
    """Catches data of a task without an environment that pass for checked."""
    store = make_store([2, 3])
    store = replace(store, spec=replace(store.spec, task_id="toy/drift"), dataset_id="user/toy/drift/mine-v1")
    with caplog.at_level(logging.WARNING):
        training_data(write_store(tmp_path / "data", store))
    assert "user/toy/drift/mine-v1 was not checked: no environment of toy/drift" in caplog.text
