"""MA-MuJoCo against gymnasium's robots and gymnasium-robotics' agents, its starts, its ends and its breakdowns."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from marl_flow import envs
from marl_flow.datasets.collect import collect_batch
from marl_flow.datasets.replay.check import replay
from marl_flow.datasets.specs import known_spec
from marl_flow.envs.checks import check_vector_env
from marl_flow.envs.mamujoco import engine
from marl_flow.envs.mamujoco.env import RestorableRobotEnv, RobotEnv, RobotState
from marl_flow.interfaces import Restorable, UserError
from marl_flow.policies import UniformPolicy

TASKS = ("mamujoco/2ant", "mamujoco/4ant", "mamujoco/2halfcheetah")
ANT, CHEETAH = TASKS[0], TASKS[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test runs in an empty folder and leaves it so: the engine would write its log there."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


def library(task_id: str):
    """The task by gymnasium-robotics' own class over gymnasium's v4 robot, with the settings that the datasets had."""
    from gymnasium_robotics.envs.multiagent_mujoco import MultiAgentMujocoEnv
    from gymnasium_robotics.envs.multiagent_mujoco.obsk import Node, get_parts_and_edges

    scenario, partition = {"2ant": ("Ant", "2x4"), "4ant": ("Ant", "4x2"), "2halfcheetah": ("HalfCheetah", "2x3")}[
        task_id.partition("/")[2]
    ]
    parts, edges, _ = get_parts_and_edges(scenario, partition)
    if scenario == "Ant":
        roots = [Node("root", 0, 0, None)]
        for node in {node for part in parts for node in part}:
            node.body_fn = lambda _, forces: [0.0] * len(forces)
    else:
        roots = [Node("root_x", 0, 0, None), Node("root_y", 2, 2, None), Node("root_z", 1, 1, None)]
        parts = [tuple(reversed(part)) for part in parts]
    with engine.quiet():
        robot = gymnasium.make(f"{scenario}-v4")
    return MultiAgentMujocoEnv(
        scenario,
        partition,
        agent_factorization={"partition": parts, "edges": edges, "globals": roots},
        global_categories=("qvel", "qpos"),
        gym_env=robot,
    )


def state_of(library_env) -> RobotState:
    data = library_env.single_agent_env.unwrapped.data
    return RobotState(
        positions=torch.tensor(data.qpos)[None],
        velocities=torch.tensor(data.qvel)[None],
        steps=torch.zeros(1, dtype=torch.int64),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task_id", TASKS)
def test_every_step_equals_the_libraries(task_id: str) -> None:
    """Catches any slip in stepping, state, reward, end, order of actions or any feature: all equal to the last bit,
    over 1000 random steps with resets, control costs beyond the bounds included."""
    env, theirs = RobotEnv(task_id, 1, dtype=torch.float64), library(task_id)
    agents, size, names = env.spec.num_agents, env.spec.action.size, theirs.possible_agents
    ids, source, over = np.eye(agents), np.random.default_rng(0), True
    episodes = 0
    for _ in range(1000):
        if over:
            episodes += 1
            observed, _ = theirs.reset(seed=episodes)
            step = env.set_state(state_of(theirs))
        expected = np.stack([np.concatenate([ids[i], observed[name]]) for i, name in enumerate(names)])
        assert np.array_equal(step.observations[0].numpy(), expected)
        actions = source.uniform(-1.2, 1.2, (agents, size)) * (episodes % 4 > 0)  # every fourth ant stands still
        observed, rewards, terminated, truncated, _ = theirs.step(dict(zip(names, actions, strict=True)))
        step = env.step(torch.tensor(actions)[None])
        state, reached = env.state, state_of(theirs)
        assert torch.equal(state.positions, reached.positions) and torch.equal(state.velocities, reached.velocities)
        assert step.rewards[0].tolist() == [rewards[name] for name in names]
        assert bool(step.terminated) == terminated[names[0]] and bool(step.truncated) == truncated[names[0]]
        over = bool(step.finished)
    assert episodes > 3 if task_id != CHEETAH else truncated[names[0]]


@pytest.mark.parametrize("task_id", TASKS)
def test_contract(task_id: str) -> None:
    """Catches unfrozen finished rows, buffers handed out, rows that depend on their neighbours, and lax borders."""
    check_vector_env(lambda num_envs: envs.make(task_id, num_envs))


def play(env, seeds: range, action_of) -> torch.Tensor:
    """Team returns [E] of whole episodes under actions [E, N, A] = action_of(shape)."""
    step = env.reset(seeds)
    shape = (env.num_envs, env.spec.num_agents, env.spec.action.size)
    returns = torch.zeros(env.num_envs, env.spec.num_agents, dtype=torch.float64)
    while not step.finished.all():
        step = env.step(action_of(shape))
        returns += step.rewards.double()
    return env.spec.team_return(returns)


@pytest.mark.parametrize(
    ("task_id", "episodes", "random", "still"),
    [
        pytest.param(ANT, 120, (-50.6, 30.0), (1000.2, 6.0), marks=pytest.mark.slow),
        (CHEETAH, 30, (-273.6, 45.0), (0.0, 0.6)),
    ],
)
def test_returns_of_doing_nothing_and_anything(task_id: str, episodes: int, random, still) -> None:
    """Catches starts, rewards or ends of another distribution than gymnasium's (measured there in 30 to 200 episodes;
    the room is three standard errors of both)."""
    source = torch.Generator().manual_seed(0)
    env = envs.make(task_id, episodes)
    returns = play(env, range(episodes), lambda shape: 2.0 * torch.rand(shape, generator=source) - 1.0)
    assert float(returns.mean()) == pytest.approx(random[0], abs=random[1])
    returns = play(envs.make(task_id, 8), range(8), torch.zeros)
    assert float(returns.mean()) == pytest.approx(still[0], abs=still[1])


@pytest.mark.parametrize("task_id", [ANT, CHEETAH])
def test_starts_have_gymnasiums_distribution(task_id: str) -> None:
    """Catches noise of another width, shape or centre, and coordinates that share a draw."""
    env = RobotEnv(task_id, 4000)
    env.reset(range(4000))
    state, first = env.state, torch.from_numpy(engine.load_model(env._partition.robot.model).qpos0)
    uniform = (state.positions - first) / 0.1
    assert uniform.abs().max() < 1.0 and uniform.abs().amax(0).min() > 0.99
    assert uniform.mean(0).abs().max() < 0.05 and (uniform.std(0) - 3.0**-0.5).abs().max() < 0.03
    normal = state.velocities / 0.1
    assert normal.mean(0).abs().max() < 0.08 and (normal.std(0) - 1.0).abs().max() < 0.05
    assert ((normal.abs() < 1.0).double().mean(0) - 0.683).abs().max() < 0.04
    mixed = torch.corrcoef(torch.cat([uniform, normal], dim=1).t())
    assert (mixed - torch.eye(len(mixed))).abs().max() < 0.08


def test_threads_change_nothing() -> None:
    """Catches rows that share what a thread works in."""
    one, three = RobotEnv(ANT, 7, num_threads=1), RobotEnv(ANT, 7, num_threads=3)
    source = torch.Generator().manual_seed(0)
    assert torch.equal(one.reset(range(7)).observations, three.reset(range(7)).observations)
    for _ in range(40):
        actions = 2.0 * torch.rand(7, 2, 4, generator=source) - 1.0
        first, second = one.step(actions), three.step(actions)
        assert torch.equal(first.observations, second.observations) and torch.equal(first.rewards, second.rewards)


def huge_velocity(env: RobotEnv, _) -> None:
    env._velocities[1, 3] = 1e12


def huge_acceleration(env: RobotEnv, _) -> None:
    env._velocities[1] = 9e9


def lost_at_the_end(env: RobotEnv, monkeypatch) -> None:
    """The last engine step of a control step leaves a number that is none."""
    step = env._batch.step

    def lose(rows, nstep: int) -> None:
        step(rows, nstep=nstep)
        if rows is None:
            env._positions[1, 0] = np.nan

    monkeypatch.setattr(env._batch, "step", lose)


def refused(env: RobotEnv, monkeypatch) -> None:
    """The engine raises in one row and goes on with the others."""
    from mujoco.batch import SimulationError

    step = env._batch.step

    def refuse(rows, nstep: int) -> None:
        others = np.arange(env.num_envs) if rows is None else rows
        step(others[others != 1], nstep=nstep)
        if 1 in others:
            raise SimulationError(np.array([1]), "out of memory")

    monkeypatch.setattr(env._batch, "step", refuse)


@pytest.mark.parametrize(
    ("task_id", "harm", "reason"),
    [
        (ANT, huge_velocity, "a velocity is not a number or huge"),
        (CHEETAH, huge_acceleration, "an acceleration is not a number or huge"),
        (ANT, lost_at_the_end, "the state is not finite"),
        (CHEETAH, refused, "the engine refused"),
    ],
)
def test_a_breakdown_ends_the_episode_with_its_reason(task_id: str, harm, reason: str, caplog, monkeypatch) -> None:
    """Catches an episode that silently goes on from the engine's own reset, and one broken row spoiling the others."""
    env, sound = RobotEnv(task_id, 3), RobotEnv(task_id, 3)
    actions = torch.full((3, 2, env.spec.action.size), 0.3)
    for each in (env, sound):
        each.reset([5, 6, 7])
        before = each.step(actions)
    harm(env, monkeypatch)
    with caplog.at_level(logging.WARNING):
        for index in range(3):
            step, expected = env.step(actions), sound.step(actions)
            assert step.terminated.tolist() == [False, True, False] and not step.truncated.any()
            assert torch.equal(step.observations[1], before.observations[1]) and not step.rewards[1].any()
            for row in (0, 2):
                assert torch.equal(step.observations[row], expected.observations[row]), index
                assert torch.equal(step.rewards[row], expected.rewards[row])
    assert env.failures[0] is None and env.failures[1].startswith(reason) and env.failures[2] is None
    assert len(caplog.messages) == 1 and f"{task_id}: MuJoCo failed in row 1" in caplog.messages[0]
    assert not env.reset([5, 6, 7]).finished.any() and env.failures == (None, None, None)


