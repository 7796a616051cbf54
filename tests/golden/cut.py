"""Cuts this folder's vectors from the full recordings: `python tests/golden/cut.py ../shared/golden`.

Arrays lose rows, never precision: a narrower type is taken only where it holds every value exactly.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

NETWORKS = ("coflow_mpe_centralized", "coflow_smac_history", "coflow_independent_inverse")
SEEDS = dict(zip(NETWORKS, (11, 21, 31), strict=True))
"""What the weights of each network were drawn from (recorded.draw_weights)."""
WINDOWS = ("windows_centralized", "windows_decentralized_history", "windows_per_agent_limits")
NETWORK_ROWS = {"net/": slice(2, 4), "cva/": slice(1), "sample/": slice(1)}
"""Of 4, by part: rows of a network call are independent (the last two have different times). Those of the loss are
not, and all stay."""
WINDOW_ROWS = slice(7, 14)
"""Of 14: first and last starts, and windows that reach past an episode's end."""
BATTLES = 30
"""Of 200 restored states per map."""
NARROWER = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int16}


def narrowed(values: np.ndarray) -> np.ndarray:
    """The same values in fewer bytes, or the array itself."""
    dtype = NARROWER.get(values.dtype)
    if dtype is None or not np.array_equal(values.astype(dtype), values):
        return values
    return values.astype(dtype)


def cut_network(arrays: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """A network's vectors with fewer rows, its weights replaced by their recipe."""
    names = [name for name in arrays if name.startswith("weights/")]
    weights = {name.removeprefix("weights/"): arrays.pop(name) for name in names}
    for part, rows in NETWORK_ROWS.items():
        for name in [name for name in arrays if name.startswith(part)]:
            heads_first = name == "cva/attention"  # [heads, B, N, N]
            arrays[name] = arrays[name][:, rows] if heads_first else arrays[name][rows]
    recipe = {
        "seed": seed,
        "shapes": {name: value.shape for name, value in weights.items()},
        "sums": {name: round(float(value.astype(np.float64).sum()), 6) for name, value in weights.items()},
    }
    return arrays | {"weights_recipe": np.array(json.dumps(recipe))}


def cut_windows(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Some of the windows, numbered from 0 again; the episodes they come from stay whole."""
    kept = list(range(14))[WINDOW_ROWS]
    names = [name for name in arrays if name.startswith("windows/")]
    windows = {name: arrays.pop(name) for name in names}
    arrays["indices"] = arrays["indices"][WINDOW_ROWS]
    for name, values in windows.items():
        _, number, quantity = name.split("/")
        if int(number) in kept:
            arrays[f"windows/{kept.index(int(number))}/{quantity}"] = values
    return arrays


def cut_battles(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each map's first states; `max_reward` has no rows."""
    return {name: values[:BATTLES] if values.ndim else values for name, values in arrays.items()}


def cut(full: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every file of this folder, by name without suffix, from the folder of full recordings."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(full / f"{name}.npz") as file:
            return dict(file)

    files = {name: cut_network(read(name), seed) for name, seed in SEEDS.items()}
    files["smac_features"] = cut_battles(read("smac_features"))
    files |= {name: cut_windows(read(name)) for name in WINDOWS}
    files["mpe_trajectories"] = read("mpe_trajectories")
    return {name: {key: narrowed(values) for key, values in arrays.items()} for name, arrays in files.items()}


if __name__ == "__main__":
    for name, arrays in cut(Path(sys.argv[1])).items():
        np.savez_compressed(Path(__file__).with_name(f"{name}.npz"), **arrays)
