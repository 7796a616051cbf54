"""Dataset cards and whole-folder verification."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from marl_flow.datasets.verify import card, render_card, verify
from marl_flow.datasets.writer import write_store
from marl_flow.interfaces import UserError


def test_card_by_hand(make_store) -> None:
    """Catches statistics over steps instead of episodes, or over filling; and values JSON cannot hold."""
    found = card(make_store([1, 2, 3], final=False, terminated=[True, False, True]), num_bins=2)
    returns = [-0.125, -201.25, -603.375]
    assert found["team_return"]["mean"] == pytest.approx(np.mean(returns))
    assert found["team_return"]["sd"] == pytest.approx(np.std(returns))
    assert (found["team_return"]["min"], found["team_return"]["max"]) == (returns[2], returns[0])
    assert found["team_return"]["quantiles"]["0.5"] == returns[1]
    assert found["agent_return"]["agent_1"]["mean"] == pytest.approx(np.mean([-0.25, -201.5, -603.75]))
    assert found["return_histogram"]["counts"] == [1, 2]
    assert found["lengths"] == {"mean": 2.0, "min": 1, "max": 3} and found["terminated_episodes"] == 2
    assert found["ranges"]["observations"]["max"] == [202.25] * 3 and found["ranges"]["actions"]["min"] == [-202.25] * 2
    assert found["ranges"]["observations"]["mean"] == pytest.approx([np.mean([0, 100, 101, 200, 201, 202]) + 0.125] * 3)
    assert json.loads(json.dumps(found)) == found


def test_rendered_card_shows_what_matters(tmp_path: Path, make_store) -> None:
    """Catches a card without the published mean, the histogram, the provenance or the digest."""
    found = card(write_store(tmp_path / "data", make_store([1, 2, 3])), num_bins=2)
    lines = render_card(found).splitlines()
    assert lines[0] == "native/mpe/simple_spread/expert-v1"
    assert any("published team mean" in line and "516.8" in line and "-785.0" in line for line in lines)
    assert any(line.split() == ["-301.8", "█" * 40, "2"] for line in lines)
    assert any(line.split() == ["-603.4", "█" * 20, "1"] for line in lines)
    assert any("made_by" in line and "hand" in line for line in lines)
    assert any(found["digest"] in line for line in lines)
    assert max(map(len, lines)) <= 140


def test_cards_of_unlisted_discrete_data(make_store) -> None:
    """Catches a card that needs a catalogue entry, or treats choices as numbers."""
    store = make_store([2, 3], discrete=True)
    object.__setattr__(store, "dataset_id", "ogmarl/smac/3m/good-v1")
    found = card(store)
    assert found["published_mean"] is None and "actions" not in found["ranges"]
    assert "published" not in render_card(found)


def test_verify_reads_every_byte(tmp_path: Path, make_store) -> None:
    """Catches a verification that trusts the manifest."""
    write_store(tmp_path / "data", make_store([2, 3]))
    assert verify(tmp_path / "data")["episodes"] == 2
    path = tmp_path / "data" / "rewards.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="rewards: expected sha256"):
        verify(tmp_path / "data")
