"""What holds for every method of the family: names, the parts they share, and the random one.

That each keeps the contract is in tests/marl_flow/test_checks.py.
"""

from __future__ import annotations

import pytest
import torch

from marl_flow import baselines
from marl_flow.baselines.networks import Perceptron, StackedPerceptron
from marl_flow.checks import AGENTS, CHOICES, OBSERVATION, SPECS, build, tiny_store
from marl_flow.interfaces import ActingConfig, Policy, UserError
from marl_flow.policies import from_unit_box, to_unit_box


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


def random_policy(kind: str) -> Policy:
    method = baselines.get("random")
    return build(method, method.presets["default"], tiny_store(kind), seed=0).policy(ActingConfig())


def test_random_play_is_uniform_over_what_is_allowed() -> None:
    """Catches actions in [-1, 1] where the box is wider, illegal choices, and favourites among the legal ones."""
    policy = random_policy("continuous")
    policy.reset(4000, torch.Generator().manual_seed(0))
    actions = policy.act(torch.zeros(4000, AGENTS, OBSERVATION), None, torch.zeros(4000, AGENTS)).flatten(0, 1)
    torch.testing.assert_close(actions.amin(0), torch.tensor([-1.0, 0.0]), rtol=0, atol=0.01)
    torch.testing.assert_close(actions.amax(0), torch.tensor([1.0, 4.0]), rtol=0, atol=0.01)
    torch.testing.assert_close(actions.mean(0), torch.tensor([0.0, 2.0]), rtol=0, atol=0.06)
    policy = random_policy("discrete")
    policy.reset(4000, torch.Generator().manual_seed(0))
    legal = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]]).bool().expand(4000, -1, -1)
    choices = policy.act(torch.zeros(4000, AGENTS, OBSERVATION), legal, torch.zeros(4000, AGENTS))
    counts = torch.stack([(choices == choice).float().mean(0) for choice in range(CHOICES)], dim=-1)
    expected = legal[0] / legal[0].sum(-1, keepdim=True)
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
    unit = to_unit_box(SPECS["continuous"], actions)
    assert unit.tolist() == [[-1.0, -1.0], [1.0, 1.0], [0.5, 0.5], [1.0, -1.0]]
    assert from_unit_box(SPECS["continuous"], unit).tolist() == [[-1.0, 0.0], [1.0, 4.0], [0.5, 3.0], [1.0, 0.0]]
