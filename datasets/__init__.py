"""Offline datasets: `load` opens one, `build` makes a native one, `Recorder` and `write` make one of your own.

Nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marl_flow.datasets.native import build
    from marl_flow.datasets.recorder import Recorder
    from marl_flow.datasets.store import EpisodeStore
    from marl_flow.datasets.user_data import write

__all__ = ["Recorder", "build", "load", "require", "write"]

_MODULES = {"Recorder": "recorder", "build": "native", "write": "user_data"}


def require(dataset_id: str, root: Path | None = None) -> Path:
    """The folder of the dataset of this id below `root` (None: `catalog.data_root()`); a UserError where it is absent,
    which says how to get it."""
    from marl_flow.datasets import catalog
    from marl_flow.interfaces import UserError

    entry, folder = catalog.find(dataset_id), catalog.folder_of(dataset_id, root)
    catalog.refuse_dangling(folder)
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
    if name in _MODULES:
        return getattr(importlib.import_module(f"marl_flow.datasets.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
