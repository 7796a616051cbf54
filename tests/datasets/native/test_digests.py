"""Every native dataset is still the data that it was: small builds against recorded digests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from marl_flow.datasets import native

RECORDED = json.loads(Path(__file__).with_name("digests.json").read_text())


@pytest.fixture(scope="module")
def recorder(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(Path(__file__).with_name("record_digests.py"))


def test_every_recipe_has_its_digest(recorder: ModuleType) -> None:
    """Catches a new dataset whose bytes nothing pins, and digests of other sizes than the test builds."""
    assert sorted(RECORDED["digests"]) == sorted(native.RECIPES)
    assert RECORDED["episodes"] == recorder.EPISODES


@pytest.mark.slow
@pytest.mark.parametrize("dataset_id", native.RECIPES)
def test_the_digest_is_the_recorded_one(dataset_id: str, recorder: ModuleType, tmp_path: Path) -> None:
    """Catches any change of a behaviour policy, seed, simulator or layout, to the last bit: data that people have built
    would no longer be the data that others build under the same name."""
    here = recorder.this_platform()
    if here != RECORDED["platform"]:
        pytest.skip(f"bytes are compared on the recording's platform, {RECORDED['platform']}; this one is {here}")
    assert recorder.small_build(dataset_id, tmp_path / "data") == RECORDED["digests"][dataset_id], (
        f"{dataset_id} is no longer what commit {RECORDED['commit']} built"
    )
