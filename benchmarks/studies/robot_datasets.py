"""The native MA-MuJoCo datasets beside the published ones: returns and lengths as a table.

    python -m marl_flow.benchmarks.studies.robot_datasets

reads (and first builds what is absent of) the nine datasets under the data root and prints Markdown.
"""

from __future__ import annotations

import logging

from marl_flow.benchmarks import suite
from marl_flow.benchmarks.report import table
from marl_flow.commands import data
from marl_flow.envs.mamujoco.tasks import PARTITIONS

log = logging.getLogger(__name__)

TOLERANCE = 0.05
"""Of the published mean, by which a dataset's may differ."""
DATASETS = tuple(f"{task}/{quality}" for task in PARTITIONS for quality in ("good", "medium", "poor"))
SPREADS = {
    "mamujoco/2halfcheetah/good": (1270.4, 803, 9132),
    "mamujoco/2halfcheetah/medium": (469.1, 689, 2332),
    "mamujoco/2halfcheetah/poor": (334.0, -191, 905),
}
"""Standard deviation, least and greatest return of the published data: `instadeepai/og-marl:
docs/dataset_cards/og_marl.md`. Of the ants' nothing but means was published."""


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    body = []
    for name in DATASETS:
        store, mean = data.open_dataset(name), suite.dataset_means()[name]
        team = store.team_returns()
        spread = SPREADS.get(name)
        body.append(
            [
                f"`{name}`",
                f"{store.num_episodes:,}",
                f"{store.lengths.sum():,}",
                f"{team.mean():.1f} ± {team.std():.1f} [{team.min():.0f}, {team.max():.0f}]",
                f"{mean:.1f}" + (f" ± {spread[0]} [{spread[1]}, {spread[2]}]" if spread else ""),
                f"{100 * (team.mean() / mean - 1):+.1f} %",
                f"{store.lengths.mean():.0f}",
                f"{100 * store.terminated.mean():.0f} %",
            ]
        )
    header = [
        *("dataset", "episodes", "transitions", "return here", "return published", "difference of means"),
        *("mean length", "ended early"),
    ]
    log.info("%s", table(header, body, range(1, len(header))))


if __name__ == "__main__":
    main()
