"""Fixtures every test file may use."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

GOLDEN = Path(__file__).with_name("golden")
SHARED = Path(__file__).resolve().parents[2] / "shared"


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def load_module() -> Callable[[Path], ModuleType]:
    """Gives a helper file beside the tests, which are not a package, as a module."""
    return _load_module


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of full recordings and collected facts beside a developer's checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared, which is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """The recorded vectors in this repository; its README says what each file holds."""
    return GOLDEN


@pytest.fixture(scope="session", params=["cut", pytest.param("full", marks=pytest.mark.slow)])
def recorded(request: pytest.FixtureRequest) -> Callable[[str], dict[str, np.ndarray]]:
    """Reads a file of recorded vectors by its name: the cut in this repository, then the full one in ../shared."""
    folder = GOLDEN if request.param == "cut" else request.getfixturevalue("shared") / "golden"
    read = _load_module(GOLDEN / "recorded.py").read
    return lambda name: read(folder / f"{name}.npz")


@pytest.fixture
def omar_prey(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """The published prey of a task, `simple_tag` or `simple_world`; skips where ../shared is absent. Its licence is not
    ours to give, so it is not in this repository."""
    return lambda task: request.getfixturevalue("shared") / "data" / "omar_prey" / f"{task}.pt"
