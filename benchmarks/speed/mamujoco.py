"""Speed of the MA-MuJoCo environments beside other libraries', in environment steps (one control step of one robot).

Everything is measured in turn in one process. Ours
uses two cores and the libraries one: ratios of wall time need the second core free, those per CPU-second do not. Steps
include resets, observations and rewards; actions are random and drawn beforehand. The last row is the wall time of an
evaluation, with as many threads as torch takes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from marl_flow import baselines, checkpoint, envs, evaluation, seeding, training
from marl_flow.benchmarks.campaign import MAMUJOCO_SETTINGS
from marl_flow.benchmarks.speed.timing import REPEATS, Row, Run, steps_per_second
from marl_flow.commands.data import training_data
from marl_flow.commands.train import make_run
from marl_flow.datasets import native
from marl_flow.envs.mamujoco import engine
from marl_flow.envs.mamujoco.env import FRAME_SKIP, RobotEnv
from marl_flow.interfaces import ActingConfig, TimeStep

NUM_ENVS, NUM_THREADS = 64, 2
EPISODE = 40
"""Steps between resets: most ants under random actions still stand then, and few rows are frozen."""
SINGLE_EPISODES = {"Ant": 40, "HalfCheetah": 200}
"""Episodes of one repeat where one robot is stepped alone."""
GYMNASIUM_TARGET, LIBRARY_TARGET, OBSERVATION_TARGET = 2.0, 3.0, 10.0
"""At least so many times the speed of gymnasium and of `mamujoco_v1`; at most so many per cent of a step's time."""
EVALUATED, EVALUATION_TARGET = 100, 900
"""Episodes of the evaluation that is timed, and seconds it may take."""


def rows() -> Iterator[Row]:
    """Our speed, its ratios to gymnasium's own robot and to `mamujoco_v1`, and the time that observations take; then
    three ways of stepping the engine alone, of which we use the first; finally an evaluation."""
    with seeding.one_thread():
        for task_id, scenario, partition in (
            ("mamujoco/2ant", "Ant", "2x4"),
            ("mamujoco/2halfcheetah", "HalfCheetah", "2x3"),
        ):
            env, is_ant = RobotEnv(task_id, NUM_ENVS, num_threads=NUM_THREADS), scenario == "Ant"
            with engine.quiet():
                speeds, per_cpu = steps_per_second(
                    {
                        "ours": our_run(env),
                        "gymnasium": single_run(scenario),
                        "library": library_run(scenario, partition),
                    }
                )
            yield Row(f"{task_id}, {NUM_ENVS} at once, {NUM_THREADS} threads", speeds["ours"], "steps/s")
            for library, title, target in (
                ("gymnasium", f"gymnasium's {scenario}-v5", GYMNASIUM_TARGET),
                ("library", f"mamujoco_v1 {scenario} {partition}", LIBRARY_TARGET),
            ):
                name = f"{task_id} against {title}"
                yield Row(name, speeds["ours"] / speeds[library], "x", target if is_ant else None)
                yield Row(f"{name}, per CPU-second", per_cpu["ours"] / per_cpu[library], "x")
            percent = observation_percent(env)
            yield Row(f"{task_id}, time of a step spent on observations", percent, "%", OBSERVATION_TARGET)
            with engine.quiet():
                speeds, _ = steps_per_second(engine_runs(env._partition.robot.model))
            for stepper, speed in speeds.items():
                yield Row(f"{task_id}, the engine alone by {stepper}", speed, "steps/s")
    seconds = evaluation_seconds()
    yield Row(f"2halfcheetah, {EVALUATED} episodes of CoFlow-C, k = 1", seconds, "s", EVALUATION_TARGET)


def evaluation_seconds() -> float:
    """Wall time of an evaluation over whole episodes: CoFlow (compact, horizon and history of the paper) on a robot
    that never falls. It is hardly trained: that changes nothing about the time."""
    with tempfile.TemporaryDirectory() as folder:
        store = native.build("mamujoco/2halfcheetah/poor", Path(folder) / "data", envs.make, episodes=10)
        planned = make_run(store.dataset_id, "coflow", settings=(*MAMUJOCO_SETTINGS, "train.updates=5"))
        kind, data = baselines.get(planned.algorithm), training_data(store)
        trained = training.train(
            Path(folder) / "run", kind, planned.config, planned.training, data, preset=planned.preset
        )
        algorithm, _ = checkpoint.load_algorithm(trained.checkpoint, baselines.get, device=torch.device("cpu"))
        acting = ActingConfig(execution="centralized", num_sampling_steps=1, target_return=0.0)
        start = time.perf_counter()
        evaluation.play(
            algorithm,
            lambda rows: envs.make("mamujoco/2halfcheetah", rows, torch.device("cpu")),
            [acting],
            evaluation.evaluation_seeds(EVALUATED),
        )
        return time.perf_counter() - start


def our_run(env: RobotEnv) -> Run:
    """An episode of every row; frozen rows do not count."""
    shape = (EPISODE, env.num_envs, env.spec.num_agents, env.spec.action.size)
    actions = 2.0 * torch.rand(shape, generator=seeding.generator(0, "bench_mamujoco", "actions")) - 1.0
    seeds = seeding.environment_seeds("collect", 0, env.num_envs)

    def run() -> int:
        step, steps = env.reset(seeds), 0
        for joint in actions:
            steps += int((~step.finished).sum())
            step = env.step(joint)
        return steps

    return run


