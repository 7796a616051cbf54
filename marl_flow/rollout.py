"""The one loop that plays policies in a vector environment until every episode is over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marl_flow.interfaces import Policy, TaskSpec, TimeStep, UserError, VectorEnv

Observer = Callable[[TimeStep, Tensor | None], None]
"""Called with what the environment shows and the actions [E, N, A] or [E, N] that led there: after the reset, where
there are none yet (None), and after every step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Episodes:
    """K finished episodes, on the CPU: agent_returns [K, N] float64 undiscounted, lengths [K], won [K] bool or None."""

    agent_returns: Tensor
    lengths: Tensor
    won: Tensor | None

    @staticmethod
    def joined(parts: Sequence[Episodes]) -> Episodes:
        """All episodes of the parts, in order."""
        won = [part.won for part in parts if part.won is not None]
        return Episodes(
            agent_returns=torch.cat([part.agent_returns for part in parts]),
            lengths=torch.cat([part.lengths for part in parts]),
            won=torch.cat(won) if won else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain lists, from which `from_json` makes the same bits."""
        won = None if self.won is None else self.won.tolist()
        return {"agent_returns": self.agent_returns.tolist(), "lengths": self.lengths.tolist(), "won": won}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Episodes:
        return Episodes(
            agent_returns=torch.tensor(record["agent_returns"], dtype=torch.float64),
            lengths=torch.tensor(record["lengths"]),
            won=None if record["won"] is None else torch.tensor(record["won"]),
        )


def rollout(env: VectorEnv, policy: Policy, seeds: Sequence[int], observer: Observer | None = None) -> Episodes:
    """Plays one episode per seed with a policy that was reset for as many rows; see `rollout_together`."""
    (episodes,) = rollout_together(env, [(policy, seeds)], observer)
    return episodes


@torch.no_grad()
def rollout_together(
    env: VectorEnv, players: Sequence[tuple[Policy, Sequence[int]]], observer: Observer | None = None
) -> list[Episodes]:
    """Plays several policies side by side, each on its own rows and seeds, and returns the episodes of each.

    Every policy was reset by the caller for as many rows as it has seeds; it acts until all of its rows are over. The
    rows of `env` are those of the players, in order. Actions in running rows must be finite and legal, else a
    UserError; an episode that goes on after the task's `max_steps` is a ValueError.
    """
    bounds = list(itertools.accumulate((len(seeds) for _, seeds in players), initial=0))
    spans = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    step = env.reset([seed for _, seeds in players for seed in seeds])
    if observer is not None:
        observer(step, None)
    running = ~step.finished
    returns = torch.zeros(step.rewards.shape, dtype=torch.float64, device=running.device)
    lengths = torch.zeros(running.shape, dtype=torch.int64, device=running.device)
    won = None if step.won is None else step.won & running
    actions: Tensor | None = None
    for _ in range(env.spec.max_steps):
        unfinished = torch.stack([running[span].any() for span in spans]).tolist()
        if not any(unfinished):
            break
        chosen = [
            _act(policy, step, span) if actions is None or unfinished[i] else _noop_actions(actions, step, span)
            for i, ((policy, _), span) in enumerate(zip(players, spans, strict=True))
        ]
        actions = torch.cat(chosen)
        _check_actions(env.spec, actions, step.action_mask, running)
        step = env.step(actions)
        if observer is not None:
            observer(step, actions)
        returns += torch.where(running[:, None], step.rewards.double(), 0.0)
        lengths += running
        if won is not None and step.won is not None:
            won = won | (step.won & running)
        running = running & ~step.finished
    if bool(running.any()):
        raise UserError(
            f"{env.spec.task_id} breaks its contract: {int(running.sum())} of {len(running)} episodes go on after "
            f"max_steps = {env.spec.max_steps}"
        )
    return [
        Episodes(
            agent_returns=returns[span].cpu(), lengths=lengths[span].cpu(), won=None if won is None else won[span].cpu()
        )
        for span in spans
    ]


def _act(policy: Policy, step: TimeStep, span: slice) -> Tensor:
    mask = None if step.action_mask is None else step.action_mask[span]
    return policy.act(step.observations[span], mask, step.rewards[span])


def _noop_actions(actions: Tensor, step: TimeStep, span: slice) -> Tensor:
    """Actions for rows that are all over: the last ones, or the first legal choices."""
    return actions[span] if step.action_mask is None else step.action_mask[span].to(actions.dtype).argmax(-1)


def _check_actions(spec: TaskSpec, actions: Tensor, action_mask: Tensor | None, running: Tensor) -> None:
    """Raises when a policy's actions in running rows are not finite or not legal: a bug, or damaged weights."""
    if not spec.action.is_discrete:
        good = torch.isfinite(actions).flatten(1).all(-1)
    elif action_mask is not None:
        good = action_mask.gather(-1, actions.long()[..., None])[..., 0].all(-1)
    else:
        good = ((actions >= 0) & (actions < spec.action.size)).all(-1)
    if bool((running & ~good).any()):
        row = int((running & ~good).nonzero()[0])
        raise UserError(
            f"expected {'legal' if spec.action.is_discrete else 'finite'} actions in {spec.task_id}, found "
            f"{actions[row].tolist()}; the weights are damaged or the policy is wrong; play "
            "another checkpoint, or mend the policy"
        )
