"""Both directions of PettingZoo's parallel API."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from pettingzoo import ParallelEnv
from pettingzoo.test import parallel_api_test

from marl_flow import envs
from marl_flow.envs.checks import check_vector_env
from marl_flow.envs.pettingzoo import ParallelVectorEnv, SingleEpisode, to_parallel_env
from marl_flow.envs.smac.scripted import ScriptedTeam
from marl_flow.interfaces import UserError

QUICK_TASKS = (
    *(task_id for task_id in envs.TASKS if task_id.startswith("mpe/")),
    *("mamujoco/2ant", "mamujoco/v1/Ant/2x4", "smac/3m", "smac/2s3z", "smacv2/terran_5_vs_5"),
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "task_id",
    [pytest.param(task_id, marks=() if task_id in QUICK_TASKS else pytest.mark.slow) for task_id in envs.TASKS],
)
def test_pettingzoo_accepts_our_tasks(task_id: str) -> None:
    """Catches a breach of the parallel API, the warnings of its test included."""
    parallel_api_test(to_parallel_env(task_id), num_cycles=60)


def test_an_exported_episode_is_the_same_episode() -> None:
    """Catches agents, rewards or flags mixed up on the way out, and a seed that means something else."""
    ours, theirs = envs.make("mpe/simple_spread", 1), to_parallel_env("mpe/simple_spread", render_mode="rgb_array")
    step = ours.reset([23])
    observations, _ = theirs.reset(seed=23)
    source, unequal = torch.Generator().manual_seed(0), False
    for index in range(25):
        assert np.array_equal(np.stack([observations[agent] for agent in ours.spec.agents]), step.observations[0])
        actions = torch.rand(1, 3, 2, generator=source)
        step = ours.step(actions)
        given = {agent: actions[0, i].numpy() for i, agent in enumerate(ours.spec.agents)}
        observations, rewards, terminated, truncated, _ = theirs.step(given)
        assert [rewards[agent] for agent in ours.spec.agents] == step.rewards[0].tolist()
        assert not any(terminated.values()) and set(truncated.values()) == {index == 24}
        unequal |= rewards["agent_0"] != rewards["agent_2"]
    assert unequal, "no collision: the rewards' order was not tried"
    assert theirs.agents == [] and theirs.render().shape == (400, 400, 3)
    with pytest.raises(UserError, match=r"no episode is running; call reset"):
        theirs.step(given)


def test_a_step_after_the_end_is_empty() -> None:
    """Catches wrappers that fail at every episode's end: PettingZoo's own environments answer step({}) with nothing."""
    env = to_parallel_env("mpe/simple_spread")
    with pytest.raises(UserError, match=r"no episode is running; call reset"):
        env.step({})
    env.reset(seed=0)
    for _ in range(25):
        infos = env.step({agent: env.action_space(agent).sample() for agent in env.agents})[-1]
    assert infos == {agent: {} for agent in env.possible_agents}, "this task cannot be won"
    assert env.agents == [] and env.step({}) == ({}, {}, {}, {}, {})
    assert set(env.reset(seed=0)[0]) == set(env.possible_agents)


def test_infos_say_who_has_won() -> None:
    """Catches an exported battle of which nobody learns whether it was won: infos say what the row itself says."""
    inner, outcomes = envs.make("smac/8m", 1), []
    env, team = SingleEpisode(inner), ScriptedTeam(inner, "focus")
    for seed in range(2):
        observations, infos = env.reset(seed=seed)
        while env.agents:
            assert infos == {agent: {} for agent in env.agents}
            masks = torch.as_tensor(np.stack([seen["action_mask"] for seen in observations.values()])).bool()
            fights = team.act(torch.empty(0), masks[None], torch.empty(0))[0] if seed else masks.int().argmax(-1)
            observations, _, _, _, infos = env.step(dict(zip(env.agents, fights.tolist(), strict=True)))
        assert infos == {agent: {"won": bool(env._time_step.won[0])} for agent in env.possible_agents}
        outcomes.append(infos[env.possible_agents[0]]["won"])
    assert outcomes == [False, True]


def test_episodes_without_a_seed_differ_and_repeat() -> None:
    """Catches the same first state for ever, and starts that no seed reproduces."""
    first, second = to_parallel_env("mpe/simple_tag", seed=3), to_parallel_env("mpe/simple_tag", seed=3)
    starts = [[env.reset()[0]["agent_0"].tolist() for _ in range(2)] for env in (first, second)]
    assert starts[0] == starts[1] and starts[0][0] != starts[0][1]
    with pytest.raises(UserError, match=r"expected actions of \['agent_0', 'agent_1', 'agent_2'\], got \['agent_0'\]"):
        first.step({"agent_0": np.zeros(2)})


class Corridor(ParallelEnv):
    """Two walkers; each leaves on reaching place 3. Nobody may move in the first step."""

    def __init__(self, *, in_observation: bool = False, sizes: tuple[int, int] = (1, 1)) -> None:
        self.possible_agents, self.metadata = ["left", "right"], {"name": "corridor"}
        self.in_observation, self.sizes = in_observation, dict(zip(self.possible_agents, sizes, strict=True))

    def observation_space(self, agent):
        box = gymnasium.spaces.Box(0.0, {"left": 8.0, "right": 9.0}[agent], (self.sizes[agent],), np.float32)
        mask = gymnasium.spaces.Box(0, 1, (2,), np.int8)
        return gymnasium.spaces.Dict({"observation": box, "action_mask": mask}) if self.in_observation else box

    def action_space(self, agent):
        return gymnasium.spaces.Discrete(2, start=5)

    def observe(self):
        masks = {agent: np.array([1, int(self.time > 0)], dtype=np.int8) for agent in self.agents}
        observed = {agent: np.array([self.position[agent]], dtype=np.float32) for agent in self.agents}
        if self.in_observation:
            return {a: {"observation": observed[a], "action_mask": masks[a]} for a in observed}, {
                a: {} for a in observed
            }
        return observed, {agent: {"action_mask": mask} for agent, mask in masks.items()}

    def reset(self, seed=None, options=None):
        self.agents, self.time = list(self.possible_agents), 0
        self.position = dict.fromkeys(self.agents, int(seed) % 2)
        return self.observe()

    def step(self, actions):
        assert set(actions) == set(self.agents)
        self.time += 1
        for agent, action in actions.items():
            self.position[agent] += action - 5
        ended = {agent: self.position[agent] >= 3 for agent in self.agents}
        rewards = dict.fromkeys(self.agents, 1.0)
        observed, infos = self.observe()
        self.agents = [agent for agent in self.agents if not ended[agent]]
        return observed, rewards, ended, dict.fromkeys(ended, False), infos


@pytest.mark.parametrize("in_observation", [False, True])
def test_masks_starts_and_early_leavers(in_observation: bool) -> None:
    """Catches masks not found, `Discrete.start` ignored, and an agent that is paid or asked after it has left."""
    env = ParallelVectorEnv(lambda: Corridor(in_observation=in_observation), 2, task_id="corridor", max_steps=6)
    step = env.reset([0, 1])
    assert step.observations[..., 0].tolist() == [[0, 0], [1, 1]]
    assert step.action_mask.tolist() == [[[True, False]] * 2] * 2
    with pytest.raises(UserError, match=r"row 1, right: expected one of the legal actions \[0\], got 1"):
        env.step(torch.tensor([[0, 0], [0, 1]]))
    env.step(torch.zeros(2, 2, dtype=torch.int64))
    for _ in range(2):
        step = env.step(torch.tensor([[1, 0], [1, 1]]))
    assert step.terminated.tolist() == [False, True] and step.rewards.tolist() == [[1, 1], [1, 1]]
    assert step.action_mask[1].tolist() == [[True, False]] * 2
    step = env.step(torch.tensor([[1, 0], [0, 0]]))
    assert step.observations[0, :, 0].tolist() == [3, 0] and step.rewards.tolist() == [[1, 1], [0, 0]]
    step = env.step(torch.tensor([[0, 1], [0, 0]]))
    assert step.observations[0, :, 0].tolist() == [3, 1] and step.rewards[0].tolist() == [0, 1]
    assert not step.finished[0]
    step = env.step(torch.tensor([[0, 0], [0, 0]]))
    assert step.truncated.tolist() == [True, False] and step.terminated.tolist() == [False, True]


class Leaving(Corridor):
    """`right` leaves after its second step: without observation, reward or flags. `returns`: it is back after one."""

    def __init__(self, *, returns: bool = False, silent: bool = False) -> None:
        super().__init__()
        self.returns, self.silent = returns, silent

    def step(self, actions):
        observed, rewards, _, _, infos = super().step(dict.fromkeys(actions, 6))
        present = {"left"} if self.time == 2 or (self.time > 2 and not self.returns) else {"left", "right"}
        self.agents = [] if self.time == 5 else [agent for agent in self.possible_agents if agent in present]
        if self.silent and self.time == 1:
            present = {"left"}
        flags = dict.fromkeys(present, self.time == 5)
        self.position |= dict.fromkeys(self.agents, 0)
        return *({k: each[k] for k in present if k in each} for each in (observed, rewards)), flags, flags, infos


def test_agents_that_leave_for_good_and_that_return() -> None:
    """Catches KeyErrors over an agent that leaves without a last observation, an agent that is forgotten when it
    returns, and one that is silent while it still acts taken for one that left."""
    make_row = {"task_id": "leaving", "max_steps": 8}
    env = ParallelVectorEnv(Leaving, 1, **make_row)
    stay = torch.zeros(1, 2, dtype=torch.int64)
    env.reset([1])
    before = env.step(stay)
    for step in (env.step(stay) for _ in range(3)):
        assert step.observations[0, 1].tolist() == before.observations[0, 1].tolist()
        assert step.rewards.tolist() == [[1.0, 0.0]] and step.action_mask[0, 1].tolist() == [True, False]
        assert not step.finished.any()
    assert env.step(stay).finished.all()

    env = ParallelVectorEnv(lambda: Leaving(returns=True), 1, **make_row)
    env.reset([1])
    env.step(stay)
    env.step(stay)
    with pytest.raises(UserError, match=r"agents that leave to stay away .* found right \(row 0\) .* after step 3"):
        env.step(stay)

    env = ParallelVectorEnv(lambda: Leaving(silent=True), 1, **make_row)
    env.reset([1])
    with pytest.raises(UserError, match=r"expected .* of every acting agent, got none for right"):
        env.step(stay)


def test_contract_of_an_imported_environment() -> None:
    """Catches frozen rows, masks and copies going wrong in the adapter itself."""
    check_vector_env(lambda n: ParallelVectorEnv(Corridor, n, task_id="corridor", max_steps=6))


def test_unlike_agents_are_refused() -> None:
    """Catches agents silently cut or padded to one size."""
    with pytest.raises(UserError, match=r"one observation space for all agents.*for left and .* for right; pad"):
        ParallelVectorEnv(lambda: Corridor(sizes=(1, 2)), 1, task_id="corridor", max_steps=6)
    tag = pytest.importorskip("mpe2.simple_tag_v3")
    with pytest.raises(UserError, match=r"one observation space for all agents.*for adversary_0 and .* for agent_0"):
        ParallelVectorEnv(tag.parallel_env, 1, task_id="mpe2/tag", max_steps=25)


@pytest.mark.parametrize("continuous", [True, False])
def test_mpe2_is_imported(continuous: bool) -> None:
    """Catches an import that works for our own tasks only; steps are compared with MPE2's own."""
    spread = pytest.importorskip("mpe2.simple_spread_v3")

    def build() -> ParallelEnv:
        return spread.parallel_env(continuous_actions=continuous, max_cycles=25)

    def vector(num_envs: int) -> ParallelVectorEnv:
        return ParallelVectorEnv(build, num_envs, task_id="mpe2/simple_spread", max_steps=25)

    check_vector_env(vector)
    env, own = vector(2), build()
    assert env.spec.action.size == 5 and env.spec.action.is_discrete != continuous
    step, (observed, _) = env.reset([4, 5]), own.reset(seed=5)
    source = torch.Generator().manual_seed(0)
    for _ in range(25):
        assert np.array_equal(step.observations[1], np.stack(list(observed.values())))
        if continuous:
            actions = torch.rand(2, 3, 5, generator=source)
        else:
            actions = torch.randint(5, (2, 3), generator=source)
        step = env.step(actions)
        given = dict(zip(own.agents, actions[1].numpy(), strict=True))
        observed, rewards, _, _, _ = own.step(given)
        assert step.rewards[1].tolist() == pytest.approx(list(rewards.values()))
    assert step.truncated.all() and not step.terminated.any()


def test_a_discrete_task_with_masks_is_exported() -> None:
    """Catches masks lost on the way out: PettingZoo's own test then plays illegal actions, which are refused."""
    inner = ParallelVectorEnv(Corridor, 1, task_id="corridor", max_steps=6)
    parallel_api_test(SingleEpisode(inner), num_cycles=20)
