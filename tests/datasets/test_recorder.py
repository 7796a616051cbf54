"""Recording what is played in an environment: rows that end apart, resets in the middle, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from marl_flow import datasets, envs, seeding
from marl_flow.datasets import Recorder
from marl_flow.datasets.collect import collect_batch
from marl_flow.datasets.replay import passport
from marl_flow.envs.checks import check_vector_env
from marl_flow.envs.pettingzoo import ParallelVectorEnv, to_parallel_env
from marl_flow.interfaces import ActionSpec, TaskSpec, TimeStep, UserError, VectorEnv
from marl_flow.policies import UniformPolicy
from marl_flow.rollout import rollout

MINE = "user/mpe/simple_spread/mine-v1"


def play(env: VectorEnv, seeds: Sequence[int], steps: int = 100) -> None:
    """Plays with actions (t + 1) / 8 until all is over, or for that many steps."""
    step = env.reset(seeds)
    for t in range(steps):
        if step.finished.all():
            return
        step = env.step(torch.full((env.num_envs, 2, 2), (t + 1) / 8))


def test_what_is_played_is_what_is_saved(counting_env, tmp_path: Path) -> None:
    """Catches frozen rows recorded as steps, batches in another order, and actions beside another step's reward."""
    env = Recorder(counting_env(3))
    play(env, [3, 4, 5])
    play(env, [7, 10, 6])
    assert (env.num_episodes, env.num_unfinished) == (6, 0)
    store = env.save(MINE, root=tmp_path, description="two batches")
    assert store.lengths.tolist() == [2, 3, 4, 3, 3, 2]
    assert store.terminated.tolist() == [True, False, True, True, False, False]
    np.testing.assert_array_equal(store.observations[store.first_frames, 0, 0], [3, 4, 5, 7, 10, 6])
    np.testing.assert_array_equal(store.actions[:, 0, 0] * 8, [1, 2, 1, 2, 3, 1, 2, 3, 4, 1, 2, 3, 1, 2, 3, 1, 2])
    np.testing.assert_array_equal(store.rewards, store.actions[..., 0])
    assert store.provenance["description"] == "two batches"
    assert datasets.load(MINE, tmp_path).digest == store.digest


def test_several_batches_are_taken_at_once(counting_env) -> None:
    """Catches a batch of several episodes taken for one, and episodes lost when they cannot be joined."""
    env = Recorder(counting_env(3))
    for seeds in ([3, 4, 5], [7, 10, 6]):
        play(env, seeds)
    store = env.take("x")
    assert store.lengths.tolist() == [2, 3, 4, 3, 3, 2] and env.num_episodes == 0
    np.testing.assert_array_equal(store.observations[store.first_frames, 0, 0], [3, 4, 5, 7, 10, 6])
    with pytest.raises(UserError, match="recorded none"):
        env.take("x")


def test_a_broken_row_costs_its_own_episode_only(counting_env, tmp_path: Path) -> None:
    """Catches good episodes lost, without a word, for one reward that is not a number."""

    class Broken(counting_env):
        def step(self, actions: Tensor) -> TimeStep:
            step = super().step(actions)
            step.rewards[1] = torch.where(step.finished[1], step.rewards[1], torch.nan)
            return step

    env = Recorder(Broken(3))
    with pytest.raises(UserError, match=r"1 of 3 finished episodes were not recorded.*row 1: rewards: .*found nan"):
        play(env, [3, 4, 5])
    assert env.num_episodes == 2
    assert env.save(MINE, root=tmp_path).lengths.tolist() == [2, 4]


def test_episodes_that_were_left_out_once_do_not_count_again(counting_env, tmp_path: Path) -> None:
    """Catches every later `save` refused for what an earlier one left out on purpose."""
    env = Recorder(counting_env(3))
    play(env, [3, 4, 5], steps=2)
    env.save(MINE, root=tmp_path, drop_unfinished=True)
    play(env, [3, 4, 5])
    assert env.num_unfinished == 0


