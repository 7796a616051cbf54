"""Fixtures of the tests of the core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tiny(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """`tiny_run.py` beside this file: data, configs and a run that takes milliseconds."""
    return load_module(Path(__file__).with_name("tiny_run.py"))
