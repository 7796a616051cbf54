"""MA-TD3+BC against hand-computed numbers and a plain per-agent reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from marl_flow.baselines.ma_td3_bc import MATD3BC, TD3BCConfig, actor_loss, bootstrapped
from marl_flow.interfaces import ActingConfig, ActionSpec, Batch, TaskSpec, UserError
from marl_flow.normalize import Normalizer, Normalizers

AGENTS, SIZE, ACTIONS = 2, 3, 2
CPU = torch.device("cpu")


def spec(**changes: Any) -> TaskSpec:
    action = ActionSpec(kind="continuous", size=ACTIONS, low=(-1.0, 0.0), high=(1.0, 4.0))
    plain = {
        "task_id": "test/td",
        "agents": ("a", "b"),
        "observation_size": SIZE,
        "max_steps": 5,
        "team_reward": "mean",
    }
    return TaskSpec(**{**plain, "action": action, **changes})


def identity(size: int, *, center: float = 0.0, scale: float = 1.0) -> Normalizer:
    tables = {"center": torch.full((size,), center), "scale": torch.full((size,), scale)}
    return Normalizer(kind="standard", per_agent=False, tables=tables)


def untouched(**changes: Normalizer) -> Normalizers:
    """Normalisers that leave everything as it is, whichever there are."""
    parts = {field.name: identity(SIZE) for field in dataclasses.fields(Normalizers)}
    return Normalizers(**{**parts, "actions": None, "returns": identity(1), **changes})


def build(seed: int = 0, returns: Normalizer | None = None, **config: Any) -> MATD3BC:
    normalizers = untouched(returns=returns or identity(1))
    plain = {"hidden": (8,), "learning_rate": 1e-2, "batch_size": 4}
    generator = torch.Generator().manual_seed(seed)
    return MATD3BC.build(TD3BCConfig(**{**plain, **config}), spec(), normalizers, device=CPU, generator=generator)


def batch(size: int = 4, seed: int = 0, **changes: Any) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    plain = {
        "observations": torch.randn(size, 2, AGENTS, SIZE, generator=draw),
        "actions": torch.rand(size, 1, AGENTS, ACTIONS, generator=draw) * torch.tensor([2.0, 4.0])
        - torch.tensor([1.0, 0.0]),
        "rewards": torch.randn(size, 1, AGENTS, generator=draw),
        "returns_to_go": torch.zeros(size, AGENTS),
        "terminated": torch.zeros(size, 1, dtype=torch.bool),
        "valid": torch.ones(size, 1, dtype=torch.bool),
        "start_step": torch.zeros(size, dtype=torch.int64),
    }
    return Batch(**{**plain, **changes})


def noise(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_critic(algorithm: MATD3BC, weights: Tensor, biases: Tensor) -> None:
    """Makes the target critic linear: weights [members, O + A], biases [members]."""
    (layer,) = algorithm.target_critic.layers
    layer.weight.data.copy_(weights[..., None])
    layer.bias.data.copy_(biases[:, None, None])


def still_actor(algorithm: MATD3BC) -> None:
    """Makes the target actors answer zero in [-1, 1]."""
    for parameter in algorithm.target_actor.parameters():
        parameter.data.zero_()


def test_targets_of_two_transitions_by_hand() -> None:
    """Catches a maximum over twins, the wrong frame, agents swapped, and a time limit taken for the end.

    Twin 1 says 2 * (first number of the next observation), twin 2 says 10; the first transition ends by a time limit
    (not terminated), the second terminates. Discount 1/2.
    """
    algorithm = build(hidden=(), discount=0.5, target_noise=0.0)
    weights = torch.zeros(2 * AGENTS, SIZE + ACTIONS)
    weights[:AGENTS, 0] = 2.0
    linear_critic(algorithm, weights, torch.tensor([0.0, 0.0, 10.0, 10.0]))
    still_actor(algorithm)
    observations = torch.full((2, 2, AGENTS, SIZE), 99.0)
    observations[:, 1, :, 0] = torch.tensor([[3.0, 30.0], [3.0, 30.0]])
    data = batch(
        2,
        observations=observations,
        rewards=torch.tensor([[[1.0, -1.0]], [[1.0, -1.0]]]),
        terminated=torch.tensor([[False], [True]]),
    )
    assert algorithm.targets(data, noise()).tolist() == [[1.0 + 0.5 * 6.0, -1.0 + 0.5 * 10.0], [1.0, -1.0]]


def test_the_bootstrap_alone() -> None:
    """Catches the same in the pure function."""
    following = torch.tensor([[[4.0, 1.0]], [[2.0, 3.0]]])
    for ends, expected in ((False, [[2.8, 1.9]]), (True, [[1.0, 1.0]])):
        found = bootstrapped(torch.ones(1, 2), torch.tensor([ends]), following, 0.9)
        torch.testing.assert_close(found, torch.tensor(expected))


def test_values_are_raw_whatever_the_unit_of_the_network() -> None:
    """Catches rewards added to normalised values: the critic's 1.5 means 7 + 2 * 1.5 = 10."""
    algorithm = build(hidden=(), discount=0.5, target_noise=0.0, returns=identity(1, center=7.0, scale=2.0))
    linear_critic(algorithm, torch.zeros(4, SIZE + ACTIONS), torch.full((4,), 1.5))
    still_actor(algorithm)
    data = batch(1, rewards=torch.ones(1, 1, AGENTS))
    assert algorithm.targets(data, noise()).tolist() == [[6.0, 6.0]]


