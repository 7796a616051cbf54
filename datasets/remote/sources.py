"""Where published datasets lie: addresses, sizes, hashes, licences, and what to do where no program can download.

Hashes and exact sizes were read from the hosting site's Git LFS pointers (Hugging Face dataset `InstaDeepAI/og-marl`,
commits 1b10e91, 2bac8c2, 7b39178, b8a42b9, fd905e2 and pull request 6; later commits only rename those files). A
hash that is None is not known yet: `fetch` then records the one it found.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from marl_flow.config import nearest
from marl_flow.datasets import catalog
from marl_flow.interfaces import UserError

Layout = Literal["omar", "madiff", "vault"]
"""What an unpacked source looks like, by the name of the importer that reads it."""

HUGGING_FACE = "https://huggingface.co"
MIRROR_SETTINGS = ("MARL_FLOW_MIRROR", "HF_ENDPOINT")
"""Environment variables with a base address to use instead of Hugging Face's own; the first that is set counts."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One published file, or one folder that only a person can obtain.

    name: also its name under the downloads folder. datasets: the ids its content serves. urls: addresses of the same
    bytes, tried in order; those on Hugging Face follow the mirror settings. size_bytes: exact, or None; size: as
    published, for people. sha256: of the file, or None while it is not known. layout: what unpacks from it. manual:
    without urls, what to fetch and from where; the place it has to be put is added by `fetch`.
    """

    name: str
    datasets: tuple[str, ...]
    layout: Layout
    licence: str
    citation: str
    size: str
    urls: tuple[str, ...] = ()
    size_bytes: int | None = None
    sha256: str | None = None
    manual: str | None = None

    def __post_init__(self) -> None:
        if bool(self.urls) == bool(self.manual):
            raise ValueError(f"{self.name}: expected either urls or a manual, got {self.urls} and {self.manual!r}")
        for url in self.urls:
            if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
                raise ValueError(f"{self.name}: expected http or https addresses, got {url!r}")

    @property
    def addresses(self) -> tuple[str, ...]:
        """`urls` as they are asked for: with the mirror that the user has set."""
        base = hugging_face()
        return tuple(
            base + url.removeprefix(HUGGING_FACE) if url.startswith(f"{HUGGING_FACE}/") else url for url in self.urls
        )


def hugging_face() -> str:
    """Base address of Hugging Face: the user's mirror, or its own."""
    for setting in MIRROR_SETTINGS:
        base = os.environ.get(setting, "").rstrip("/")
        if base:
            parts = urllib.parse.urlsplit(base)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise UserError(
                    f"{setting}: expected a base address like https://mirror.example, got {base!r}; correct or unset it"
                )
            return base
    return HUGGING_FACE


def files_of(dataset_id: str) -> tuple[RemoteFile, ...]:
    """The published files that hold a dataset, the one to prefer first."""
    entry = catalog.find(dataset_id)
    name = str(entry.dataset_id)
    found = tuple(file for file in FILES.values() if name in file.datasets)
    if not found:
        published = [known for known in catalog.CATALOG if not known.startswith("native/")]
        raise UserError(
            f"expected a dataset that is published as a file, got {name}; {entry.how_to_get}, or name a published one: "
            f"{nearest(name, published)}"
        )
    return found


def file_named(name: str) -> RemoteFile:
    """The published file of this name."""
    if name not in FILES:
        raise UserError(f"unknown source {name!r}; {nearest(name, FILES)}")
    return FILES[name]


_OG_MARL_FILES = f"{HUGGING_FACE}/datasets/InstaDeepAI/og-marl/resolve/main"
_OSF = "https://osf.io/jxawh/?view_only=dd3264a695af4c03bffde0350b8e8c4a"
_MPE_QUALITIES = ("expert", "medium-replay", "medium", "random")
_OG_MARL_QUALITIES = ("good", "medium", "poor")