def test_falling_ends_an_ants_episode_and_pays_its_last_step() -> None:
    """Catches a wrong range of heights, survival withheld in the last step, and cheetahs that may fall."""
    env = RobotEnv(ANT, 4, dtype=torch.float64)
    env.reset(range(4))
    state = env.state
    state.positions[:, 2] = torch.tensor([0.5, 1.5, 0.75, 1.02])
    state.velocities[:] = 0.0
    env.set_state(state)
    step = env.step(torch.zeros(4, 2, 4, dtype=torch.float64))
    assert step.terminated.tolist() == [False, True, False, env.state.positions[3, 2] > 1.0]
    assert (step.rewards[:, 0] - 1.0).abs().max() < 0.6  # 1 for surviving, less than that for how the torso slid
    frozen = env.state.positions[1].clone()
    env.step(torch.ones(4, 2, 4, dtype=torch.float64))
    assert torch.equal(env.state.positions[1], frozen)
    cheetah = RobotEnv(CHEETAH, 1)
    cheetah.reset([0])
    state = cheetah.state
    state.positions[:, 1] = 5.0
    cheetah.set_state(state)
    assert not cheetah.step(torch.zeros(1, 2, 3)).finished.any()


def test_the_step_limit_truncates() -> None:
    """Catches a limit counted from somewhere else, and an end by the limit that looks like a fall."""
    env = RobotEnv(ANT, 2)
    env.reset([0, 1])
    state = replace(env.state, steps=torch.tensor([998, 1000]))
    assert env.set_state(state).truncated.tolist() == [False, True]
    for expected in ([False, True], [True, True]):
        step = env.step(torch.zeros(2, 2, 4))
        assert step.truncated.tolist() == expected and not step.terminated.any()
    assert env.state.steps.tolist() == [1000, 1000]


