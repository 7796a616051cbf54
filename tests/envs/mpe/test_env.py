"""The particle tasks against recorded trajectories of the original, against hand calculation, and the contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from marl_flow import envs, seeding
from marl_flow.envs.checks import check_vector_env
from marl_flow.envs.mpe.physics import ParticleState, build_bodies, contact_forces, separations
from marl_flow.envs.mpe.prey import FleeingPrey, NetworkPrey
from marl_flow.envs.mpe.scenarios import SCENARIOS, spread_rewards, tag_rewards, world_rewards
from marl_flow.interfaces import UserError

TASKS = tuple(task_id for task_id in envs.TASKS if task_id.startswith("mpe/"))
HUNTS = ("simple_tag", "simple_world")
ZERO_STEPS = torch.zeros(1, dtype=torch.int64)


class RecordedPrey:
    """Plays the actions of a recording, whatever it sees."""

    network_passes = 0

    def __init__(self, actions: Tensor) -> None:
        self.actions, self.index = actions, 0

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self.index = 0

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        self.index += 1
        return self.actions[self.index - 1].to(observations.dtype)[None, None]


def recording(golden_folder: Path, task: str, index: int) -> dict[str, Tensor]:
    with np.load(golden_folder / "mpe_trajectories.npz") as file:
        names = [name for name in file.files if name.startswith(f"{task}/{index}/") and not name.endswith("_names")]
        return {name.rpartition("/")[2]: torch.from_numpy(file[name]) for name in names}


def replay(env, golden: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference per quantity over a recorded episode, from its restored first state."""
    worst: dict[str, float] = {}

    def compare(name: str, mine: Tensor, theirs: Tensor) -> None:
        assert mine.shape == theirs.shape and mine.dtype == torch.float64
        worst[name] = max(worst.get(name, 0.0), float((mine - theirs).abs().max()))

    state = ParticleState(positions=golden["positions"][:1], velocities=golden["velocities"][:1], steps=ZERO_STEPS)
    step = env.set_state(state)
    received = env.returns
    for index in range(26):
        compare("observations", step.observations[0], golden["observations"][index])
        compare("positions", env.state.positions[0], golden["positions"][index])
        compare("velocities", env.state.velocities[0], golden["velocities"][index])
        if "prey_observations" in golden:
            compare("prey_observations", env.opponent_observations[0, 0], golden["prey_observations"][index])
        assert bool(step.truncated) == (index == 25) and not bool(step.terminated)
        if index < 25:
            step = env.step(golden["actions"][index][None])
            compare("rewards", env.returns[0] - received[0], golden["rewards"][index])
            compare("controlled_rewards", step.rewards[0], golden["rewards"][index, :3])
            received = env.returns
    return worst


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("task", ["simple_spread", *HUNTS])
def test_recorded_episodes_replay(golden_folder: Path, task: str, index: int) -> None:
    """Catches any slip in dynamics, contacts, observation order or rewards of all agents, the prey included."""
    golden = recording(golden_folder, task, index)
    opponent = RecordedPrey(golden["prey_actions"]) if task in HUNTS else None
    worst = replay(envs.make(f"mpe/{task}", 1, dtype=torch.float64, opponent=opponent), golden)
    assert max(worst.values()) < 1e-8, worst


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("task", HUNTS)
def test_recorded_episodes_replay_with_the_published_prey(
    golden_folder: Path, omar_prey: Callable[[str], Path], task: str, index: int
) -> None:
    """Catches a prey that acts on the wrong observation, a step late, or after its predators. The network is single
    precision: where this machine's rounds unlike the recording's, its last bits travel through the episode."""
    golden = recording(golden_folder, task, index)
    prey = NetworkPrey.from_omar(omar_prey(task))
    acted = torch.cat(
        [prey.act(observed[None, None], None, torch.zeros(1, 1)) for observed in golden["prey_observations"][:25]]
    )
    rounding = float((acted[:, 0] - golden["prey_actions"]).abs().max())
    assert rounding < 1.5e-7
    worst = replay(envs.make(f"mpe/{task}", 1, dtype=torch.float64, opponent=prey), golden)
    assert max(worst.values()) < (1e-8 if rounding == 0.0 else 1e-4), worst


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("task_id", TASKS)
def test_the_contract_holds(task_id: str, dtype: torch.dtype) -> None:
    """Catches every clause of `VectorEnv` that the checks know: neighbours, frozen rows, seeds, copies, refusals."""
    check_vector_env(lambda num_envs: envs.make(task_id, num_envs, dtype=dtype))
    assert envs.make(task_id, 2, dtype=dtype).reset([1, 2]).observations.dtype == dtype


