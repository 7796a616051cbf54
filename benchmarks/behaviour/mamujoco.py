"""Trains the behaviour policies of the native MA-MuJoCo datasets: MAPPO on the batched engine.

Multi-agent PPO (Yu et al. 2022, arXiv 2103.01955) in its continuous form: one actor shared by the agents, on what an
agent observes but the absolute x position; one critic on the robot's state but for that; a Gaussian whose standard
deviation is learned; one probability ratio for the team.

    python -m marl_flow.benchmarks.behaviour.mamujoco train mamujoco/2ant --out runs/robots
    python -m marl_flow.benchmarks.behaviour.mamujoco select mamujoco/2ant --out runs/robots

Measurements and datasets play the mean with Gaussian noise of 0.2 on it, clipped to the bounds: the exploration of the
published behaviour (`instadeepai/og-marl: docs/dataset_cards/og_marl.md`).

`train` keeps an actor every few iterations, with what it returns; a killed one continues. `select` takes, for each
quality, actors that meet the published mean: the best, two around it or, for poor ants, all of a beginner's first ones.
It writes the policy file that datasets/native.py reads, with the choices beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from marl_flow import seeding
from marl_flow.benchmarks import suite
from marl_flow.benchmarks.behaviour.mappo import Learner, RobotConfig
from marl_flow.benchmarks.behaviour.snapshots import KeptActors, actor_file, read_record, write_policies
from marl_flow.envs.mamujoco.env import RobotEnv
from marl_flow.interfaces import UserError

log = logging.getLogger(__name__)

SELECT_EPISODES, BEGINNER_EPISODES = 400, 100
"""For each actor that may be chosen; of a beginner many are, whose errors even out."""
SHORTFALL = 0.03
"""By which share of it a dataset's mean return may stay below the published one, of a tolerance of 0.05."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, and the qualities whose actors are taken from it: of a beginner's all that it was at first, of
    others one or two."""

    qualities: tuple[str, ...]
    config: RobotConfig
    beginner: bool = False


_BEGINNER = RobotConfig(iterations=25, keep_every=1, first_weight=5.0)
RUNS: dict[str, tuple[Run, ...]] = {
    "mamujoco/2ant": (
        Run(qualities=("good", "medium"), config=RobotConfig(iterations=1150)),
        Run(qualities=("poor",), config=_BEGINNER, beginner=True),
    ),
    "mamujoco/4ant": (
        Run(qualities=("good", "medium"), config=RobotConfig(iterations=745)),
        Run(qualities=("poor",), config=replace(_BEGINNER, first_weight=3.0), beginner=True),
    ),
    "mamujoco/2halfcheetah": (Run(qualities=("good", "medium", "poor"), config=RobotConfig(iterations=775)),),
}
"""Poor ants do worse than nothing: who stands still for 1000 steps is paid 1000, and with the noise about 850. Training
from small first weights begins there and never falls as low as the published poor data. What does is a network that
gives large outputs at the beginning of its training: it presses its joints against their stops and pays for that."""


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """An actor as shipped: weights in float16, the noise and its normalisation beside them."""

    weights: dict[str, Tensor]

    @classmethod
    def of(cls, learner: Learner) -> Shipped:
        mean, std = learner.seen.shift_and_scale
        layers = {name: value.half() for name, value in learner.actor.state_dict().items() if name != "log_std"}
        return cls(weights={**layers, "observation_mean": mean, "observation_std": std})

    def play(self, observations: Tensor) -> Tensor:
        """Means [E, N, A] of observations [E, N, O]."""
        x = (observations - self.weights["observation_mean"]) / self.weights["observation_std"]
        for i in range(3):
            weight, bias = (self.weights[f"layers.{i}.{part}"].float() for part in ("weight", "bias"))
            x = torch.tanh(x @ weight.t() + bias)
        return x


@torch.no_grad()
def measure(env: RobotEnv, actor: Shipped, config: RobotConfig) -> dict[str, float]:
    """What an actor returns, as the datasets play it, over episodes that no training and no dataset uses."""
    step = env.reset(seeding.environment_seeds("behaviour", config.seed + 1, env.num_envs))
    generator = seeding.generator(config.seed, "measure")
    returns, lengths = torch.zeros(env.num_envs), torch.zeros(env.num_envs)
    while not step.finished.all():
        mean = actor.play(step.observations)
        lengths += ~step.finished
        step = env.step((mean + config.noise * torch.randn(mean.shape, generator=generator)).clamp(-1.0, 1.0))
        returns += step.rewards[:, 0]
    return {
        "return": round(float(returns.mean()), 1),
        "std": round(float(returns.std()), 1),
        "length": round(float(lengths.mean()), 1),
    }


def train(task_id: str, config: RobotConfig, folder: Path) -> None:
    """Trains to the last iteration, keeping actors and their record under `folder`; continues what is there."""
    learner, judge = Learner(task_id, config), RobotEnv(task_id, config.measure_episodes, num_threads=1)
    kept, first = KeptActors(folder, task_id, config), 0
    if (state := kept.resume()) is not None:
        first = learner.unpack(state)
    for iteration in range(first, config.iterations + 1):
        if iteration % config.keep_every == 0:
            now, actor = learner.pack(iteration), Shipped.of(learner)
            row = kept.keep(iteration, actor.weights, measure(judge, actor, config), now)
            log.info("%s %s", task_id, json.dumps(row))
        if iteration == config.iterations:
            return
        batch, reward = learner.collect()
        found = learner.improve(batch, iteration)
        log.info("%d: reward %.3f %s", iteration, reward, found)


def select(task_id: str, folders: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The policy file's tensors and the choices behind them; `folders` are those of the task's runs.

    What is chosen meets the published mean by measurements over more episodes than training made. Of a beginner it is
    every actor up to the one that brings their mean to it, in equal parts but for this one. Of others it is the one
    that training measured best where this one stays within SHORTFALL below it, else the first two neighbours around it,
    in the parts that bring their mean to it; where there are none, the first two that follow on each other among those
    that training measured on two sides of it.
    """
    tensors: dict[str, Tensor] = {}
    choices: dict[str, object] = {}
    for run, folder in zip(RUNS[task_id], folders, strict=True):
        record = read_record(folder)
        config = RobotConfig(**record["config"])
        episodes = BEGINNER_EPISODES if run.beginner else SELECT_EPISODES
        judge = RobotEnv(task_id, episodes, num_threads=os.cpu_count())
        kept = Judged(judge, folder, config, record["kept"])
        for quality in run.qualities:
            target = suite.dataset_means()[f"{task_id}/{quality}"]
            chosen = kept.beginning(target) if run.beginner else kept.around(target)
            tensors |= _pack(quality, [kept.actor(index) for index in chosen], list(chosen.values()), config)
            choices[quality] = {
                "target": target,
                "config": asdict(config),
                "actors": [{**kept.measured[index], "share": round(part, 4)} for index, part in chosen.items()],
            }
    return tensors, choices


