"""Dataset ids, what is known of each dataset, and where datasets live on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from marl_flow import tasks
from marl_flow.config import nearest
from marl_flow.files import user_path
from marl_flow.interfaces import UserError

ORIGINS = ("native", "omar", "ogmarl", "user")
"""native: built here. omar, ogmarl: published, downloaded. user: a user's own, imported, recorded or written."""
_FULL = re.compile(
    rf"(?P<origin>{'|'.join(ORIGINS)})/(?P<suite>[\w-]+)/(?P<task>[\w-]+)/(?P<quality>[\w-]+)-v(?P<version>\d+)"
)
_SHORT = re.compile(r"(?P<suite>[\w-]+)/(?P<task>[\w-]+)/(?P<quality>[\w-]+)")

OMAR = (
    "Ling Pan, Longbo Huang, Tengyu Ma, Huazhe Xu. Plan Better Amid Conservatism: Offline Multi-Agent Reinforcement "
    "Learning with Actor Rectification. ICML 2022, arXiv 2111.11188"
)
OG_MARL = (
    "Claude Formanek, Asad Jeewa, Jonathan Shock, Arnu Pretorius. Off-the-Grid MARL: Datasets with Baselines for "
    "Offline Multi-Agent Reinforcement Learning. 2023, arXiv 2302.00521"
)
COFLOW = (
    "Guowei Zou, Haitao Wang, Beiwen Zhang, Boning Zhang, Hejun Wu. CoFlow: Coordinated Few-Step Flow for Offline "
    "Multi-Agent Decision Making. 2026, arXiv 2605.01457"
)
"""As the authors ask to be cited: `ling-pan/OMAR: README.md`, `Guowei-Zou/coflow-release: README.md`; OG-MARL as on its
arXiv page, `instadeepai/og-marl: README.md` names the AAMAS 2023 extended abstract of the same authors."""