@pytest.mark.parametrize("task_id", TASKS)
def test_rows_finish_by_their_own_counter(task_id: str) -> None:
    """Catches one counter for all rows: a row restored late freezes alone, and the others go on as if it did not."""
    env, source = envs.make(task_id, 3, dtype=torch.float64), torch.Generator().manual_seed(0)
    env.reset([1, 2, 3])
    start = env.state
    actions = torch.rand(25, 3, 3, 2, generator=source, dtype=torch.float64)
    free = [env.step(action) for action in actions[:6]]
    late = ParticleState(positions=start.positions, velocities=start.velocities, steps=torch.tensor([0, 23, 25]))
    restored = env.set_state(late)
    assert restored.truncated.tolist() == [False, False, True]
    frozen_returns = env.returns[2]
    for index in range(6):
        step = env.step(actions[index])
        assert step.truncated.tolist() == [False, index >= 1, True]
        assert torch.equal(step.observations[0], free[index].observations[0])
        assert torch.equal(step.rewards[0], free[index].rewards[0])
        assert torch.equal(step.observations[2], restored.observations[2])
        assert step.rewards[2].tolist() == [0.0] * 3 and step.rewards[1].any() == (index < 2)
    assert torch.equal(env.returns[2], frozen_returns) and env.state.steps.tolist() == [6, 25, 25]


def rolled(task_id: str, speeds: dict[int, float], num_steps: int = 1) -> Tensor:
    """Velocities [A, 2] after steps in which each agent drives along x, everyone far apart, from rest."""
    prey = (
        RecordedPrey(torch.tensor([[speeds.get(3, 0.0), 0.0]] * num_steps)) if task_id != "mpe/simple_spread" else None
    )
    env = envs.make(task_id, 1, dtype=torch.float64, opponent=prey)
    env.reset([0])
    shape = env.state.positions.shape
    points = torch.arange(shape[1], dtype=torch.float64)[None, :, None].expand(shape) * 5.0
    env.set_state(ParticleState(positions=points, velocities=env.state.velocities, steps=ZERO_STEPS))
    actions = torch.tensor([[[speeds.get(agent, 0.0), 0.0] for agent in range(3)]], dtype=torch.float64)
    for _ in range(num_steps):
        env.step(actions)
    return env.state.velocities[0]


def test_drive_is_what_the_original_makes_of_an_action() -> None:
    """Catches the acceleration applied once (PettingZoo) instead of twice (OMAR): 9 and 16, not 3 and 4; spread 5."""
    for task in HUNTS:
        velocities = rolled(f"mpe/{task}", {0: 0.05, 3: 0.05})
        assert velocities[:, 0].tolist() == pytest.approx([0.045, 0.0, 0.0, 0.08])
    assert rolled("mpe/simple_spread", {1: 1.0})[1, 0] == pytest.approx(0.5)


def test_speed_limits_and_terminal_speed() -> None:
    """Catches a missing clamp in tag, and a clamp where spread has none (2 (1 - 0.75^k) towards 2)."""
    assert rolled("mpe/simple_tag", {0: -1.0, 3: 1.0}, 4)[:, 0].tolist() == pytest.approx([-1.0, 0.0, 0.0, 1.3])
    assert rolled("mpe/simple_spread", {0: 1.0}, 20)[0, 0] == pytest.approx(2.0 * (1.0 - 0.75**20))


def test_actions_are_not_clipped() -> None:
    """Catches a helpful clip: the original uses any finite action as it is."""
    assert rolled("mpe/simple_spread", {0: 3.0})[0, 0] == pytest.approx(1.5)