def single_run(scenario: str) -> Run:
    """Episodes of gymnasium's robot, one after the other."""
    import gymnasium

    with engine.quiet():
        env = gymnasium.make(f"{scenario}-v5")
    size = (env.action_space.shape or (0,))[0]
    actions = drawn(EPISODE, size)

    def run() -> int:
        steps = 0
        for episode in range(SINGLE_EPISODES[scenario]):
            env.reset(seed=episode)
            for action in actions:
                steps += 1
                _, _, terminated, _, _ = env.step(action)
                if terminated:
                    break
        return steps

    return run


def library_run(scenario: str, partition: str) -> Run:
    """Episodes of gymnasium-robotics' multi-agent robot, one after the other."""
    with engine.quiet():
        from gymnasium_robotics.envs.multiagent_mujoco import MultiAgentMujocoEnv

        env = MultiAgentMujocoEnv(scenario, partition)
    names = list(env.possible_agents)
    actions = drawn(EPISODE, len(names) * env.action_space(names[0]).shape[0]).reshape(EPISODE, len(names), -1)

    def run() -> int:
        steps = 0
        for episode in range(SINGLE_EPISODES[scenario]):
            env.reset(seed=episode)
            for joint in actions:
                steps += 1
                env.step(dict(zip(names, joint, strict=True)))
                if not env.agents:
                    break
        return steps

    return run


def drawn(*shape: int) -> np.ndarray:
    """Uniform actions in [-1, 1], float32."""
    source = seeding.generator(0, "bench_mamujoco", "single actions")
    return (2.0 * torch.rand(shape, generator=source) - 1.0).numpy()


def observation_percent(env: RobotEnv) -> float:
    """Per cent of the time of steps that goes into gathering observations and handing them out."""
    spent = 0.0

    @contextmanager
    def timed() -> Iterator[None]:
        nonlocal spent
        start = time.perf_counter()
        yield
        spent += time.perf_counter() - start

    observe, emit = env._observe, env._time_step

    def timed_observe(rows: np.ndarray) -> None:
        with timed():
            observe(rows)

    def timed_emit(rewards: np.ndarray) -> TimeStep:
        with timed():
            return emit(rewards)

    run = our_run(env)
    env._observe, env._time_step = timed_observe, timed_emit  # type: ignore[method-assign]
    try:
        start = time.perf_counter()
        for _ in range(REPEATS):
            run()
        return 100.0 * spent / (time.perf_counter() - start)
    finally:
        del env._observe, env._time_step


def engine_runs(model_name: str) -> dict[str, Run]:
    """The engine alone, NUM_ENVS robots on NUM_THREADS threads: as we step it, in Python threads, by its rollouts."""
    import mujoco
    from mujoco.rollout import Rollout

    model = engine.load_model(model_name)
    full, rows = mujoco.mjtState.mjSTATE_FULLPHYSICS.value, range(NUM_ENVS)
    controls = drawn(EPISODE, NUM_ENVS, model.nu).astype(np.float64)
    positions = model.qpos0 + 0.1 * drawn(NUM_ENVS, model.nq)
    batch = engine.make_batch(model, NUM_ENVS, NUM_THREADS)
    robots = [mujoco.MjData(model) for _ in rows]
    threads = ThreadPoolExecutor(NUM_THREADS)
    rollouts, spare = Rollout(nthread=NUM_THREADS), [mujoco.MjData(model) for _ in range(NUM_THREADS)]

    def restart() -> None:
        for robot, position in zip(robots, positions, strict=True):
            mujoco.mj_resetData(model, robot)
            robot.qpos[:] = position
            mujoco.mj_forward(model, robot)

    def batched() -> int:
        batch.reset(stage=0)
        batch.bind("qpos")[...] = positions
        batch.forward()
        for control in controls:
            batch.bind("ctrl")[...] = control
            batch.step(nstep=FRAME_SKIP)
        return EPISODE * NUM_ENVS

    def advance(numbers: range, control: np.ndarray, reached: np.ndarray) -> None:
        for number in numbers:
            robots[number].ctrl[:] = control[number]
            mujoco.mj_step(model, robots[number], FRAME_SKIP)
            reached[number] = robots[number].qpos

    def threaded() -> int:
        restart()
        reached = np.empty_like(positions)
        for control in controls:
            parts = [range(first, NUM_ENVS, NUM_THREADS) for first in range(NUM_THREADS)]
            list(threads.map(advance, parts, [control] * NUM_THREADS, [reached] * NUM_THREADS))
        return EPISODE * NUM_ENVS

    def rolled_out() -> int:
        restart()
        state = np.empty((NUM_ENVS, mujoco.mj_stateSize(model, full)))
        for number in rows:
            mujoco.mj_getState(model, robots[number], state[number], full)
        for control in controls:
            reached, _ = rollouts.rollout(model, spare, state, control[:, None], nstep=FRAME_SKIP)
            state = np.asarray(reached)[:, -1]
        return EPISODE * NUM_ENVS

    return {"mujoco.batch": batched, "mj_step in Python threads": threaded, "mujoco.rollout": rolled_out}