def test_target_noise_is_clipped_and_stays_in_the_box() -> None:
    """Catches unclipped smoothing noise, noise on the wrong scale, and target actions out of bounds."""
    algorithm = build(hidden=(), discount=0.5, target_noise=100.0, target_noise_clip=0.25)
    weights = torch.zeros(4, SIZE + ACTIONS)
    weights[:, SIZE] = 1.0  # the value is the first action
    linear_critic(algorithm, weights, torch.zeros(4))
    still_actor(algorithm)
    data = batch(64, rewards=torch.zeros(64, 1, AGENTS))
    values = algorithm.targets(data, noise()) / 0.5
    assert values.abs().max() == 0.25 and (values.abs() == 0.25).float().mean() > 0.9
    algorithm.target_actor.layers[0].bias.data.fill_(100.0)  # tanh of it is 1
    assert (algorithm.targets(data, noise()) / 0.5).max() == 1.0


def reference_step(algorithm: MATD3BC, data: Batch, agent: int) -> dict[str, Tensor]:
    """Gradients of one agent's critics and actor, computed alone with plain linear layers and autograd."""

    def net(stack: nn.Module, member: int) -> list[Tensor]:
        return [
            p.detach()[member].clone().requires_grad_() for layer in stack.layers for p in (layer.weight, layer.bias)
        ]

    def run(parameters: list[Tensor], x: Tensor, norm: bool) -> Tensor:
        for i in range(0, len(parameters), 2):
            x = x @ parameters[i] + parameters[i + 1]
            if i < len(parameters) - 2:
                x = functional.layer_norm(x, x.shape[-1:]) if norm else x
                x = x.relu()
        return x

    now, after = data.observations[:, 0, agent], data.observations[:, 1, agent]
    action = data.actions[:, 0, agent] * torch.tensor([1.0, 0.5]) - torch.tensor([0.0, 1.0])
    twins = [net(algorithm.critic, agent), net(algorithm.critic, AGENTS + agent)]
    with torch.no_grad():
        smooth = torch.randn(data.size, AGENTS, ACTIONS, generator=noise())[:, agent] * 0.2
        following = run(net(algorithm.target_actor, agent), after, False).tanh() + smooth.clamp(-0.5, 0.5)
        x = torch.cat([after, following.clamp(-1, 1)], -1)
        q = torch.minimum(
            run(net(algorithm.target_critic, agent), x, True),
            run(net(algorithm.target_critic, AGENTS + agent), x, True),
        )[:, 0]
        y = data.rewards[:, 0, agent] + 0.95 * q * (~data.terminated[:, 0])
    real = data.valid[:, 0]
    critic = sum(((run(twin, torch.cat([now, action], -1), True)[:, 0] - y)[real] ** 2).mean() for twin in twins)
    actor = net(algorithm.actor, agent)
    chosen = run(actor, now, False).tanh()
    value = run([p.detach() for p in twins[0]], torch.cat([now, chosen], -1), True)[:, 0]
    improve = -(2.5 / value[real].abs().mean()).detach() * value[real].mean() + ((chosen - action)[real] ** 2).mean()
    return {"critic": torch.autograd.grad(critic, twins[0] + twins[1]), "actor": torch.autograd.grad(improve, actor)}