def test_an_environment_may_write_over_what_it_showed(counting_env, tmp_path: Path) -> None:
    """Catches frames that are kept as the environment's own memory, which all show the last moment then."""

    class InPlace(counting_env):
        def _step(self, rewards: Tensor) -> TimeStep:
            step = super()._step(rewards)
            self.memory = getattr(self, "memory", torch.empty_like(step.observations))
            self.memory.copy_(step.observations)
            return TimeStep(
                observations=self.memory, rewards=rewards, terminated=step.terminated, truncated=step.truncated
            )

    env, plain = Recorder(InPlace(2)), Recorder(counting_env(2))
    play(env, [3, 5])
    play(plain, [3, 5])
    np.testing.assert_array_equal(env.take("x").observations, plain.take("x").observations)


def test_unfinished_episodes_are_counted_and_never_saved_by_accident(counting_env, tmp_path: Path) -> None:
    """Catches half episodes that pass for whole ones, and whole ones lost with them."""
    env = Recorder(counting_env(3))
    play(env, [3, 4, 5], steps=2)  # the first row is over
    assert (env.num_episodes, env.num_unfinished) == (1, 2)
    play(env, [6, 9, 12], steps=1)
    assert (env.num_episodes, env.num_unfinished) == (1, 5)
    with pytest.raises(UserError, match=r"^5 of 6 recorded episodes are not over .*drop_unfinished=True"):
        env.save(MINE, root=tmp_path)
    assert not list(tmp_path.iterdir())
    store = env.save(MINE, root=tmp_path, drop_unfinished=True)
    assert store.num_episodes == 1 and store.lengths.tolist() == [2]
    assert store.provenance["unfinished_episodes_left_out"] == 5


def test_nothing_recorded_is_refused(counting_env, tmp_path: Path) -> None:
    """Catches an empty dataset."""
    env = Recorder(counting_env(2))
    env.reset([1, 2])
    with pytest.raises(UserError, match="at least one finished episode, recorded none"):
        env.save(MINE, root=tmp_path)


