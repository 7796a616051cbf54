"""Fixtures of the tests of the core."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """`tiny_run.py` beside this file: data, configs and a run that takes milliseconds."""
    path = Path(__file__).with_name("tiny_run.py")
    found = importlib.util.spec_from_file_location("tiny_run", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