def _ids(origin: str, task_id: str, qualities: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{origin}/{task_id}/{quality}-v1" for quality in qualities)


def _omar_vault(task: str, size: str, size_bytes: int, sha256: str) -> RemoteFile:
    """OMAR's five seeds as one vault: `instadeepai/og-marl: docs/dataset_cards/omar.md`."""
    return RemoteFile(
        name=f"omar-{task}-vault",
        datasets=_ids("omar", f"mpe/{task}", _MPE_QUALITIES),
        layout="vault",
        licence="apache-2.0 (dataset card); OMAR's authors state none",
        citation=f"{catalog.OMAR}; converted copy: arXiv 2409.12001",
        size=size,
        size_bytes=size_bytes,
        sha256=sha256,
        urls=(f"{_OG_MARL_FILES}/prior_work/omar/mpe/{task}.zip",),
    )


def _omar_arrays(task: str, page: str) -> RemoteFile:
    """OMAR's own `.npy` files: `ling-pan/OMAR: README.md`; the OSF mirror: `zbzhu99/madiff: README.md`."""
    return RemoteFile(
        name=f"omar-{task}-npy",
        datasets=_ids("omar", f"mpe/{task}", _MPE_QUALITIES),
        layout="omar",
        licence="none stated by the authors",
        citation=catalog.OMAR,
        size="not stated; about 15 GB unpacked",
        manual=f"Open {page}, or the anonymous mirror {_OSF}, in a browser and download the archive of {task} (no "
        f"program can: the pages ask to confirm or for the code). It holds {task}/<quality>/seed_<k>_data/*.npy.",
    )


def _og_marl_vault(task_id: str, path: str, size: str, size_bytes: int | None, sha256: str | None) -> RemoteFile:
    """OG-MARL's own vaults: `instadeepai/og-marl: og_marl/vault_utils/download_vault.py`."""
    return RemoteFile(
        name=f"ogmarl-{task_id.partition('/')[2]}-vault",
        datasets=_ids("ogmarl", task_id, _OG_MARL_QUALITIES),
        layout="vault",
        licence="apache-2.0",
        citation=catalog.OG_MARL,
        size=size,
        size_bytes=size_bytes,
        sha256=sha256,
        urls=(f"{_OG_MARL_FILES}/core/{path}.zip",),
    )


def _madiff_arrays(task_id: str) -> RemoteFile:
    """MADiff's mirror of OG-MARL's older release: README.md of `zbzhu99/madiff` and of `Guowei-Zou/coflow-release`."""
    suite, task = task_id.split("/")
    return RemoteFile(
        name=f"ogmarl-{task}-npy",
        datasets=_ids("ogmarl", task_id, _OG_MARL_QUALITIES),
        layout="madiff",
        licence="apache-2.0 (OG-MARL); the mirror states none",
        citation=catalog.OG_MARL,
        size="not stated",
        manual=f"Open {HUGGING_FACE}/datasets/Avada11/MADiff-Datasets and download what it has of {suite} {task}. "
        "These are TFRecord shards: convert each quality with `Guowei-Zou/coflow-release: "
        f"scripts/transform_og_marl_dataset.py --env_name {suite} --map_name {task} --quality Good` (or Medium, Poor). "
        f"It gives {task}/<Quality>/obs.npy, actions.npy, rewards.npy, path_lengths.npy and, for SMAC, legals.npy.",
    )


FILES: Mapping[str, RemoteFile] = {
    file.name: file
    for file in (
        _omar_vault(
            "simple_spread",
            "4.98 GB",
            4_983_699_663,
            "3ceec3d49c1907ecd5087f425713903151e2c9ae20a19614a0d2c60ef82153e6",
        ),
        _omar_vault(
            "simple_tag", "6.32 GB", 6_320_824_689, "e028d6e9894f6b5e6d3e66cd2a016602226da5d4cbe3626f37de697c9d94551c"
        ),
        _omar_vault(
            "simple_world", "9.31 GB", 9_309_691_620, "62cb6416aaeeba5d69137471782853bb0553f7fee0b111cdcf7f841d452950f5"
        ),
        _omar_arrays(
            "simple_spread", "https://drive.google.com/file/d/1YVk_ajtvbcq8R2m0u0RasfB0csToV7XP/view?usp=sharing"
        ),
        _omar_arrays("simple_tag", "https://pan.baidu.com/s/16W-UyyCtfKDt9oTgeNOhJA (extraction code m7vw)"),
        _omar_arrays("simple_world", "https://pan.baidu.com/s/1pjZmeIAlaepPpug3b5olGA (extraction code 5k3t)"),
        _og_marl_vault(
            f"{catalog.REAL_GAME}/3m",
            "smac_v1/3m",
            "1.39 GB",
            1_391_810_903,
            "4cc6dd8462a1811cdf282a9e2308c8c2367f55d6abaf715389abc4e8182f4727",
        ),
        _og_marl_vault(
            f"{catalog.REAL_GAME}/2s3z",
            "smac_v1/2s3z",
            "1.75 GB",
            1_753_455_784,
            "aedfde67b00c972d9094340c5c41b2b8e1678e9e3a411b7a629b7246f8fa3f3f",
        ),
        _og_marl_vault(
            f"{catalog.REAL_GAME}/5m_vs_6m",
            "smac_v1/5m_vs_6m",
            "2.04 GB",
            2_042_271_016,
            "a87997f805a0a4a646accbbb273f856fc04f859e2ed2a03c4aaa6d41c585c125",
        ),
        _og_marl_vault(
            f"{catalog.REAL_GAME}/8m",
            "smac_v1/8m",
            "2.53 GB",
            2_533_505_237,
            "b47b976b0af3bb41b9a4175ef23be374db0db824ec58c5dc243420f67a04318e",
        ),
        _og_marl_vault("mamujoco/2ant", "mamujoco/2ant", "680 MB", None, None),
        _og_marl_vault(
            "mamujoco/2halfcheetah",
            "mamujoco/2halfcheetah",
            "8.93 GB",
            None,
            "9537abf4fb1a7a8894819c45eb3d3221c074e96023cdc9882b084589c62f6f3e",
        ),
        *(
            _madiff_arrays(task_id)
            for task_id in (
                "mamujoco/2ant",
                "mamujoco/4ant",  # the only source: the hosting site has no vault of these qualities
                "mamujoco/2halfcheetah",
                f"{catalog.REAL_GAME}/3m",
                f"{catalog.REAL_GAME}/2s3z",
                f"{catalog.REAL_GAME}/5m_vs_6m",
                f"{catalog.REAL_GAME}/8m",
            )
        ),
    )
}
"""Every published file, by name; of several that serve a dataset, the one to prefer comes first."""
