"""From a dataset id to the folder that its importer reads, with files from a server and files from a user."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from marl_flow.datasets import catalog
from marl_flow.datasets.remote import fetch, sources
from marl_flow.datasets.remote.download import RetryPolicy
from marl_flow.interfaces import UserError

TAG = "omar/mpe/simple_tag/medium-replay-v1"
ANT = "ogmarl/mamujoco/4ant/poor-v1"


def vault(path: Path) -> Path:
    """A zip file laid out as OG-MARL's: two qualities, and what macOS adds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for quality in ("Expert", "Medium-Replay", "Medium"):
            archive.writestr(f"simple_tag.vlt/{quality}/metadata.json", json.dumps({"quality": quality}))
            archive.writestr(f"simple_tag.vlt/{quality}/d/0a", b"x")
        archive.writestr("__MACOSX/simple_tag.vlt/Medium-Replay/._metadata.json", b"")
    return path


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    """Serves the vault of tag where Hugging Face has it."""
    url = sources.FILES["omar-simple_tag-vault"].url
    assert url is not None
    published = vault(tmp_path / "published" / url.removeprefix(f"{sources.HUGGING_FACE}/"))
    handler = partial(Quiet, directory=str(tmp_path / "published"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setenv("MARL_FLOW_MIRROR", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        here = dataclasses.replace(
            sources.FILES["omar-simple_tag-vault"], size_bytes=published.stat().st_size, sha256=None
        )
        monkeypatch.setattr(sources, "FILES", {**sources.FILES, here.name: here})
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(name: str, **options: object) -> fetch.Fetched:
    """What `fetch_dataset` gives, after its block."""
    with fetch.fetch_dataset(name, **options) as fetched:  # type: ignore[arg-type]
        return fetched


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_dataset_is_downloaded_unpacked_and_found(site: http.server.HTTPServer, tmp_path: Path) -> None:
    """Catches the wrong quality's folder, a stage without progress, and provenance that says too little."""
    stages: dict[str, int] = {}

    def bar(title: str):
        return lambda done, total: stages.__setitem__(title, done)

    assert fetch.plan(TAG, root=tmp_path).step == "download"
    fetched = get(TAG, root=tmp_path, progress=bar)
    downloads = catalog.downloads_root(tmp_path)
    assert fetched.source == downloads / "unpacked" / "omar-simple_tag-vault" / "simple_tag.vlt" / "Medium-Replay"
    assert json.loads((fetched.source / "metadata.json").read_text()) == {"quality": "Medium-Replay"}
    assert fetched.archive == downloads / "omar-simple_tag-vault.zip"
    assert set(stages) == {"downloading omar-simple_tag-vault", "unpacking omar-simple_tag-vault.zip"}
    provenance = json.loads(json.dumps(fetched.provenance))
    assert provenance["published_file"]["origin"].endswith("/prior_work/omar/mpe/simple_tag.zip")
    assert len(provenance["published_file"]["sha256"]) == 64 and "arXiv 2111.11188" in provenance["citation"]
    assert not {"layout", "files", "strata", "dropped_rows"} & set(provenance), "these belong to the importer"


def test_a_second_dataset_of_the_same_file_costs_nothing(site: http.server.HTTPServer, tmp_path: Path) -> None:
    """Catches downloading or unpacking once for every quality."""
    get(TAG, root=tmp_path)
    site.shutdown()
    assert fetch.plan("omar/mpe/simple_tag/expert-v1", root=tmp_path).step == "nothing"
    again = get("omar/mpe/simple_tag/expert-v1", root=tmp_path)
    assert again.source.name == "Expert" and again.provenance["published_file"]["bytes"] > 0


def test_cleaning_up_deletes_what_was_downloaded(site: http.server.HTTPServer, tmp_path: Path) -> None:
    """Catches gigabytes left behind, an archive deleted that was to be kept, and a hash that is forgotten."""
    downloads = catalog.downloads_root(tmp_path)
    fetched = get(TAG, root=tmp_path)
    fetch.clean_up([fetched], keep_archive=True)
    assert files_in(downloads) == {"omar-simple_tag-vault.zip", "omar-simple_tag-vault.zip.json", "unpacked"}
    assert files_in(downloads / "unpacked") == set() and fetch.plan(TAG, root=tmp_path).step == "unpack"
    fetched = get(TAG, root=tmp_path)
    fetch.clean_up([fetched, fetched])
    assert files_in(downloads) == {"omar-simple_tag-vault.zip.json", "unpacked"}
    (downloads / "omar-simple_tag-vault.zip").write_bytes(bytes(fetched.provenance["published_file"]["bytes"]))
    with pytest.raises(UserError, match="as when it was first fetched"):
        get(TAG, root=tmp_path)


def test_what_a_user_put_there_is_used_and_never_deleted(tmp_path: Path) -> None:
    """Catches downloading what is there, and deleting the only copy of a file that took somebody a day to get."""
    downloads = catalog.downloads_root(tmp_path)
    archive = vault(downloads / "omar-simple_tag-npy.zip")
    with pytest.raises(
        UserError, match=r"expected one folder of omar/mpe/simple_tag/medium-replay-v1 .*seed_\*_data in it"
    ):
        get(TAG, root=tmp_path)
    content = downloads / "unpacked" / "omar-simple_tag-npy"
    wrong = fetch.Fetched(
        dataset_id=TAG,
        file=sources.FILES["omar-simple_tag-npy"],
        source=content,
        unpacked=content,
        archive=archive,
        provenance={},
    )
    fetch.clean_up([wrong])
    assert archive.exists() and not content.exists()
    by_hand = content / "simple_tag" / "medium-replay"
    (by_hand / "seed_0_data").mkdir(parents=True)
    fetched = get(TAG, root=tmp_path)
    assert fetched.source == by_hand and fetched.provenance["published_file"]["origin"] == fetch.BY_HAND
    fetch.clean_up([fetched])
    assert by_hand.exists() and archive.exists()


def test_an_archive_deleted_here_and_brought_back_by_hand_is_the_users(
    site: http.server.HTTPServer, tmp_path: Path
) -> None:
    """Catches an old record that lets a user's own copy be deleted."""
    archive = catalog.downloads_root(tmp_path) / "omar-simple_tag-vault.zip"
    fetched = get(TAG, root=tmp_path)
    content = archive.read_bytes()
    fetch.clean_up([fetched])
    archive.write_bytes(content)
    fetch.clean_up([get(TAG, root=tmp_path)])
    assert archive.exists()


def test_files_that_no_program_can_download_come_with_instructions(tmp_path: Path) -> None:
    """Catches an error that does not say which page, which file, and where to put it."""
    place = catalog.downloads_root(tmp_path)
    message = (
        r"no program can download it\. Open https://huggingface.co/datasets/Avada11/MADiff-Datasets.*"
        r"--map_name 4ant.*Put the archive at .*downloads/ogmarl-4ant-npy\.zip.*or its content into the folder "
        r".*unpacked/ogmarl-4ant-npy, and give the same command again"
    )
    with pytest.raises(UserError, match=message):
        get(ANT, root=tmp_path)
    for quality in ("Good", "Poor"):
        folder = place / "unpacked" / "ogmarl-4ant-npy" / "4ant" / quality
        folder.mkdir(parents=True)
        (folder / "obs.npy").write_bytes(b"")
    assert get(ANT, root=tmp_path).source.relative_to(place).parts[2:] == ("4ant", "Poor")


def test_a_source_can_be_chosen(tmp_path: Path) -> None:
    """Catches a chosen source that is passed over for another."""
    assert fetch.plan(TAG, root=tmp_path).file.name == "omar-simple_tag-vault"
    assert fetch.plan(TAG, root=tmp_path, source="omar-simple_tag-npy").step == "by_hand"
    with pytest.raises(UserError, match=r"Baidu|pan\.baidu\.com.*m7vw"):
        get(TAG, root=tmp_path, source="omar-simple_tag-npy")
    with pytest.raises(UserError, match=r"expected a source of .* \(omar-simple_tag-vault, omar-simple_tag-npy\)"):
        fetch.plan(TAG, root=tmp_path, source="ogmarl-3m-vault")
    part = catalog.downloads_root(tmp_path) / "omar-simple_tag-vault.zip.part"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"12345")
    assert (fetch.plan(TAG, root=tmp_path).bytes_here, fetch.plan(TAG, root=tmp_path).step) == (5, "download")


@pytest.mark.parametrize("spoilt", ["two tasks", "two of one name", "none", "no marks"])
def test_folders_that_leave_a_doubt_are_refused(spoilt: str, tmp_path: Path) -> None:
    """Catches importing another task's or quality's data because its folder came first."""
    top = catalog.downloads_root(tmp_path) / "unpacked" / "ogmarl-4ant-npy"
    places = {
        "two tasks": ("2ant/Poor", "4ant/Poor"),
        "two of one name": ("4ant/Poor", "4ant/old/poor"),
        "none": ("4ant/Good",),
        "no marks": ("4ant/Poor",),
    }[spoilt]
    for place in places:
        (top / place).mkdir(parents=True)
        if spoilt != "no marks":
            (top / place / "obs.npy").write_bytes(b"")
    if spoilt == "two tasks":
        assert get(ANT, root=tmp_path).source == top / "4ant" / "Poor"
        return
    found = len(places) if spoilt == "two of one name" else 0
    with pytest.raises(UserError, match=rf"expected one folder .*found {found} .*to unpack again"):
        get(ANT, root=tmp_path)


def test_files_in_use_are_not_deleted(site: http.server.HTTPServer, tmp_path: Path) -> None:
    """Catches one process deleting the files that another one imports, and two of them unpacking at once."""
    before = get("omar/mpe/simple_tag/expert-v1", root=tmp_path)
    with fetch.fetch_dataset(TAG, root=tmp_path) as fetched:
        fetch.clean_up([before])
        assert (fetched.source / "metadata.json").exists() and before.archive is not None and before.archive.exists()
        with pytest.raises(UserError, match="expected nobody else at it"):
            get(TAG, root=tmp_path)
    fetch.clean_up([fetched])
    assert not fetched.unpacked.exists() and not before.archive.exists()


def test_a_killed_unpacking_starts_over(site: http.server.HTTPServer, tmp_path: Path) -> None:
    """Catches half an archive taken for a folder that somebody put there."""
    fresh = catalog.downloads_root(tmp_path) / "unpacked" / ".omar-simple_tag-vault.fresh"
    fresh.mkdir(parents=True)
    (fresh / "half").write_bytes(b"")
    fetched = get(TAG, root=tmp_path, retry=RetryPolicy())
    assert not (fetched.unpacked / "half").exists() and not fresh.exists()


def test_native_and_user_datasets_are_not_fetched(tmp_path: Path) -> None:
    """Catches published data under a native name."""
    with pytest.raises(UserError, match="build it with `marl-flow data build native/mpe/simple_tag/expert-v1`"):
        get("mpe/simple_tag/expert", root=tmp_path)