def test_a_cheetahs_moment_can_be_restored() -> None:
    """Catches a state read back from the wrong columns; single precision costs what rounding costs."""
    env = envs.make(CHEETAH, 200, dtype=torch.float64)
    assert isinstance(env, Restorable) and env.opponent_entries is None
    walker, source = envs.make(CHEETAH, 1, dtype=torch.float64), torch.Generator().manual_seed(0)
    steps, actions = [walker.reset([3])], []
    for _ in range(200):
        actions.append(2.0 * torch.rand(1, 2, 3, generator=source, dtype=torch.float64) - 1.0)
        steps.append(walker.step(actions[-1]))
    observed = torch.cat([step.observations for step in steps])
    for dtype, room in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        before = env.restore(observed[:-1].to(dtype), None, torch.arange(200))
        assert torch.equal(before.observations.to(dtype), observed[:-1].to(dtype))
        after = env.step(torch.cat(actions))
        received = torch.cat([step.rewards for step in steps[1:]])
        for ours, real in ((after.observations, observed[1:]), (after.rewards, received)):
            assert ((ours - real).abs() / real.abs().clamp(min=1.0)).max() < room
    wrong = observed[:-1].clone()
    wrong[:, 0, -3] += 1.0  # agent 0 sees another x than agent 1
    assert (env.restore(wrong, None, torch.arange(200)).observations - wrong).abs().amax() == pytest.approx(0.5)


