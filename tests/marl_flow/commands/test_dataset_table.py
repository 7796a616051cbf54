"""The table of `data list`: what it says of datasets that are here, partly here, damaged, fetched and absent."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from marl_flow.commands import dataset_table
from marl_flow.datasets import catalog
from marl_flow.datasets.store import EpisodeStore
from marl_flow.datasets.writer import write_store
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError


def put(root: Path, name: str, *, episodes: int = 4, reward: float = 10.0) -> Path:
    """A store of two-step episodes with team return 2 * reward, under its name; its folder."""
    spec = TaskSpec(
        task_id=catalog.parse(name).task_id,
        agents=("a", "b"),
        observation_size=3,
        action=ActionSpec(kind="continuous", size=1, low=(-1.0,), high=(1.0,)),
        max_steps=2,
        team_reward="mean",
    )
    store = EpisodeStore(
        spec=spec,
        dataset_id=name,
        observations=np.zeros((3 * episodes, 2, 3), np.float32),
        actions=np.zeros((2 * episodes, 2, 1), np.float32),
        rewards=np.full((2 * episodes, 2), reward, np.float32),
        offsets=np.arange(episodes + 1) * 2,
        terminated=np.zeros(episodes, bool),
        has_final_observation=True,
        provenance={"made_by": "hand"},
    )
    folder = catalog.folder_of(name, root)
    write_store(folder, store)
    return folder


def row_of(root: Path, name: str) -> dataset_table.Row:
    (row,) = [row for row in dataset_table.rows(root=root) if str(row.dataset_id) == name]
    return row


def test_every_dataset_is_listed_once_under_its_suite_and_origin(tmp_path: Path) -> None:
    """Catches a dataset that is left out, listed twice, or under another's heading."""
    put(tmp_path, "user/mpe/simple_spread/mine-v3")
    lines = dataset_table.table(root=tmp_path).splitlines()
    listed = [line.split()[0] for line in lines if re.match(r"  \w+/", line)]
    assert sorted(listed) == sorted([*catalog.CATALOG, "user/mpe/simple_spread/mine-v3"])
    headings = [line for line in lines[:-1] if not line.startswith(" ")][:-1]
    assert headings == [
        *("mpe, built here", "mpe, published by OMAR", "mpe, of your own"),
        *(
            "smac, built here",
            "mamujoco, built here",
            "mamujoco, published by OG-MARL",
            "smac-sc2, published by OG-MARL",
        ),
    ]
    assert lines.index("mpe, built here") < lines.index(next(line for line in lines if "native/mpe" in line))


def test_an_absent_dataset_says_where_it_comes_from(tmp_path: Path) -> None:
    """Catches numbers for data that are not here, and sending a user the wrong way for them."""
    row = row_of(tmp_path, "omar/mpe/simple_spread/expert-v1")
    assert (row.state, row.comes_from, row.published) == ("not here", "download 4.98 GB", 516.8)
    assert (row.episodes, row.megabytes, row.mean, row.note) == (None, None, None, "")
    assert row_of(tmp_path, "native/mpe/simple_spread/expert-v1").comes_from == "built here"
    assert row_of(tmp_path, "ogmarl/mamujoco/4ant/good-v1").comes_from == "download by hand"


def test_downloads_under_way_and_done_are_told(tmp_path: Path) -> None:
    """Catches a table that says the same before and after gigabytes have come."""
    downloads = catalog.downloads_root(tmp_path)
    downloads.mkdir()
    (downloads / "ogmarl-3m-vault.zip.part").write_bytes(b"x")
    (downloads / "ogmarl-8m-vault.zip").write_bytes(b"x")
    assert row_of(tmp_path, "ogmarl/smac-sc2/3m/poor-v1").comes_from == "download 1.39 GB, started"
    assert row_of(tmp_path, "ogmarl/smac-sc2/8m/poor-v1").comes_from == "fetched, to import"
    for name in ("ogmarl/smac-sc2/3m/poor-v1", "ogmarl/smac-sc2/8m/poor-v1"):
        catalog.folder_of(name, tmp_path).mkdir(parents=True)
    assert row_of(tmp_path, "ogmarl/smac-sc2/3m/poor-v1").comes_from == "download 1.39 GB"
    assert row_of(tmp_path, "ogmarl/smac-sc2/8m/poor-v1").comes_from == "download 2.53 GB"


