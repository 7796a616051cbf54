"""The recorded vectors in this folder are cut from the full ones, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def cut(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(Path(__file__).with_name("cut.py"))


def test_the_files_are_what_the_script_cuts(cut: ModuleType, shared: Path, golden_folder: Path) -> None:
    """Catches a file that was edited, lost, or left behind by a change of the script."""
    expected = cut.cut(shared / "golden")
    assert sorted(expected) == sorted(path.stem for path in golden_folder.glob("*.npz"))
    for name, arrays in expected.items():
        with np.load(golden_folder / f"{name}.npz") as file:
            assert sorted(file.files) == sorted(arrays)
            for key, values in arrays.items():
                assert file[key].dtype == values.dtype
                np.testing.assert_array_equal(file[key], values, err_msg=f"{name}: {key}")


@pytest.mark.parametrize("name", ["coflow_mpe_centralized", "coflow_smac_history", "coflow_independent_inverse"])
def test_drawn_weights_are_the_recorded_ones(
    name: str, load_module: Callable[[Path], ModuleType], shared: Path, golden_folder: Path
) -> None:
    """Catches a recipe that gives other weights than the recorded network had, by more than rounding."""
    drawn = load_module(golden_folder / "recorded.py").read(golden_folder / f"{name}.npz")
    with np.load(shared / "golden" / f"{name}.npz") as full:
        names = [key for key in full.files if key.startswith("weights/")]
        assert names == [key for key in drawn if key.startswith("weights/")]
        for key in names:
            np.testing.assert_allclose(drawn[key], full[key], rtol=0.0, atol=1e-7, err_msg=key)


def test_a_stream_of_other_numbers_is_named(load_module: Callable[[Path], ModuleType], golden_folder: Path) -> None:
    """Catches weights drawn by a torch with another generator, which would fail as a wrong network far from here."""
    draw = load_module(golden_folder / "recorded.py").draw_weights
    with pytest.raises(AssertionError, match=r"draws other numbers than the torch 2\.15 of the recording"):
        draw(
            seed=0,
            shapes={"model.net.final_conv.0.block.0.weight": [3, 2], "inv_model.0.weight": [3, 2]},
            sums={"model.net.final_conv.0.block.0.weight": 9.0, "inv_model.0.weight": 9.0},
        )


def test_the_files_stay_small(golden_folder: Path) -> None:
    """Catches recordings that make every clone large."""
    assert sum(path.stat().st_size for path in golden_folder.glob("*.npz")) < 1_000_000
