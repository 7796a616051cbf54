"""The native SMAC datasets beside the published ones: returns, lengths and win rates as a table.

    python -m marl_flow.benchmarks.studies.smac_datasets

reads (and first builds what is absent of) the twelve datasets under the data root and prints Markdown.
"""

from __future__ import annotations

import logging

import numpy as np

from marl_flow.benchmarks import suite
from marl_flow.benchmarks.report import table
from marl_flow.commands import data
from marl_flow.datasets.store import EpisodeStore
from marl_flow.envs.smac.features import CLEAN_WIN_RETURN, WIN_REWARD, max_reward
from marl_flow.envs.smac.maps import find_map

log = logging.getLogger(__name__)

PUBLISHED = {
    "smac/3m/good": ("16.49 ± 5.92", 22.9, "74"),
    "smac/3m/medium": ("9.96 ± 6.06", 23.9, "26"),
    "smac/3m/poor": ("4.69 ± 2.14", 20.4, "1.5"),
    "smac/2s3z/good": ("18.32 ± 2.95", 53.5, "74"),
    "smac/2s3z/medium": ("12.57 ± 3.14", 53.5, "9"),
    "smac/2s3z/poor": ("6.88 ± 2.06", 100.2, "0"),
    "smac/5m_vs_6m/good": ("16.58 ± 4.69", 27.4, "65"),
    "smac/5m_vs_6m/medium": ("12.62 ± 5.06", 25.4, "30"),
    "smac/5m_vs_6m/poor": ("7.45 ± 1.48", 20.5, "<1"),
    "smac/8m/good": ("16.86 ± 4.33", 32.6, "65"),
    "smac/8m/medium": ("10.14 ± 3.34", 25.4, "8"),
    "smac/8m/poor": ("5.28 ± 0.56", 48.2, "0"),
}
"""Return, mean length, share of wins in per cent: `instadeepai/og-marl: docs/dataset_cards/og_marl.md`; the shares were
read off its histograms by eye, give or take 2."""


def won(store: EpisodeStore) -> np.ndarray:
    """Which episodes [K] were won: those whose last reward holds the win's."""
    battle = find_map(store.spec.task_id.partition("/")[2])
    life = sum(unit.health + unit.shield for unit, _ in battle.opponents)
    bonus = WIN_REWARD * CLEAN_WIN_RETURN / max_reward(battle, life)
    return store.rewards[store.offsets[1:] - 1, 0] >= bonus - 1e-4


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    body = []
    for name, (returns, length, wins) in PUBLISHED.items():
        store = data.open_dataset(name)
        team, mean = store.team_returns(), suite.dataset_means()[name]
        body.append(
            [
                f"`{name}`",
                f"{store.num_episodes:,}",
                f"{team.mean():.2f} ± {team.std():.2f}",
                returns,
                f"{team.mean() - mean:+.2f}",
                f"{store.lengths.mean():.1f} / {length}",
                f"{100 * won(store).mean():.1f} / {wins}",
            ]
        )
    header = [
        *("dataset", "episodes", "return here", "return published", "difference of means"),
        *("length here / published", "won here / published, %"),
    ]
    log.info("%s", table(header, body, range(1, len(header))))


if __name__ == "__main__":
    main()
