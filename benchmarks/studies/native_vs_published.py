"""The native datasets beside the published ones: returns, lengths and wins, as CSV files.

    python -m marl_flow.benchmarks.studies.native_vs_published --out FOLDER [mpe] [smac] [mamujoco]

reads (and first builds what is absent of) the datasets of the suites named, or of all, under the data root, and writes
FOLDER/<suite>.csv.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from marl_flow.benchmarks import suite
from marl_flow.benchmarks.report import csv_text
from marl_flow.commands import data
from marl_flow.config import nearest
from marl_flow.datasets import native
from marl_flow.datasets.store import EpisodeStore
from marl_flow.envs.smac.features import CLEAN_WIN_RETURN, WIN_REWARD, max_reward
from marl_flow.envs.smac.maps import find_map
from marl_flow.interfaces import UserError

log = logging.getLogger(__name__)

SUITES = ("mpe", "smac", "mamujoco")
MAMUJOCO_TOLERANCE = 0.05
"""Of the published mean, by which the mean of a MA-MuJoCo dataset may differ."""


def names(suite_name: str) -> list[str]:
    """The native datasets of a suite, suite/task/quality, in the order of their recipes."""
    inside = [name.removeprefix("native/").rpartition("-v")[0] for name in native.RECIPES]
    return [name for name in inside if name.startswith(f"{suite_name}/")]


@cache
def cards() -> Mapping[str, Mapping[str, str]]:
    """suite/task/quality to the columns mean, std, min, max, length and won_percent of its published data, empty where
    nothing was published: `instadeepai/og-marl: docs/dataset_cards/og_marl.md`. Wins were read off its histograms by
    eye, give or take 2. For MPE and for the ants nothing but means was published (`suite.dataset_means`)."""
    with (files("marl_flow.benchmarks") / "published/dataset_cards.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return MappingProxyType({f"{row['suite']}/{row['task']}/{row['quality']}": row for row in rows})


def won(store: EpisodeStore) -> np.ndarray:
    """Which episodes [K] of a SMAC dataset were won: those whose last reward includes the reward for winning."""
    battle = find_map(store.spec.task_id.partition("/")[2])
    life = sum(unit.health + unit.shield for unit, _ in battle.opponents)
    bonus = WIN_REWARD * CLEAN_WIN_RETURN / max_reward(battle, life)
    return store.rewards[store.offsets[1:] - 1, 0] >= bonus - 1e-4


def record(name: str, store: EpisodeStore) -> dict[str, Any]:
    """One dataset's row: returns are of the team and raw, `difference` is of the means, in per cent of the scale that
    scores have (expert - random) where there is one, else of the published mean."""
    returns, card = store.team_returns(), cards().get(name, {})
    published = float(card.get("mean") or suite.dataset_means()[name])
    reference = suite.references().get(name.rpartition("/")[0])
    scale = published if reference is None else reference.expert - reference.random
    difference = float(returns.mean()) - published
    return {
        "dataset": store.dataset_id,
        "dataset_digest": store.digest,
        "episodes": store.num_episodes,
        "transitions": int(store.lengths.sum()),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "length_mean": float(store.lengths.mean()),
        "ended_early_percent": 100.0 * float(store.terminated.mean()),
        "won_percent": 100.0 * float(won(store).mean()) if name.startswith("smac/") else None,
        "published_mean": published,
        **{f"published_{column}": card.get(column) for column in ("std", "min", "max", "length", "won_percent")},
        "difference": difference,
        "difference_percent": 100.0 * difference / scale,
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", help="mpe, smac, mamujoco; none: all")
    parser.add_argument("--out", type=Path, required=True, help="folder for the CSV files")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in options.suites:
        if name not in SUITES:
            raise UserError(f"unknown suite {name!r}; {nearest(name, SUITES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for suite_name in options.suites or SUITES:
        rows = [record(name, data.open_dataset(name)) for name in names(suite_name)]
        text = csv_text(rows)
        (options.out / f"{suite_name}.csv").write_text(text, encoding="utf-8")
        log.info("%s", text)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"native_vs_published: {error}")
