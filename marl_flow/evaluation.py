"""Evaluation: block after block of episodes, every way of acting stepped together; then the time a decision takes.

Paired by design: all requests play the same seeds, and the noise a policy draws depends on the block of episodes it
plays, not on the request, so that two step counts or two methods differ by what they do and by nothing else. For the
same reason a block can be kept when it is over, and an evaluation that was killed continues at the next one.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.algorithm import Algorithm
from marl_flow.checkpoint import Header
from marl_flow.interfaces import (
    ActingConfig,
    EvaluationResult,
    Policy,
    TaskSpec,
    TimeStep,
    UserError,
    VectorEnv,
)
from marl_flow.run_log import BlockLog

MakeEnv = Callable[[int], VectorEnv]
"""Number of rows -> environment; the rows play whatever seeds they are reset to."""

BLOCK = 128
"""Most episodes one policy acts on at once. Part of the protocol: a policy's noise is drawn for a block."""
BLOCK_STEPS = 25_000
"""Most environment steps of a block, unless one episode has more: long evaluations are kept in pieces."""
PICTURES = 250
"""Most steps of a task of which every one is drawn."""


def block_rows(max_steps: int) -> int:
    """Episodes of one block, of a task whose episodes last up to `max_steps`; no machine or setting changes it."""
    return max(1, min(BLOCK, BLOCK_STEPS // max_steps))


def evaluation_seeds(episodes: int) -> tuple[int, ...]:
    """The environment seeds every method is evaluated on."""
    if episodes < 1:
        raise UserError(f"expected at least one evaluation episode, got {episodes}")
    return seeding.environment_seeds("evaluate", 0, episodes)


def evaluate(
    algorithm: Algorithm,
    header: Header,
    make_env: MakeEnv,
    requests: Sequence[ActingConfig],
    *,
    seeds: Sequence[int],
    protocol: str = "last checkpoint",
    target_rule: str = "none",
    noise_seed: int = 0,
    steps_at_once: int = 100_000,
    latency_calls: int = 50,
    logs: Sequence[BlockLog] | None = None,
) -> list[EvaluationResult]:
    """One result per request, over one episode per seed.

    `header` says which checkpoint the algorithm is; `target_rule` how the requests' target returns were chosen, e.g.
    "quantile 0.9 of start returns = 512.3". At most `steps_at_once` environment steps, or one block, are under way at
    once; how many changes no result. `logs`, one per request, keep every block that is over and hold those that need
    not be played again, so that a kill costs what was under way. Latencies are measured when all are over.
    """
    single = make_env(1)
    require_same_task(algorithm.spec, single.spec)
    policies = [algorithm.policy(request) for request in requests]  # refuses impossible requests before anything runs
    episodes = play(algorithm, make_env, requests, seeds, noise_seed=noise_seed, steps_at_once=steps_at_once, logs=logs)
    device, model = machine(algorithm)
    results = []
    for request, policy, played in zip(requests, policies, episodes, strict=True):
        noise = seeding.generator(noise_seed, "latency")
        together = request.actions_per_plan
        p50, p95 = decision_latency(policy, single, seeds, noise, calls=latency_calls, together=together)
        results.append(
            EvaluationResult(
                task_id=algorithm.spec.task_id,
                opponent=algorithm.spec.opponent,
                dataset_id=header.run.dataset_id,
                dataset_digest=header.run.dataset_digest,
                algorithm=header.run.algorithm,
                preset=header.run.preset,
                config_digest=header.run.config_digest,
                training_seed=header.run.training["seed"],
                update=header.update,
                protocol=protocol,
                execution=request.execution,
                num_sampling_steps=request.num_sampling_steps,
                target_return=request.target_return,
                target_rule="none" if request.target_return is None else target_rule,
                seeds=tuple(seeds),
                agent_returns=tuple(map(tuple, played.agent_returns.tolist())),
                team_returns=tuple(algorithm.spec.team_return(played.agent_returns).tolist()),
                lengths=tuple(played.lengths.tolist()),
                won=None if played.won is None else tuple(played.won.tolist()),
                network_passes=policy.network_passes,
                latency_ms_p50=p50,
                latency_ms_p95=p95,
                device=device,
                model=model,
                gate_scale=request.gate_scale,
                actions_per_plan=request.actions_per_plan,
            )
        )
    return results


@dataclass(frozen=True, kw_only=True, eq=False)
class Episodes:
    """K finished episodes, on the CPU: agent_returns [K, N] float64 undiscounted, lengths [K], won [K] bool or None."""

    agent_returns: Tensor
    lengths: Tensor
    won: Tensor | None

    @staticmethod
    def joined(parts: Sequence[Episodes]) -> Episodes:
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


def play(
    algorithm: Algorithm,
    make_env: MakeEnv,
    requests: Sequence[ActingConfig],
    seeds: Sequence[int],
    *,
    noise_seed: int = 0,
    steps_at_once: int = 100_000,
    logs: Sequence[BlockLog] | None = None,
) -> list[Episodes]:
    """The episodes of each request, block by block, all requests in lockstep.

    A block is played by a policy of its own for each request that has not played it yet (`logs`); as many of them as
    fit into `steps_at_once` share one environment. They play the same however they are shared out.
    """
    rows = block_rows(algorithm.spec.max_steps)
    blocks = [tuple(seeds[start : start + rows]) for start in range(0, len(seeds), rows)]
    parts: list[dict[int, Episodes]] = [{} for _ in requests]
    for part, log in zip(parts, logs, strict=True) if logs else ():
        part |= {number: Episodes.from_json(record) for number, record in log.read().items()}
    for number, block in enumerate(blocks):
        missing = [which for which, part in enumerate(parts) if number not in part]
        while missing:
            share = max(1, steps_at_once // (len(block) * algorithm.spec.max_steps))
            taken, missing = missing[:share], missing[share:]
            sides = []
            for which in taken:
                policy = algorithm.policy(requests[which])
                policy.reset(len(block), seeding.generator(noise_seed, "acting", number))
                sides.append((policy, block))
            env = make_env(len(sides) * len(block))
            for which, episodes in zip(taken, play_together(env, sides), strict=True):
                parts[which][number] = episodes
                if logs:
                    logs[which].add(number, episodes.to_json())
    return [Episodes.joined([part[number] for number in range(len(blocks))]) for part in parts]


@torch.no_grad()
def play_together(env: VectorEnv, sides: Sequence[tuple[Policy, Sequence[int]]]) -> list[Episodes]:
    """Plays policies that were reset, each on its own rows and seeds, until every episode is over."""
    bounds = np.cumsum([0, *(len(seeds) for _, seeds in sides)]).tolist()
    spans = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    step = env.reset([seed for _, seeds in sides for seed in seeds])
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
            _act(policy, step, span) if actions is None or unfinished[i] else _rest(actions, step, span)
            for i, ((policy, _), span) in enumerate(zip(sides, spans, strict=True))
        ]
        actions = torch.cat(chosen)
        _check_actions(env.spec, actions, step.action_mask, running)
        step = env.step(actions)
        returns += torch.where(running[:, None], step.rewards.double(), 0.0)
        lengths += running
        if won is not None and step.won is not None:
            won = won | (step.won & running)
        running = running & ~step.finished
    if bool(running.any()):
        raise ValueError(
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


def _rest(actions: Tensor, step: TimeStep, span: slice) -> Tensor:
    """Actions for rows that are all over: the last ones, or the first legal choices."""
    return actions[span] if step.action_mask is None else step.action_mask[span].to(actions.dtype).argmax(-1)


def _check_actions(spec: TaskSpec, actions: Tensor, action_mask: Tensor | None, running: Tensor) -> None:
    """Raises when a policy's actions in running rows are not finite or not legal: a bug, or weights gone bad."""
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
            f"{actions[row].tolist()}; the weights are damaged or the policy is wrong; evaluate another checkpoint"
        )


@torch.no_grad()
def decision_latency(
    policy: Policy,
    env: VectorEnv,
    seeds: Sequence[int],
    generator: torch.Generator,
    *,
    calls: int,
    warm_up: int = 10,
    together: int = 1,
) -> tuple[float, float]:
    """Median and 95th percentile of the milliseconds a joint decision, on observations of real episodes.

    `env` has one row (batch 1). A call is the mean of `together` decisions in a row: where that many act on one plan,
    one of them made it, and a median of single decisions would leave planning out. The first `warm_up` calls are not
    counted, the next `calls` are.
    """
    milliseconds: list[float] = []
    episodes, step = itertools.cycle(seeds), None
    for _ in range(together * (warm_up + calls)):
        if step is None or bool(step.finished.all()):
            step = env.reset([next(episodes)])
            policy.reset(1, generator)
        _wait()
        start = time.perf_counter()
        actions = policy.act(step.observations, step.action_mask, step.rewards)
        _wait()
        milliseconds.append((time.perf_counter() - start) * 1e3)
        step = env.step(actions)
    means = np.reshape(milliseconds, (-1, together)).mean(-1)
    p50, p95 = np.quantile(means[warm_up:], (0.5, 0.95)).tolist()
    return p50, p95


def _wait() -> None:
    """Until every GPU that is in use is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@torch.no_grad()
def rollout_frames(policy: Policy, env: VectorEnv, seed: int, generator: torch.Generator) -> list[np.ndarray]:
    """RGB pictures of one episode, drawn by the environment's `render`: before the first step, then after every step,
    or in tasks with more than PICTURES steps after every n-th, and at the end."""
    render = getattr(env, "render", None)
    if render is None:
        raise UserError(f"{env.spec.task_id} cannot be drawn: its environment has no `render`; leave the picture out")
    step = env.reset([seed])
    policy.reset(1, generator)
    frames, steps, every = [render(0)], 0, -(-env.spec.max_steps // PICTURES)
    while not bool(step.finished.all()):
        step = env.step(policy.act(step.observations, step.action_mask, step.rewards))
        steps += 1
        if steps % every == 0 or bool(step.finished.all()):
            frames.append(render(0))
    return frames


def require_same_task(trained: TaskSpec, offered: TaskSpec) -> None:
    """Raises unless the environment is the one the algorithm was trained for."""
    before, after = trained.to_json(), offered.to_json()
    names = dict.fromkeys([*before, *after])
    found = [f"{n}: {before.get(n)} trained, {after.get(n)} here" for n in names if before.get(n) != after.get(n)]
    if found:
        raise UserError(
            f"the checkpoint is of task {trained.task_id}, which is not this environment ({'; '.join(found)}); "
            "evaluate it on its own task"
        )


def machine(algorithm: Algorithm) -> tuple[str, str]:
    """Device the networks are on, and what it is: names for a table of latencies."""
    parameter = next((p for network in algorithm.networks for p in network.parameters()), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    if device.type == "cuda":
        return "cuda", torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines: Iterator[str] = iter(Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines())
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    threads = torch.get_num_threads()
    return device.type, f"{name}, {threads} thread{'s' if threads > 1 else ''}"
