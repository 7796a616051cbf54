"""Windows: the published loader's, two episodes by hand, return labels, uniform draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from marl_flow.datasets.store import EpisodeStore, open_store
from marl_flow.datasets.windows import WindowSampler, return_quantile
from marl_flow.datasets.writer import write_store
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError, WindowSpec
from marl_flow.normalize import Normalizer


def sampler(store: EpisodeStore, history: int, horizon: int, discount: float = 0.5) -> WindowSampler:
    return WindowSampler(store, WindowSpec(history=history, horizon=horizon, discount=discount), "cpu")


class Golden:
    """One file of recorded windows, and the same raw episodes as a store without final observations."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.meta = json.loads(str(self.arrays["meta"]))
        self.history = self.meta["history_horizon"]
        self.horizon = self.meta["horizon"] - 1  # the release counts frames
        count = 1 + max(int(name.split("/")[1]) for name in self.arrays if name.startswith("episodes/"))
        episodes = [
            {name: self.arrays[f"episodes/{k}/{name}"] for name in ("observations", "actions", "rewards")}
            for k in range(count)
        ]
        joined = {name: np.concatenate([e[name] for e in episodes]) for name in ("actions", "rewards")}
        _, agents, size = joined["actions"].shape
        self.store = EpisodeStore(
            spec=TaskSpec(
                task_id="mpe/simple_spread",
                agents=tuple(map(str, range(agents))),
                observation_size=episodes[0]["observations"].shape[-1],
                action=ActionSpec(kind="continuous", size=size, low=(-9.0,) * size, high=(9.0,) * size),
                max_steps=self.meta["max_episode_steps"],
                team_reward="mean",
            ),
            dataset_id="native/mpe/simple_spread/expert-v1",
            observations=np.concatenate([e["observations"][[*range(len(e["rewards"])), -1]] for e in episodes]),
            offsets=np.cumsum([0, *(len(e["rewards"]) for e in episodes)]),
            terminated=np.ones(count, dtype=bool),
            has_final_observation=False,
            **joined,
        )
        kind = "cdf" if self.meta["normalizer"] == "CDFNormalizer" else "limits"
        per_agent = not self.meta["normalizer_shared_between_agents"]
        self.observations = Normalizer.fit(kind, self.store.observations, per_agent, rows=self.store.real_frames)
        self.actions = Normalizer.fit(kind, self.store.actions, per_agent)
        # a decentralized loader repeats each window once per visible agent
        self.repeats = agents if self.meta["condition"] == "single" else 1


@pytest.fixture(params=["centralized", "decentralized_history", "per_agent_limits"])
def golden(request: pytest.FixtureRequest, recorded: Callable[[str], dict[str, np.ndarray]]) -> Golden:
    return Golden(recorded(f"windows_{request.param}"))


