"""Dataset cards and whole-folder verification."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from marl_flow import envs, files, seeding
from marl_flow.datasets.collect import collect_batch
from marl_flow.datasets.replay.passport import card, render_card, show, verify
from marl_flow.datasets.store import EpisodeStore, open_store
from marl_flow.datasets.writer import remove_store, replace_store, write_store
from marl_flow.envs.mpe.env import ParticleEnv
from marl_flow.interfaces import TaskSpec, UserError
from marl_flow.policies import UniformPolicy


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
    object.__setattr__(store, "dataset_id", "ogmarl/smac/3m/unlisted-v1")
    found = card(store)
    assert found["published_mean"] is None and "actions" not in found["ranges"]
    assert "published" not in render_card(found)


@pytest.mark.parametrize(
    ("returns", "counts"),
    [
        ([1.0, 1.0000000000000002], [2]),
        ([1.0, 1.0 + 3 * 2**-52, 1.0], [3]),
        ([5.0, 5.0, 5.0], [0] * 10 + [3] + [0] * 9),
        ([0.0, 1.0], [1] + [0] * 18 + [1]),
        ([-1e38, 1e38], [1] + [0] * 18 + [1]),
    ],
)
def test_nearly_equal_returns_have_a_histogram(returns, counts, make_store, monkeypatch) -> None:
    """Catches a card that fails where no 20 bins fit between the returns: success pays 1, shaping 1e-16."""
    store = make_store([1] * len(returns))
    monkeypatch.setattr(EpisodeStore, "team_returns", lambda _: np.array(returns))
    found = card(store)["return_histogram"]
    assert found["counts"] == counts and len(found["edges"]) == len(counts) + 1
    assert np.isfinite(found["edges"]).all() and found["edges"][0] <= min(returns) <= max(returns) <= found["edges"][-1]


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


# Passports


@pytest.fixture
def store() -> EpisodeStore:
    """40 random episodes of spread, with a provenance as imports have."""
    env = envs.make("mpe/simple_spread", 40)
    seeds, source = seeding.environment_seeds("collect", 0, 40), torch.Generator().manual_seed(0)
    found = collect_batch(
        env, UniformPolicy(env.spec.action), seeds, source, dataset_id="native/mpe/simple_spread/random-v1"
    )
    strata = [{"seed": 0, "episodes": 15}, {"seed": 1, "episodes": 25}]
    return replace(found, provenance={"made_by": "a test", "strata": strata})


def make_env(spec: TaskSpec, num_envs: int) -> ParticleEnv:
    return envs.make(spec.task_id, num_envs, dtype=torch.float64)


def test_a_passport_says_what_it_is_about(tmp_path: Path, store: EpisodeStore) -> None:
    """Catches a passport without the card, the digest, the terms of use, how to cite, or the outcome of the replay."""
    written = write_store(tmp_path / "data", store)
    found = verify(tmp_path / "data", make_env, transitions=200)
    on_disk = json.loads((tmp_path / "data" / "passport.json").read_text())
    assert on_disk == found and {name: found[name] for name in card(written)} == card(written)
    assert found["digest"] == written.digest and found["licence"] == "MIT" and "2111.11188" in found["citation"]
    assert found["replay"]["fits"] and found["replay"]["steps"] == 200 and found["replay"]["mismatches"] == 0
    assert found["replay"]["disagreement"]["rewards"]["largest"] < 1e-4
    assert open_store(tmp_path / "data").digest == written.digest


def test_a_passport_is_a_function_of_the_data(tmp_path: Path, store: EpisodeStore) -> None:
    """Catches times, orders or draws in a passport, and one that is written though nothing changed."""
    for name in ("one", "two"):
        write_store(tmp_path / name, store)
        verify(tmp_path / name, make_env, transitions=200)
    path = tmp_path / "one" / "passport.json"
    first, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert first == (tmp_path / "two" / "passport.json").read_bytes()
    verify(tmp_path / "one", make_env, transitions=200)
    assert path.read_bytes() == first and path.stat().st_mtime_ns == stamp
    assert sorted(file.name for file in path.parent.iterdir() if "passport" in file.name) == ["passport.json"]


def test_a_dataset_without_an_environment_says_so(tmp_path: Path, store: EpisodeStore) -> None:
    """Catches a passport that leaves open whether it was replayed, and one that forgets an earlier replay."""
    write_store(tmp_path / "data", store)
    assert verify(tmp_path / "data")["replay"] == {"message": "not replayed: no environment of this task was at hand"}
    assert "replay      not replayed: no environment" in show(tmp_path / "data")
    replayed = verify(tmp_path / "data", make_env, transitions=50)["replay"]
    assert replayed["fits"] and verify(tmp_path / "data")["replay"] == replayed


def test_a_dataset_that_does_not_fit_has_a_passport_that_says_so(tmp_path: Path, store: EpisodeStore) -> None:
    """Catches a verification that passes, or that fails and leaves no trace of why."""
    write_store(tmp_path / "data", replace(store, rewards=store.rewards * np.float32(0.5)))
    with pytest.raises(UserError, match=r"random-v1 does not fit mpe/simple_spread as .*: stored = 0\.5 x computed"):
        verify(tmp_path / "data", make_env, transitions=None)
    outcome = json.loads((tmp_path / "data" / "passport.json").read_text())["replay"]
    assert not outcome["fits"] and outcome["mismatches"] == outcome["steps"] == 1000
    with pytest.raises(UserError, match="does not fit"):  # as it was told before
        verify(tmp_path / "data")
    assert "rewards: stored = 0.5 x computed" in " ".join(show(tmp_path / "data").split())


def set_mean(passport: dict) -> None:
    passport["team_return"]["mean"] += 1.0


def set_histogram(passport: dict) -> None:
    passport["return_histogram"]["counts"][3] += 1


def drop_sizes(passport: dict) -> None:
    del passport["steps"]


def add_seed(passport: dict) -> None:
    passport["provenance"]["strata"].append({"seed": 2, "episodes": 5})


def set_digest(passport: dict) -> None:
    passport["digest"] = "0" * 64


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (set_mean, r"team_return\.mean is [\d.]+ there and [\d.]+ in the data"),
        (set_histogram, r"return_histogram\.counts\.3 is"),
        (drop_sizes, "steps is None there and 1000 in the data"),
        (add_seed, r"provenance\.strata\.2\.\w+ is . there and None in the data"),
        (set_digest, "digest is '0000"),
    ],
)
@pytest.mark.parametrize("look", [verify, show])
def test_tampered_cards_are_named(
    tmp_path: Path, store: EpisodeStore, tamper: Callable[[dict], None], named: str, look: Callable
) -> None:
    """Catches a passport believed against the data, and tampering that a new verification wipes away unseen."""
    write_store(tmp_path / "data", store)
    verify(tmp_path / "data", make_env, transitions=50)
    path = tmp_path / "data" / "passport.json"
    passport = json.loads(path.read_text())
    tamper(passport)
    path.write_text(json.dumps(passport))
    with pytest.raises(UserError, match=rf"passport\.json: {named}.*; delete the file and verify again"):
        look(tmp_path / "data")
    assert json.loads(path.read_text()) == passport


def test_last_digits_and_newer_words_are_no_tampering(tmp_path: Path, store: EpisodeStore) -> None:
    """Catches a passport refused on another processor, or after the catalogue learned more: it is written again."""
    write_store(tmp_path / "data", store)
    verify(tmp_path / "data", make_env, transitions=50)
    path = tmp_path / "data" / "passport.json"
    first = path.read_bytes()
    passport = json.loads(first)
    passport["team_return"]["mean"] *= 1.0 + 1e-12
    passport["licence"] = "unknown"
    path.write_text(json.dumps(passport))
    verify(tmp_path / "data", make_env, transitions=50)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "expected a JSON object"),
        ("[]", "expected a JSON object, found a list"),
        ("[" * 100_000, "expected a JSON object"),
        ("{}", r"expected format_version 1 and the entry replay with a message, found None and \[\]"),
        ('{"format_version": 2, "replay": {}}', "expected format_version 1 .*found 2"),
        ('{"format_version": 1, "replay": 3}', r"found 1 and \['format_version', 'replay'\]"),
        ('{"format_version": 1, "replay": {"fits": true}}', "the entry replay with a message"),
        ('{"format_version": 1, "replay": {"message": 5}}', "the entry replay with a message"),
        ('{"format_version": 1, "replay": {"message": "", "disagreement": {"views": {}}}}', "the entry replay"),
    ],
)
def test_broken_passports_are_named(tmp_path: Path, store: EpisodeStore, content: str, named: str) -> None:
    """Catches a traceback of JSON's, and a broken passport that is silently replaced."""
    write_store(tmp_path / "data", store)
    (tmp_path / "data" / "passport.json").write_text(content)
    with pytest.raises(UserError, match=rf"{named}.*; delete the file"):
        verify(tmp_path / "data")


