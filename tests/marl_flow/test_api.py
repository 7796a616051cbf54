"""What `import marl_flow` offers, as a program of somebody else's would use it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import marl_flow
from marl_flow import baselines, checkpoint, datasets, envs, evaluation, seeding
from marl_flow.commands import data, evaluate, targets
from marl_flow.commands.evaluate import EvalConfig
from marl_flow.datasets.windows import return_quantile
from marl_flow.interfaces import UserError
from marl_flow.run_folder import stored_percentiles

DATASET = "mpe/simple_spread/random"
TINY = {"updates": 2, "batch_size": 8, "tensorboard": False}
FLOW = {**TINY, "updates": 30, "width": 16, "token_blocks": 1, "inverse_hidden": 8, "conditioning": "mixed"}
FLOW |= {"learning_rate": 0.01, "ema_start": 0, "ema_every": 1, "ema_decay": 0.5}  # trained enough to heed its noise


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small dataset and the runs `flow` and `bc` on it."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARL_FLOW_DATA", str(root / "data"))
        data.build_dataset(DATASET, episodes=40)
        assert marl_flow.train(DATASET, "coflow", out=root / "flow", **FLOW) == root / "flow"
        marl_flow.train(DATASET, "bc", out=str(root / "bc"), hidden=(8, 8), **TINY)
    return root


@pytest.fixture
def no_data(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs on a machine without their dataset."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "empty"))
    for name in ("flow", "bc"):
        shutil.copytree(trained / name, tmp_path / name)
    return tmp_path


def forget_percentiles(run: Path) -> None:
    """Makes config.json one of before the quantiles were kept."""
    record = json.loads((run / "config.json").read_text())
    del record["return_percentiles"]
    (run / "config.json").write_text(json.dumps(record))


def test_the_package_offers_what_it_says() -> None:
    """Catches a name that cannot be imported, and a version that is not the installed one."""
    for name in marl_flow.__all__:
        assert getattr(marl_flow, name) is not None
    assert set(marl_flow.__all__) <= set(dir(marl_flow))
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        marl_flow.evalute  # noqa: B018


def test_train_and_evaluate_are_the_commands(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches settings that do not reach the run, results that are left out, and episodes played twice."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(trained / "data"))
    rows = marl_flow.evaluate(trained / "bc", episodes=3)
    assert [(row.algorithm, len(row.seeds), row.settings["hidden"]) for row in rows] == [("bc", 3, [8, 8])]
    assert marl_flow.evaluate(str(trained / "bc"), episodes=3) == rows
    assert len(marl_flow.evaluate(trained / "bc", episodes=2)) == 2


def test_a_run_keeps_the_returns_of_its_data(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches quantiles of other returns or another discount, and a target that moves when the dataset goes."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(trained / "data"))
    algorithm, header = checkpoint.load_algorithm(trained / "flow", baselines.get, device=torch.device("cpu"))
    store = datasets.load(DATASET)
    kept = stored_percentiles(trained / "flow")
    assert kept == [return_quantile(store, algorithm.config.discount, percent / 100) for percent in range(101)]
    for text in ("0", "0.29", "0.57", "0.9", "9e-1", "1.0"):
        here, away = (
            targets.target_return(f"quantile:{text}", algorithm, header, folder, "centralized")
            for folder in (trained / "nowhere", trained / "flow")
        )
        assert here == away
    assert stored_percentiles(trained / "bc") == [return_quantile(store, 1.0, p / 100) for p in range(101)]


def test_evaluation_needs_no_dataset(trained: Path, no_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a run that cannot be evaluated elsewhere, or that asks for another return there."""
    config = EvalConfig(steps=(1,), episodes=3)
    away = evaluate.evaluate(no_data / "flow", config)
    forget_percentiles(no_data / "flow")
    with pytest.raises(
        UserError, match=r"expected the dataset native/.* found nothing, and its run folder does not keep"
    ):
        evaluate.evaluate(no_data / "flow", config)
    assert len(evaluate.evaluate(no_data / "flow", EvalConfig(steps=(1,), episodes=3, target="raw:5"))) == 2
    monkeypatch.setenv("MARL_FLOW_DATA", str(trained / "data"))
    assert evaluate.evaluate(no_data / "flow", config) == []  # from the dataset: the same evaluation
    assert {result.target_rule for result in away} == {"quantile:0.9"}


def test_a_quantile_between_two_per_cent_needs_the_dataset(trained: Path, no_data: Path) -> None:
    """Catches a return that is close to the one the dataset would give."""
    with pytest.raises(UserError, match="keeps the returns of its data in whole per cent only"):
        marl_flow.load_policy(no_data / "flow", "centralized", target_return="quantile:0.905")
    with pytest.raises(UserError, match="a quantile from 0 to 1, got 2"):
        marl_flow.load_policy(no_data / "flow", "centralized", target_return="quantile:2")


