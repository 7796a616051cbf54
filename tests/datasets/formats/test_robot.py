"""One robot's recorded data imported as data of the agents that share it."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import torch

from marl_flow import envs
from marl_flow.commands import data
from marl_flow.commands.robots import SAME_REWARDS, shared_robot
from marl_flow.datasets.formats import import_dataset
from marl_flow.datasets.replay.check import replay
from marl_flow.datasets.store import EpisodeStore
from marl_flow.envs.mamujoco import engine
from marl_flow.envs.mamujoco.env import RobotEnv, RobotState
from marl_flow.interfaces import UserError

ROBOTS = {"mamujoco/2halfcheetah": "HalfCheetah-v4", "mamujoco/2ant": "Ant-v4", "mamujoco/4ant": "Ant-v4"}
Episode = dict[str, np.ndarray]


def record(robot: str, steps: int) -> list[Episode]:
    """Episodes of at least that many steps of gymnasium's robot, the engine's state beside each observation and one
    more of both at the end."""
    with engine.quiet(), pytest.warns(DeprecationWarning):
        env = gymnasium.make(robot)
    state, source, episodes, made = env.unwrapped.data, np.random.default_rng(0), [], 0
    while made < steps:
        rows: dict[str, list] = {name: [] for name in ("observations", "qpos", "qvel", "actions", "rewards")}
        observation, _ = env.reset(seed=made)
        over = False
        while not over:
            action = source.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            for name, value in (("observations", observation), ("qpos", state.qpos), ("qvel", state.qvel)):
                rows[name].append(value.copy())
            observation, reward, terminated, truncated, _ = env.step(action)
            rows["actions"].append(action)
            rows["rewards"].append(reward)
            over = terminated or truncated
        for name, value in (("observations", observation), ("qpos", state.qpos), ("qvel", state.qvel)):
            rows[name].append(value.copy())
        episodes.append({name: np.array(values) for name, values in rows.items()} | {"failed": np.array(terminated)})
        made += len(rows["rewards"])
    return episodes


def write_d4rl(path: Path, episodes: list[Episode]) -> Path:
    """As D4RL's collector writes a robot's file: float32, the state before each action."""
    last = [np.arange(len(one["rewards"])) == len(one["rewards"]) - 1 for one in episodes]
    arrays = {
        "observations": np.concatenate([one["observations"][:-1] for one in episodes]),
        "next_observations": np.concatenate([one["observations"][1:] for one in episodes]),
        "actions": np.concatenate([one["actions"] for one in episodes]),
        "rewards": np.concatenate([one["rewards"] for one in episodes]),
        "infos/qpos": np.concatenate([one["qpos"][:-1] for one in episodes]),
        "infos/qvel": np.concatenate([one["qvel"][:-1] for one in episodes]),
    }
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values.astype(np.float32)
        file["terminals"] = np.concatenate([end & one["failed"] for end, one in zip(last, episodes, strict=True)])
        file["timeouts"] = np.concatenate([end & ~one["failed"] for end, one in zip(last, episodes, strict=True)])
    return path


def write_minari(folder: Path, episodes: list[Episode], robot: str) -> Path:
    """As Minari keeps a collector's episodes whose callback put the state into the infos."""
    (folder / "data").mkdir(parents=True)
    metadata = {
        "total_episodes": len(episodes),
        "total_steps": sum(len(one["rewards"]) for one in episodes),
        "data_format": "hdf5",
        "env_spec": json.dumps({"id": robot, "kwargs": {"render_mode": None}}),
    }
    (folder / "data" / "metadata.json").write_text(json.dumps(metadata))
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for index, one in enumerate(episodes):
            group, flags = file.create_group(f"episode_{index}"), np.zeros(len(one["rewards"]), dtype=bool)
            for name in ("observations", "actions", "rewards"):
                group[name] = one[name]
            for name, ends in (("terminations", one["failed"]), ("truncations", ~one["failed"])):
                flags[-1] = ends
                group[name] = flags
            group["infos/qpos"], group["infos/qvel"] = one["qpos"], one["qvel"]
    return folder


def bring_in(layout: str, source: Path, task_id: str) -> EpisodeStore:
    shared, folder = shared_robot(task_id), source.with_name("store")
    assert shared is not None
    return import_dataset(layout, source, folder, dataset_id="mine", spec=shared.task, provenance={}, shared=shared)


@pytest.fixture(scope="module", params=ROBOTS)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Episode]]:
    return request.param, record(ROBOTS[request.param], 300)


