"""Whether a dataset fits an environment: stored steps, played again from the stored moments, must give the same.

Every step is played on its own, so that nothing adds up, and a difference names the step it belongs to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.datasets.replay.diagnosis import diagnose
from marl_flow.datasets.replay.transitions import (
    TOLERANCES,
    Comparison,
    Env,
    Transitions,
    compare,
    gather,
    within_float32_noise,
)
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import TaskSpec, UserError

BATCHES = (512, 4096)
"""Least and most steps played side by side: the guesses of a diagnosis are many, the processor's cache is not."""
RARE = 0.01
"""Share of a batch's steps whose neighbouring moments are tried, and of episodes that may end short of the limit: steps
at thresholds and an import's remainders are rare, a difference of rules is not."""
MIN_TRIED = 8
"""Steps of a batch of which neighbouring moments are tried, however small it is."""
MEANINGS = {
    "views": "the agents' views of one moment contradict each other or the task",
    "action_mask": "legal actions differ",
    "observations": "the observations that follow differ",
    "state": "the states that follow differ",
    "rewards": "rewards differ",
    "terminated": "the ends of episodes differ",
}


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """Absolute differences of one quantity over all compared steps: the largest and where it is, the 99.9 % quantile.

    agent and feature are None where the quantity has none.
    """

    largest: float
    quantile_999: float
    agent: str | None
    feature: int | None
    episode: int
    step: int
    stored: float
    computed: float

    @property
    def sentence(self) -> str:
        """The largest difference, its place, and the two numbers."""
        feature = None if self.feature is None else f"feature {self.feature}"
        where = [self.agent, feature, f"episode {self.episode}", f"step {self.step}"]
        place = ", ".join(part for part in where if part is not None)
        return f"{self.largest:.3g} ({place}: stored {self.stored:.6g}, computed {self.computed:.6g})"


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What playing stored steps again came to. `message` is one sentence whose subject is the dataset.

    steps: how many were played; mismatches: how many came out unlike; at_thresholds: how many more came out alike only
    for a moment within rounding of the stored one (they are not in `disagreement`); cut_short: episodes that end
    before the step limit though not by the task's rules; diagnosis: what was changed, where that could be told.
    """

    task_id: str
    opponent: str | None
    fits: bool
    message: str
    diagnosis: str | None = None
    steps: int = 0
    mismatches: int = 0
    at_thresholds: int = 0
    cut_short: int = 0
    disagreement: Mapping[str, Disagreement] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def replay(
    store: EpisodeStore,
    make_env: Callable[[int], Env],
    *,
    transitions: int | None,
    seed: int = 0,
) -> Replay:
    """Plays that many stored steps again (None: all), evenly over the episodes, their first and last steps included.

    `make_env` builds the environment of the task for a number of rows, in double precision where it has a choice.
    The same arguments give the same record. Whatever the numbers are, a store that does not fit is a record that says
    so, never an error.
    """
    rows = draw_rows(store.offsets, transitions, seeding.generator(seed, "replay", "rows"))
    env = make_env(min(max(len(rows), BATCHES[0]), BATCHES[1]))
    cut_short = int(((store.lengths < store.spec.max_steps) & ~store.terminated).sum())

    def refused(reason: str) -> Replay:
        task_id, opponent = env.spec.task_id, env.spec.opponent
        message = _refusal(task_id, reason)
        return Replay(task_id=task_id, opponent=opponent, fits=False, message=message, cut_short=cut_short)

    unlike = _unlike_specs(store.spec, env.spec) or _too_long(store)
    if unlike:
        return refused(unlike)
    try:
        return _play(store, env, rows, cut_short, seeding.generator(seed, "replay", "neighbours"))
    except UserError as error:
        return refused(f"its environment cannot play it ({error})")


def draw_rows(offsets: np.ndarray, count: int | None, generator: torch.Generator) -> np.ndarray:
    """`count` distinct steps (None or too many: all) in order: one drawn in each of equal stretches of the data, of
    which every fourth is moved to the first step of its episode and every fourth to the last."""
    total = int(offsets[-1])
    if count is None or count >= total:
        return np.arange(total)
    if count < 1:
        raise UserError(f"expected at least one step to replay, got {count}")
    bounds = np.arange(count + 1) * total // count
    share = torch.rand(count, generator=generator, dtype=torch.float64).numpy()
    rows = bounds[:-1] + (share * np.diff(bounds)).astype(np.int64)
    episodes = np.searchsorted(offsets, rows, side="right") - 1
    rows[0::4] = offsets[episodes[0::4]]
    rows[2::4] = offsets[episodes[2::4] + 1] - 1
    rows = np.unique(rows)
    missing = count - len(rows)
    if missing:
        free = np.ones(total, dtype=bool)
        free[rows] = False
        others = np.flatnonzero(free)
        rows = np.sort(np.append(rows, others[np.arange(missing) * len(others) // missing]))
    return rows


def _unlike_specs(stored: TaskSpec, found: TaskSpec) -> str | None:
    """What two descriptions of a task differ in; agents and opponents have names only, which playing tells apart."""
    for name in ("task_id", "num_agents", "observation_size", "state_size", "action", "max_steps", "team_reward"):
        ours, theirs = getattr(stored, name), getattr(found, name)
        if ours != theirs:
            return f"{name} is {ours} in the data and {theirs} in the environment"
    return None


def _too_long(store: EpisodeStore) -> str | None:
    longest = int(store.lengths.argmax())
    if store.lengths[longest] <= store.spec.max_steps:
        return None
    return (
        f"episode {longest} has {store.lengths[longest]} steps, and the task ends after {store.spec.max_steps}: "
        "episodes of another length"
    )


def _play(
    store: EpisodeStore,
    env: Env,
    rows: np.ndarray,
    cut_short: int,
    generator: torch.Generator,
) -> Replay:
    tally, failing, excused = _Tally(store.spec), [], []
    for start in range(0, len(rows), env.num_envs):
        batch = gather(store, rows[start : start + env.num_envs])
        compared = compare(env, batch)
        wrong = compared.mismatched
        doubtful = torch.stack(list(wrong.values())).any(0).nonzero()[:, 0]
        near = torch.zeros(len(batch), dtype=torch.bool)
        if 0 < len(doubtful) <= max(MIN_TRIED, RARE * len(batch)):
            near[doubtful] = within_float32_noise(env, batch.take(doubtful), generator)
        tally.add(batch, compared, ~near)
        failing.append({name: value & ~near for name, value in wrong.items()})
        excused.append(near)
    mismatched = {name: torch.cat([batch[name] for batch in failing]) for name in failing[0]}
    num_mismatches, num_near = int(torch.stack(list(mismatched.values())).any(0).sum()), int(torch.cat(excused).sum())
    disagreement = tally.disagreement()
    diagnosis, reasons = None, []
    if num_mismatches:
        diagnosis = diagnose(env, store, rows, {name: value.numpy() for name, value in mismatched.items()})
        first = next(name for name, value in mismatched.items() if value.any())
        many = f"{num_mismatches:,} of {len(rows):,} steps do not fit: {diagnosis or 'no simple cause found'}"
        reasons.append(f"{MEANINGS[first]} by up to {disagreement[first].sentence} and {many}")
    if cut_short > RARE * store.num_episodes:
        shortest = int(store.lengths[~store.terminated].min())
        reasons.append(
            f"{cut_short:,} of {store.num_episodes:,} episodes end early (one after {shortest} steps) though not by "
            f"the task's rules, which end them after {store.spec.max_steps}: episodes of another length"
        )
    task_id = env.spec.task_id
    figures = [f"{name} within {worst.largest:.1e}" for name, worst in disagreement.items() if worst.largest]
    thresholds = [f"{num_near:,} at thresholds"] if num_near else []
    played = ", ".join([f"{len(rows):,} steps played again", *(figures or ["all equal"]), *thresholds])
    return Replay(
        task_id=task_id,
        opponent=env.spec.opponent,
        fits=not reasons,
        message=_refusal(task_id, "; ".join(reasons)) if reasons else f"fits {task_id}: {played}",
        diagnosis=diagnosis,
        steps=len(rows),
        mismatches=num_mismatches,
        at_thresholds=num_near,
        cut_short=cut_short,
        disagreement=disagreement,
    )


def _refusal(task_id: str, reason: str) -> str:
    return f"does not fit {task_id} as installed here: {reason}; rebuild the dataset, or import it again"


class _Tally:
    """Gathers the largest difference of each step, and where the largest of all is."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.largest: dict[str, list[Tensor]] = {name: [] for name in TOLERANCES}
        self.worst: dict[str, Disagreement] = {}

    def add(
        self,
        steps: Transitions,
        compared: Comparison,
        counted: Tensor,
    ) -> None:
        for name, value in compared.difference.items():
            largest, entries = value.max(1)
            largest = largest.masked_fill(~counted, 0.0)
            self.largest[name].append(largest[counted])
            row = int(largest.argmax())
            if name in self.worst and largest[row] <= self.worst[name].largest:
                continue
            entry = int(entries[row])
            sizes = compared.stored[name].shape[1:]
            with_agents = name not in ("state", "terminated")
            features = sizes[-1] if name in ("views", "observations", "state", "action_mask") else 1
            self.worst[name] = Disagreement(
                largest=float(largest[row]),
                quantile_999=0.0,
                agent=self.spec.agents[entry // features] if with_agents else None,
                feature=entry % features if features > 1 else None,
                episode=int(steps.episodes[row]),
                step=int(steps.steps[row]),
                stored=float(compared.stored[name][row].flatten()[entry]),
                computed=float(compared.computed[name][row].flatten()[entry]),
            )

    def disagreement(self) -> dict[str, Disagreement]:
        result = {}
        for name, worst in self.worst.items():
            values = torch.cat(self.largest[name]).numpy()
            quantile = float(np.quantile(values, 0.999)) if len(values) else 0.0
            result[name] = dataclasses.replace(worst, quantile_999=quantile)
        return result