def test_a_passport_goes_with_its_store(tmp_path: Path, store: EpisodeStore) -> None:
    """Catches a passport that makes its folder look foreign, or that outlives the data it belongs to."""
    write_store(tmp_path / "data", store)
    verify(tmp_path / "data", make_env, transitions=50)
    (tmp_path / "data" / "passport.json.writing-0a1b2c3d").write_text("{")  # left by a killed process
    write_store(tmp_path / "fresh", store.select(slice(5)))
    replace_store(tmp_path / "data", tmp_path / "fresh")
    assert not (tmp_path / "data" / "passport.json").exists()
    assert verify(tmp_path / "data", make_env, transitions=50)["episodes"] == 5
    remove_store(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_is_named(
    tmp_path: Path, store: EpisodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a traceback from a shared data root; verifying what did not change needs no disk."""
    write_store(tmp_path / "data", store)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=r"expected to write .*data, found: .*MARL_FLOW_DATA"):
        verify(tmp_path / "data", make_env, transitions=50)
    assert not (tmp_path / "data" / "passport.json").exists()


def test_shown_cards_tell_everything(tmp_path: Path, store: EpisodeStore) -> None:
    """Catches a card without the opponent, the seeds, the terms of use, or what the replay came to and where."""
    against = replace(store, spec=replace(store.spec, opponent="omar-1a2b3c4d"))
    write_store(tmp_path / "data", against)
    verify(tmp_path / "data", make_env, transitions=200)
    lines = show(tmp_path / "data").splitlines()
    assert max(map(len, lines)) <= 140
    starts = [line.split(maxsplit=1) for line in lines]
    assert ["task", "mpe/simple_spread against omar-1a2b3c4d"] in starts
    assert ["licence", "MIT"] in starts and any(parts[0] == "cite" for parts in starts if parts)
    assert ["strata", "seed 0, episodes 15"] in starts and ["seed", "1, episodes 25"] in starts
    assert any(parts[:1] == ["replay"] and parts[1].startswith("fits mpe/simple_spread: 200") for parts in starts)
    (rewards,) = [line for line in lines if line.split()[:1] == ["rewards"] and "episode" in line]
    assert "agent_" in rewards and "step" in rewards
