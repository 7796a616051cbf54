"""Windows of an episode store: uniform draws, padding, return labels. One gather per array, on the training device.

A window of C = 2 history frames and H = 3 steps that starts at step 3 of a 5-step episode, and one at its step 0:

    frames      1  2 [3] 4  5  5            0  0 [0] 1  2  3          [current]; history before the start repeats frame
    steps             3  4  4                     0  1  2             0, what lies past the end repeats the last entry
    valid             1  1  0                     1  1  1             (its rewards are zero)

The published loader counts frames instead: its horizon 24 is H = 23 here, its horizon 10 with history 18 is C = 18,
H = 9 (`Guowei-Zou/coflow-release: diffuser/datasets/sequence.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_flow.datasets.store import EpisodeStore, as_tensor
from marl_flow.interfaces import Batch, UserError, WindowSpec


class WindowSampler:
    """Draws windows of a store; holds its arrays on `device` (on the CPU: the store's own memory).

    A window may start at every step of an episode. Where final observations are absent the last step leads nowhere
    real, so starts end one step earlier, as in the published loader, and that step is never `valid`.
    """

    def __init__(self, store: EpisodeStore, window: WindowSpec, device: torch.device | str) -> None:
        self.store, self.window, self.device = store, window, torch.device(device)
        lengths = torch.from_numpy(store.lengths)
        self._last_frame = lengths if store.has_final_observation else lengths - 1  # [K]
        self._ends = self._last_frame.cumsum(0)  # windows up to and including each episode, [K]
        if not self.num_windows:
            raise UserError(
                f"{store.dataset_id}: expected an episode of two steps or more (final observations are absent), "
                f"found at most {int(lengths.max())}"
            )
        self._episodes = torch.stack(  # what a gather needs to know of each episode, [K, 5]
            [
                torch.from_numpy(store.first_frames),
                as_tensor(store.offsets[:-1], torch.device("cpu")),
                lengths,
                self._last_frame,
                torch.from_numpy(store.terminated.astype(np.int64)),
            ],
            dim=1,
        ).to(self.device)
        self._observations = as_tensor(store.observations, self.device)
        self._actions = as_tensor(store.actions, self.device)
        self._rewards = as_tensor(store.rewards, self.device)
        self._returns = torch.from_numpy(store.returns_to_go(window.discount)).to(self.device)
        self._state = None if store.state is None else as_tensor(store.state, self.device)
        self._action_mask = None if store.action_mask is None else as_tensor(store.action_mask, self.device)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies are made from the store again, not from its arrays."""
        return WindowSampler, (self.store, self.window, self.device)

    @property
    def num_windows(self) -> int:
        return int(self._ends[-1])

    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        """`batch_size` windows, each of the `num_windows` equally likely, with replacement; a CPU generator draws."""
        drawn = torch.randint(self.num_windows, (batch_size,), generator=generator)  # 0 to num_windows - 1
        episodes = torch.searchsorted(self._ends, drawn, right=True)
        starts = drawn - (self._ends - self._last_frame)[episodes]
        return self._gather(episodes.to(self.device), starts.to(self.device))

    def at(self, episodes: Sequence[int] | Tensor, starts: Sequence[int] | Tensor) -> Batch:
        """The windows that start at step starts[b] of episode episodes[b], both [B]."""
        episode = torch.as_tensor(episodes, dtype=torch.int64, device="cpu")
        start = torch.as_tensor(starts, dtype=torch.int64, device="cpu")
        known = (episode >= 0) & (episode < len(self._ends))
        legal = known & (start >= 0) & (start < self._last_frame[episode.where(known, 0)])
        if not legal.all():
            at = int(legal.logical_not().nonzero()[0])
            raise ValueError(
                f"no window starts at step {int(start[at])} of episode {int(episode[at])} "
                f"({len(self._ends)} episodes, lengths {self.store.lengths.min()} to {self.store.lengths.max()})"
            )
        return self._gather(episode.to(self.device), start.to(self.device))

    def _gather(self, episodes: Tensor, starts: Tensor) -> Batch:
        history, horizon = self.window.history, self.window.horizon
        first_frame, first_step, length, last_frame, terminated = self._episodes[episodes].unsqueeze(-1).unbind(1)
        now = starts[:, None]  # [B, 1], as are the five above
        frame = now + torch.arange(-history, horizon + 1, device=self.device)  # [B, C + L], in the episode
        rows = first_frame + torch.minimum(frame.clamp_min(0), last_frame)
        step = now + torch.arange(horizon, device=self.device)  # [B, H]
        step_rows = first_step + torch.minimum(step, length - 1)
        actions = _rows(self._actions, step_rows)
        coming = rows[:, history:]  # [B, L]
        return Batch(
            observations=_rows(self._observations, rows),
            actions=actions if actions.is_floating_point() else actions.long(),
            rewards=_rows(self._rewards, step_rows).where((step < length)[..., None], 0.0),
            returns_to_go=self._returns.index_select(0, step_rows[:, 0]),
            terminated=(step == length - 1) & (terminated == 1),
            valid=step < last_frame,
            start_step=starts,
            action_mask=None if self._action_mask is None else _rows(self._action_mask, coming),
            state=None if self._state is None else _rows(self._state, coming),
        )


def start_returns(store: EpisodeStore, discount: float) -> np.ndarray:
    """The discounted return of each episode from its first step, mean over agents, raw, [K] float64."""
    starts = store.returns_to_go(discount)[store.offsets[:-1]]  # [K, N]
    return starts.mean(-1, dtype=np.float64)


def return_quantile(store: EpisodeStore, discount: float, q: float) -> float:
    """The q-quantile (0 to 1) over episodes of the discounted return from the first step, mean over agents.

    What a return-conditioned policy may ask for without leaving the data, in raw units.
    """
    if not 0.0 <= q <= 1.0:
        raise UserError(f"expected a quantile from 0 to 1, got {q}")
    return float(np.quantile(start_returns(store, discount), q))


def return_percentiles(store: EpisodeStore, discount: float) -> list[float]:
    """The quantiles 0, 0.01, ..., 1 of `return_quantile`: what a run keeps of its data's returns."""
    starts = start_returns(store, discount)
    return [float(np.quantile(starts, percent / 100)) for percent in range(101)]


def _rows(array: Tensor, rows: Tensor) -> Tensor:
    """array [R, ...] at rows [B, F]: [B, F, ...]."""
    return array.index_select(0, rows.reshape(-1)).view(*rows.shape, *array.shape[1:])
