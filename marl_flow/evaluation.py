"""Evaluation: episodes block by block, all ways of acting side by side; then the time that a decision takes.

Paired by design: all requests play the same seeds, and the noise that a policy draws depends on the block of episodes,
not on the request, so that two step counts or two methods differ by what they do and by nothing else. A finished block
is kept, and an evaluation that was killed continues with the next one.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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
from marl_flow.progress import progress_bar
from marl_flow.rollout import Episodes, rollout, rollout_together
from marl_flow.run_log import BlockLog

MakeEnv = Callable[[int], VectorEnv]
"""Number of rows -> environment; the rows play whatever seeds they are reset to."""

BLOCK = 128
"""Maximum number of episodes of a block, which one policy plays at once. Part of the protocol: a policy draws its
noise for a whole block."""
BLOCK_STEPS = 25_000
"""Maximum number of environment steps of a block, unless one episode has more: a block is what a kill can cost."""
MAX_FRAMES = 250
"""Number of steps of a task up to which a rollout shows every one."""


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
    progress: bool = False,
) -> list[EvaluationResult]:
    """One result per request, over one episode per seed.

    header: of the checkpoint that the algorithm is. target_rule: how the requests' target returns were chosen, e.g.
    quantile:0.9. steps_at_once: how many environment steps to play side by side at most, unless one block has more; it
    changes no result. logs: one per request; they keep every finished block, and those they hold already are not played
    again, so that a kill costs unfinished blocks only. Latencies are measured after all episodes. progress: show a bar.
    """
    single = make_env(1)
    require_same_task(algorithm.spec, single.spec)
    policies = [algorithm.policy(request) for request in requests]  # refuses impossible requests before anything runs
    with contextlib.ExitStack() as stack:
        bar = None
        if progress:
            title = f"evaluating {header.run.algorithm} {header.run.dataset_id}"
            bar = stack.enter_context(progress_bar(title, "episodes", total=len(requests) * len(seeds)))
        episodes = play(
            algorithm,
            make_env,
            requests,
            seeds,
            noise_seed=noise_seed,
            steps_at_once=steps_at_once,
            logs=logs,
            progress=None if bar is None else bar.update,
        )
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


def play(
    algorithm: Algorithm,
    make_env: MakeEnv,
    requests: Sequence[ActingConfig],
    seeds: Sequence[int],
    *,
    noise_seed: int = 0,
    steps_at_once: int = 100_000,
    logs: Sequence[BlockLog] | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Episodes]:
    """The episodes of each request, block by block, the requests side by side.

    Each request plays a block with a policy of its own, unless its log holds the block; as many requests as fit into
    `steps_at_once` share one environment. How they share does not change what they play. progress: called with the
    number of episodes that were finished since the last call.
    """
    rows = block_rows(algorithm.spec.max_steps)
    blocks = [tuple(seeds[start : start + rows]) for start in range(0, len(seeds), rows)]
    parts: list[dict[int, Episodes]] = [{} for _ in requests]
    for part, log in zip(parts, logs, strict=True) if logs else ():
        part |= {number: Episodes.from_json(record) for number, record in log.read().items()}
    if progress is not None:
        progress(sum(len(block) for part in parts for number, block in enumerate(blocks) if number in part))
    for number, block in enumerate(blocks):
        missing = [which for which, part in enumerate(parts) if number not in part]
        while missing:
            share = max(1, steps_at_once // (len(block) * algorithm.spec.max_steps))
            taken, missing = missing[:share], missing[share:]
            players = []
            for which in taken:
                policy = algorithm.policy(requests[which])
                policy.reset(len(block), seeding.generator(noise_seed, "acting", number))
                players.append((policy, block))
            env = make_env(len(players) * len(block))
            for which, episodes in zip(taken, rollout_together(env, players), strict=True):
                parts[which][number] = episodes
                if logs:
                    logs[which].add(number, episodes.to_json())
            if progress is not None:
                progress(len(taken) * len(block))
    return [Episodes.joined([part[number] for number in range(len(blocks))]) for part in parts]


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
        _synchronize()
        start = time.perf_counter()
        actions = policy.act(step.observations, step.action_mask, step.rewards)
        _synchronize()
        milliseconds.append((time.perf_counter() - start) * 1e3)
        step = env.step(actions)
    means = np.reshape(milliseconds, (-1, together)).mean(-1)
    p50, p95 = np.quantile(means[warm_up:], (0.5, 0.95)).tolist()
    return p50, p95


def _synchronize() -> None:
    """Waits until every GPU in use has finished."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@torch.no_grad()
def rollout_frames(policy: Policy, env: VectorEnv, seed: int, generator: torch.Generator) -> list[np.ndarray]:
    """RGB pictures of one episode, drawn by the environment's `render`: before the first step, then after every step,
    or in tasks with more than MAX_FRAMES steps after every n-th, and at the end."""
    render = getattr(env, "render", None)
    if render is None:
        raise UserError(f"{env.spec.task_id} cannot be drawn: its environment has no `render`; leave the picture out")
    frames, steps, every = [], itertools.count(), -(-env.spec.max_steps // MAX_FRAMES)

    def draw(step: TimeStep, actions: Tensor | None) -> None:
        if next(steps) % every == 0 or bool(step.finished.all()):
            frames.append(render(0))

    policy.reset(1, generator)
    rollout(env, policy, [seed], draw)
    return frames


def require_same_task(trained: TaskSpec, offered: TaskSpec) -> None:
    """Raises unless the environment is the one the algorithm was trained for."""
    before, after = trained.to_json(), offered.to_json()
    names = dict.fromkeys([*before, *after])
    differences = [
        f"{n}: {before.get(n)} in training, {after.get(n)} now" for n in names if before.get(n) != after.get(n)
    ]
    if differences:
        raise UserError(
            f"the checkpoint is of task {trained.task_id}, which is not this environment ({'; '.join(differences)}); "
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
