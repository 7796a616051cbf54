"""What is known of SMAC outside this suite, and the same quantities measured in the embedded simulator.

Figures of StarCraft II itself, of datasets collected in it and of SMAClite; `regression` measures what a recorded
episode shows. `smac_simulator.py` puts them side by side.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.envs.smac.battle import OFF_MAP
from marl_flow.envs.smac.env import SmacEnv
from marl_flow.envs.smac.features import CENTRE, SIGHT_RANGE
from marl_flow.envs.smac.units import LOOPS_PER_STEP
from marl_flow.tasks import NUM_BASIC_ACTIONS

PUBLISHED: Mapping[str, str] = {
    "3m": "OG-MARL: Good 16.49 (22.9), Medium 9.96 (23.9), Poor 4.69 (20.4); max 20",
    "8m": "OG-MARL: Good 16.86 (32.6), Medium 10.14 (25.4), Poor 5.28 (48.2); max 20",
    "5m_vs_6m": "OG-MARL: Good 16.58 (27.4), Medium 12.62 (25.4), Poor 7.45 (20.5); max 20",
    "2s3z": "OG-MARL: Good 18.32 (53.5), Medium 12.57 (53.5), Poor 6.88 (100.2); max 21.62",
    "3s5z_vs_3s6z": "OG-MARL: 16.56 (136), 10.69 (53), 5.90 (56); max 24.46. Scripted nearest-enemy team: 0 % won",
    "27m_vs_30m": "Scripted nearest-enemy team: 0 % won",
    "3s_vs_5z": "CFCQL: Expert 21.19 (120), Medium 20.86 (235); max 29.0",
    "6h_vs_8z": "CFCQL: Expert 19.01 (45.6), Medium 16.63 (41.4)",
    "corridor": "OMIGA: Good 19.88 (100)",
}
"""Return (mean length) of datasets collected in the real game, by learned policies: the dataset cards of
`instadeepai/og-marl: docs/dataset_cards/`; the scripted team is the SMAC paper's "Heuristic" (median win rate)."""
SMACV2 = ("smacv2/terran_5_vs_5", "OG-MARL, random policy: 2.43 ± 1.73 (39.6); max 16.2")

SMACLITE: Mapping[tuple[str, str], tuple[str, int, str, str]] = {
    ("3m", "random"): ("1.51 ± 0.55", 0, "27.0", "3.00"),
    ("3m", "nearest"): ("20.00 ± 0", 100, "17.0", "0"),
    ("3m", "focus"): ("20.00 ± 0", 100, "17.0", "0"),
    ("8m", "random"): ("2.09 ± 0.52", 0, "41.6", "8.00"),
    ("8m", "nearest"): ("10.63 ± 0.39", 0, "21.0", "3.52"),
    ("8m", "focus"): ("9.91 ± 0", 0, "22.0", "3"),
    ("2s3z", "random"): ("3.90 ± 0.77", 0, "46.4", "4.99"),
    ("2s3z", "nearest"): ("20.00 ± 0", 100, "54.5", "0"),
    ("2s3z", "focus"): ("10.12 ± 0", 0, "42.0", "2"),
    ("5m_vs_6m", "random"): ("1.49 ± 0.46", 0, "27.7", "6.00"),
    ("5m_vs_6m", "nearest"): ("6.26 ± 0.10", 0, "15.0", "4"),
    ("5m_vs_6m", "focus"): ("6.19 ± 0", 0, "16.0", "4"),
}
"""Return, win rate in per cent, mean length, enemies left: SMAClite (`uoe-agents/smaclite`, 0d6abbe) under the same
policies (`focus` is its "lowest"), 100 episodes each with SMAC's step limits applied from outside."""

EAST, ATTACK = 4, NUM_BASIC_ACTIONS
RAW = 365.0 / 20.0
"""Raw reward per unit of scaled reward on 3m: 45 health and 10 for each of three enemies and 200 for the win are scaled
to 20."""
SHOOTING_STEPS, SETTLING_STEPS = 200, 50