@pytest.mark.parametrize("layout", ["d4rl", "minari"])
def test_the_agents_data_are_what_they_would_have_seen(recorded, layout: str, tmp_path: Path) -> None:
    """Catches agents exchanged, actions in the engine's order, states of the row before, and a lost end."""
    task_id, episodes = recorded
    robot = ROBOTS[task_id]
    if layout == "d4rl":
        store = bring_in(layout, write_d4rl(tmp_path / "one.hdf5", episodes), task_id)
    else:
        store = bring_in(layout, write_minari(tmp_path / "one-v0", episodes, robot), task_id)
    assert store.spec == envs.spec(task_id) and store.has_final_observation == (layout == "minari")
    assert store.lengths.tolist() == [len(one["rewards"]) for one in episodes]
    assert store.terminated.tolist() == [bool(one["failed"]) for one in episodes]
    frame, step = 0, 0
    for one in episodes:
        length = len(one["rewards"])
        env = RobotEnv(task_id, length + 1, dtype=torch.float64)
        moment = RobotState(
            positions=torch.tensor(one["qpos"]), velocities=torch.tensor(one["qvel"]), steps=torch.arange(length + 1)
        )
        seen, shown = env.set_state(moment).observations.numpy(), length + store.has_final_observation
        np.testing.assert_allclose(store.observations[frame : frame + shown], seen[:shown], rtol=1e-6, atol=1e-6)
        own = torch.tensor(store.actions[step : step + length])
        controls = env._to_controls(torch.cat([own, own[-1:]]))[:-1]
        np.testing.assert_array_equal(controls, one["actions"])
        np.testing.assert_array_equal(
            store.rewards[step : step + length], np.repeat(one["rewards"].astype(np.float32)[:, None], len(own[0]), 1)
        )
        frame, step = frame + length + 1, step + length


def test_shared_cheetahs_fit_the_environment(tmp_path: Path) -> None:
    """Catches rebuilt data that the suite's own replay refuses."""
    task_id = "mamujoco/2halfcheetah"
    store = bring_in("d4rl", write_d4rl(tmp_path / "one.hdf5", record(ROBOTS[task_id], 1000)), task_id)
    outcome = replay(store, lambda rows: envs.make(task_id, rows, dtype=torch.float64), transitions=512)
    assert outcome.fits, outcome.message


def test_a_name_is_enough_to_share_a_robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the sharing left out on the way from a dataset's name to its reader, and a cheetah left unchecked."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "data"))
    source = write_d4rl(tmp_path / "one.hdf5", record("HalfCheetah-v4", 1000))
    store = data.import_dataset("d4rl", source, "user/mamujoco/2halfcheetah/mine-v1")
    assert store.spec == envs.spec("mamujoco/2halfcheetah") and "one robot" in store.provenance["made_from"]
    data.require_replay(store)


def test_a_robots_data_that_do_not_fit_are_refused(recorded, tmp_path: Path) -> None:
    """Catches shifted states, states of another robot, missing ones, and rewards of another task."""
    task_id, episodes = recorded
    good = write_d4rl(tmp_path / "good.hdf5", episodes)

    def broken(change) -> Path:
        path = tmp_path / "broken.hdf5"
        path.write_bytes(good.read_bytes())
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    def shift(file) -> None:
        file["infos/qvel"][...] = np.roll(file["infos/qvel"][...], 1, axis=0)

    def forget(file) -> None:
        del file["infos/qpos"]

    def narrow(file) -> None:
        for name in ("observations", "next_observations"):
            values = file[name][:, :9]
            del file[name]
            file[name] = values

    for change, message in (
        (shift, "expected at row 0 the state that the robot observes there, found another"),
        (forget, "expected infos/qpos and infos/qvel, from which the observations"),
        (narrow, "numbers of the state or more, found 9; these are another robot's"),
    ):
        with pytest.raises(UserError, match=message):
            bring_in("d4rl", broken(change), task_id)
    paid_otherwise = "Ant-v5" if "ant" in task_id else "Walker2d-v5"
    with pytest.raises(
        UserError, match=f"expected data of .*-v2 or .*whose rewards are those.*found '{paid_otherwise}'"
    ):
        bring_in("minari", write_minari(tmp_path / "other-v0", episodes, paid_otherwise), task_id)
    assert not (tmp_path / "store").exists()


def test_the_robots_named_are_the_tasks_robots() -> None:
    """Catches a task with other rewards under a name in the table."""
    for task_id, robot in ROBOTS.items():
        shared = shared_robot(task_id)
        assert shared is not None and robot in shared.recorded_as and shared.task == envs.spec(task_id)
    assert shared_robot("mpe/simple_spread") is None and "Ant-v5" not in SAME_REWARDS[True]
