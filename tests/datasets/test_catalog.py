"""Dataset ids, the table of known datasets, and where they live."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from marl_flow import datasets
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
        ("omar/mpe/simple_spread/expert-v1", "unknown dataset"),
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
    """Catches a slip in transcribing a mean, and a quality without an entry."""
    with (shared / "paper" / "dataset_means.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == "simple_spread"]
    assert len(rows) == 4
    for row in rows:
        entry = catalog.find(f"{row['suite']}/{row['task']}/{row['quality']}")
        assert entry.published_mean == float(row["mean_return"])


def test_data_root_follows_the_environment(tmp_path: Path, monkeypatch) -> None:
    """Catches writing to the home folder although another place was asked for."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path))
    inside = tmp_path / "native" / "mpe" / "simple_spread" / "expert-v1"
    assert catalog.folder_of("mpe/simple_spread/expert") == inside
    assert catalog.folder_of("mpe/simple_spread/expert", tmp_path / "b").is_relative_to(tmp_path / "b")
    monkeypatch.delenv("MARL_FLOW_DATA")
    assert catalog.data_root() == Path.home() / ".cache" / "marl_flow" / "datasets"


def test_absent_datasets_name_the_build_command(tmp_path: Path) -> None:
    """Catches a bare file-not-found where the user only has to build the data."""
    with pytest.raises(UserError, match="found nothing; build it with `marl-flow data build native/mpe/simple_spread"):
        datasets.load("mpe/simple_spread/expert", root=tmp_path)
