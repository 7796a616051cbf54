"""Offline datasets: `load` opens one, `build` makes a native one. Nothing is imported before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marl_flow.datasets.native import build
    from marl_flow.datasets.store import EpisodeStore

__all__ = ["build", "load", "require"]


def require(dataset_id: str, root: Path | None = None) -> Path:
    """The folder of the dataset of this id below `root` (None: `catalog.data_root()`); a UserError where it is absent,
    which says how to get it."""
    from marl_flow.datasets import catalog
    from marl_flow.interfaces import UserError

    entry, folder = catalog.find(dataset_id), catalog.folder_of(dataset_id, root)
    if not folder.exists():
        raise UserError(f"expected dataset {entry.dataset_id} in {folder}, found nothing; {entry.how_to_get}")
    return folder


def load(dataset_id: str, root: Path | None = None) -> EpisodeStore:
    """The dataset of this id, verified and memory-mapped, from `root` (None: `catalog.data_root()`)."""
    from marl_flow.datasets import catalog
    from marl_flow.datasets.store import open_store

    folder = require(dataset_id, root)
    return open_store(folder, dataset_id=str(catalog.find(dataset_id).dataset_id))


def __getattr__(name: str) -> Any:
    if name == "build":
        from marl_flow.datasets.native import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