def test_a_cheetahs_data_fit_their_environment() -> None:
    """Catches an environment that refuses, by the suite's own replay, the data just collected in it."""
    env = envs.make(CHEETAH, 3)
    store = collect_batch(
        env, UniformPolicy(env.spec.action), [1, 2, 3], torch.Generator().manual_seed(0), dataset_id="mine"
    )
    outcome = replay(store, lambda rows: envs.make(CHEETAH, rows, dtype=torch.float64), transitions=512)
    assert outcome.fits, outcome.message


def test_an_ants_moment_cannot() -> None:
    """Catches a claim to replay what the observations do not hold: height, attitude, most velocities."""
    assert not any(isinstance(envs.make(task_id, 1), Restorable) for task_id in TASKS[:2])


def test_specs_are_the_published_datasets() -> None:
    """Catches sizes that no published file fits, and a spec that differs from the environment's."""
    for task_id in TASKS:
        assert envs.spec(task_id) == envs.make(task_id, 1).spec == known_spec(task_id)


def test_bad_input_is_refused_by_name() -> None:
    """Catches a message that does not say what was expected, found and what to do."""
    with pytest.raises(UserError, match=r"unknown task 'mamujoco/2ants'; nearest: mamujoco/2ant.*<scenario>"):
        envs.make("mamujoco/2ants", 1)
    with pytest.raises(UserError, match="no opponent"):
        envs.make(ANT, 1, opponent=object())
    with pytest.raises(UserError, match="at least one environment, got num_envs=0"):
        envs.make(ANT, 0)
    with pytest.raises(UserError, match=r"float32 or float64, got torch\.float16"):
        envs.make(ANT, 1, dtype=torch.float16)
    env = RestorableRobotEnv(CHEETAH, 2)
    with pytest.raises(UserError, match="reset"):
        env.step(torch.zeros(2, 2, 3))
    with pytest.raises(UserError, match=r"seeds must be in \[0, 2\*\*63\), got -1 to 4"):
        env.reset([-1, 4])
    env.reset([0, 1])
    with pytest.raises(UserError, match=r"int64"):
        env.step(torch.zeros(2, 2, 3, dtype=torch.int64))
    with pytest.raises(
        UserError, match=r"observations of shape \(2, 2, 15\) and no state to restore, got .*\(2, 2, 13\)"
    ):
        env.restore(torch.zeros(2, 2, 13), None, torch.zeros(2))
    with pytest.raises(UserError, match=r"finite state\.positions.*non-finite entries"):
        env.restore(torch.full((2, 2, 15), torch.nan), None, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UserError, match=r"state\.steps must be integers from 0"):
        env.restore(torch.zeros(2, 2, 15), None, torch.tensor([0, -1]))
