"""The table of published files: every dataset has one, and every entry can be requested."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

import pytest

from marl_flow.datasets import catalog
from marl_flow.datasets.formats import LAYOUTS
from marl_flow.datasets.remote import sources
from marl_flow.datasets.remote.sources import RemoteFile
from marl_flow.interfaces import UserError


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in sources.MIRROR_SETTINGS:
        monkeypatch.delenv(name, raising=False)


def test_every_published_dataset_has_a_source_and_every_source_a_dataset() -> None:
    """Catches a dataset that `data fetch` cannot get, and a typo in an id that a file serves."""
    served = {name for file in sources.FILES.values() for name in file.datasets}
    assert served == {name for name in catalog.CATALOG if not name.startswith("native/")}
    downloadable = {name for file in sources.FILES.values() if file.url for name in file.datasets}
    assert served - downloadable == {f"ogmarl/mamujoco/4ant/{q}-v1" for q in ("good", "medium", "poor")}


@pytest.mark.parametrize("file", sources.FILES.values(), ids=lambda file: file.name)
def test_every_entry_is_well_formed(file: RemoteFile) -> None:
    """Catches a cut hash, a size in bytes that is not the size in words, a wrong address, an unknown layout."""
    assert sources.FILES[file.name] is file and re.fullmatch(r"[\w-]+", file.name)
    assert file.layout in LAYOUTS and file.licence and "arXiv" in file.citation
    assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    if file.size_bytes is not None:
        number, unit = file.size.split()
        assert file.size_bytes / {"GB": 1e9, "MB": 1e6}[unit] == pytest.approx(float(number), abs=0.006)
    if file.url is not None:
        parts = urllib.parse.urlsplit(file.url)
        assert (parts.scheme, parts.netloc) == ("https", "huggingface.co")
        assert parts.path.startswith("/datasets/InstaDeepAI/og-marl/resolve/main/")
        assert all(parts.path.endswith(f"/{name.split('/')[2]}.zip") for name in file.datasets)
    if file.manual is not None:
        assert "https://" in file.manual and all(name.split("/")[2] in file.manual for name in file.datasets)


def test_hashes_differ() -> None:
    """Catches a hash pasted twice."""
    hashes = [file.sha256 for file in sources.FILES.values() if file.sha256 is not None]
    assert len(hashes) == len(set(hashes)) == 8


def test_files_of_a_dataset_prefer_the_download() -> None:
    """Catches sending a user to a web page although a program can fetch the file."""
    assert [file.name for file in sources.files_of("omar/mpe/simple_tag/expert-v1")] == [
        "omar-simple_tag-vault",
        "omar-simple_tag-npy",
    ]
    assert [file.name for file in sources.files_of("ogmarl/mamujoco/4ant/poor-v1")] == ["ogmarl-4ant-npy"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mpe/simple_spread/expert",
            r"published as a file, got native/.*marl-flow data build .*omar/mpe/simple_spread",
        ),
        ("user/mpe/simple_spread/mine-v1", "published as a file, got user/.*marl-flow data import"),
        ("omar/mpe/simple_spread/exprt-v1", "unknown dataset .*nearest: omar/mpe/simple_spread/expert-v1"),
    ],
)
def test_what_is_not_published_says_how_else_to_get_it(name: str, message: str) -> None:
    """Catches downloading something else under the requested name."""
    with pytest.raises(UserError, match=message):
        sources.files_of(name)


def test_a_mirror_replaces_hugging_face_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a mirror setting that is ignored, doubled slashes, and one host tried behind the user's back."""
    file = sources.FILES["ogmarl-3m-vault"]
    path = "/datasets/InstaDeepAI/og-marl/resolve/main/core/smac_v1/3m.zip"
    assert file.address == f"https://huggingface.co{path}"
    monkeypatch.setenv("HF_ENDPOINT", "https://endpoint.example/hf/")
    assert file.address == f"https://endpoint.example/hf{path}"
    monkeypatch.setenv("MARL_FLOW_MIRROR", "http://mirror.example:8080")
    assert file.address == f"http://mirror.example:8080{path}"
    elsewhere = RemoteFile(
        **{name: getattr(file, name) for name in ("datasets", "layout", "licence", "citation", "size")},
        name="elsewhere",
        url="https://huggingface.co.example/x.zip",
    )
    assert elsewhere.address == elsewhere.url
    for wrong in ("mirror.example", "file:///data", "https://"):
        monkeypatch.setenv("MARL_FLOW_MIRROR", wrong)
        with pytest.raises(UserError, match="MARL_FLOW_MIRROR: expected a base address"):
            _ = file.address


@pytest.mark.parametrize("changes", [{}, {"url": "https://a/b", "manual": "ask"}, {"url": "ftp://a/b"}])
def test_entries_that_cannot_be_fetched_are_refused(changes: dict) -> None:
    """Catches an entry without any way to get it, or with an address that `fetch` would refuse much later."""
    with pytest.raises(ValueError, match="expected"):
        RemoteFile(name="x", datasets=(), layout="vault", licence="", citation="", size="", **changes)


def test_the_sheet_and_the_table_agree(shared: Path) -> None:
    """Catches an address or a size that differs from the facts that were collected."""
    sheet = (shared / "design" / "datasets.md").read_text(encoding="utf-8")
    for fragment in (
        "1YVk_ajtvbcq8R2m0u0RasfB0csToV7XP",
        "16W-UyyCtfKDt9oTgeNOhJA",
        "1pjZmeIAlaepPpug3b5olGA",
        "jxawh",
    ):
        assert fragment in sheet
        assert any(fragment in (file.manual or "") for file in sources.FILES.values())