def test_one_step_equals_independent_agents() -> None:
    """Catches agents or twins mixed by the stacking, a wrong lambda, padding in a mean, and twins averaged wrongly."""
    valid = torch.tensor([[True], [True], [False], [True]])
    algorithm, data = build(), batch(4, terminated=torch.tensor([[False], [True], [False], [False]]), valid=valid)
    for optimizer, loss in (
        (algorithm.critic_optimizer, lambda: algorithm.critic_loss(data, noise())[0]),
        (algorithm.actor_optimizer, lambda: algorithm.actor_loss(data)[0]),
    ):
        optimizer.zero_grad()
        loss().backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
    for agent in range(AGENTS):
        expected = reference_step(algorithm, data, agent)
        layers = [p.grad for layer in algorithm.critic.layers for p in (layer.weight, layer.bias)]
        found = [
            grad[member] * AGENTS for member in (agent, AGENTS + agent) for grad in layers
        ]  # ours: mean over agents
        for one, other in zip(found, expected["critic"], strict=True):
            torch.testing.assert_close(one, other.reshape(one.shape), rtol=1e-4, atol=1e-6)
        found = [p.grad[agent] * AGENTS for layer in algorithm.actor.layers for p in (layer.weight, layer.bias)]
        for one, other in zip(found, expected["actor"], strict=True):
            torch.testing.assert_close(one, other.reshape(one.shape), rtol=1e-4, atol=1e-6)


def test_an_agent_never_sees_another() -> None:
    """Catches a joint critic or actor: agent 0 learns the same whatever agent 1 sees, does and earns."""
    results = []
    for change in (0.0, 3.0):
        algorithm, data = build(), batch()
        for tensor in (data.observations, data.rewards):
            tensor[:, :, 1] += change
        for _ in range(2):
            algorithm.update(data, noise())
        results.append([algorithm.actor.layers[0].weight[0], algorithm.critic.layers[0].weight[[0, 2]]])
        own = algorithm.policy(ActingConfig()).act(
            torch.tensor([[[0.1, 0.2, 0.3], [change] * 3]]), None, torch.zeros(1, 2)
        )[0, 0]
        results[-1].append(own)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_padding_cannot_change_the_losses() -> None:
    """Catches a mean over rows that are not real."""
    algorithm, data = build(), batch(valid=torch.tensor([[True], [False], [True], [False]]))
    changed = dataclasses.replace(
        data,
        **{
            name: torch.where(
                data.valid.reshape(4, 1, *[1] * (getattr(data, name).dim() - 2)), getattr(data, name), 7.0
            )
            for name in ("observations", "actions", "rewards")
        },
    )
    torch.testing.assert_close(algorithm.critic_loss(data, noise())[0], algorithm.critic_loss(changed, noise())[0])
    torch.testing.assert_close(algorithm.actor_loss(data)[0], algorithm.actor_loss(changed)[0])


def test_actor_loss_by_hand() -> None:
    """Catches lambda over all agents together, and a gradient through lambda. Agent 0: |Q| is 3, agent 1: 30."""
    values = torch.tensor([[2.0, -20.0], [-4.0, 40.0]], requires_grad=True)
    actions = torch.tensor([[[0.5], [0.0]], [[0.0], [0.0]]])
    loss = actor_loss(values, actions, torch.zeros_like(actions), torch.ones(2, dtype=torch.bool), 3.0)
    # improvement: mean of (2, -4) * 3/3 and (-20, 40) * 3/30; imitation: 0.25 / 4
    assert loss.item() == pytest.approx(0.0625 - (2 - 4 - 2 + 4) / 4, rel=1e-4)
    loss.backward()
    torch.testing.assert_close(values.grad, torch.tensor([[-0.25, -0.025], [-0.25, -0.025]]))


