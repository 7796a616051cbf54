"""Native recipes: the same bytes every time, and a behaviour that is the network its file describes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from marl_flow import datasets
from marl_flow.datasets import behaviour, catalog, native
from marl_flow.interfaces import UserError, VectorEnv

EXPERT, RANDOM = "mpe/simple_spread/expert", "mpe/simple_spread/random"


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """Two snapshots of random weights, the first collecting a quarter of the episodes."""
    draw = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    sizes = [3, 64, 64, 2]
    stack = {"log_std": tensor(2, 2) - 1, "observation_mean": tensor(2, 3), "observation_std": tensor(2, 3).abs() + 0.5}
    for i in range(3):
        stack[f"layer{i}.weight"] = tensor(2, sizes[i + 1], sizes[i]) / sizes[i] ** 0.5
        stack[f"layer{i}.bias"] = tensor(2, sizes[i + 1]) / 4
    stack["episodes_share"] = torch.tensor([0.25, 0.75])
    path = tmp_path / "mpe_simple_spread.safetensors"
    save_file({f"expert/{name}": value.contiguous() for name, value in stack.items()}, path)
    return path


@pytest.fixture
def make_env(counting_env):
    def make(task_id: str, num_envs: int, device: torch.device) -> VectorEnv:
        assert task_id == "mpe/simple_spread" and device.type == "cpu"
        return counting_env(num_envs)

    return make


def hashes(folder: Path) -> dict[str, str]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["arrays"].items()} | {"digest": manifest["digest"]}


@pytest.mark.parametrize("dataset_id", [EXPERT, RANDOM])
def test_two_builds_are_the_same_bytes(tmp_path: Path, make_env, policies, dataset_id: str, monkeypatch) -> None:
    """Catches global random state, an unstable order, or a dependence on the number of threads."""
    monkeypatch.setattr(
        native, "RECIPES", {k: native.Recipe(episodes=8, seed=1, batch_episodes=300) for k in native.RECIPES}
    )
    threads = torch.get_num_threads()
    try:
        for folder, count in (("a", 1), ("b", 2)):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            built = native.build(dataset_id, tmp_path / folder, make_env, episodes=700, policy_file=policies)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert built.num_episodes == 700
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_recipes_do_not_share_episodes() -> None:
    """Catches two qualities that start from the same initial states, and a dataset without a recipe."""
    assert len({recipe.seed for recipe in native.RECIPES.values()}) == len(native.RECIPES)
    assert set(native.RECIPES) == {name for name in catalog.CATALOG if name.startswith("native/")}
    replays = {"mpe/simple_spread": 3_900, "mpe/simple_tag": 2_500, "mpe/simple_world": 3_200}  # as published, per seed
    for name, recipe in native.RECIPES.items():
        identity = catalog.parse(name)
        if identity.suite == "mpe":
            assert recipe.episodes == (replays[identity.task_id] if identity.quality == "medium-replay" else 10_000)


def test_mean_action_is_the_network_in_the_file(policies: Path) -> None:
    """Catches a transposed weight, a missing tanh (the last layer has one too), and a snapshot read for another."""
    stack = behaviour.read_stack(policies, "expert")
    observations = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1))
    snapshots = torch.tensor([0, 1, 1, 0, 1])
    found = stack.outputs(observations, snapshots).tanh()
    from safetensors.numpy import load_file

    raw = {name.removeprefix("expert/"): value.astype(np.float64) for name, value in load_file(policies).items()}
    for e, s in enumerate(snapshots.tolist()):
        x = (observations[e].numpy() - raw["observation_mean"][s]) / raw["observation_std"][s]
        for i in range(3):
            x = np.tanh(x @ raw[f"layer{i}.weight"][s].T + raw[f"layer{i}.bias"][s])
        np.testing.assert_allclose(found[e], x, atol=1e-5)


def test_noise_has_the_files_deviation_and_actions_are_clipped(policies: Path, make_task) -> None:
    """Catches log_std read as std, noise shared by agents, and stored actions the environment would clip."""
    action = make_task().action
    stack = behaviour.read_stack(policies, "expert")
    snapshots = torch.tensor([0, 1]).repeat_interleave(20_000)
    zeros = torch.zeros(len(snapshots), 2, 3)

    def act(weight: float, scale: float) -> torch.Tensor:
        layers = tuple((w * weight, b * weight) for w, b in stack.layers)
        changed = behaviour.Stack(**{**vars(stack), "layers": layers, "log_std": stack.log_std + np.log(scale)})
        policy = behaviour.SnapshotPolicy(changed, snapshots, action)
        policy.reset(len(snapshots), torch.Generator().manual_seed(0))
        return policy.act(zeros, None, torch.zeros(len(snapshots), 2))

    small = act(0.0, 0.01).reshape(2, 20_000, 2, 2) * 100
    torch.testing.assert_close(small.std(dim=(1, 2)), stack.log_std.exp(), rtol=0.02, atol=0.0)
    assert abs(float(torch.corrcoef(small[0, :, :, 0].t())[0, 1])) < 0.05  # agents draw their own noise
    wide = act(0.0, 50.0)
    assert wide.amax((0, 1)).tolist() == [1.0, 0.5] and wide.amin((0, 1)).tolist() == [-1.0, -0.5]


def test_snapshots_collect_their_share_in_training_order(policies: Path) -> None:
    """Catches a replay dataset that is shuffled in time, or whose last snapshot gets the rounding."""
    stack = behaviour.read_stack(policies, "expert")
    played = torch.cat([stack.snapshots_of(range(k, k + 4), 10) for k in (0, 4, 8)])
    assert played.tolist() == [0, 0, *[1] * 10]  # round(2.5) is 2; the surplus rows 10 and 11 go to the last


def test_stored_actions_were_acted(tmp_path: Path, make_env, policies: Path) -> None:
    """Catches storing actions before they are clipped: the environment's reward is the action it got."""
    store = native.build(EXPERT, tmp_path / "data", make_env, episodes=50, policy_file=policies)
    np.testing.assert_array_equal(store.rewards, store.actions[..., 0])
    assert np.abs(store.actions).max(axis=(0, 1)).tolist() == [1.0, 0.5]
    assert store.provenance["snapshots"] == 2 and len(store.provenance["policy_sha256"]) == 64