def forces_at(radii: tuple[float, ...], num_agents: int, num_solid: int, points: list[list[float]]) -> Tensor:
    """Contact forces [A, 2]."""
    bodies = build_bodies(
        radii=radii,
        force_scales=(1.0,) * num_agents,
        speed_limits=None,
        num_solid=num_solid,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    positions = torch.tensor(points, dtype=torch.float64).t()[:, :, None]
    return contact_forces(bodies, *separations(positions, num_agents))[:, :, 0].t()


def test_contacts_by_hand() -> None:
    """Catches a wrong sign, line of action, reach or hardness of contacts."""
    deep = forces_at((0.15, 0.15), 2, 2, [[0.0, 0.0], [0.0, 0.2]])  # 0.1 deep: 100 * 0.1
    assert deep.flatten().tolist() == pytest.approx([0.0, -10.0, 0.0, 10.0])
    grazing = forces_at((0.1, 0.2), 1, 2, [[0.3, 0.0], [0.0, 0.0]])  # the other cannot move
    assert grazing[0].tolist() == pytest.approx([0.1 * math.log(2.0), 0.0])
    assert forces_at((0.1, 0.2), 1, 2, [[0.35, 0.0], [0.0, 0.0]])[0].tolist() == pytest.approx([0.0, 0.0], abs=1e-15)
    three = forces_at((0.1,) * 3, 3, 3, [[-0.15, 0.0], [0.0, 0.0], [0.15, 0.0]])
    assert three[:, 0].tolist() == pytest.approx([-5.0, 0.0, 5.0])


def test_what_is_not_solid_is_passed_through() -> None:
    """Catches landmarks, food or forests that push."""
    assert forces_at((0.15, 0.3), 1, 1, [[0.0, 0.0], [0.05, 0.0]]).tolist() == [[0.0, 0.0]]
    solid = {task: [SCENARIOS[task].entities[i] for i in range(SCENARIOS[task].num_solid)] for task in SCENARIOS}
    assert set(solid["mpe/simple_world"]) == {"agent", "prey", "obstacle"} and "landmark" not in str(solid)


def test_entities_in_one_place_do_not_break_the_arithmetic() -> None:
    """Catches 0 / 0 where two centres coincide."""
    assert torch.isfinite(forces_at((0.15, 0.15), 2, 2, [[0.3, 0.3], [0.3, 0.3]])).all()


@pytest.mark.parametrize("task_id", TASKS)
def test_returns_have_exact_gradients(task_id: str) -> None:
    """Catches a detached state, a value overwritten in place, and 0 / 0 in the root of a distance of zero."""
    source = torch.Generator().manual_seed(1)
    kind = SCENARIOS[task_id]
    landmarks = kind.num_entities - kind.num_agents  # a scripted prey: a network prey computes in float32
    prey = FleeingPrey(num_obstacles=len(kind.indices("obstacle")), num_landmarks=landmarks, dtype=torch.float64)
    env = envs.make(task_id, 6, dtype=torch.float64, opponent=prey if kind.has_prey else None)
    actions = 2.0 * torch.rand(6, 6, 3, 2, dtype=torch.float64, generator=source) - 1.0
    direction = torch.randn(actions.shape, dtype=torch.float64, generator=source)

    def returns(actions: Tensor) -> Tensor:
        env.reset(range(6))
        return torch.stack([env.step(action).rewards.sum(-1) for action in actions]).sum(0)

    (gradient,) = torch.autograd.grad(returns(actions.requires_grad_()).sum(), actions)
    with torch.no_grad():
        slope = (returns(actions + 1e-6 * direction) - returns(actions - 1e-6 * direction)) / 2e-6
    assert slope.abs().min() > 1e-3
    assert torch.allclose((gradient * direction).sum((0, 2, 3)), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task_id", ["mpe/simple_tag", "mpe/simple_world"])
def test_gradients_pass_through_a_network_prey(task_id: str) -> None:
    """Catches a prey that cuts the gradient, or whose activations are overwritten before they are used."""
    env, source = envs.make(task_id, 6, dtype=torch.float64), torch.Generator().manual_seed(1)
    actions = (2.0 * torch.rand(6, 6, 3, 2, dtype=torch.float64, generator=source) - 1.0).requires_grad_()

    def last_place(actions: Tensor) -> Tensor:
        env.reset(range(6))
        for action in actions:
            env.step(action)
        return env.opponent_observations[..., 2:4].sum((1, 2))  # where the prey is, which only its own drive changes

    (gradient,) = torch.autograd.grad(last_place(actions).sum(), actions)
    direction = torch.randn(actions.shape, dtype=torch.float64, generator=source)
    with torch.no_grad():
        slope = (last_place(actions + 1e-3 * direction) - last_place(actions - 1e-3 * direction)) / 2e-3
    assert slope.abs().max() > 1e-3
    assert torch.allclose((gradient * direction).sum((0, 2, 3)), slope, rtol=0.05, atol=1e-3)


def received(task_id: str, rewards, points: list[list[float]]) -> list[float]:
    kind = SCENARIOS[task_id]
    positions = torch.tensor(points, dtype=torch.float64).t()[:, :, None]
    sizes = torch.tensor(kind.radii, dtype=torch.float64)
    _, distances = separations(positions, kind.num_agents)
    touching = distances[..., 0] < sizes[: kind.num_agents, None] + sizes
    touching.fill_diagonal_(False)
    return rewards(positions, distances, touching[..., None])[:, 0].tolist()


def test_spread_rewards_by_hand() -> None:
    """Catches an unbounded coverage term, a collision counted against oneself, or shared among all."""
    apart = [[0.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.5], [0.01, 1.0], [0.25, -1.0]]
    assert received("mpe/simple_spread", spread_rewards, apart) == pytest.approx([2.0 + 10.0 + 4.0] * 3)
    touching = [[0.0, 0.0], [0.29, 0.0], [0.58, 0.0], [0.0, 1.0], [0.29, 1.0], [0.58, 1.0]]
    assert received("mpe/simple_spread", spread_rewards, touching) == pytest.approx([-2.0, -7.0, -2.0])


def test_tag_rewards_by_hand() -> None:
    """Catches a contact paid to its predator alone, the wrong bonus, and slips in the border's three pieces."""
    chase = [[0.12, 0.0], [0.0, -0.5], [0.0, 0.13], [0.0, 0.0], [0.8, 0.8], [-0.8, 0.8]]
    hunt = 10.0 - 0.1 * 0.75
    assert received("mpe/simple_tag", tag_rewards, chase) == pytest.approx([hunt] * 3 + [-hunt])
    for point, price in ((0.89, 0.0), (0.95, 0.5), (1.5, math.e), (4.0, 10.0)):
        away = [[0.0, 0.0]] * 3 + [[-point, point], [0.8, 0.8], [-0.8, 0.8]]
        reward = received("mpe/simple_tag", tag_rewards, away)
        assert reward[3] == pytest.approx(0.3 * point * math.sqrt(2.0) - 2.0 * price)


def test_world_rewards_by_hand() -> None:
    """Catches the bonus of tag in world, an unweighted border, and MPE2's sign of the food term."""
    points = [[0.1, 0.0], [0.0, 0.5], [0.0, -0.5], [0.0, 0.0], [0.9, 0.9], [0.07, 0.0], [0.5, 0.0], [-0.8, 0], [0.8, 0]]
    hunt = 5.0 - 0.1 * 1.1
    assert received("mpe/simple_world", world_rewards, points) == pytest.approx(
        [hunt] * 3 + [-hunt + 2.0 + 0.05 * 0.07]
    )
    points[3] = [0.0, 1.5]
    far = sum(math.dist(point, points[3]) for point in points[:3])
    food = math.dist(points[3], points[5])
    expected = 0.1 * far - 2.0 * math.e + 0.05 * food
    assert received("mpe/simple_world", world_rewards, points)[3] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "mean", "spread"), [("spread", 160.4, 60.9), ("tag", -4.08, 11.1), ("world", -6.80, 5.9)]
)
def test_random_returns_match_the_large_sample(
    omar_prey: Callable[[str], Path], task: str, mean: float, spread: float
) -> None:
    """Catches a wrong distribution of first states, or rewards summed over agents: 40,000 reference episodes say so."""
    episodes, source = 20_000, torch.Generator().manual_seed(0)
    prey = None if task == "spread" else NetworkPrey.from_omar(omar_prey(f"simple_{task}"))
    env = envs.make(f"mpe/simple_{task}", episodes, opponent=prey)
    env.reset(seeding.environment_seeds("evaluate", 0, episodes))
    total = torch.zeros(episodes, 3)
    for _ in range(25):
        total += env.step(2.0 * torch.rand(episodes, 3, 2, generator=source) - 1.0).rewards
    returns = env.spec.team_return(total)
    assert abs(float(returns.mean()) - mean) < 3.0 * spread / math.sqrt(episodes)  # below 1.96 of these plus 1
    assert abs(float(returns.std()) - spread) < 0.1 * spread