def test_golden_windows(golden: Golden) -> None:
    """Catches frames, padding, normalisation or return labels that differ from the published loader's."""
    windows = sampler(golden.store, golden.history, golden.horizon, golden.meta["discount"])
    starts = golden.arrays["window_starts"]
    assert windows.num_windows == len(starts) == golden.arrays["length"] // golden.repeats
    chosen = starts[golden.arrays["indices"] // golden.repeats]
    batch = windows.at(chosen[:, 0].tolist(), chosen[:, 1].tolist())
    size, now = golden.store.spec.action.size, golden.history
    recorded = [
        {name: golden.arrays[f"windows/{j}/{name}"] for name in ("trajectory_actions_then_observations", "returns")}
        for j in range(len(chosen))
    ]
    trajectory = torch.from_numpy(np.stack([r["trajectory_actions_then_observations"] for r in recorded]))
    returns = np.stack([r["returns"][0] for r in recorded]) * golden.meta["returns_scale"]
    close = {"rtol": 0.0, "atol": 1e-5}
    torch.testing.assert_close(golden.observations.apply(batch.observations), trajectory[..., size:], **close)
    torch.testing.assert_close(golden.actions.apply(batch.actions), trajectory[:, now:-1, :, :size], **close)
    np.testing.assert_allclose(batch.returns_to_go, returns, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(batch.start_step, chosen[:, 1])


def test_golden_masks(golden: Golden) -> None:
    """Catches `valid` counting padding: per window it must name the frames the loader does not mask for attention,
    and only among those whose loss counts there.
    """
    windows = sampler(golden.store, golden.history, golden.horizon)
    chosen = golden.arrays["window_starts"][golden.arrays["indices"] // golden.repeats]
    batch = windows.at(chosen[:, 0].tolist(), chosen[:, 1].tolist())
    np.testing.assert_array_equal(batch.valid.sum(1) + 1, chosen[:, 3] - chosen[:, 1])  # masked end - start
    for j, valid in enumerate(batch.valid):
        loss_mask = golden.arrays[f"windows/{j}/loss_mask"][golden.history + 1 :, :, 0]  # [H, N]
        assert (loss_mask[valid.numpy()] == 1).all()


def test_golden_starts(golden: Golden) -> None:
    """Catches a window that starts at an episode's last frame, or one that is left out."""
    windows = sampler(golden.store, golden.history, golden.horizon)
    batch = windows.draw(2000, torch.Generator().manual_seed(0))
    first = batch.observations[:, golden.history, 0]
    index = {tuple(row.tolist()): at for at, row in enumerate(torch.tensor(golden.store.observations[:, 0]))}
    offsets = golden.store.first_frames
    drawn = {
        (int(np.searchsorted(offsets, at, side="right") - 1), int(step))
        for row, step in zip(first, batch.start_step, strict=True)
        for at in [index[tuple(row.tolist())]]
    }
    assert drawn == {(int(episode), int(start)) for episode, start in golden.arrays["window_starts"][:, :2]}


def test_window_by_hand(make_store) -> None:
    """Catches padding that is not the last real entry, history that is not the first, and misplaced flags."""
    batch = sampler(make_store([2, 5], terminated=[True, False]), 2, 3).at([0, 0, 1, 1], [0, 1, 1, 3])
    np.testing.assert_array_equal(
        batch.observations[:, :, 0, 0],
        [
            [0, 0, 0, 1, 2, 2],
            [0, 0, 1, 2, 2, 2],
            [100, 100, 101, 102, 103, 104],
            [101, 102, 103, 104, 105, 105],
        ],
    )
    np.testing.assert_array_equal(-batch.actions[:, :, 0, 0], [[0, 1, 1], [1, 1, 1], [101, 102, 103], [103, 104, 104]])
    np.testing.assert_array_equal(-batch.rewards[:, :, 0], [[0, 1, 0], [1, 0, 0], [101, 102, 103], [103, 104, 0]])
    np.testing.assert_array_equal(batch.valid, [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]])
    np.testing.assert_array_equal(batch.terminated, [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(batch.start_step, [0, 1, 1, 3])
    np.testing.assert_allclose(batch.returns_to_go[[0, 1, 3], 0], [-0.5, -1, -155])
    np.testing.assert_allclose(batch.returns_to_go[0], [-0.5, -0.25 - 0.5 * 1.25])  # per agent
    assert batch.history == 2 and batch.horizon == 3 and batch.valid.dtype == batch.terminated.dtype == torch.bool


def test_window_without_final_observations(make_store) -> None:
    """Catches bootstrapping from a frame nobody saw: the last step is not valid, nor may a window start there."""
    windows = sampler(make_store([3, 4], final=False, terminated=[True, True]), 1, 3)
    assert windows.num_windows == 2 + 3
    batch = windows.at([0, 1], [1, 1])
    np.testing.assert_array_equal(batch.observations[:, :, 0, 0], [[0, 1, 2, 2, 2], [100, 101, 102, 103, 103]])
    np.testing.assert_array_equal(batch.valid, [[1, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(batch.terminated, [[0, 1, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match="no window starts at step 2 of episode 0"):
        windows.at([0], [2])


def test_masks_and_state_belong_to_the_coming_frames(make_store) -> None:
    """Catches masks indexed by step instead of frame, and stored integer widths that cross-entropy refuses."""
    store = make_store([2, 4], discrete=True)
    batch = sampler(store, 2, 2).at([0, 1], [1, 2])
    np.testing.assert_array_equal(batch.state[..., 0], [[1, 2, 2], [102, 103, 104]])
    np.testing.assert_array_equal(batch.action_mask, store.action_mask[[[1, 2, 2], [5, 6, 7]]])
    np.testing.assert_array_equal(batch.actions[..., 0], [[1, 1], [2, 3]])
    assert batch.actions.dtype == torch.int64


def test_starts_outside_an_episode_are_refused(make_store) -> None:
    """Catches a window that silently reads its neighbour's rows."""
    windows = sampler(make_store([2, 5]), 0, 1)
    for episode, start in ((0, 2), (1, -1), (2, 0), (-1, 0)):
        with pytest.raises(ValueError, match=f"no window starts at step {start} of episode {episode}"):
            windows.at([episode], [start])


@pytest.mark.parametrize("final", [True, False])
def test_every_window_is_equally_likely(make_store, final: bool) -> None:
    """Catches drawing the episode first, which over-weights the steps of short episodes."""
    windows = sampler(make_store([3, 17, 2], final=final), 0, 1)
    batch = windows.draw(40_000, torch.Generator().manual_seed(0))
    drawn, counts = batch.observations[:, 0, 0, 0].unique(return_counts=True)
    lengths = [3, 17, 2] if final else [2, 16, 1]
    assert drawn.tolist() == [100 * k + t for k, length in enumerate(lengths) for t in range(length)]
    expected = 40_000 / windows.num_windows
    assert ((counts - expected).abs() < 5 * expected**0.5).all()  # five standard deviations


def test_draws_repeat_with_their_generator(make_store) -> None:
    """Catches a draw from global state, which would make resuming inexact."""
    windows = sampler(make_store([3, 17]), 0, 1)
    first = windows.draw(50, torch.Generator().manual_seed(3))
    torch.manual_seed(1)
    again = windows.draw(50, torch.Generator().manual_seed(3))
    other = windows.draw(50, torch.Generator().manual_seed(4))
    assert torch.equal(first.observations, again.observations)
    assert not torch.equal(first.observations, other.observations)


def test_sampling_from_disk_copies_nothing_and_cannot_write(tmp_path: Path, make_store, monkeypatch) -> None:
    """Catches a second copy of the data in memory, read-only memory under torch (it warns), and a draw that aliases."""
    write_store(tmp_path / "data", make_store([2, 5]))
    store = open_store(tmp_path / "data")
    wrapped, wrap = [], torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: wrapped.append(array) or wrap(array))
    windows = sampler(store, 0, 1)
    assert all(array.flags.writeable for array in wrapped)
    for mine, theirs in ((windows._observations, store.observations), (windows._rewards, store.rewards)):
        assert mine.data_ptr() == theirs.ctypes.data and not theirs.flags.writeable
    batch = windows.at([0], [0])
    batch.observations.fill_(7.0)
    assert store.observations[0, 0, 0] == 0.0
    open_store(tmp_path / "data")


def test_quantiles_of_start_returns_by_hand(make_store) -> None:
    """Catches quantiles over steps instead of episodes, over one agent, or undiscounted."""
    store = make_store([1, 2, 3])
    starts = [-0.125, -(100.125 + 0.5 * 101.125), -(200.125 + 0.5 * 201.125 + 0.25 * 202.125)]
    assert return_quantile(store, 0.5, 1.0) == pytest.approx(starts[0])
    assert return_quantile(store, 0.5, 0.5) == pytest.approx(starts[1])
    assert return_quantile(store, 0.5, 0.25) == pytest.approx((starts[1] + starts[2]) / 2)
    with pytest.raises(UserError, match="quantile from 0 to 1, got 90"):
        return_quantile(store, 0.5, 90)


def test_a_store_without_a_window_is_refused(make_store) -> None:
    """Catches an endless or crashing draw where every episode is one step long."""
    with pytest.raises(UserError, match="expected an episode of two steps or more"):
        sampler(make_store([1, 1], final=False), 0, 1)
