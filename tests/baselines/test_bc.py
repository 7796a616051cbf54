"""Behaviour cloning: masks, padding, legal actions, learning."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from marl_flow.baselines.bc import BCConfig, BehaviourCloning, discrete_loss
from marl_flow.interfaces import ActingConfig, ActionSpec, Batch, TaskSpec
from marl_flow.normalize import Normalizer, Normalizers

AGENTS, SIZE, CHOICES = 3, 4, 5
CONTINUOUS = ActionSpec(kind="continuous", size=2, low=(-1.0, 0.0), high=(1.0, 4.0))
DISCRETE = ActionSpec(kind="discrete", size=CHOICES)
KINDS = pytest.mark.parametrize("action", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])


def build(action: ActionSpec, **config: Any) -> BehaviourCloning:
    spec = TaskSpec(
        task_id="test/bc",
        agents=("a", "b", "c"),
        observation_size=SIZE,
        action=action,
        max_steps=5,
        team_reward="mean",
    )
    tables = {"center": torch.ones(SIZE), "scale": torch.full((SIZE,), 2.0)}
    normalizer = Normalizer(kind="standard", per_agent=False, tables=tables)
    normalizers = Normalizers(**{field.name: normalizer for field in dataclasses.fields(Normalizers)})
    chosen = BCConfig(**{"hidden": (16,), "batch_size": 6, **config})
    return BehaviourCloning.build(chosen, spec, normalizers, device=torch.device("cpu"), generator=seeded())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(action: ActionSpec, size: int = 6, **changes: Any) -> Batch:
    draw, mask = seeded(1), None
    actions = torch.rand(size, 1, AGENTS, 2, generator=draw) * torch.tensor([2.0, 4.0]) - torch.tensor([1.0, 0.0])
    if action.is_discrete:
        actions = torch.randint(CHOICES, (size, 1, AGENTS), generator=draw)
        mask = torch.rand(size, 2, AGENTS, CHOICES, generator=draw) < 0.4
        mask[:, :1].scatter_(-1, actions[..., None], True)
    plain = {
        "observations": torch.randn(size, 2, AGENTS, SIZE, generator=draw),
        "actions": actions,
        "rewards": torch.zeros(size, 1, AGENTS),
        "returns_to_go": torch.zeros(size, AGENTS),
        "terminated": torch.zeros(size, 1, dtype=torch.bool),
        "valid": torch.ones(size, 1, dtype=torch.bool),
        "start_step": torch.zeros(size, dtype=torch.int64),
        "action_mask": mask,
    }
    return Batch(**{**plain, **changes})


@KINDS
def test_padding_cannot_change_the_loss(action: ActionSpec) -> None:
    """Catches a mean over rows that are not real."""
    algorithm = build(action)
    data = batch(action, valid=torch.tensor([True, False, True, True, False, True])[:, None])
    padded = ~data.valid[:, 0]
    changed = dataclasses.replace(data, observations=data.observations.clone(), actions=data.actions.clone())
    changed.observations[padded] += 9.0
    changed.actions[padded] = 1 if action.is_discrete else 0.5
    loss, again = (algorithm.loss(one, seeded())[0].item() for one in (data, changed))
    assert 0 < loss == pytest.approx(again)
    alone = batch(action)
    kept = dataclasses.replace(
        alone,
        **{
            field.name: value[~padded]
            for field in dataclasses.fields(Batch)
            if (value := getattr(alone, field.name)) is not None
        },
    )
    assert loss == pytest.approx(algorithm.loss(kept, seeded())[0].item())


def test_the_loss_of_choices_counts_legal_ones_only() -> None:
    """Catches probability given to illegal actions: two legal ones with equal logits cost log 2 each."""
    logits = torch.tensor([[[0.0, 0.0, 50.0]]], requires_grad=True)
    legal = torch.tensor([[[True, True, False]]])
    loss = discrete_loss(logits, torch.tensor([[0]]), legal, torch.tensor([True]))
    assert loss.item() == pytest.approx(0.6931472)
    loss.backward()
    assert logits.grad[0, 0].tolist() == [-0.5, 0.5, 0.0]


def test_illegal_choices_are_never_taken() -> None:
    """Catches an unmasked argmax: the network prefers what is illegal, in every row and agent."""
    algorithm = build(DISCRETE)
    draw = seeded(2)
    observations = torch.randn(200, AGENTS, SIZE, generator=draw) * 10
    policy = algorithm.policy(ActingConfig())
    policy.reset(200, draw)
    favourite = policy.act(observations, torch.ones(200, AGENTS, CHOICES, dtype=torch.bool), torch.zeros(200, AGENTS))
    legal = torch.ones(200, AGENTS, CHOICES, dtype=torch.bool).scatter(-1, favourite[..., None], False)
    chosen = policy.act(observations, legal, torch.zeros(200, AGENTS))
    assert legal.gather(-1, chosen[..., None]).all() and (chosen != favourite).all()
    only = torch.nn.functional.one_hot(torch.randint(CHOICES, (200, AGENTS), generator=draw), CHOICES).bool()
    assert torch.equal(policy.act(observations, only, torch.zeros(200, AGENTS)), only.int().argmax(-1))


@KINDS
def test_an_agent_acts_on_its_own_observation_and_index(action: ActionSpec) -> None:
    """Catches agents mixed up, and an agent index that is missing although asked for or there although not."""
    same = torch.full((1, AGENTS, SIZE), 0.3)
    other = same.clone()
    other[:, 1:] += 5.0
    for agent_id in (True, False):
        algorithm = build(action, agent_id=agent_id)
        out = algorithm.predict(same)
        assert torch.allclose(out[:, 0], out[:, 1], rtol=1e-4) is not agent_id
        torch.testing.assert_close(algorithm.predict(other)[:, 0], out[:, 0])
        assert not torch.allclose(algorithm.predict(other)[:, 1], out[:, 1])


@KINDS
def test_it_learns_its_batch(action: ActionSpec) -> None:
    """Catches a loss on other units or frames than acting uses: eight windows are learnt by heart."""
    algorithm, data = build(action, hidden=(64,), learning_rate=3e-3), batch(action, 8)
    for _ in range(300):
        algorithm.update(data, seeded())
    mask = None if data.action_mask is None else data.action_mask[:, 0]
    acted = algorithm.policy(ActingConfig()).act(data.observations[:, 0], mask, torch.zeros(8, AGENTS))
    if action.is_discrete:
        assert torch.equal(acted, data.actions[:, 0])
    else:
        assert (acted - data.actions[:, 0]).abs().mean() < 0.1
