"""Every generated table: which file it comes from and how a line looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from marl_flow.benchmarks.tables.folders import CSV_FILE


@dataclass(frozen=True, kw_only=True)
class Table:
    """How a table is made of a CSV file. Templates are format strings over its columns and those `readable` adds.

    Without `across` every row of the file is a line, with one cell for each (header, template) in `columns`. With it,
    rows whose `columns` read the same share a line, and each fills the cell under the header that `across` gives.
    """

    source: str
    """Folder below benchmarks/results."""
    columns: tuple[tuple[str, str], ...]
    across: str = ""
    cell: str = ""
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column to the values, as in the file, of the rows to show; all rows where it names no column."""
    file: str = CSV_FILE
    left: int = 1
    """So many columns are aligned to the left, the rest to the right."""


MPE, SMAC, MAMUJOCO = "mpe/2026-11-24-1ffc7a2", "smac/2026-11-24-40a7d14", "mamujoco/2026-11-25-4c833fe"
NATIVE = "native_datasets/2026-11-27-69bbc83"
SMAC_SIMULATOR = "smac_simulator/2026-11-24-766dda4"
RETURN = "{return:.1f} [{return_low:.1f}, {return_high:.1f}]"
SCORE = "{score:.1f} [{score_low:.1f}, {score_high:.1f}]"
WON = "{win_rate:.0p} % [{win_low:.0p}, {win_high:.0p}]"
DATASET = ("Dataset", "{short_dataset}")
WAY = "{method}{k_text}"
QUICKSTART = (
    ("Method", "{algorithm}"),
    ("Execution", "{execution}"),
    ("k", "{k:g}"),
    ("Return [95 %]", RETURN),
    ("Score [95 %]", SCORE),
    ("Passes", "{network_passes:g}"),
    ("Latency p50, ms", "{latency_ms_p50:.2f}"),
)
TABLES: Mapping[str, Table] = {
    "quickstart": Table(source="quickstart/2026-11-28-76fed40", columns=QUICKSTART, left=2),
    "quickstart-amd": Table(source="quickstart/2026-11-25-044d6de", columns=QUICKSTART, left=2),
    "mpe": Table(
        source=MPE,
        columns=(DATASET, ("Seeds", "{training_seeds:g}")),
        across=WAY,
        cell=RETURN + " ({score:.1f})",
        where={"k": ("", "1", "3")},
    ),
    "mpe-steps": Table(
        source=MPE,
        columns=(("Method", WAY),),
        across="{short_dataset}",
        cell=RETURN + " ({score:.1f})",
        where={
            "algorithm": ("coflow",),
            "dataset": tuple(f"native/mpe/simple_{task}/expert-v1" for task in ("spread", "tag", "world")),
        },
    ),
    "smac": Table(
        source=SMAC,
        columns=(DATASET,),
        across=WAY,
        cell=f"{RETURN}, {WON}",
        where={"k": ("", "1", "3")},
    ),
    "smac-steps": Table(
        source=SMAC,
        columns=(("3m/good", "{method}"),),
        across="k={k:g}",
        cell=f"{RETURN}, {WON}",
        where={"algorithm": ("coflow",), "dataset": ("native/smac/3m/good-v1",)},
    ),
    "mamujoco": Table(
        source=MAMUJOCO,
        columns=(DATASET,),
        across=WAY,
        cell=RETURN,
        where={"k": ("", "1"), "actions_per_plan": ("", "1")},
    ),
    "mamujoco-steps": Table(
        source=MAMUJOCO,
        columns=(("2ant/good", "{method}"),),
        across="k={k:g}",
        cell=RETURN,
        where={"algorithm": ("coflow",), "dataset": ("native/mamujoco/2ant/good-v1",), "actions_per_plan": ("1",)},
    ),
    "mamujoco-actions-per-plan": Table(
        source=MAMUJOCO,
        columns=(("2ant/good", "{method} k=1"),),
        across="m={actions_per_plan:g}",
        cell=RETURN,
        where={
            "algorithm": ("coflow",),
            "execution": ("centralized",),
            "k": ("1",),
            "dataset": ("native/mamujoco/2ant/good-v1",),
        },
    ),
    "mamujoco-short-windows": Table(
        source="mamujoco_short_windows/2026-11-25-4c833fe",
        columns=(("2halfcheetah/good", "{method}"),),
        across="k={k:g}",
        cell=RETURN,
    ),
    "datasets-mpe": Table(
        source=NATIVE,
        file="mpe.csv",
        columns=(
            ("Dataset", "`{dataset}`"),
            ("Episodes", "{episodes:,.0f}"),
            ("Return here", "{return_mean:.1f} ± {return_std:.1f}"),
            ("Published mean", "{published_mean:.1f}"),
            ("Difference, % of expert - random", "{difference_percent:+.1f}"),
        ),
    ),
    "datasets-smac": Table(
        source=NATIVE,
        file="smac.csv",
        columns=(
            ("Dataset", "`{dataset}`"),
            ("Episodes", "{episodes:,.0f}"),
            ("Return here", "{return_mean:.2f} ± {return_std:.2f}"),
            ("Return published", "{published_mean:.2f} ± {published_std:.2f}"),
            ("Difference of means", "{difference:+.2f}"),
            ("Length here / published", "{length_mean:.1f} / {published_length:.1f}"),
            ("Won here / published, %", "{won_percent:.1f} / {published_won_percent}"),
        ),
    ),
    "datasets-mamujoco": Table(
        source=NATIVE,
        file="mamujoco.csv",
        columns=(
            ("Dataset", "`{dataset}`"),
            ("Episodes", "{episodes:,.0f}"),
            ("Transitions", "{transitions:,.0f}"),
            ("Return here", "{return_mean:.1f} ± {return_std:.1f} [{return_min:.0f}, {return_max:.0f}]"),
            ("Published mean", "{published_mean:.1f}"),
            ("± published", "{published_std:.1f}"),
            ("Min published", "{published_min:.0f}"),
            ("Max published", "{published_max:.0f}"),
            ("Difference of means, %", "{difference_percent:+.1f}"),
            ("Mean length", "{length_mean:.0f}"),
            ("Ended early, %", "{ended_early_percent:.0f}"),
        ),
    ),
    "prey": Table(
        source="prey/2026-11-27-69bbc83",
        columns=(("Task", "{task}"), ("Prey", "`{prey}`")),
        across="{predators}",
        cell="{return:.1f} ± {return_half_width:.1f}, {untouched_steps:.1p} %",
        left=2,
    ),
    "smac-teams": Table(
        source=SMAC_SIMULATOR,
        file="teams.csv",
        columns=(
            ("Map", "{map}"),
            ("Team", "{team}"),
            ("Return", "{return_mean:.2f} ± {return_sd:.2f}"),
            ("Won, % [95 %]", "{win_rate:.1p} [{win_low:.1p}, {win_high:.1p}]"),
            ("Length", "{mean_length:.1f}"),
            ("Time-outs, %", "{time_outs:.1p}"),
            ("Enemies left", "{enemies_left:.2f}"),
        ),
        left=2,
    ),
    "smac-scripts": Table(
        source=SMAC_SIMULATOR,
        file="scripts.csv",
        columns=(("A script wins", "{wins}"), ("Maps", "{maps}")),
        left=2,
    ),
    "smac-recorded-episode": Table(
        source=SMAC_SIMULATOR,
        file="recorded_episode.csv",
        columns=(("Quantity", "{quantity}"), ("Real", "{real}"), ("Here", "{here}")),
        left=3,
    ),
    "smac-published": Table(
        source=SMAC_SIMULATOR,
        file="published.csv",
        columns=(("Map", "{map}"), ("Real game", "{real}"), ("Here", "{here}")),
        left=3,
    ),
    "smac-smaclite": Table(
        source=SMAC_SIMULATOR,
        file="smaclite.csv",
        columns=(
            ("Map", "{map}"),
            ("Team", "{team}"),
            ("Return", "{smaclite_return} / {return_mean:.2f} ± {return_sd:.2f}"),
            ("Won, %", "{smaclite_won} / {win_rate:.1p}"),
            ("Length", "{smaclite_length} / {mean_length:.1f}"),
            ("Enemies left", "{smaclite_left} / {enemies_left:.2f}"),
        ),
        left=2,
    ),
    "speed": Table(
        source="speed/2026-11-25-110d5fb",
        columns=(
            ("What", "{name}"),
            ("Measured", "{value:si}"),
            ("Unit", "{unit}"),
            ("Aim", "{target:si}"),
        ),
    ),
}
