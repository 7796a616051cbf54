"""The helpers beside this file as fixtures, and a door that reads a source into a fresh folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from marl_flow.datasets import writer
from marl_flow.datasets.formats import import_dataset
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import TaskSpec


@pytest.fixture(scope="session")
def layouts(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """`layouts.py`: tasks, stores, and a writer of every published layout."""
    return load_module(Path(__file__).with_name("layouts.py"))


@pytest.fixture(scope="session")
def damage(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """`damage.py`: ways to break files and arrays, and the judge of what a reader makes of them."""
    return load_module(Path(__file__).with_name("damage.py"))


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Gives new empty folders, in memory where the machine has a place for that: thousands of small files go there."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else tmp_path))
    yield lambda: Path(tempfile.mkdtemp(dir=root))
    shutil.rmtree(root)


@pytest.fixture
def judge(damage: ModuleType, scratch: Callable[[], Path]) -> Any:
    """A judge of what a reader makes of damaged files."""
    return damage.Judge(scratch())


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., EpisodeStore]:
    """Imports into a fresh folder each time."""
    count = 0

    def door(layout: str, source: Path, spec: TaskSpec | None) -> EpisodeStore:
        nonlocal count
        count += 1
        folder = tmp_path / f"store_{count}"
        return import_dataset(
            layout, source, folder, dataset_id="omar/mpe/simple_spread/expert-v1", spec=spec, provenance={"by": "test"}
        )

    return door


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of imports need not each wait for the disk, nor ask for versions: test_store.py looks at both."""
    monkeypatch.setattr(writer.os, "fsync", lambda handle: None)
    monkeypatch.setattr(writer, "platform_record", dict)
