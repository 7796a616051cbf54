"""Names to datasets, end to end: published files and the prey they were collected with, in and verified or refused."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from marl_flow import cli, datasets, envs, seeding
from marl_flow.commands import data, opponents
from marl_flow.datasets import catalog, formats
from marl_flow.datasets.collect import collect_batch
from marl_flow.datasets.remote import sources
from marl_flow.datasets.remote.fetch import unpacked_path
from marl_flow.datasets.replay import passport as verify
from marl_flow.datasets.store import EpisodeStore
from marl_flow.envs.mpe.prey import NetworkPrey
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError
from marl_flow.policies import UniformPolicy

TAG, PUBLISHED = "mpe/simple_tag", "omar/mpe/simple_tag/random-v1"


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def prey_file(folder: Path) -> Path:
    """A file as OMAR published it; its prey is not the suite's own."""
    weights = NetworkPrey.native(TAG).weights
    weights["fc3.bias"] = weights["fc3.bias"] + torch.tensor([0.5, -0.5])
    path = folder / opponents.PUBLISHED_FILE
    torch.save({"init_dict": {}, "agent_params": [{"policy": weights}]}, path)
    return path


def published_files(folder: Path, prey: NetworkPrey, episodes: int = 20) -> EpisodeStore:
    """Random play against a prey, written to `folder` as OMAR wrote it; the same as a store."""
    env = envs.make(TAG, episodes, opponent=prey)
    seeds = seeding.environment_seeds("collect", 0, episodes)
    store = collect_batch(env, UniformPolicy(env.spec.action), seeds, seeding.generator(0, "test"), dataset_id="test")
    frames = np.arange(store.num_steps) + np.repeat(np.arange(episodes), 25)
    place = folder / "random" / "seed_0_data"
    place.mkdir(parents=True)
    for agent in range(3):
        for name, values in (
            ("obs", store.observations[frames, agent]),
            ("next_obs", store.observations[frames + 1, agent]),
            ("acs", store.actions[:, agent]),
            ("rews", store.rewards[:, agent]),
            ("dones", np.zeros(store.num_steps)),
        ):
            np.save(place / f"{name}_{agent}.npy", values.astype(np.float64))
    return store


def test_published_tag_data_are_checked_against_their_own_prey(tmp_path: Path) -> None:
    """Catches data replayed, or evaluated, against another prey than they were collected with."""
    name = opponents.add(TAG, prey_file(tmp_path)).name
    written = published_files(tmp_path / "files", opponents.opponent(TAG, name))
    with pytest.raises(UserError, match=r"expected the name of the prey .*`marl-flow data prey mpe/simple_tag FILE`"):
        data.import_dataset("omar", tmp_path / "files" / "random", PUBLISHED)
    store = data.import_dataset("omar", tmp_path / "files" / "random", PUBLISHED, prey=name)
    assert store.spec == dataclasses.replace(envs.spec(TAG), opponent=name)
    np.testing.assert_array_equal(store.observations, written.observations)
    passport = data.verify_dataset(catalog.folder_of(PUBLISHED), PUBLISHED)
    assert passport["replay"]["fits"] and passport["replay"]["opponent"] == passport["opponent"] == name
    assert data.open_dataset(PUBLISHED).digest == store.digest
    assert data.training_data(store).spec.opponent == name


def test_data_with_the_wrong_prey_are_kept_and_refused_for_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a mismatch that loses the import, that goes unsaid, or that can be trained on."""
    published_files(tmp_path / "files", NetworkPrey.from_omar(prey_file(tmp_path)))
    with caplog.at_level(logging.WARNING):
        store = data.import_dataset("omar", tmp_path / "files" / "random", PUBLISHED, prey="native-v1")
    assert "does not fit mpe/simple_tag" in caplog.text and "refused for training" in caplog.text
    assert datasets.load(PUBLISHED).digest == store.digest
    with pytest.raises(UserError, match=r"does not fit mpe/simple_tag .*opponent"):
        data.training_data(store)


def test_files_put_there_by_hand_are_fetched_with_the_prey_beside_them(tmp_path: Path, data_root: Path) -> None:
    """Catches a fetch that asks for a prey which lies in the archive, and one that deletes a user's files."""
    source = sources.FILES["omar-simple_tag-npy"]
    place = unpacked_path(source, catalog.downloads_root())
    place.mkdir(parents=True)
    prey = NetworkPrey.from_omar(prey_file(place))
    published_files(place / "simple_tag", prey)
    (store,) = data.fetch_datasets([PUBLISHED])
    assert store.spec.opponent == prey.name and store.provenance["licence"] == source.licence
    assert data.verify_dataset(catalog.folder_of(PUBLISHED), PUBLISHED)["replay"]["fits"]
    assert (place / "simple_tag" / "random").is_dir()
    assert data.fetch_datasets([PUBLISHED, PUBLISHED]) == []


