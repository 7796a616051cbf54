"""Where published datasets lie: addresses, sizes, hashes, licences, and what to do where no program can download.

Hashes and exact sizes were read from the hosting site's Git LFS pointers (Hugging Face dataset `InstaDeepAI/og-marl`,
commits 1b10e91, 2bac8c2, 7b39178, b8a42b9, fd905e2 and pull request 6; later commits only rename those files). A
hash that is None is not known: `fetch` then records the one it found.
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

    name: also its name under the downloads folder. datasets: the ids its content serves. url: where it can be
    downloaded. size_bytes: exact, or None; size: as published, for people. sha256: of the file, or None while it is not
    known. layout: what unpacks from it. manual: without url, what to fetch and from where.
    """

    name: str
    datasets: tuple[str, ...]
    layout: Layout
    licence: str
    citation: str
    size: str
    url: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    manual: str | None = None

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.manual):
            raise ValueError(f"{self.name}: expected either a url or a manual, got {self.url!r} and {self.manual!r}")
        if self.url and urllib.parse.urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"{self.name}: expected an http or https address, got {self.url!r}")

    @property
    def address(self) -> str | None:
        """`url`, on the mirror of Hugging Face that the user has set."""
        if self.url is None or not self.url.startswith(f"{HUGGING_FACE}/"):
            return self.url
        return hugging_face() + self.url.removeprefix(HUGGING_FACE)


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
    files = tuple(file for file in FILES.values() if name in file.datasets)
    if not files:
        published = [known for known in catalog.CATALOG if not known.startswith("native/")]
        raise UserError(
            f"expected a dataset that is published as a file, got {name}; {entry.how_to_get}, or name a published one: "
            f"{nearest(name, published)}"
        )
    return files


_OSF = "https://osf.io/jxawh/?view_only=dd3264a695af4c03bffde0350b8e8c4a"
_MPE_QUALITIES = ("expert", "medium-replay", "medium", "random")
_OG_MARL_QUALITIES = ("good", "medium", "poor")


def _ids(origin: str, task_id: str, qualities: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{origin}/{task_id}/{quality}-v1" for quality in qualities)


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


def _vault(
    origin: str, task_id: str, path: str, size_bytes: int | None, sha256: str | None, size: str = ""
) -> RemoteFile:
    """A vault at Hugging Face's `InstaDeepAI/og-marl`: OMAR's five seeds (`instadeepai/og-marl:
    docs/dataset_cards/omar.md`) or OG-MARL's own data (`og_marl/vault_utils/download_vault.py`)."""
    is_omar = origin == "omar"
    return RemoteFile(
        name=f"{origin}-{task_id.partition('/')[2]}-vault",
        datasets=_ids(origin, task_id, _MPE_QUALITIES if is_omar else _OG_MARL_QUALITIES),
        layout="vault",
        licence="apache-2.0 (dataset card); OMAR's authors state none" if is_omar else "apache-2.0",
        citation=f"{catalog.OMAR}; converted copy: arXiv 2409.12001" if is_omar else catalog.OG_MARL,
        size=size or f"{(size_bytes or 0) / 1e9:.2f} GB",
        size_bytes=size_bytes,
        sha256=sha256,
        url=f"{HUGGING_FACE}/datasets/InstaDeepAI/og-marl/resolve/main/{path}.zip",
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
        _vault(
            "omar",
            "mpe/simple_spread",
            "prior_work/omar/mpe/simple_spread",
            4_983_699_663,
            "3ceec3d49c1907ecd5087f425713903151e2c9ae20a19614a0d2c60ef82153e6",
        ),
        _vault(
            "omar",
            "mpe/simple_tag",
            "prior_work/omar/mpe/simple_tag",
            6_320_824_689,
            "e028d6e9894f6b5e6d3e66cd2a016602226da5d4cbe3626f37de697c9d94551c",
        ),
        _vault(
            "omar",
            "mpe/simple_world",
            "prior_work/omar/mpe/simple_world",
            9_309_691_620,
            "62cb6416aaeeba5d69137471782853bb0553f7fee0b111cdcf7f841d452950f5",
        ),
        _omar_arrays(
            "simple_spread", "https://drive.google.com/file/d/1YVk_ajtvbcq8R2m0u0RasfB0csToV7XP/view?usp=sharing"
        ),
        _omar_arrays("simple_tag", "https://pan.baidu.com/s/16W-UyyCtfKDt9oTgeNOhJA (extraction code m7vw)"),
        _omar_arrays("simple_world", "https://pan.baidu.com/s/1pjZmeIAlaepPpug3b5olGA (extraction code 5k3t)"),
        _vault(
            "ogmarl",
            f"{catalog.REAL_GAME}/3m",
            "core/smac_v1/3m",
            1_391_810_903,
            "4cc6dd8462a1811cdf282a9e2308c8c2367f55d6abaf715389abc4e8182f4727",
        ),
        _vault(
            "ogmarl",
            f"{catalog.REAL_GAME}/2s3z",
            "core/smac_v1/2s3z",
            1_753_455_784,
            "aedfde67b00c972d9094340c5c41b2b8e1678e9e3a411b7a629b7246f8fa3f3f",
        ),
        _vault(
            "ogmarl",
            f"{catalog.REAL_GAME}/5m_vs_6m",
            "core/smac_v1/5m_vs_6m",
            2_042_271_016,
            "a87997f805a0a4a646accbbb273f856fc04f859e2ed2a03c4aaa6d41c585c125",
        ),
        _vault(
            "ogmarl",
            f"{catalog.REAL_GAME}/8m",
            "core/smac_v1/8m",
            2_533_505_237,
            "b47b976b0af3bb41b9a4175ef23be374db0db824ec58c5dc243420f67a04318e",
        ),
        _vault("ogmarl", "mamujoco/2ant", "core/mamujoco/2ant", None, None, size="680 MB"),
        _vault(
            "ogmarl",
            "mamujoco/2halfcheetah",
            "core/mamujoco/2halfcheetah",
            None,
            "9537abf4fb1a7a8894819c45eb3d3221c074e96023cdc9882b084589c62f6f3e",
            size="8.93 GB",
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
