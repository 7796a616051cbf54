"""Dataset ids, the table of known datasets, and where they live."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from marl_flow import datasets
from marl_flow.benchmarks import suite
from marl_flow.datasets import catalog
from marl_flow.interfaces import UserError


def test_short_ids_mean_native_version_one() -> None:
    """Catches a short id that resolves to whatever origin happens to be on disk."""
    assert str(catalog.parse("mpe/simple_spread/medium-replay")) == "native/mpe/simple_spread/medium-replay-v1"
    full = catalog.parse("omar/mpe/simple_spread/expert-v12")
    assert (full.origin, full.quality, full.version, full.task_id) == ("omar", "expert", 12, "mpe/simple_spread")
    assert str(full) == "omar/mpe/simple_spread/expert-v12"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mpe/simple_spread/exprt", "unknown dataset 'mpe/simple_spread/exprt'; nearest: .*mpe/simple_spread/expert"),
        ("native/mpe/simple_spread/expert-v2", "nearest: native/mpe/simple_spread/expert-v1"),
        ("omar/mpe/simple_spread/expert-v2", "unknown dataset .*nearest: omar/mpe/simple_spread/expert-v1"),
        ("ogmarl/smac-sc2/3m/god-v1", "unknown dataset .*nearest: ogmarl/smac-sc2/3m/good-v1"),
        ("native/mamujoco/2ant/expert-v1", "unknown dataset .*nearest: "),
        ("user/mpe/simple_spread/mine", "expected a dataset id like"),
        ("user/mpe/../mine-v1", "expected a dataset id like"),
        ("simple_spread-expert", "expected a dataset id like .*nearest: mpe/simple_spread/expert"),
        ("minari/mpe/simple_spread/expert-v1", "expected a dataset id like"),
        ("../mpe/simple_spread/expert-v1", "expected a dataset id like"),
        ("mpe/simple_spread/expert-v1\n", "expected a dataset id like"),
    ],
)
def test_unknown_ids_name_the_nearest(text: str, message: str) -> None:
    """Catches a typo that is accepted, escapes the data root, or is refused without a hint."""
    with pytest.raises(UserError, match=message):
        catalog.folder_of(text)


def test_published_means_are_the_published_ones(shared: Path) -> None:
    """Catches a slip in transcribing a mean: the task cards' means must be the collected ones."""
    with (shared / "paper" / "dataset_means.csv").open() as file:
        rows = list(csv.DictReader(file))
    means = {f"{row['suite']}/{row['task']}/{row['quality']}": float(row["mean_return"]) for row in rows}
    assert len(rows) == 33 and suite.dataset_means() == means


def test_every_published_mean_has_its_entries() -> None:
    """Catches a task or quality without an entry, and data of the embedded simulator taken for the real game's."""
    means = {
        f"{ours}/{name.partition('/')[2]}-v1": mean
        for name, mean in suite.dataset_means().items()
        for ours in {
            "mpe": ("native/mpe", "omar/mpe"),
            "smac": ("native/smac", "ogmarl/smac-sc2"),
            "mamujoco": ("native/mamujoco", "ogmarl/mamujoco"),
        }[name.partition("/")[0]]
    }
    assert len(means) == 66 and means == {name: entry.published_mean for name, entry in catalog.CATALOG.items()}


@pytest.mark.parametrize("entry", catalog.CATALOG.values(), ids=lambda entry: str(entry.dataset_id))
def test_every_entry_says_whose_it_is(entry: catalog.Entry) -> None:
    """Catches data without a source, a licence or somebody to cite, and the wrong authors for an origin."""
    paper = "2111.11188" if entry.dataset_id.suite == "mpe" else "2302.00521"
    assert f"arXiv {paper}" in entry.citation and entry.source and entry.licence and entry.published_source
    command = "build" if entry.dataset_id.origin == "native" else "fetch"
    assert f"`marl-flow data {command} {entry.dataset_id}`" in entry.how_to_get