def test_a_download_of_gigabytes_does_not_start_without_a_prey() -> None:
    """Catches six gigabytes fetched before anybody asks what the data were collected against."""
    with pytest.raises(UserError, match="expected the name of the prey"):
        data.fetch_datasets(["omar/mpe/simple_tag/expert-v1"])
    with pytest.raises(UserError, match="mpe/simple_spread has no prey; leave --prey out"):
        data.fetch_datasets(["omar/mpe/simple_spread/expert-v1"], prey="native-v1")


def test_an_import_under_another_tasks_name_leaves_nothing(tmp_path: Path) -> None:
    """Catches tag data that call themselves world, and half an import left under the name."""
    own = data.build_dataset(f"{TAG}/random", episodes=4)
    formats.export_dataset("d4rl", own, tmp_path / "tag.hdf5")
    with pytest.raises(UserError, match="hold data of mpe/simple_tag, not of mpe/simple_world"):
        data.import_dataset("d4rl", tmp_path / "tag.hdf5", "user/mpe/simple_world/x-v1")
    assert not catalog.folder_of("user/mpe/simple_world/x-v1").exists()
    with pytest.raises(UserError, match="is built, not imported"):
        data.import_dataset("d4rl", tmp_path / "tag.hdf5", f"{TAG}/random")
    with pytest.raises(UserError, match="leave --prey out"):
        data.import_dataset("d4rl", tmp_path / "tag.hdf5", "user/mpe/simple_tag/x-v1", prey="scripted")
    against = dataclasses.replace(own, spec=dataclasses.replace(own.spec, opponent="omar-12345678"))
    formats.export_dataset("d4rl", against, tmp_path / "omar.hdf5")
    with pytest.raises(UserError, match="expected the prey omar-12345678"):
        data.import_dataset("d4rl", tmp_path / "omar.hdf5", "user/mpe/simple_tag/x-v1")
    assert not catalog.folder_of("user/mpe/simple_tag/x-v1").exists()
    again = data.import_dataset("d4rl", tmp_path / "tag.hdf5", "user/mpe/simple_tag/x-v1")
    assert again.digest == own.digest and again.spec.opponent == "native-v1"
    assert data.verify_dataset(catalog.folder_of(again.dataset_id), again.dataset_id)["replay"]["fits"]


def test_native_data_never_come_in_as_published_ones(tmp_path: Path) -> None:
    """Catches an export of native data that is imported as OMAR's and stands in for them."""
    own = data.build_dataset("mpe/simple_spread/random", episodes=4)
    for layout, target in (("d4rl", "s.hdf5"), ("madiff", "s"), ("minari", "s-v0")):
        formats.export_dataset(layout, own, tmp_path / target)
        with pytest.raises(UserError, match=r"exported from native/mpe/simple_spread/random-v1, not from omar/"):
            data.import_dataset(layout, tmp_path / target, "omar/mpe/simple_spread/random-v1")
    assert not catalog.folder_of("omar/mpe/simple_spread/random-v1").exists()


def test_a_linked_dataset_is_rebuilt_where_it_is(tmp_path: Path) -> None:
    """Catches a rebuild that fails after its success, throws the new data away, or puts them on the small disk."""
    name = "mpe/simple_spread/random"
    data.build_dataset(name, episodes=4)
    folder, moved = catalog.folder_of(name), tmp_path / "big" / "moved"
    moved.parent.mkdir()
    folder.rename(moved)
    folder.symlink_to(moved)
    for episodes in (6, 5):
        assert data.build_dataset(name, episodes=episodes, force=True).num_episodes == episodes
        assert folder.readlink() == moved and datasets.load(name).num_episodes == episodes
        assert list(moved.parent.iterdir()) == [moved] and list(folder.parent.iterdir()) == [folder]
    (moved / "notes.txt").touch()
    with pytest.raises(UserError, match=r"found notes\.txt too"):
        data.build_dataset(name, episodes=7, force=True)