@pytest.mark.parametrize("task_id", TASKS)
def test_first_states(task_id: str) -> None:
    """Catches a wrong box of first positions, coordinates drawn together, and velocities left over."""
    env = envs.make(task_id, 4000, dtype=torch.float64)
    env.reset(range(4000))
    state, agents = env.state, env.scenario.num_agents
    assert not state.velocities.any() and not state.steps.any()
    span = torch.ones(env.scenario.num_entities, dtype=torch.float64)
    span[agents:] = 1.0 if task_id == "mpe/simple_spread" else 0.9
    unit = (state.positions / span[:, None]).reshape(4000, -1)
    assert unit.min() >= -1.0 and unit.max() < 1.0 and unit.abs().amax(0).min() > 0.99
    assert unit.mean(0).abs().max() < 4.0 * math.sqrt(1.0 / 3.0 / 4000)
    correlation = torch.corrcoef(unit.t()) - torch.eye(unit.shape[1])
    assert correlation.abs().max() < 0.08


def test_an_episode_depends_on_its_seed_alone() -> None:
    """Catches draws that run along the batch: row 5 of a batch is the episode that its seed plays alone."""
    seeds = seeding.environment_seeds("evaluate", 0, 8)
    batch, alone = envs.make("mpe/simple_world", 8), envs.make("mpe/simple_world", 1)
    assert torch.equal(batch.reset(seeds).observations[5:6], alone.reset(seeds[5:6]).observations)