def regression(episodes: int) -> list[dict[str, str]]:
    """quantity, real, here: what one recorded 3m episode shows, and the same measured here.

    Source: the cell outputs of `instadeepai/og-marl: examples/dataset_api_demo.ipynb`, first episode of 3m Good."""
    env = SmacEnv("smac/3m", episodes)
    step = env.reset(seeding.environment_seeds("behaviour", 0, episodes))
    assert step.state is not None and step.action_mask is not None
    offsets = [step.observations[0, 0, column : column + 2] * SIGHT_RANGE for column in (21, 26)]
    x, x_in_state = [env.battle_state.battle.x[0, 0].item()], [step.state[0, 2].item()]
    first_attack, first_damage = torch.full((episodes,), -1), torch.full((episodes,), -1)
    for tick in range(8):
        attacks = step.action_mask[..., ATTACK:]
        can_attack = attacks.any(-1)
        first_attack[(first_attack < 0) & can_attack.any(-1)] = tick
        actions = torch.where(can_attack, ATTACK + attacks.int().argmax(-1), EAST)
        step = env.step(actions.masked_fill(step.action_mask[..., 0], 0))
        assert step.state is not None and step.action_mask is not None
        first_damage[(first_damage < 0) & (step.rewards[:, 0] > 0)] = tick
        x.append(env.battle_state.battle.x[0, 0].item())
        x_in_state.append(step.state[0, 2].item())
    fatal = shooting(episodes, 45.0)
    last_rewards = [f"{value:.0f}" for value in fatal[0][fatal[0] > 0].tolist()]
    offset = ", ".join("({:.5f}, {:.5f})".format(*pair.tolist()) for pair in offsets)
    rows = (
        (
            "A marine's steps to the east, cells",
            "1.125, 1.125",
            ", ".join(f"{after - before:.4f}" for before, after in itertools.pairwise(x[:3])),
        ),
        ("Divisor of positions in the state", "28", f"{(x[0] - CENTRE) / x_in_state[0]:.4f}"),
        (
            "x of agent 0 in the state at t = 0, 1, 2, walking east",
            "-0.25, -0.20982143, -0.16964285",
            ", ".join(f"{value:.8f}" for value in x_in_state[:3]),
        ),
        ("Agents 1 and 2 from agent 0 at the start", "(0, 0.68848), (0.68848, 0.68848)", offset),
        ("First step with a legal attack, counted from 0", "4", distribution(first_attack.tolist())),
        ("First step with damage", "4", distribution(first_damage.tolist())),
        ("Loops per shot of a marine", "about 14.6 (23 shots)", f"{loops_per_shot(shooting(episodes, 1e5)):.2f}"),
        ("Hits that kill a marine", "8", distribution((fatal > 0).sum(1).tolist())),
        ("Raw rewards of the hits on the last marine", "6 each, at last 3 + 10 + 200 = 213", ", ".join(last_rewards)),
    )
    return [{"quantity": quantity, "real": real, "here": here} for quantity, real, here in rows]


def shooting(battles: int, health: float) -> Tensor:
    """Raw rewards [E, steps] of one marine that shoots at another with that health, until it is dead."""
    env = SmacEnv("smac/3m", battles)
    env.reset(seeding.environment_seeds("behaviour", 1, battles))
    state, enemy = env.battle_state, env.spec.num_agents
    life = torch.zeros_like(state.battle.health)
    life[0], life[enemy] = 1e5, health
    x = (OFF_MAP + 10.0 * torch.arange(len(life)))[:, None].expand_as(life).clone()
    x[0], x[enemy] = CENTRE, CENTRE + 5.0
    y = torch.where(life > 0, CENTRE, x)
    battle = dataclasses.replace(state.battle, health=life, x=x, y=y, goal_x=x.clone(), goal_y=y.clone())
    early = torch.full_like(state.steps, -SHOOTING_STEPS)  # so that the step limit is never reached
    step = env.set_state(dataclasses.replace(state, battle=battle, steps=early))
    rewards: list[Tensor] = []
    while len(rewards) < SHOOTING_STEPS and not bool(step.finished.all()):
        assert step.action_mask is not None
        actions = torch.zeros(battles, enemy, dtype=torch.int64)
        actions[:, 0] = torch.where(step.action_mask[:, 0, ATTACK], ATTACK, 1)
        step = env.step(actions)
        rewards.append(step.rewards[:, 0] * RAW)
    return torch.stack(rewards, 1)


def loops_per_shot(rewards: Tensor) -> float:
    """Mean loops between the first and the last hit of every row [E, steps], once the rows are out of step."""
    hits = (rewards[:, SETTLING_STEPS:] > 0).int()  # a marine hits once a step at most
    steps = hits.shape[1] - 1 - hits.flip(1).argmax(1) - hits.argmax(1)
    return float(LOOPS_PER_STEP * steps.sum() / (hits.sum(1) - 1).sum())


def distribution(values: Sequence[int]) -> str:
    """The values that occur, with their frequencies where there are several."""
    distinct = sorted(set(values))
    if len(distinct) == 1:
        return f"{distinct[0]} (always)"
    return ", ".join(f"{value} ({100 * values.count(value) / len(values):.1f} %)" for value in distinct)