def test_user_datasets_are_known_without_being_listed(tmp_path: Path) -> None:
    """Catches an imported dataset that cannot be opened, or that is measured against somebody's published mean."""
    entry = catalog.find("user/my-suite/task_1/mixed-quality-v7")
    assert entry.published_mean is None and "marl-flow data import" in entry.how_to_get
    folder = catalog.folder_of("user/my-suite/task_1/mixed-quality-v7", tmp_path)
    assert folder == tmp_path / "user" / "my-suite" / "task_1" / "mixed-quality-v7"
    assert catalog.user_datasets(tmp_path) == ()
    for name in ("user/my-suite/task_1/mixed-quality-v7", "user/a/b/c-v1", "user/a/b/.c-v2.partial-x", "user/a/b/c"):
        (tmp_path / name).mkdir(parents=True)
    assert catalog.user_datasets(tmp_path) == ("user/a/b/c-v1", "user/my-suite/task_1/mixed-quality-v7")


def test_data_root_follows_the_environment(tmp_path: Path, monkeypatch) -> None:
    """Catches writing to the home folder although another place was given."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path))
    inside = tmp_path / "native" / "mpe" / "simple_spread" / "expert-v1"
    assert catalog.folder_of("mpe/simple_spread/expert") == inside
    assert catalog.folder_of("mpe/simple_spread/expert", tmp_path / "b").is_relative_to(tmp_path / "b")
    monkeypatch.delenv("MARL_FLOW_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert catalog.data_root() == Path.home() / ".cache" / "marl_flow" / "datasets"
    assert catalog.downloads_root() == catalog.data_root() / "downloads"
    assert catalog.downloads_root(tmp_path) == tmp_path / "downloads"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MARL_FLOW_DATA": "~/marl"}, "home/marl"),
        ({"MARL_FLOW_DATA": "$HOME/marl"}, "home/marl"),
        ({"MARL_FLOW_DATA": "", "XDG_CACHE_HOME": "{0}/cache"}, "cache/marl_flow/datasets"),
        ({"MARL_FLOW_DATA": "~/marl", "XDG_CACHE_HOME": "{0}/cache"}, "home/marl"),
        ({"XDG_CACHE_HOME": "relative"}, "home/.cache/marl_flow/datasets"),
        ({}, "home/.cache/marl_flow/datasets"),
    ],
)
def test_the_home_directory_in_the_data_root(variables, expected, tmp_path: Path, monkeypatch) -> None:
    """Catches a folder called `~` or `$HOME` in the current folder, which is what .env files and Dockerfiles give, and
    a cache that is not where the user moved it."""
    for name in ("MARL_FLOW_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert catalog.data_root() == tmp_path / expected
    assert catalog.folder_of("mpe/simple_spread/expert").is_relative_to(tmp_path / expected)
    assert catalog.downloads_root("~/other") == tmp_path / "home" / "other" / "downloads"


def test_no_home_directory_is_one_message(monkeypatch) -> None:
    """Catches a traceback where a container's user has no home, and a folder named after a variable that is not set."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    for value in ("", "~/marl"):
        monkeypatch.setenv("MARL_FLOW_DATA", value)
        with pytest.raises(UserError, match="expected the home directory that ~ stands for, found none; set HOME"):
            catalog.data_root()
    monkeypatch.setenv("MARL_FLOW_DATA", "$NO_SUCH_VARIABLE/marl")
    with pytest.raises(UserError, match=r"MARL_FLOW_DATA: expected a folder, found '\$NO_SUCH.*variable is not set"):
        catalog.data_root()


def test_absent_datasets_name_the_build_command(tmp_path: Path) -> None:
    """Catches a bare file-not-found where the user only has to build the data."""
    with pytest.raises(UserError, match="found nothing; build it with `marl-flow data build native/mpe/simple_spread"):
        datasets.load("mpe/simple_spread/expert", root=tmp_path)
