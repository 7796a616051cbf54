"""Dataset ids, what is known of each dataset, and where datasets live on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from marl_flow.config import nearest
from marl_flow.interfaces import UserError

ORIGINS = ("native", "omar", "ogmarl")
_FULL = re.compile(
    rf"(?P<origin>{'|'.join(ORIGINS)})/(?P<suite>[\w-]+)/(?P<task>\w+)/(?P<quality>[\w-]+)-v(?P<version>\d+)"
)
_SHORT = re.compile(r"(?P<suite>[\w-]+)/(?P<task>\w+)/(?P<quality>[\w-]+)")


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
    """A dataset this suite knows how to obtain.

    published_mean is the team return the publication gives for its data of this name, undiscounted: what native data
    are calibrated to, and what an imported copy should show.
    """

    dataset_id: DatasetId
    published_mean: float
    published_source: str
    licence: str
    source: str


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
    """What is known of a dataset, by its full or short id."""
    name = str(parse(dataset_id))
    if name not in CATALOG:
        raise UserError(f"unknown dataset {dataset_id!r}; {_nearest(name)}")
    return CATALOG[name]


def data_root() -> Path:
    """Where datasets are kept: MARL_FLOW_DATA, else the user's cache."""
    place = os.environ.get("MARL_FLOW_DATA")
    return Path(place) if place else Path.home() / ".cache" / "marl_flow" / "datasets"


def folder_of(dataset_id: str, root: Path | None = None) -> Path:
    """Folder a known dataset has, or will have, under the data root."""
    return (data_root() if root is None else root) / str(find(dataset_id).dataset_id)


def _nearest(text: str) -> str:
    """Known ids most like a mistyped one, in the form (full or short) that it resembles."""
    if text.startswith(ORIGINS):
        return nearest(text, CATALOG)
    return nearest(
        text, [f"{i.task_id}/{i.quality}" for i in (e.dataset_id for e in CATALOG.values()) if i.origin == "native"]
    )


def _native(suite: str, task: str, means: Mapping[str, float], published_source: str) -> dict[str, Entry]:
    entries = [
        Entry(
            dataset_id=DatasetId(origin="native", suite=suite, task=task, quality=quality, version=1),
            published_mean=mean,
            published_source=published_source,
            licence="MIT",
            source="built here: behaviour policies shipped with marl_flow, rolled out in its own environment",
        )
        for quality, mean in means.items()
    ]
    return {str(entry.dataset_id): entry for entry in entries}


_MPE_SOURCE = "CoFlow (arXiv 2605.01457), dataset column: mean over five seeds of OMAR's data (arXiv 2111.11188)"

CATALOG: Mapping[str, Entry] = MappingProxyType(
    _native(
        "mpe",
        "simple_spread",
        {"expert": 516.8, "medium-replay": 194.2, "medium": 259.9, "random": 159.8},
        _MPE_SOURCE,
    )
)