def test_random_actions_fill_the_bounds(tmp_path: Path, make_env) -> None:
    """Catches Gaussian or unscaled noise where uniform play was published; needs no policy file."""
    done = []
    store = native.build(RANDOM, tmp_path / "data", make_env, episodes=2500, progress=lambda *p: done.append(p))
    actions = store.actions.reshape(-1, 2)
    np.testing.assert_allclose(actions.std(0), np.array([1.0, 0.5]) / 3**0.5, rtol=0.02)
    np.testing.assert_allclose(actions.min(0), [-1.0, -0.5], atol=2e-3)
    np.testing.assert_allclose(actions.max(0), [1.0, 0.5], atol=2e-3)
    assert done == [(1000, 2500), (2000, 2500), (2500, 2500)]


@pytest.mark.parametrize("dataset_id", [EXPERT, RANDOM])
def test_a_shorter_build_is_the_beginning_of_a_longer_one(
    tmp_path: Path, make_env, policies: Path, monkeypatch, dataset_id: str
) -> None:
    """Catches noise drawn for as many rows as are asked for, and a small build that does not say what it is."""
    from safetensors.torch import load_file

    one = {name: value[:1].contiguous() for name, value in load_file(policies).items()}
    save_file({**one, "expert/episodes_share": torch.ones(1)}, policies)
    recipes = {name: native.Recipe(episodes=9, seed=1, batch_episodes=4) for name in native.RECIPES}
    monkeypatch.setattr(native, "RECIPES", recipes)
    short = native.build(dataset_id, tmp_path / "short", make_env, episodes=3, policy_file=policies)
    whole = native.build(dataset_id, tmp_path / "whole", make_env, policy_file=policies)
    for name, array in short.arrays():
        np.testing.assert_array_equal(array, dict(whole.select(slice(3)).arrays())[name], err_msg=name)
    assert (native.unlike_recipe(short), native.unlike_recipe(whole)) == ("3 of 9 episodes", "")
    assert short.provenance["recipe_episodes"] == 9


def test_built_datasets_load_by_their_short_id(tmp_path: Path, make_env) -> None:
    """Catches build and load disagreeing about the folder, or load skipping verification."""
    folder = catalog.folder_of(RANDOM, tmp_path)
    built = datasets.build(RANDOM, folder, make_env, episodes=5)
    assert datasets.load(RANDOM, root=tmp_path).digest == built.digest
    data = bytearray((folder / "actions.npy").read_bytes())
    data[-1] ^= 1
    (folder / "actions.npy").write_bytes(bytes(data))
    with pytest.raises(UserError, match="actions: expected sha256"):
        datasets.load(RANDOM, root=tmp_path)


def test_a_killed_build_leaves_no_dataset(tmp_path: Path, make_env) -> None:
    """Catches half of the episodes under the dataset's name after Ctrl-C."""

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        native.build(RANDOM, tmp_path / "data", make_env, episodes=2500, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("expert/layer1.bias"), r"expected \['episodes_share'.*under expert/, found"),
        (lambda t: t.update({"expert/extra": torch.zeros(2)}), r"found .*extra"),
        (lambda t: t.update({"expert/episodes_share": torch.tensor([0.5, 0.75])}), r"sum to 1 .* found \[2\] and 1.25"),
        (lambda t: t.update({"expert/log_std": torch.zeros(3, 2)}), r"expected 2 snapshots .*found \[2, 3\]"),
        (lambda t: [t.pop(name) for name in list(t) if "layer" in name], r"found .*'log_std'"),
        (lambda t: t.clear(), r"under expert/, found \[\]"),
    ],
)
def test_policy_files_that_do_not_fit_are_refused(policies: Path, change, message: str) -> None:
    """Catches a behaviour with a missing layer, or shares that leave episodes to nobody."""
    from safetensors.torch import load_file

    tensors = load_file(policies)
    change(tensors)
    save_file(tensors, policies)
    with pytest.raises(UserError, match=message):
        behaviour.read_stack(policies, "expert")


def test_missing_policies_and_recipes_are_named(tmp_path: Path, make_env, monkeypatch) -> None:
    """Catches a traceback from a broken installation, and a silent switch to another dataset."""
    with pytest.raises(UserError, match=r"expected behaviour policies in the package's none\.safetensors"):
        native.build(EXPERT, tmp_path / "data", make_env, episodes=3, policy_file=tmp_path / "none.safetensors")
    monkeypatch.setattr(native, "RECIPES", {})
    with pytest.raises(UserError, match="has no recipe"):
        native.build(RANDOM, tmp_path / "data", make_env, episodes=3)
    assert not (tmp_path / "data").exists()