class Judged:
    """The actors that one training kept, as `rows` of its record, and what they return when `judge` plays them."""

    def __init__(self, judge: RobotEnv, folder: Path, config: RobotConfig, rows: Sequence[Mapping[str, float]]) -> None:
        self.judge, self.folder, self.config, self.rows = judge, folder, config, rows
        self.measured: dict[int, dict[str, float]] = {}

    def actor(self, index: int) -> Shipped:
        return Shipped(weights=load_file(actor_file(self.folder, self.rows[index]["iteration"])))

    def mean(self, index: int) -> float:
        if index not in self.measured:
            self.measured[index] = {**self.rows[index], **measure(self.judge, self.actor(index), self.config)}
            log.info("%s %s", self.folder.name, self.measured[index])
        return self.measured[index]["return"]

    def around(self, target: float) -> dict[int, float]:
        """The best actor, or the first two neighbours with the target between them, and their shares; see `select`."""
        best = max(range(len(self.rows)), key=lambda index: self.rows[index]["return"])
        if (1 - SHORTFALL) * target <= self.mean(best) <= target:
            return {best: 1.0}
        judged: list[int] = []
        for pair in itertools.pairwise(range(len(self.rows))):
            if between(target, *(self.rows[index]["return"] for index in pair)):
                if between(target, *map(self.mean, pair)):
                    return self._shares(target, *pair)
                judged += pair
        for pair in itertools.pairwise(judged):
            if between(target, *map(self.mean, pair)):
                return self._shares(target, *pair)
        raise self._missed(target)

    def _shares(self, target: float, early: int, late: int) -> dict[int, float]:
        first, second = self.mean(early), self.mean(late)
        share = (target - first) / (second - first)
        return {early: 1 - share, late: share}

    def beginning(self, target: float) -> dict[int, float]:
        """All actors up to the first that brings their mean to the target from below, and their shares."""
        missing = 0.0  # how much the actors so far return less than the target, in all
        for index in range(len(self.rows)):
            above = self.mean(index) - target
            if 0 < missing <= above:
                part = missing / above
                return {**dict.fromkeys(range(index), 1 / (index + part)), index: part / (index + part)}
            missing -= above
        raise self._missed(target)

    def _missed(self, target: float) -> UserError:
        returns = [row["return"] for row in self.rows]
        advice = "train on" if max(returns) < target else "keep more actors, or begin from other first weights"
        return UserError(
            f"{self.folder}: expected actors around a return of {target}, found none between {min(returns)} and "
            f"{max(returns)}; {advice}"
        )


def between(target: float, first: float, second: float) -> bool:
    return min(first, second) < target <= max(first, second)


def _pack(quality: str, actors: list[Shipped], shares: list[float], config: RobotConfig) -> dict[str, Tensor]:
    """The policy file's tensors of one quality (datasets/behaviour.py)."""
    tensors = {
        name.replace("layers.", "layer"): torch.stack([actor.weights[name] for actor in actors])
        for name in actors[0].weights
    }
    size = tensors["layer2.bias"].shape[-1]
    tensors["log_std"] = torch.full((len(actors), size), math.log(config.noise))
    tensors["episodes_share"] = torch.tensor(shares)
    return {f"{quality}/{name}": value.contiguous() for name, value in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "select"))
    parser.add_argument("task", choices=sorted(RUNS))
    parser.add_argument("--out", type=Path, required=True, help="folder for kept actors, the policy file and its log")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # the sum order, hence the weights, must not depend on the machine's core count
    name = arguments.task.replace("/", "_")
    runs = {arguments.out / f"{name}_{'_'.join(run.qualities)}": run for run in RUNS[arguments.task]}
    if arguments.command == "train":
        for folder, run in runs.items():
            train(arguments.task, run.config, folder)
        return
    tensors, choices = select(arguments.task, list(runs))
    log.info("%s", write_policies(arguments.out / name, tensors, choices))


if __name__ == "__main__":
    main()
