"""Environments for the pool's tests. Workers import this file by name, so it lies beside the tests, not in one.

Run as a script it is the program that is killed, or ends without closing: `python pool_fakes.py sleep|leave`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from marl_flow.envs.process_pool import Frame, Outcome, ProcessPool
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError

LIMIT = 6
SPEC = TaskSpec(
    task_id="fake/duel",
    agents=("agent_0", "agent_1"),
    observation_size=3,
    state_size=2,
    action=ActionSpec(kind="discrete", size=4),
    max_steps=LIMIT,
    team_reward="shared",
)


class Duel:
    """Adds chosen numbers to a start drawn from the seed. Ends as won above 12, as lost below 6 at step 4, or at the
    limit. Choice 0 is illegal but in even steps, choice 3 but in odd ones. Misbehaves at step 2 of the episode of seed
    `cursed` in the way `trouble` says. It starts a "game", a child process, and notes both numbers in a file.
    """

    def __init__(self, trouble: str = "none", cursed: int = 7, notes: str = "") -> None:
        if trouble == "build":
            raise UserError("no such map")
        self.trouble, self.cursed, self.notes = trouble, cursed, notes
        self.game: subprocess.Popen[bytes] | None = None
        if notes:
            self.game = subprocess.Popen(["sleep", "600"])
            with (Path(notes) / str(os.getpid())).open("w") as file:
                file.write(str(self.game.pid))

    def describe(self) -> dict[str, int]:
        return {"num_agents": 2, "observation_size": 4 if self.trouble == "size" else 3, "max_steps": LIMIT}

    def reset(self, seed: int) -> Frame:
        self.seed, self.steps, self.ended = seed, 0, False
        self.total = float(np.random.default_rng(seed).uniform(0, 6))
        return self.frame()

    def frame(self) -> Frame:
        mask = np.ones((2, 4), dtype=bool)
        mask[:, 0], mask[:, 3] = self.steps % 2 == 0, self.steps % 2 == 1
        observed = np.array([[self.total, self.steps, agent] for agent in range(2)], dtype=np.float32)
        return Frame(observations=observed, mask=mask, state=np.array([self.total, self.steps], dtype=np.float32))

    def step(self, actions: list[int]) -> Outcome:
        assert not self.ended, "a finished episode was stepped"
        assert self.frame().mask[[0, 1], actions].all(), "an illegal action reached the worker"
        self.steps += 1
        if self.seed == self.cursed and self.steps == 2:
            self.misbehave()
        self.total += sum(actions)
        won, lost = self.total > 12, self.total < 6 and self.steps == 4
        self.ended = won or lost or self.steps == LIMIT
        return Outcome(
            frame=self.frame() if self.trouble != "shape" else Frame(observations=np.zeros(3), mask=np.ones(4)),
            reward=float(sum(actions)),
            terminated=won or lost,
            truncated=self.steps == LIMIT and not (won or lost),
            won=won,
        )

    def misbehave(self) -> None:
        if self.trouble == "exit":
            os._exit(3)
        elif self.trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.trouble == "hang":
            time.sleep(600)
        elif self.trouble == "raise":
            raise EOFError("the game said nothing")  # not to be taken for the end of the pool's own pipe

    def close(self) -> None:
        if self.game is not None and self.trouble == "none":  # others leave it behind, as a careless package may
            self.game.kill()
            self.game.wait()


def main(how: str, notes: str) -> ProcessPool:
    """Builds a pool of one, then sleeps in a step of its worker, or leaves without a word and the pool still there."""
    import torch

    env = ProcessPool(partial(Duel, "hang", 7, notes), SPEC, 1, won=True)
    env.reset([7])
    env.step(torch.ones(1, 2, dtype=torch.int64))
    (Path(notes) / "ready").touch()
    if how == "sleep":
        env.step(torch.ones(1, 2, dtype=torch.int64))
    return env


if __name__ == "__main__":
    left = main(*sys.argv[1:])