@dataclass(frozen=True, kw_only=True)
class DatasetId:
    """`<origin>/<suite>/<task>/<quality>-v<version>`. Origins never stand in for one another."""

    origin: str
    suite: str
    task: str
    quality: str
    version: int

    @property
    def task_id(self) -> str:
        return f"{self.suite}/{self.task}"

    def __str__(self) -> str:
        return f"{self.origin}/{self.suite}/{self.task}/{self.quality}-v{self.version}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A dataset this suite knows how to get.

    published_mean is the team return the publication gives for its data of this name, undiscounted: what native data
    are calibrated to, and what an imported copy should show. None where nothing was published (origin `user`).
    """

    dataset_id: DatasetId
    published_mean: float | None
    published_source: str
    licence: str
    source: str
    citation: str

    @property
    def how_to_get(self) -> str:
        """The command that puts this dataset on the disk, as part of a sentence."""
        if self.dataset_id.origin == "native":
            return f"build it with `marl-flow data build {self.dataset_id}`"
        if self.dataset_id.origin == "user":
            return f"import it with `marl-flow data import` under the name {self.dataset_id}"
        return f"download it with `marl-flow data fetch {self.dataset_id}`"


def parse(text: str) -> DatasetId:
    """The id a user wrote; the short form `mpe/simple_spread/expert` means `native/...-v1`, always.

    Checks the grammar only: use `find` for whether the dataset is known.
    """
    match = _FULL.fullmatch(text) or _SHORT.fullmatch(text)
    if match is None:
        raise UserError(
            f"expected a dataset id like native/mpe/simple_spread/expert-v1 or mpe/simple_spread/expert, got {text!r}; "
            f"{_nearest(text)}"
        )
    parts = match.groupdict()
    return DatasetId(
        origin=parts.get("origin", "native"),
        suite=parts["suite"],
        task=parts["task"],
        quality=parts["quality"],
        version=int(parts.get("version", 1)),
    )


def find(dataset_id: str) -> Entry:
    """What is known of a dataset, by its full or short id. Of a `user` dataset that is its name alone."""
    identity = parse(dataset_id)
    name = str(identity)
    if identity.origin == "user":
        return Entry(
            dataset_id=identity,
            published_mean=None,
            published_source="none: not a published dataset",
            licence="as its owner says",
            source="a user's own; its provenance says from where",
            citation="as its owner says",
        )
    if name not in CATALOG:
        raise UserError(f"unknown dataset {dataset_id!r}; {_nearest(name)}")
    return CATALOG[name]


def is_task_id(text: str) -> bool:
    """Whether dataset ids can name this task: SUITE/TASK."""
    return _FULL.fullmatch(f"user/{text}/any-v1") is not None


def data_root(root: str | Path | None = None) -> Path:
    """Where datasets are kept: `root`; None: MARL_FLOW_DATA, else marl_flow/datasets in the user's cache, which is
    XDG_CACHE_HOME (ignored where it is not absolute, as its specification wants) or ~/.cache."""
    if root is not None:
        return user_path(root)
    if chosen := os.environ.get("MARL_FLOW_DATA"):
        expanded = os.path.expandvars(chosen)
        if expanded.startswith("$"):
            raise UserError(
                f"MARL_FLOW_DATA: expected a folder, found {chosen!r}, whose variable is not set; write the whole path"
            )
        return user_path(expanded)
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else user_path("~/.cache")) / "marl_flow" / "datasets"


def downloads_root(root: Path | None = None) -> Path:
    """Where published files are downloaded to, and where a user puts those that no program can download."""
    return data_root(root) / "downloads"


def folder_of(dataset_id: str, root: Path | None = None) -> Path:
    """Folder a known dataset has, or will have, under the data root."""
    return data_root(root) / str(find(dataset_id).dataset_id)


def user_datasets(root: Path | None = None) -> tuple[str, ...]:
    """Ids of the `user` datasets that have a folder under the data root, whole or not, in order of name."""
    base = data_root(root)
    return tuple(sorted(_named_folders(base, base / "user")))


def _named_folders(base: Path, user: Path) -> Iterator[str]:
    for folder in user.glob("*/*/*"):
        name = folder.relative_to(base).as_posix()
        if folder.is_dir() and _FULL.fullmatch(name):
            yield name


def _nearest(text: str) -> str:
    """Known ids most like a mistyped one, in the form (full or short) that it resembles."""
    if text.startswith(ORIGINS):
        return nearest(text, CATALOG)
    return nearest(
        text, [f"{i.task_id}/{i.quality}" for i in (e.dataset_id for e in CATALOG.values()) if i.origin == "native"]
    )


REAL_GAME = "smac-sc2"
"""The suite whose tasks SMAC's published data are of: StarCraft II itself. `smac` is the embedded simulator's."""


def _entries(origin: str, suites: tuple[str, ...], *, licence: str, source: str, citation: str) -> Iterator[Entry]:
    """One entry per task and quality of the suites, with the published mean of its data."""
    for card in tasks.CARDS.values():
        for quality, mean in card.published_means.items() if card.suite in suites else ():
            yield Entry(
                dataset_id=DatasetId(origin=origin, suite=card.suite, task=card.name, quality=quality, version=1),
                published_mean=mean,
                published_source=card.published_source,
                licence=licence,
                source=source,
                citation=citation,
            )


CATALOG: Mapping[str, Entry] = MappingProxyType(
    {
        str(entry.dataset_id): entry
        for entry in (
            *_entries(
                "native",
                ("mpe",),
                licence="MIT",
                source="built here: behaviour policies shipped with marl_flow, rolled out in its own environment",
                citation=f"marl_flow (CITATION.cff); tasks and qualities: {OMAR}; mean returns: {COFLOW}",
            ),
            *_entries(
                "native",
                ("smac",),
                licence="MIT",
                source="built here: behaviour policies shipped with marl_flow, rolled out in its embedded simulator, "
                "not in StarCraft II",
                citation=f"marl_flow (CITATION.cff); tasks and qualities: {OG_MARL}",
            ),
            *_entries(
                "native",
                ("mamujoco",),
                licence="MIT",
                source="built here: behaviour policies shipped with marl_flow, rolled out on the MuJoCo engine",
                citation=f"marl_flow (CITATION.cff); tasks and qualities: {OG_MARL}",
            ),
            *_entries(
                "omar",
                ("mpe",),
                licence="none stated by the authors (ling-pan/OMAR has no licence file); the converted copy says "
                "apache-2.0 (Hugging Face InstaDeepAI/og-marl)",
                source="OMAR's data, five seeds: Hugging Face InstaDeepAI/og-marl (prior_work/omar), ling-pan/OMAR",
                citation=f"{OMAR}; converted copy: arXiv 2409.12001",
            ),
            *_entries(
                "ogmarl",
                (REAL_GAME, "mamujoco"),
                licence="apache-2.0",
                source="OG-MARL's data, four behaviour policies: Hugging Face InstaDeepAI/og-marl (core), "
                "instadeepai/og-marl",
                citation=OG_MARL,
            ),
        )
    }
)
"""Every dataset but those of users, by full id: 33 native, 12 omar, 21 ogmarl."""