def test_the_actor_and_the_targets_move_every_second_update() -> None:
    """Catches a missing policy delay, and targets that jump or stand still."""
    algorithm, data = build(target_rate=0.25), batch()
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    assert set(algorithm.update(data, noise())) == {"critic_loss", "value"}
    middle = {name: value.clone() for name, value in algorithm.state_dict().items()}
    moved = {
        name.partition("/")[0] for name, value in middle.items() if not torch.equal(value, before.get(name, value))
    }
    assert moved == {"critic", "updates_done"}
    assert set(algorithm.update(data, noise())) == {"critic_loss", "value", "actor_loss"}
    after = algorithm.state_dict()
    for part in ("actor", "critic"):
        name = "layers.0.weight"
        expected = torch.lerp(before[f"target_{part}/{name}"], after[f"{part}/{name}"], 0.25)
        torch.testing.assert_close(after[f"target_{part}/{name}"], expected)
        assert not torch.equal(before[f"{part}/{name}"], after[f"{part}/{name}"])


def test_actions_cover_their_own_bounds() -> None:
    """Catches actions left in [-1, 1] where a dimension runs from 0 to 4, and noise while acting."""
    algorithm = build()
    for bias, expected in ((100.0, [1.0, 4.0]), (-100.0, [-1.0, 0.0]), (0.0, [0.0, 2.0])):
        for layer in algorithm.actor.layers:
            layer.weight.data.zero_()
            layer.bias.data.fill_(bias)
        algorithm.actor.layers[0].bias.data.fill_(0.0)
        policy = algorithm.policy(ActingConfig())
        policy.reset(3, noise())
        actions = policy.act(torch.randn(3, AGENTS, SIZE, generator=noise()), None, torch.zeros(3, AGENTS))
        torch.testing.assert_close(actions, torch.tensor(expected).expand(3, AGENTS, ACTIONS))


def test_discrete_tasks_and_impossible_requests_are_refused() -> None:
    """Catches a continuous critic fed with choices, and step counts pretended to matter."""
    discrete = spec(action=ActionSpec(kind="discrete", size=4))
    normalizers = untouched()
    with pytest.raises(UserError, match="needs continuous actions, but test/td has discrete ones"):
        MATD3BC.build(TD3BCConfig(), discrete, normalizers, device=CPU, generator=noise())
    for acting in (
        ActingConfig(execution="centralized"),
        ActingConfig(num_sampling_steps=1),
        ActingConfig(target_return=1.0),
    ):
        with pytest.raises(UserError, match="acts in decentralized execution, without sampling steps"):
            build().policy(acting)


def test_it_learns_what_imitation_cannot() -> None:
    """Catches a sign error anywhere: data are uniform in the box, whose corner (1, 0) is paid best."""
    algorithm, draw = build(hidden=(32,)), np.random.default_rng(0)
    corner = torch.tensor([1.0, 0.0])
    for seed in range(150):
        unit = torch.from_numpy(draw.uniform(size=(64, 1, AGENTS, ACTIONS)).astype(np.float32))
        actions = unit * torch.tensor([2.0, 4.0]) - torch.tensor([1.0, 0.0])
        rewards = actions[..., 0] - actions[..., 1] / 2
        ends = torch.ones(64, 1, dtype=torch.bool)
        algorithm.update(batch(64, seed, actions=actions, rewards=rewards, terminated=ends), noise(seed))
    actions = algorithm.policy(ActingConfig()).act(batch(64).observations[:, 0], None, torch.zeros(64, AGENTS))
    torch.testing.assert_close(actions.mean((0, 1)), corner, rtol=0, atol=0.4)