def test_a_dataset_that_is_here_shows_its_mean_beside_the_published_one(tmp_path: Path) -> None:
    """Catches a mean per step or per agent, and a difference of the wrong sign."""
    folder = put(tmp_path, "omar/mpe/simple_tag/expert-v1", reward=90.0)
    row = row_of(tmp_path, "omar/mpe/simple_tag/expert-v1")
    assert (row.state, row.episodes, row.mean, row.published) == ("here", 4, 180.0, 185.6)
    assert row.megabytes == sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    line = next(
        line for line in dataset_table.table(root=tmp_path).splitlines() if "omar/mpe/simple_tag/expert-v1" in line
    )
    assert line.split()[-4:] == ["0.0", "180.0", "185.6", "-5.6"]


def test_a_shorter_native_dataset_is_partial(tmp_path: Path) -> None:
    """Catches a trial build of 4 episodes that passes for the dataset."""
    put(tmp_path, "native/mpe/simple_spread/random-v1")
    row = row_of(tmp_path, "native/mpe/simple_spread/random-v1")
    assert row.state == "partial" and re.fullmatch(r"4 of [\d,]+ episodes", row.note)
    assert f"\n      {row.note}\n" in dataset_table.table(root=tmp_path)


def test_a_damaged_dataset_is_listed_with_the_reason(tmp_path: Path) -> None:
    """Catches one bad folder that ends the listing, and a bad one that is listed as here."""
    folder = put(tmp_path, "omar/mpe/simple_tag/expert-v1")
    (folder / "rewards.npy").write_bytes(b"x")
    catalog.folder_of("user/mpe/simple_spread/broken-v1", tmp_path).mkdir(parents=True)
    row = row_of(tmp_path, "omar/mpe/simple_tag/expert-v1")
    assert row.state == "damaged" and "rewards.npy: expected a readable .npy file" in row.note and row.mean is None
    assert row_of(tmp_path, "user/mpe/simple_spread/broken-v1").state == "damaged"
    assert "damaged" in dataset_table.table(root=tmp_path)


def test_user_datasets_are_those_with_a_name(tmp_path: Path) -> None:
    """Catches listing a half-written neighbour, and a user dataset compared with a published mean."""
    put(tmp_path, "user/mpe/simple_spread/mine-v3")
    (tmp_path / "user/mpe/simple_spread/.mine-v4.partial-abc").mkdir()
    (tmp_path / "user/mpe/simple_spread/notes").mkdir()
    (row,) = dataset_table.rows(origin="user", root=tmp_path)
    assert (row.state, row.published, row.comes_from, row.mean) == ("here", None, "user", 20.0)
    assert dataset_table.table(origin="user", root=tmp_path).splitlines()[2].split()[-2:] == ["-", "-"]


def test_filters_choose_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    """Catches a filter that hides what was asked for, and a typo that shows an empty table."""
    assert {row.dataset_id.origin for row in dataset_table.rows(origin="omar", root=tmp_path)} == {"omar"}
    chosen = dataset_table.rows(origin="ogmarl", suite="smac-sc2", root=tmp_path)
    assert len(chosen) == 12 and {row.dataset_id.suite for row in chosen} == {"smac-sc2"}
    assert "  none\n" in dataset_table.table(origin="user", root=tmp_path)
    with pytest.raises(UserError, match="unknown origin 'omarr'; nearest: omar"):
        dataset_table.table(origin="omarr")
    with pytest.raises(UserError, match="unknown suite 'smack'; nearest: smac"):
        dataset_table.table(suite="smack")


def test_no_line_is_wider_than_a_wide_terminal(tmp_path: Path) -> None:
    """Catches columns that wrap, with the longest names and numbers there are."""
    put(tmp_path, "user/mpe/simple_spread/a_long_name_of_some_experiment-v12", reward=-123_456.0)
    folder = put(tmp_path, "native/mpe/simple_world/medium-replay-v1")
    (folder / "rewards.npy").write_bytes(b"x" * 300)
    lines = dataset_table.table(root=tmp_path).splitlines()
    assert max(len(line) for line in lines) <= dataset_table.WIDTH
