"""Invariances of CoFlow: padding, permutation, decentralized execution, gates, history, discrete actions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from marl_flow.coflow import loss
from marl_flow.coflow.algorithm import CoFlow
from marl_flow.coflow.config import CoFlowConfig
from marl_flow.coflow.inputs import draw_flow_sample, encode_observations, given_frames, prepend_agent_ids
from marl_flow.coflow.model import Condition
from marl_flow.coflow.policy import FlowPolicy
from marl_flow.interfaces import ActingConfig, ActionSpec, Batch, TaskSpec, UserError
from marl_flow.normalize import Normalizer, Normalizers
from marl_flow.tensors import append_dims

AGENTS, SIZE, CHOICES = 3, 5, 4
TINY = CoFlowConfig(width=32, token_blocks=2, inverse_hidden=16, horizon=3, history=2, conditioning="mixed")
TINY_UNET = dataclasses.replace(
    TINY, backbone="unet", width=16, unet_multipliers=(1, 2), output="velocity", plan_space="absolute"
)
CONFIGS = pytest.mark.parametrize("config", [TINY, TINY_UNET], ids=["token", "unet"])


def spec(discrete: bool = False) -> TaskSpec:
    action = (
        ActionSpec(kind="discrete", size=CHOICES)
        if discrete
        else ActionSpec(kind="continuous", size=2, low=(-1.0, -1.0), high=(1.0, 1.0))
    )
    return TaskSpec(
        task_id="test/task",
        agents=("a", "b", "c"),
        observation_size=SIZE,
        action=action,
        max_steps=10,
        team_reward="mean",
    )


def build(config: CoFlowConfig, *, discrete: bool = False) -> CoFlow:
    values = np.random.default_rng(0).normal(size=(50, 1, SIZE)).astype(np.float32)
    normalizers = Normalizers(
        observations=Normalizer.fit("limits", values),
        actions=None if discrete else Normalizer.fit("limits", np.array([[[-1.0] * 2], [[1.0] * 2]], np.float32)),
        returns=Normalizer.fit("limits", np.array([[[0.0]], [[10.0]]], np.float32)),
        changes=Normalizer.fit("standard", 0.2 * values),
    )
    cpu = torch.device("cpu")
    algorithm = CoFlow.build(config, spec(discrete), normalizers, device=cpu, generator=seeded())
    gates = torch.linspace(0.5, 1.5, len(algorithm.model.network.gates()))
    algorithm.model.network.set_gates(gates)
    algorithm.average.module.network.set_gates(gates)
    return algorithm


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(config: CoFlowConfig, *, discrete: bool = False, size: int = 6) -> Batch:
    draw, steps = seeded(1), config.horizon
    valid = torch.ones(size, steps, dtype=torch.bool)
    valid[0, 1:] = False
    valid[1, 2:] = False
    mask = None
    actions = torch.rand(size, steps, AGENTS, 2, generator=draw) * 2 - 1
    if discrete:
        mask = torch.rand(size, steps + 1, AGENTS, CHOICES, generator=draw) < 0.6
        mask[..., 0] = True
        actions = torch.zeros(size, steps, AGENTS, dtype=torch.int64)
    return Batch(
        observations=torch.randn(size, config.frames, AGENTS, SIZE, generator=draw),
        actions=actions,
        rewards=torch.rand(size, steps, AGENTS, generator=draw),
        returns_to_go=torch.rand(size, AGENTS, generator=draw) * 10,
        terminated=torch.zeros(size, steps, dtype=torch.bool),
        valid=valid,
        start_step=torch.full((size,), 3),
        action_mask=mask,
    )


def policy(algorithm: CoFlow, execution: str, *, steps: int = 2, envs: int = 4, per_plan: int = 1) -> FlowPolicy:
    acting = ActingConfig(execution=execution, num_sampling_steps=steps, target_return=5.0, actions_per_plan=per_plan)
    chosen = algorithm.policy(acting)
    chosen.reset(envs, seeded(3))
    return chosen


@CONFIGS
@pytest.mark.parametrize("discrete", [False, True])
def test_padding_cannot_change_the_loss(config: CoFlowConfig, discrete: bool) -> None:
    """Catches a loss that reads frames, actions or masks past the end of an episode."""
    algorithm, original = build(config, discrete=discrete), batch(config, discrete=discrete)
    observations, actions = original.observations.clone(), original.actions.clone()
    padded = ~original.valid
    observations[:, config.history + 1 :][padded] += 7.0
    actions[padded] = 3 if discrete else 0.5
    changes: dict[str, torch.Tensor] = {"observations": observations, "actions": actions}
    if original.action_mask is not None:
        action_mask = original.action_mask.clone()
        action_mask[:, :-1][padded] = ~action_mask[:, :-1][padded]
        changes["action_mask"] = action_mask
    total, _ = algorithm.loss(original, seeded(5))
    changed, _ = algorithm.loss(dataclasses.replace(original, **changes), seeded(5))
    assert torch.isfinite(total)
    torch.testing.assert_close(total, changed, rtol=1e-6, atol=0)


def test_the_release_counts_padding_and_given_frames() -> None:
    """Catches the release's plain mean quietly masked, or its padding noised like frames that do not count."""
    config = dataclasses.replace(TINY_UNET, masked=False)
    algorithm, data = build(config), batch(config)
    frames = encode_observations(data.observations, config, algorithm.spec, algorithm.normalizers)
    sample = draw_flow_sample(frames, data, config, algorithm.normalizers, seeded(5))
    assert not data.valid.all() and torch.equal(sample.generated_mask, ~sample.condition.given_mask)

    def u(noisy: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return algorithm.model.velocity(noisy, t, label, sample.condition)

    with torch.no_grad():
        everything = (loss.predicted_velocity(config.objective, u, sample) - sample.target_velocity).square().mean()
        torch.testing.assert_close(loss.flow_loss(algorithm.model, sample, config), everything)


@CONFIGS
@pytest.mark.parametrize("execution", ["centralized", "decentralized"])
def test_permuting_agents_permutes_plans(config: CoFlowConfig, execution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an agent index that leaks into the network. Noise is permuted with the agents, so it is set to zero."""
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape))
    algorithm = build(config)
    frames = torch.empty(4, config.history + 1, AGENTS, SIZE).normal_(generator=seeded(2))
    order = torch.tensor([2, 0, 1])
    plan = policy(algorithm, execution).plan(frames)
    permuted = policy(algorithm, execution).plan(frames[:, :, order])
    assert not torch.allclose(plan, permuted)
    torch.testing.assert_close(plan[:, :, order], permuted, rtol=1e-4, atol=1e-5)


@CONFIGS
def test_decentralized_actions_ignore_team_mates(config: CoFlowConfig) -> None:
    """Catches a team-mate's observation or reward reaching an agent's action; centralized execution must show it."""
    algorithm = build(config)
    for execution in ("centralized", "decentralized"):
        actions = []
        for disturb in (0.0, 0.4):
            acting = policy(algorithm, execution)
            draw = seeded(4)
            for _ in range(4):  # several steps: history must not leak either
                observations = torch.empty(4, AGENTS, SIZE).normal_(generator=draw)
                rewards = torch.empty(4, AGENTS).uniform_(generator=draw)
                observations[:, 1:] += disturb
                rewards[:, 1:] += disturb
                out = acting.act(observations, None, rewards)
            actions.append(out[:, 0])
        assert torch.equal(*actions) == (execution == "decentralized"), execution


@CONFIGS
def test_zero_gates_are_independent_agents(config: CoFlowConfig) -> None:
    """Catches coupling outside the gates: with gate scale 0 or zero gates a plan depends on its own agent only."""
    algorithm = build(config)
    frames = torch.empty(4, config.history + 1, AGENTS, SIZE).normal_(generator=seeded(2))
    disturbed = frames.clone()
    disturbed[:, :, 1:] += 0.5

    def own_plans(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        plans = []
        for observed in (frames, disturbed):
            acting = policy(algorithm, "centralized")
            acting.gate_scale = scale
            plans.append(acting.plan(observed)[:, :, 0])
        return plans[0], plans[1]

    assert torch.equal(*own_plans(0.0))
    assert not torch.equal(*own_plans(1.0))
    algorithm.average.module.network.set_gates(torch.zeros(len(algorithm.model.network.gates())))
    assert torch.equal(*own_plans(1.0))


def test_attention_is_readable_from_outside() -> None:
    """Catches attention recorded for the wrong pass, or rows that are not distributions over agents."""
    acting = policy(build(TINY), "decentralized", steps=3)
    acting.record_attention = True
    acting.act(torch.zeros(4, AGENTS, SIZE), None, torch.zeros(4, AGENTS))
    assert len(acting.attention) == 3 * TINY.token_blocks
    for weights in acting.attention:
        assert weights.shape == (TINY.heads, 4 * AGENTS, AGENTS, AGENTS)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_history_starts_with_the_first_frame_and_slides() -> None:
    """Catches history kept across episodes, or shifted the wrong way."""
    acting = policy(build(TINY), "centralized")
    frames = [torch.full((4, AGENTS, SIZE), 0.1 * i) for i in range(5)]
    zero = torch.zeros(4, AGENTS)
    normalize = acting.normalizers.observations.apply
    acting.act(frames[1], None, zero)
    assert acting.recent_frames is not None
    torch.testing.assert_close(acting.recent_frames, normalize(torch.stack([frames[1]] * 3, 1)))
    acting.act(frames[2], None, zero)
    acting.act(frames[3], None, zero)
    torch.testing.assert_close(acting.recent_frames, normalize(torch.stack(frames[1:4], 1)))
    acting.reset(4, seeded())
    acting.act(frames[4], None, zero)
    torch.testing.assert_close(acting.recent_frames, normalize(torch.stack([frames[4]] * 3, 1)))


def test_return_to_go_counts_down() -> None:
    """Catches the reward of the reset step being subtracted, or the discount multiplied instead of divided."""
    acting = policy(build(TINY), "centralized", envs=1)
    observation = torch.zeros(1, AGENTS, SIZE)
    acting.act(observation, None, torch.tensor([[9.0, 9.0, 9.0]]))
    assert torch.equal(acting.returns, torch.full((1, AGENTS), 5.0))
    acting.act(observation, None, torch.tensor([[1.0, 2.0, 3.0]]))
    torch.testing.assert_close(acting.returns, torch.tensor([[4.0, 3.0, 2.0]]) / TINY.discount)


def test_long_tasks_keep_their_target() -> None:
    """Catches a target that is updated over 1,000 steps, which makes nonsense of it, and a choice that is overruled."""
    short, long = (dataclasses.replace(spec(), max_steps=steps) for steps in (400, 500))
    assert TINY.updates_return(short) and not TINY.updates_return(long)  # 0.99 ** -458 is 100
    assert dataclasses.replace(TINY, return_to_go_update=True).updates_return(long)
    assert not dataclasses.replace(TINY, return_to_go_update=False).updates_return(short)
    assert not dataclasses.replace(TINY, discount=0.0).updates_return(short)
    algorithm = build(TINY)
    algorithm.spec = long
    acting = policy(algorithm, "centralized", envs=1)
    for _ in range(3):
        acting.act(torch.zeros(1, AGENTS, SIZE), None, torch.ones(1, AGENTS))
    assert torch.equal(acting.returns, torch.full((1, AGENTS), 5.0))


def test_discrete_actions_are_legal() -> None:
    """Catches an argmax before the mask."""
    acting = policy(build(TINY, discrete=True), "decentralized", envs=200)
    draw = seeded(7)
    observations = torch.empty(200, AGENTS, SIZE).normal_(generator=draw)
    mask = torch.rand(200, AGENTS, CHOICES, generator=draw) < 0.4
    mask[..., 2] |= ~mask.any(-1)
    choices = acting.act(observations, mask, torch.zeros(200, AGENTS))
    assert choices.shape == (200, AGENTS)
    assert mask.gather(-1, choices[..., None]).all()


def test_jvp_differentiates_the_loss_along_its_path() -> None:
    """Catches a tangent through entries that are given or padded, which do not move with t."""
    config = dataclasses.replace(TINY, objective="jvp")
    algorithm, data = build(config), batch(config)
    algorithm.model.double()
    frames = data.observations.double()
    visible = torch.arange(6)[:, None] % AGENTS == torch.arange(AGENTS)
    given_mask, given_values = given_frames(frames, config.history, visible)
    noise = torch.empty_like(frames).normal_(generator=seeded(3))
    returns = torch.zeros(6, AGENTS, dtype=torch.float64)
    t, r = torch.linspace(0.3, 0.9, 6).double(), torch.linspace(0.1, 0.5, 6).double()
    real = torch.nn.functional.pad(data.valid, (config.history + 1, 0), value=True)
    condition = Condition(given_mask, returns)
    sample = loss.FlowSample.on_path(frames, noise, t, r, condition=condition, given_values=given_values, real=real)

    def u(noisy: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return algorithm.model.velocity(noisy, time, label, condition)

    def along(time: torch.Tensor) -> torch.Tensor:
        at = torch.where(given_mask[..., None], given_values, loss.interpolate(frames, noise, time))
        return u(torch.where((given_mask | ~real[..., None])[..., None], sample.noisy, at), time, time)

    step = 1e-6
    with torch.no_grad():
        slope = (along(t + step) - along(t - step)) / (2 * step)
        expected = along(t) + append_dims(t - r, frames) * slope
        v = loss.predicted_velocity("jvp", u, sample)
    assert (v - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "change",
    [
        {"width": 8},
        {"heads": 3},
        {"token_blocks": 0},
        {"embedding_width": 7},
        {"learning_rate": -1.0},
        {"ema_every": 0},
        {"return_to_go_update": True, "discount": 0.0},
        {"guidance_weight": 1.2},
        {"guidance_weight": 1.2, "condition_dropout": 0.2, "guidance_in_loss": True},
        {"backbone": "unet", "horizon": 4},
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object]) -> None:
    """Catches a setting that fails only inside the network, or trains something else than it says."""
    with pytest.raises(ValueError, match=next(iter(change)).replace("backbone", "U-Net")):
        dataclasses.replace(CoFlowConfig(), **change)


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({"width": 24, "unet_multipliers": (1, 4, 8), "attention_on_every_skip": False}, True),
        ({"width": 8, "unet_multipliers": (1, 2), "heads": 4, "attention_on_every_skip": False}, True),
        ({"width": 24, "unet_multipliers": (1, 2), "heads": 6}, True),
        ({"width": 24, "unet_multipliers": (1, 4)}, False),
        ({"width": 24, "unet_multipliers": (1, 3), "heads": 4, "attention_on_every_skip": False}, False),
        ({"width": 20, "unet_multipliers": (1, 4), "attention_on_every_skip": False}, False),
        ({"width": 8, "unet_multipliers": (1,), "attention_on_every_skip": False}, False),
        ({"width": 16, "unet_multipliers": (1, 0)}, False),
        ({"backbone": "token", "width": 20, "heads": 5}, True),
        ({"backbone": "token", "width": 24, "heads": 4}, False),
        ({"backbone": "token", "width": 16, "heads": 4, "unet_multipliers": (1, 5)}, True),
    ],
)
def test_every_width_that_runs_is_accepted(change: dict[str, object], runs: bool) -> None:
    """Catches a check of channels that no agent attends on, and one missing where agents do: the error must name the
    setting, not come from inside the network."""
    unet = dataclasses.replace(TINY_UNET, horizon=5)
    if not runs:
        with pytest.raises(ValueError, match=r"width|unet_multipliers"):
            dataclasses.replace(unet, **change)
        return
    config = dataclasses.replace(unet, **change)
    algorithm = build(config)
    frames = torch.zeros(4, config.history + 1, AGENTS, SIZE)
    assert policy(algorithm, "centralized").plan(frames).isfinite().all()


def test_same_noise_for_every_step_count_and_pass_count() -> None:
    """Catches noise drawn per sampling step (step counts would not be paired), and a miscounted latency column."""
    algorithm = build(TINY)
    states = []
    for steps in (1, 3):
        acting = policy(algorithm, "centralized", steps=steps)
        assert acting.network_passes == steps
        acting.act(torch.zeros(4, AGENTS, SIZE), None, torch.zeros(4, AGENTS))
        states.append(acting.generator.get_state())
    assert torch.equal(*states)
    guided = build(dataclasses.replace(TINY, guidance_weight=1.2, condition_dropout=0.25))
    assert policy(guided, "centralized", steps=3).network_passes == 6


@CONFIGS
@pytest.mark.parametrize("execution", ["centralized", "decentralized"])
@pytest.mark.parametrize("per_plan", [1, 2, 3])
def test_plans_are_acted_on_closed_loop(
    config: CoFlowConfig, execution: str, per_plan: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches planning too often or too seldom, the wrong planned frame, an action from the plan's own frame instead of
    the observed one, and a first action that is not the one of receding-horizon control, bit for bit."""
    algorithm = build(config)
    acting = policy(algorithm, execution, per_plan=per_plan)
    plans: list[torch.Tensor] = []
    original = FlowPolicy.plan
    monkeypatch.setattr(FlowPolicy, "plan", lambda self, frames: (plans.append(original(self, frames)), plans[-1])[1])
    draw, now = seeded(4), config.history
    for decision in range(7):
        if decision == 5:  # in the middle of a plan of two, at the end of a plan of three
            acting.reset(4, seeded(3))
        observations = torch.empty(4, AGENTS, SIZE).normal_(generator=draw)
        actions = acting.act(observations, None, torch.zeros(4, AGENTS))
        ahead = (decision if decision < 5 else decision - 5) % per_plan
        frame = encode_observations(observations, config, algorithm.spec, algorithm.normalizers)
        if ahead == 0:
            assert torch.equal(plans[-1][:, now], frame)
        with torch.no_grad():
            inverse = acting.model.inverse
            output = inverse(plans[-1][:, now] if ahead == 0 else frame, plans[-1][:, now + ahead + 1])
        assert torch.equal(actions, acting._actions(output, None))
    assert len(plans) == {1: 7, 2: 4, 3: 3}[per_plan]
    assert acting.network_passes == 2 / per_plan


@pytest.mark.parametrize("per_plan", [0, 4])
def test_no_more_actions_than_planned_steps(per_plan: int) -> None:
    """Catches acting on frames that no plan has, or a message that does not say how many there are."""
    with pytest.raises(UserError, match=rf"actions-per-plan: expected 1 to 3, the horizon .*, got {per_plan};"):
        policy(build(TINY), "centralized", per_plan=per_plan)


def test_refuses_an_execution_it_was_not_trained_for() -> None:
    """Catches C results of a D model entering a table."""
    algorithm = build(dataclasses.replace(TINY, conditioning="decentralized"))
    with pytest.raises(UserError, match="conditioning"):
        policy(algorithm, "centralized")


@pytest.mark.parametrize(
    ("config", "chosen", "updates", "left"),
    [
        (TINY, "finite_difference", 600, 0.1),
        pytest.param(TINY, "instantaneous", 600, 0.1, marks=pytest.mark.slow),
        pytest.param(TINY, "jvp", 600, 0.1, marks=pytest.mark.slow),
        # slower to learn; a prediction of the mean would leave 1
        pytest.param(TINY_UNET, "finite_difference", 500, 0.5, marks=pytest.mark.slow),
    ],
    ids=["finite_difference", "instantaneous", "jvp", "unet"],
)
def test_overfits_a_few_windows(config: CoFlowConfig, chosen: str, updates: int, left: float) -> None:
    """Catches an objective, plan space or sampler with a wrong sign: four windows must be learned and sampled back."""
    config = dataclasses.replace(
        config,
        width=2 * config.width,
        conditioning="centralized",
        objective=chosen,
        history=0,
        updates=updates,
        learning_rate=3e-3,
        full_noise_share=0.6,
    )
    algorithm, data = build(config), batch(config, size=4)
    data = dataclasses.replace(data, valid=torch.ones_like(data.valid))
    draw = seeded(11)
    for _ in range(updates):
        algorithm.update(data, draw)
    acting = policy(algorithm, "centralized", steps=1, envs=4)
    acting.returns = data.returns_to_go
    frames = algorithm.normalizers.observations.apply(data.observations)
    plan = acting.plan(frames[:, :1])
    error = (plan - frames)[:, 1:].pow(2).mean()
    assert error < left * frames.var(), float(error)


def test_state_round_trip_continues_alike() -> None:
    """Catches an optimiser moment, average or update counter left out of the state."""
    first, second = build(TINY), build(TINY)
    data, draw = batch(TINY), seeded(1)
    for _ in range(3):
        first.update(data, draw)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    other = torch.Generator()
    other.set_state(draw.get_state())
    first.update(data, draw)
    second.update(data, other)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_agent_ids_are_normalised_as_a_column_of_the_data_would_be() -> None:
    """Catches ids that stand out from the other features: each kind of normaliser, fitted on the very columns."""
    ids = np.tile(np.eye(4, dtype=np.float32), (50, 1, 1))  # [steps, N, N]
    for kind in ("cdf", "limits", "standard"):
        fitted = Normalizer.fit(kind, ids)
        frames = prepend_agent_ids(torch.zeros(2, 4, 3), kind)
        assert frames.shape == (2, 4, 7) and not frames[..., 4:].any()
        torch.testing.assert_close(frames[0, :, :4], fitted.apply(torch.eye(4)), atol=0.02, rtol=0.0)


@pytest.mark.parametrize(("discrete", "agent_ids", "size"), [(True, None, 8), (False, None, 5), (True, False, 5)])
def test_frames_have_ids_where_actions_are_discrete(discrete: bool, agent_ids: bool | None, size: int) -> None:
    """Catches ids where the release has none, and a discrete task without them."""
    config = dataclasses.replace(TINY, agent_ids=agent_ids)
    assert config.frame_size(spec(discrete)) == size
    assert encode_observations(torch.zeros(1, 3, 5), config, spec(discrete), build(config).normalizers).shape == (
        1,
        3,
        size,
    )


def test_agents_with_equal_observations_may_act_differently() -> None:
    """Catches ids that are built but do not reach the networks: a plan for equal observations is not equal."""
    frames = encode_observations(torch.zeros(1, 3, 5), TINY, spec(True), build(TINY, discrete=True).normalizers)
    assert not torch.equal(frames[0, 0], frames[0, 1])
    algorithm = build(TINY, discrete=True)
    logits = algorithm.model.inverse(frames, frames)
    assert not torch.equal(logits[0, 0], logits[0, 1])