def test_a_link_to_nothing_is_named_before_any_work(tmp_path: Path, capsys, monkeypatch) -> None:
    """Catches a dataset on a disk that is not mounted which is built, downloaded or imported for nothing, and one that
    no list shows."""
    names = ("native/mpe/simple_spread/random-v1", "omar/mpe/simple_spread/expert-v1", "user/mpe/simple_spread/x-v1")
    for name in names:
        catalog.folder_of(name).parent.mkdir(parents=True)
        catalog.folder_of(name).symlink_to(tmp_path / "gone")
    monkeypatch.setattr(data.native, "build", None)
    commands = [["data", "build", names[0]], ["data", "build", names[0], "--force"], ["data", "fetch", names[1]]]
    commands += [["data", command, name] for command in ("show", "verify") for name in names]
    commands += [["train", name, "bc", "--out", str(tmp_path / "run")] for name in names] + [["data", "verify"]]
    for command in commands:
        assert cli.main(command) == 2, command
        errors = capsys.readouterr().err
        assert f"found a link to {tmp_path / 'gone'}, which is not there; mount" in errors and "building" not in errors
    with pytest.raises(UserError, match=r"found a link to .*gone"):
        datasets.write(names[2], [], envs.spec("mpe/simple_spread"))
    assert cli.main(["data", "list"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert listed.count("damaged") == 3 and listed.count("found a link to") == 3
    cli.main(["doctor"])
    assert " ".join(capsys.readouterr().out.split()).count("found a link to") == 3


def test_a_dataset_in_anothers_place_is_refused(tmp_path: Path) -> None:
    """Catches a verification that looks at whatever lies in the folder."""
    data.build_dataset("mpe/simple_spread/random", episodes=4)
    expert = "native/mpe/simple_spread/expert-v1"
    shutil.copytree(catalog.folder_of("mpe/simple_spread/random"), catalog.folder_of(expert))
    for look in (data.verify_dataset, verify.show):
        with pytest.raises(UserError, match=f"expected {expert}, found native/mpe/simple_spread/random-v1"):
            look(catalog.folder_of(expert), expert)


def test_single_robot_files_of_others_take_the_name_they_are_given(tmp_path: Path) -> None:
    """Catches foreign files that no name of a dataset fits, and an end that files do not give."""
    source = np.random.default_rng(0)
    rows = {"observations": (12, 5), "actions": (12, 2), "rewards": (12,)}
    for with_timeouts in (True, False):
        with h5py.File(tmp_path / f"hopper_medium-v{int(with_timeouts)}.hdf5", "w") as file:
            for name, shape in rows.items():
                file[name] = source.uniform(-1, 1, shape).astype(np.float32)
            file["terminals"] = np.arange(12) == 5
            if with_timeouts:
                file["timeouts"] = np.arange(12) == 11
    store = data.import_dataset("d4rl", tmp_path / "hopper_medium-v1.hdf5", "user/d4rl/hopper/medium-v2")
    assert store.spec.task_id == "d4rl/hopper" and store.lengths.tolist() == [6, 6]
    with pytest.raises(UserError, match="d4rl/hopper has no prey; leave --prey out"):
        data.import_dataset("d4rl", tmp_path / "hopper_medium-v1.hdf5", "user/d4rl/hopper/more-v2", prey="scripted")
    with pytest.raises(UserError, match=r"expected timeouts, found none, .* importing them as user/SUITE/TASK/NAME-v1"):
        data.import_dataset("d4rl", tmp_path / "hopper_medium-v0.hdf5", "user/d4rl/hopper/other-v2")


def test_data_of_an_unknown_task_go_through_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a dataset of one's own that is written and then not listed, shown, verified or trained on."""
    spec = TaskSpec(
        task_id="farm/harvest",
        agents=("picker", "carrier"),
        observation_size=3,
        action=ActionSpec(kind="continuous", size=2, low=(-1.0, -1.0), high=(1.0, 1.0)),
        max_steps=10,
        team_reward="sum",
    )
    numbers, name = np.random.default_rng(0), "user/farm/harvest/mine-v1"
    episodes = [
        {
            "observations": numbers.standard_normal((steps + 1, 2, 3)),
            "actions": numbers.uniform(-1, 1, (steps, 2, 2)),
            "rewards": numbers.standard_normal((steps, 2)),
            "terminated": steps < 10,
        }
        for steps in (10, 4, 10, 7)
    ]
    datasets.write(name, episodes, spec, description="four afternoons")
    assert cli.main(["data", "list", "--origin", "user"]) == 0
    assert name in (listed := capsys.readouterr().out) and " here " in listed
    assert cli.main(["data", "verify", name]) == 0 and "not replayed" in capsys.readouterr().out
    assert cli.main(["data", "show", name]) == 0 and "four afternoons" in capsys.readouterr().out
    out = str(tmp_path / "run")
    settings = ["updates=2", "batch_size=4", "hidden=8", "tensorboard=false"]
    with caplog.at_level(logging.WARNING):
        assert cli.main(["train", name, "bc", "--out", out, *settings]) == 0
    assert f"{name} was not checked: no environment of farm/harvest" in caplog.text
    assert list((tmp_path / "run" / "checkpoints").iterdir())