def test_actions_that_the_task_does_not_allow_are_refused_while_playing(counting_env) -> None:
    """Catches hours of recording that cannot be saved, because the environment clipped what the policy gave."""
    env = Recorder(counting_env(1))
    with pytest.raises(
        UserError, match=r"actions: expected numbers from .* found \[0.875, 0.875\] at episode 0, step 0"
    ):
        env.reset([3])
        for _ in range(2):
            env.step(torch.full((1, 2, 2), 0.875))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("native/mpe/simple_spread/expert-v1", "expected a name like user/mpe/simple_spread/NAME-v1"),
        ("mpe/simple_spread/expert", "expected a name like user/mpe/simple_spread/NAME-v1"),
        ("user/mpe/simple_tag/mine-v1", "are of task mpe/simple_spread; name them user/mpe/simple_spread/NAME-v1"),
        ("mine", "expected a dataset id like"),
    ],
)
def test_names_of_others_are_refused(name: str, message: str, counting_env, tmp_path: Path) -> None:
    """Catches recorded data under the name of a published or native dataset, or of another task."""
    env = Recorder(counting_env(1))
    play(env, [3])
    with pytest.raises(UserError, match=message):
        env.save(name, root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_existing_dataset_is_left_alone(counting_env, tmp_path: Path) -> None:
    """Catches a second recording that replaces the first, and one that cannot be saved under another name after."""
    env = Recorder(counting_env(1))
    play(env, [3])
    first = env.save(MINE, root=tmp_path)
    play(env, [4])
    with pytest.raises(UserError, match="already"):
        env.save(MINE, root=tmp_path)
    assert datasets.load(MINE, tmp_path).digest == first.digest
    assert env.save("user/mpe/simple_spread/mine-v2", root=tmp_path).num_episodes == 2


def test_it_is_a_vector_environment(counting_env) -> None:
    """Catches a wrapper that changes what it shows, or that the contract's own checks refuse."""
    check_vector_env(lambda num_envs: Recorder(envs.make("mpe/simple_spread", num_envs)))


def test_recording_gives_what_collecting_gives_and_replays(tmp_path: Path) -> None:
    """Catches a recording that differs from how native datasets are collected, or does not fit its environment."""
    seeds = seeding.environment_seeds("collect", 0, 8)
    env = envs.make("mpe/simple_spread", 8)
    policy = UniformPolicy(env.spec.action)
    collected = collect_batch(env, policy, seeds, seeding.generator(0, "test"), dataset_id="x")
    recorder = Recorder(env)
    policy.reset(8, seeding.generator(0, "test"))
    step = recorder.reset(seeds)
    while not step.finished.all():
        step = recorder.step(policy.act(step.observations, None, step.rewards))
    store = recorder.save(MINE, root=tmp_path)
    for (name, ours), (_, theirs) in zip(store.arrays(), collected.arrays(), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    found = passport.verify(
        tmp_path / MINE, lambda spec, rows: envs.make(spec.task_id, rows, dtype=torch.float64), transitions=100
    )
    assert found["replay"]["fits"]


def test_masks_states_and_tasks_with_longer_names_are_recorded(tmp_path: Path) -> None:
    """Catches a mask or state left out, choices stored as numbers, and a task that no dataset id can name."""

    class Choices:
        spec = TaskSpec(
            task_id="toy/v1/Choices/2p",
            agents=("a", "b"),
            observation_size=1,
            action=ActionSpec(kind="discrete", size=3),
            max_steps=2,
            team_reward="sum",
            state_size=1,
        )
        num_envs, device = 1, torch.device("cpu")

        def reset(self, seeds: Sequence[int]) -> TimeStep:
            self.t = 0
            return self._show()

        def step(self, actions: Tensor) -> TimeStep:
            self.t += 1
            return self._show()

        def _show(self) -> TimeStep:
            done = torch.tensor([self.t >= 2])
            mask = torch.tensor([[[self.t == 0, True, False]] * 2])
            seen = torch.full((1, 2, 1), float(self.t), dtype=torch.float64)
            return TimeStep(
                observations=seen,
                rewards=seen[..., 0],
                terminated=done,
                truncated=~done & done,
                action_mask=mask,
                state=seen[:, 0],
            )

    env = Recorder(Choices())
    env.reset([0])
    env.step(torch.tensor([[0, 1]]))
    env.step(torch.tensor([[1, 1]]))
    store = env.save("user/toy/choices/mine-v1", root=tmp_path)
    assert store.actions.tolist() == [[0, 1], [1, 1]] and store.actions.dtype == np.int64
    assert store.state is not None and store.state.tolist() == [[0], [1], [2]]
    assert (
        store.action_mask is not None
        and store.action_mask[:, 0].tolist() == [[True, True, False]] + [[False, True, False]] * 2
    )
    env.reset([0])
    with pytest.raises(UserError, match=r"one of the legal choices \[1\], found 0 at episode 1, step 1, a"):
        for _ in range(2):
            env.step(torch.tensor([[0, 1]]))


def test_a_pettingzoo_environment_is_recorded(tmp_path: Path) -> None:
    """Catches a recorder that only our own environments get along with."""
    env = Recorder(
        ParallelVectorEnv(
            lambda: to_parallel_env("mpe/simple_spread"), 2, task_id="farm/spread", max_steps=25, team_reward="mean"
        )
    )
    policy = UniformPolicy(env.spec.action)
    policy.reset(2, seeding.generator(0, "test"))
    rollout(env, policy, [3, 4])
    store = env.save("user/farm/spread/mine-v1", root=tmp_path)
    assert store.lengths.tolist() == [25, 25] and store.spec == env.spec and not store.terminated.any()
