"""The opponent that a task names: found by name, or refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from marl_flow import datasets, envs
from marl_flow.commands import data, opponents
from marl_flow.envs.mpe.env import ParticleEnv
from marl_flow.envs.mpe.prey import FleeingPrey, NetworkPrey
from marl_flow.interfaces import UserError

TAG = "mpe/simple_tag"


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A file as OMAR published it, other weights in it."""
    path = tmp_path / "pretrained_adv_model.pt"
    torch.save({"init_dict": {}, "agent_params": [{"policy": {}}, {"policy": NetworkPrey.native(TAG).weights}]}, path)
    return path


def against(name: str | None) -> ParticleEnv:
    return opponents.environment(dataclasses.replace(envs.spec(TAG), opponent=name), 3)


def test_a_published_prey_is_kept_and_found_by_name(published: Path) -> None:
    """Catches an evaluation against another prey than the data's, and a prey known by the place it was read from."""
    name = opponents.add(TAG, published).name
    published.unlink()
    env = against(name)
    assert env.spec.opponent == name and opponents.names(TAG) == ["native-v1", "scripted", name]
    own, other = against("native-v1"), against("scripted")
    firsts = [e.reset(range(3)).observations for e in (env, own, other)]
    assert torch.equal(firsts[0], firsts[1])
    moved = [e.step(torch.zeros(3, 3, 2)).observations for e in (env, own, other)]
    assert not torch.equal(moved[0], moved[1]) and not torch.equal(moved[1], moved[2])


def test_absent_and_exchanged_prey_are_refused(published: Path, data_root: Path) -> None:
    """Catches the suite's own prey standing in for one that is missing, and weights swapped under a name."""
    with pytest.raises(UserError, match=r"expected the prey omar-12345678 .* available: native-v1, scripted; add"):
        against("omar-12345678")
    name = opponents.add(TAG, published).name
    path = opponents.file_of(TAG, name)
    other = NetworkPrey.native(TAG).weights
    other["fc3.bias"] = other["fc3.bias"] + 1.0
    torch.save({"agent_params": [{"policy": other}]}, path)
    with pytest.raises(UserError, match=rf"expected the weights of {name}, found those of omar-"):
        against(name)
    with pytest.raises(UserError, match="mpe/simple_spread has no prey"):
        opponents.add("mpe/simple_spread", published)
    with pytest.raises(UserError, match="the weights belong to another task"):
        opponents.add("mpe/simple_world", published)


def test_native_data_against_a_published_prey(published: Path) -> None:
    """Catches --prey left aside by the build, and data of two prey that look the same."""
    name = opponents.add(TAG, published).name
    built = data.build_dataset(f"{TAG}/random", episodes=5, prey=name)
    assert built.spec.opponent == name
    again = data.build_dataset(f"{TAG}/random", episodes=5, force=True)
    assert again.spec.opponent == "native-v1" and again.digest != built.digest
    assert datasets.load(f"{TAG}/random").digest == again.digest
    with pytest.raises(UserError, match="leave --prey out"):
        data.build_dataset("mpe/simple_spread/random", episodes=5, prey=name)


def test_the_scripted_prey_suits_its_task() -> None:
    """Catches landmarks miscounted where the name becomes a prey."""
    for task_id, landmarks in ((TAG, (2, 2)), ("mpe/simple_world", (1, 5))):
        given = FleeingPrey(num_obstacles=landmarks[0], num_landmarks=landmarks[1])
        named = opponents.environment(dataclasses.replace(envs.spec(task_id), opponent="scripted"), 4)
        explicit = envs.make(task_id, 4, opponent=given)
        named.reset(range(4)), explicit.reset(range(4))
        for _ in range(5):
            actions = torch.ones(4, 3, 2)
            assert torch.equal(named.step(actions).observations, explicit.step(actions).observations)