def test_restoring_a_state_copies_it() -> None:
    """Catches a state that shares memory with the environment, in or out, whatever the layout it is given in."""
    env = envs.make("mpe/simple_spread", 1, dtype=torch.float64)
    env.reset([0])
    restored = env.state
    before = restored.positions.clone()
    restored = replace(restored, positions=before.permute(2, 1, 0).contiguous().permute(2, 1, 0))
    env.step(torch.ones(1, 3, 2))
    returns = env.returns
    env.set_state(restored)
    assert torch.equal(restored.positions, before) and returns.any()
    restored.positions.zero_()
    restored.steps.fill_(25)
    assert torch.equal(env.state.positions, before) and env.state.steps.tolist() == [0]


def test_bad_input_is_refused_by_name() -> None:
    """Catches a message that does not say what was expected, found and what to do."""
    with pytest.raises(UserError, match=r"unknown task 'mpe/simple_sprad'; nearest: mpe/simple_spread"):
        envs.make("mpe/simple_sprad", 1)
    with pytest.raises(UserError, match=r"unknown task 'smac/4m'"):
        envs.spec("smac/4m")
    with pytest.raises(UserError, match="no opponent"):
        envs.make("mpe/simple_spread", 1, opponent=RecordedPrey(torch.zeros(1, 2)))
    with pytest.raises(UserError, match="at least one environment, got num_envs=0"):
        envs.make("mpe/simple_tag", 0)
    with pytest.raises(UserError, match=r"float32 or float64, got torch\.float16"):
        envs.make("mpe/simple_tag", 1, dtype=torch.float16)
    env = envs.make("mpe/simple_tag", 2, opponent=RecordedPrey(torch.full((1, 2), torch.inf)))
    with pytest.raises(UserError, match="reset"):
        env.step(torch.zeros(2, 3, 2))
    with pytest.raises(UserError, match=r"seeds must be in \[0, 2\*\*63\), got -1 to 4"):
        env.reset([-1, 4])
    env.reset([0, 1])
    with pytest.raises(UserError, match=r"expected actions as floats of shape \(2, 3, 2\).*got .*\(2, 4, 2\)"):
        env.step(torch.zeros(2, 4, 2))
    with pytest.raises(UserError, match=r"int64"):
        env.step(torch.zeros(2, 3, 2, dtype=torch.int64))
    with pytest.raises(UserError, match=r"finite actions.*with 1 non-finite entries"):
        env.step(torch.tensor([torch.nan] + [0.0] * 11).view(2, 3, 2))
    with pytest.raises(UserError, match=r"the opponent's actions"):
        env.step(torch.zeros(2, 3, 2))
    state = env.state
    with pytest.raises(UserError, match=r"state\.positions of shape \(2, 6, 2\), got .*\(1, 6, 2\)"):
        env.set_state(ParticleState(positions=state.positions[:1], velocities=state.velocities, steps=state.steps))


def test_spec_needs_no_environment() -> None:
    """Catches a spec that drifts from the environment's."""
    for task_id, size in zip(TASKS, (18, 16, 24), strict=True):
        spec = envs.spec(task_id)
        assert spec == envs.make(task_id, 1).spec
        assert (spec.observation_size, spec.max_steps, spec.state_size) == (size, 25, None)
        assert spec.agents == ("agent_0", "agent_1", "agent_2") and spec.action.low == (-1.0, -1.0)
        assert spec.team_reward == ("mean" if size == 18 else "shared")
