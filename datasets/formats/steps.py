"""A store taken apart for export: pieces of it, and frames split into those seen by steps and final ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from marl_flow.datasets.formats.episodes import Run, runs
from marl_flow.datasets.layout import FRAME_ARRAYS
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import UserError


def store_pieces(store: EpisodeStore) -> Iterator[tuple[Run, EpisodeStore]]:
    """The store in pieces that fit in memory, in order, each with its place.

    Where final observations are absent their rows are not exported: they must repeat the ones before.
    """
    for run in runs(store.lengths):
        piece = store.select(run.episodes)
        for name, array in piece.arrays():
            if name in FRAME_ARRAYS and not store.has_final_observation:
                last = piece.offsets[1:] + np.arange(piece.num_episodes)
                if not np.array_equal(array[last], array[last - 1]):
                    raise UserError(
                        f"{store.dataset_id}: expected {name} to repeat each episode's last row (final observations "
                        "are absent), found other numbers; the store was not written by marl_flow"
                    )
        yield run, piece


def step_frames(piece: EpisodeStore, name: str) -> np.ndarray:
    """Frames of an array as the steps saw them, [sum T, ...]: all but each episode's last."""
    episode = np.repeat(np.arange(piece.num_episodes), piece.lengths)
    return getattr(piece, name)[np.arange(piece.num_steps) + episode]


def final_frames(piece: EpisodeStore, name: str) -> np.ndarray:
    """Frames of an array in which the episodes ended, [K, ...]."""
    return getattr(piece, name)[piece.offsets[1:] + np.arange(piece.num_episodes)]
