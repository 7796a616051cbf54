"""What holds for every method of the family: names, state, both action kinds, and the random one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from marl_flow import baselines, seeding
from marl_flow.baselines.networks import Perceptron, StackedPerceptron, from_unit_box, to_unit_box
from marl_flow.datasets.store import EpisodeStore
from marl_flow.datasets.windows import WindowSampler
from marl_flow.interfaces import ActingConfig, ActionSpec, TaskSpec, UserError
from marl_flow.normalize import Normalizers

AGENTS, SIZE, CHOICES = 2, 3, 4
CONTINUOUS = ActionSpec(kind="continuous", size=2, low=(-1.0, 0.0), high=(1.0, 4.0))
DISCRETE = ActionSpec(kind="discrete", size=CHOICES)
CPU = torch.device("cpu")


def tiny_store(action: ActionSpec) -> EpisodeStore:
    """Three episodes of four steps."""
    draw = np.random.default_rng(0)
    choices = draw.integers(CHOICES, size=(12, AGENTS))
    mask = draw.random((15, AGENTS, CHOICES)) < 0.5
    steps = np.arange(12) + np.arange(12) // 4
    mask[steps[:, None], np.arange(AGENTS), choices] = True
    mask[..., 0] |= ~mask.any(-1)
    box = draw.uniform([-1, 0], [1, 4], (12, AGENTS, 2)).astype(np.float32)
    return EpisodeStore(
        spec=TaskSpec(
            task_id="test/family",
            agents=("a", "b"),
            observation_size=SIZE,
            action=action,
            max_steps=4,
            team_reward="sum",
        ),
        dataset_id="test/family/random-v1",
        observations=draw.normal(size=(15, AGENTS, SIZE)).astype(np.float32),
        actions=choices if action.is_discrete else box,
        rewards=draw.normal(size=(12, AGENTS)).astype(np.float32),
        offsets=np.array([0, 4, 8, 12]),
        terminated=np.array([True, False, True]),
        action_mask=mask if action.is_discrete else None,
    )


def built(name: str, store: EpisodeStore, seed: int = 0) -> Any:
    kind = baselines.get(name)
    config = next(iter(kind.presets.values()))
    normalizers = Normalizers.fit(kind.normalizer_kind(config), store, discount=kind.window(config).discount)
    return kind.build(config, store.spec, normalizers, device=CPU, generator=seeding.generator(seed, "weights"))


def updated(algorithm: Any, store: EpisodeStore, times: int) -> Any:
    sampler = WindowSampler(store, algorithm.window(algorithm.config), CPU)
    draw = torch.Generator().manual_seed(1)
    for _ in range(times):
        algorithm.update(sampler.draw(8, draw), draw)
    return algorithm


@pytest.mark.parametrize("name", baselines.NAMES)
def test_names_lead_to_their_classes(name: str) -> None:
    """Catches a name in the table that resolves to nothing, or to another method."""
    kind = baselines.get(name)
    assert kind.name == name and len(kind.presets) >= 1
    for config in kind.presets.values():
        assert config.updates >= 0 and config.batch_size >= 1


def test_unknown_names_list_the_nearest() -> None:
    """Catches a KeyError where the user mistyped."""
    with pytest.raises(UserError, match=r"unknown algorithm 'ma_td3bc'; nearest: ma_td3_bc"):
        baselines.get("ma_td3bc")


@pytest.mark.parametrize("action", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("name", ["random", "bc", "ma_td3_bc"])
def test_state_carries_everything_and_loads_strictly(name: str, action: ActionSpec) -> None:
    """Catches training that continues differently from a loaded state, and partial loads."""
    store = tiny_store(action)
    if action.kind not in baselines.get(name).action_kinds:
        with pytest.raises(UserError, match="continuous"):
            built(name, store)
        return
    trained, other = updated(built(name, store), store, 3), built(name, store, seed=9)
    other.load_state_dict({key: value.clone() for key, value in trained.state_dict().items()})
    updated(trained, store, 3)
    updated(other, store, 3)
    left, right = trained.state_dict(), other.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    for broken in ([*left][1:], [*left, "extra/weight"]):
        if left or len(broken):
            with pytest.raises((KeyError, ValueError, RuntimeError)):
                built(name, store).load_state_dict({key: left.get(key, torch.zeros(1)) for key in broken})
    for policy in (trained.policy(ActingConfig()), other.policy(ActingConfig())):
        policy.reset(5, torch.Generator().manual_seed(2))
    seen = torch.ones(5, AGENTS, SIZE)
    mask = torch.ones(5, AGENTS, CHOICES, dtype=torch.bool) if action.is_discrete else None
    acted = trained.policy(ActingConfig())
    acted.reset(5, torch.Generator().manual_seed(2))
    actions = acted.act(seen, mask, torch.zeros(5, AGENTS))
    assert actions.shape == ((5, AGENTS) if action.is_discrete else (5, AGENTS, 2))
    assert torch.equal(actions, policy.act(seen, mask, torch.zeros(5, AGENTS)))


def test_random_play_is_uniform_over_what_is_allowed() -> None:
    """Catches actions in [-1, 1] where the box is wider, illegal choices, and favourites among the legal ones."""
    policy = built("random", tiny_store(CONTINUOUS)).policy(ActingConfig())
    policy.reset(4000, torch.Generator().manual_seed(0))
    actions = policy.act(torch.zeros(4000, AGENTS, SIZE), None, torch.zeros(4000, AGENTS)).flatten(0, 1)
    torch.testing.assert_close(actions.amin(0), torch.tensor([-1.0, 0.0]), rtol=0, atol=0.01)
    torch.testing.assert_close(actions.amax(0), torch.tensor([1.0, 4.0]), rtol=0, atol=0.01)
    torch.testing.assert_close(actions.mean(0), torch.tensor([0.0, 2.0]), rtol=0, atol=0.06)
    policy = built("random", tiny_store(DISCRETE)).policy(ActingConfig())
    policy.reset(4000, torch.Generator().manual_seed(0))
    legal = torch.tensor([[True, False, True, True], [False, False, False, True]]).expand(4000, -1, -1)
    choices = policy.act(torch.zeros(4000, AGENTS, SIZE), legal, torch.zeros(4000, AGENTS))
    counts = torch.stack([(choices == choice).float().mean(0) for choice in range(CHOICES)], dim=-1)
    expected = torch.tensor([[1 / 3, 0.0, 1 / 3, 1 / 3], [0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(counts, expected, rtol=0, atol=0.03)
    assert (counts[~legal[0]] == 0).all()


def test_stacked_networks_equal_single_ones() -> None:
    """Catches members mixed by the batched product, in order, number or normalisation."""
    stack = StackedPerceptron(3, 4, (5, 6), 2, layer_norm=True)
    x = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    out = stack(x)
    for member in range(2):  # fewer inputs than members: the first ones
        y = x[member]
        for i, layer in enumerate(stack.layers):
            y = y @ layer.weight[member] + layer.bias[member]
            y = torch.nn.functional.layer_norm(y, y.shape[-1:]).relu() if i < 2 else y
        torch.testing.assert_close(out[member], y)
    assert Perceptron(4, (), 2)(x).shape == (2, 7, 2)


def test_the_unit_box_is_the_range_of_each_dimension() -> None:
    """Catches bounds swapped or shared between dimensions; what lies outside is clipped."""
    actions = torch.tensor([[-1.0, 0.0], [1.0, 4.0], [0.5, 3.0], [9.0, -9.0]])
    unit = to_unit_box(CONTINUOUS, actions)
    assert unit.tolist() == [[-1.0, -1.0], [1.0, 1.0], [0.5, 0.5], [1.0, -1.0]]
    assert from_unit_box(CONTINUOUS, unit).tolist() == [[-1.0, 0.0], [1.0, 4.0], [0.5, 3.0], [1.0, 0.0]]
