"""Records the episodes that are played in an environment, whoever plays them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from marl_flow.datasets.layout import check_values
from marl_flow.datasets.store import EpisodeStore, open_store
from marl_flow.datasets.user_data import joined, user_writer
from marl_flow.interfaces import TaskSpec, TimeStep, UserError, VectorEnv


class Recorder:
    """A vector environment around another: `reset` and `step` play that one, and every finished episode is kept.

        env = Recorder(my_env)                      # any `VectorEnv`; wrap a PettingZoo ParallelEnv as one first
        step = env.reset(range(env.num_envs))
        while not step.finished.all():
            step = env.step(my_policy(step.observations))
        env.save("user/my_suite/my_task/first_try-v1")

    It may be reset as often as you like. Rows that are over freeze: what is done in them is not recorded. Rows that are
    reset before they are over are not kept; `num_unfinished` counts them. Episodes stay in memory until they are saved
    (`datasets.write` writes larger data from an iterator). Actions that the task does not allow are a UserError.
    """

    def __init__(self, env: VectorEnv) -> None:
        self.env = env
        self._pieces: list[EpisodeStore] = []
        self._num_cut_off = 0
        self._frames: list[TimeStep] = []
        self._actions: list[Tensor] = []

    @property
    def spec(self) -> TaskSpec:
        return self.env.spec

    @property
    def num_envs(self) -> int:
        return self.env.num_envs

    @property
    def device(self) -> torch.device:
        return self.env.device

    @property
    def num_episodes(self) -> int:
        """Finished episodes so far."""
        return sum(piece.num_episodes for piece in self._pieces) + int(self._finished_rows().sum())

    @property
    def num_unfinished(self) -> int:
        """Episodes that were started and are not over: rows that were reset too early, and those still being played."""
        return self._num_cut_off + (int((~self._frames[-1].finished).sum()) if self._actions else 0)

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        self._end_batch()
        step = self.env.reset(seeds)
        self._frames = [_copied(step)]
        return step

    def step(self, actions: Tensor) -> TimeStep:
        step = self.env.step(actions)
        if self._frames:
            dtype = torch.int64 if self.spec.action.is_discrete else torch.float32
            self._actions.append(torch.as_tensor(actions).detach().to("cpu", dtype, copy=True))
            self._frames.append(_copied(step))
            if bool(step.finished.all()):
                self._end_batch()
        return step

    def take(self, dataset_id: str) -> EpisodeStore:
        """The finished episodes since the last call, at least one, in memory and in the order they were played in."""
        self._end_batch()
        if not self._pieces:
            raise UserError(f"{dataset_id}: expected at least one finished episode, recorded none; play first")
        store = replace(joined(self._pieces), dataset_id=dataset_id)
        self._pieces, self._num_cut_off = [], 0
        return store

    def save(
        self, dataset_id: str, *, root: Path | None = None, description: str = "", drop_unfinished: bool = False
    ) -> EpisodeStore:
        """Writes all finished episodes as a new dataset `user/SUITE/TASK/NAME-vN` below `root` (None: the data root)
        and opens it. `description` becomes part of its provenance.

        Episodes that are not over are a UserError, or are left out with `drop_unfinished`; recording then continues at
        the next reset.
        """
        if self.num_unfinished and not drop_unfinished:
            started = self.num_episodes + self.num_unfinished
            raise UserError(
                f"{self.num_unfinished} of {started} recorded episodes are not over (rows were reset, or left, before "
                "they ended); play every row until it is finished, or leave these out with drop_unfinished=True"
            )
        self._end_batch()
        if not self._pieces:
            raise UserError(f"{dataset_id}: expected at least one finished episode, recorded none; play first")
        made_by = {"made_by": "marl_flow.datasets.Recorder", "unfinished_episodes_left_out": self._num_cut_off}
        writer = user_writer(dataset_id, self.spec, root, {**made_by, "description": description})
        with writer:
            for piece in self._pieces:
                writer.append(piece)
        self._num_cut_off = 0
        return open_store(writer.folder)

    def _finished_rows(self) -> Tensor:
        """Which rows of the batch being played are over after at least one step, [E] bool."""
        if not self._actions:
            return torch.zeros(self.num_envs, dtype=torch.bool)
        return self._frames[-1].finished & ~self._frames[0].finished

    def _end_batch(self) -> None:
        """Packs the finished rows of the batch being played; what a row shows after its end is cut off."""
        kept = self._finished_rows()
        self._num_cut_off = self.num_unfinished
        frames, actions, self._frames, self._actions = self._frames, self._actions, [], []
        if not kept.any():
            return
        counts = torch.stack([~frame.finished for frame in frames]).sum(0)[kept].numpy()

        def packed(rows: list[Tensor | None], lengths: np.ndarray) -> np.ndarray | None:
            return _packed([row[kept] for row in rows if row is not None], lengths) if rows[-1] is not None else None

        store = EpisodeStore(
            spec=self.spec,
            dataset_id="recorded",
            observations=_packed([frame.observations[kept] for frame in frames], counts + 1),
            actions=_packed([action[kept] for action in actions], counts),
            rewards=_packed([frame.rewards[kept] for frame in frames[1:]], counts),
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            terminated=frames[-1].terminated[kept].numpy(),
            action_mask=packed([frame.action_mask for frame in frames], counts + 1),
            state=packed([frame.state for frame in frames], counts + 1),
        )
        try:
            check_values(self.spec, dict(store.arrays()), first_episode=self.num_episodes)
        except UserError:
            self._keep_good(store, kept.nonzero()[:, 0].tolist())
        else:
            self._pieces.append(store)

    def _keep_good(self, store: EpisodeStore, rows: list[int]) -> None:
        """Keeps the episodes whose values are possible, and raises about the others; rows: where each was played."""
        good, faults, first = [], [], self.num_episodes
        for number, row in enumerate(rows):
            try:
                check_values(self.spec, dict(store.select([number]).arrays()), first_episode=first + number)
                good.append(number)
            except UserError as error:
                faults.append(f"row {row}: {error}")
        if good:
            self._pieces.append(store.select(good))
        raise UserError(
            f"{len(faults)} of {len(rows)} finished episodes were not recorded, the others were: "
            + "; ".join(faults[:3])
        )


def _copied(step: TimeStep) -> TimeStep:
    """What is recorded of a step, on the CPU: an environment may write the next one over it."""

    def copy(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if value is None else value.detach().to("cpu", dtype, copy=True)

    kept = {name: copy(getattr(step, name), torch.float32) for name in ("observations", "rewards", "state")}
    flags = {name: copy(getattr(step, name), torch.bool) for name in ("terminated", "truncated", "action_mask")}
    return TimeStep(**kept, **flags)  # type: ignore[arg-type]


def _packed(rows: list[Tensor], counts: np.ndarray) -> np.ndarray:
    """T tensors [E, ...] as one array [sum counts, ...]: the first counts[e] entries of each row e, end to end."""
    stacked = torch.stack(rows, dim=1)  # [E, T, ...]
    real = torch.arange(len(rows)) < torch.from_numpy(counts)[:, None]
    return stacked[real].numpy()