@pytest.mark.parametrize(
    ("name", "execution", "k"), [("flow", "centralized", 2), ("flow", "decentralized", 1), ("bc", None, None)]
)
def test_a_loaded_policy_plays_as_it_is_evaluated(
    no_data: Path, name: str, execution: str | None, k: int | None
) -> None:
    """Catches other weights, noise, target or history than in an evaluation of the run."""
    config = EvalConfig(steps=(k or 1,), episodes=4, executions=(execution,) if execution else ())
    (expected,) = evaluate.evaluate(no_data / name, config)
    policy = marl_flow.load_policy(no_data / name, execution, k=k)
    assert policy.spec.task_id == "mpe/simple_spread" and policy.acting.num_sampling_steps == k
    env = envs.make(policy.spec.task_id, 4)
    policy.reset(4)
    step, returns = env.reset(evaluation.evaluation_seeds(4)), torch.zeros(4, 3, dtype=torch.float64)
    while not bool(step.finished.all()):
        step = env.step(policy.act(step.observations, rewards=step.rewards))
        returns += step.rewards.double()
    assert tuple(policy.spec.team_return(returns).tolist()) == expected.team_returns


def test_arrays_in_are_arrays_out(no_data: Path) -> None:
    """Catches a kind, type or axis that is lost, and batches that act unlike single episodes."""
    policy = marl_flow.load_policy(no_data / "bc")
    observations = np.random.default_rng(0).normal(size=(2, 3, 18))
    policy.reset(2)
    batch = policy.act(observations)
    assert isinstance(batch, np.ndarray) and batch.shape == (2, 3, 2)
    policy.reset()
    single = policy.act(observations[1], rewards=np.zeros(3))
    assert isinstance(single, np.ndarray) and single.shape == (3, 2)
    np.testing.assert_allclose(single, batch[1], rtol=1e-6)
    tensor = policy.act(torch.from_numpy(observations[1:]))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_allclose(tensor.numpy(), batch[1:], rtol=1e-6)


def test_noise_is_the_seeds(no_data: Path) -> None:
    """Catches episodes that repeat each other's noise, programs that do not repeat themselves, an ignored generator."""
    observations = np.zeros((3, 18), dtype=np.float32)

    def actions(seed: int, resets: int, generator: torch.Generator | None = None) -> list[float]:
        policy = marl_flow.load_policy(no_data / "flow", "centralized", k=1, target_return=3.0, seed=seed)
        for _ in range(resets):
            policy.reset(1, generator)
        return policy.act(observations).ravel().tolist()

    first = actions(0, 1)
    assert actions(0, 1) == first and actions(0, 2) != first and actions(1, 1) != first
    assert actions(1, 1, seeding.generator(0, "acting", 0)) == first


def test_what_a_policy_cannot_do_is_said(no_data: Path) -> None:
    """Catches a guess where the caller must choose, and shapes that are silently broadcast."""
    with pytest.raises(UserError, match="can act in centralized and decentralized execution; choose one"):
        marl_flow.load_policy(no_data / "flow")
    with pytest.raises(UserError, match="acts in decentralized execution"):
        marl_flow.load_policy(no_data / "bc", "centralized")
    with pytest.raises(UserError, match="acts in decentralized execution, without sampling steps"):
        marl_flow.load_policy(no_data / "bc", k=3)
    with pytest.raises(UserError, match="nowhere"):
        marl_flow.load_policy(no_data / "nowhere")
    policy = marl_flow.load_policy(no_data / "bc")
    with pytest.raises(UserError, match=r"call reset\(num_envs\) before act"):
        policy.act(np.zeros((3, 18)))
    with pytest.raises(UserError, match="num_envs: expected at least 1, got 0"):
        policy.reset(0)
    policy.reset(2)
    for wrong in (np.zeros((3, 18)), np.zeros((1, 3, 18)), np.zeros((2, 3, 17))):
        with pytest.raises(UserError, match=r"observations: expected the shape \[2, 3, 18\]"):
            policy.act(wrong)
    with pytest.raises(UserError, match=r"rewards: expected the shape \[2, 3\]"):
        policy.act(np.zeros((2, 3, 18)), rewards=np.zeros(2))


def test_a_checkpoint_file_is_loaded_too(no_data: Path, tmp_path: Path) -> None:
    """Catches a file whose run folder is not found, and one moved out of it that needs more than a number."""
    (file,) = (no_data / "flow" / "checkpoints").iterdir()
    marl_flow.load_policy(file, "centralized", k=2)
    moved = Path(shutil.copy(file, tmp_path / "weights.safetensors"))
    marl_flow.load_policy(moved, "centralized", target_return=5)
    with pytest.raises(UserError, match="name a return as a number"):
        marl_flow.load_policy(moved, "centralized")
