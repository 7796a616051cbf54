"""What was changed in a dataset that does not fit: a guess is undone and played again, and named only if that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from marl_flow.datasets.replay.transitions import (
    TOLERANCES,
    Transitions,
    differences,
    gather,
    misfits,
    predict,
    stored_outcome,
)
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import Restorable, TransitionChecker, UserError

SAMPLE = 128  # misfits that a guess must explain
FEW = 24  # of them, with which guesses of many parts are searched
MOST = 0.95  # share of the misfits that a named cause explains
REFINEMENTS = 4
PLACES = ("views", "observations", "state")


def diagnose(
    env: Restorable | TransitionChecker, store: EpisodeStore, rows: np.ndarray, unfit: Mapping[str, np.ndarray]
) -> str | None:
    """What explains the misfits among the played rows [R], as a phrase; `unfit` [R] bool per quantity, some true.

    Where moments and their successors fit, the fault is sought in the rewards.
    """
    misplaced = np.any([unfit[name] for name in PLACES if name in unfit], axis=0)
    if misplaced.any():
        part = gather(store, _evenly(rows[misplaced], SAMPLE))
        share = float(misplaced.mean())
        guesses: list[Callable[[], str | None]] = [
            lambda: another_opponent(env, store, part),
            lambda: out_of_order(env, store, part),
            lambda: wrong_boundaries(store, rows[misplaced], share),
        ]
        if share > 0.5:
            guesses += [
                lambda: scaled(env, part, "actions", scale_actions),
                lambda: scaled(env, part, "observations", scale_observations),
                lambda: columns_moved(env, part),
                lambda: columns_shifted(env, part),
            ]
    elif unfit["rewards"].any():
        part = gather(store, _evenly(rows[unfit["rewards"]], SAMPLE))
        guesses = [lambda: other_rewards(env, store, part)]
    else:
        return None
    for guess in guesses:
        try:
            cause = guess()
        except UserError:  # what the guess makes of the data is nothing that the environment can play
            continue
        if cause is not None:
            return cause
    return None


def another_opponent(env: Restorable | TransitionChecker, store: EpisodeStore, part: Transitions) -> str | None:
    """Everything fits but what the opponent moves."""
    entries = env.opponent_entries if isinstance(env, Restorable) else None
    if entries is None:
        return None
    stored, computed = stored_outcome(part), predict(env, part)
    difference = differences(stored, computed, part.shown)
    own = difference["observations"].masked_fill(entries.cpu().flatten(), 0.0)
    wrong = misfits(stored, difference | {"observations": own})
    if _share(~(wrong["views"] | wrong["observations"])) < MOST:
        return None
    theirs, ours = store.spec.opponent, env.spec.opponent
    other = theirs if theirs not in (None, ours) else "another opponent"
    return f"only what the opponent moves differs: the data were collected against {other}, here it is {ours}"


def out_of_order(env: Restorable | TransitionChecker, store: EpisodeStore, part: Transitions) -> str | None:
    """The moments that follow are stored, but elsewhere."""
    part = part.take(torch.arange(min(len(part), 2 * FEW)))
    following = predict(env, part)["observations"]
    frames = [_find_frame(store, moment) for moment in following]
    found = [index for index, frame in enumerate(frames) if frame is not None]
    if len(found) < max(2, 0.5 * len(part)):
        return None
    index = found[0]
    frame = frames[index]
    assert frame is not None
    episode = int(np.searchsorted(store.first_frames, frame, side="right")) - 1
    step = frame - int(store.first_frames[episode])
    return (
        f"rows are out of order: episode {int(part.episodes[index])}, step {int(part.steps[index])} leads to what is "
        f"stored as episode {episode}, step {step}"
    )


def _find_frame(store: EpisodeStore, moment: Tensor) -> int | None:
    """A frame of the store that shows this moment [N, O], if there is one."""
    wanted = moment.numpy()
    room = TOLERANCES["observations"] * np.maximum(np.abs(wanted), 1.0)
    agent, feature = np.unravel_index(int(store.observations[:256].std(0, dtype=np.float64).argmax()), wanted.shape)
    near = np.abs(store.observations[:, agent, feature] - wanted[agent, feature]) <= room[agent, feature]
    candidates = np.flatnonzero(near)
    fits = (np.abs(store.observations[candidates] - wanted) <= room).all((1, 2))
    return int(candidates[fits.argmax()]) if fits.any() else None


def wrong_boundaries(store: EpisodeStore, rows: np.ndarray, share: float) -> str | None:
    """Now and then, at equal distances, a step does not lead to the next moment."""
    apart = math.gcd(*np.diff(rows).tolist()) if len(rows) > 2 else 0
    if apart < 2 or not 0.3 / apart < share < 3.0 / apart:
        return None
    episode = int(np.searchsorted(store.offsets, rows[0], side="right")) - 1
    return (
        f"only the steps that lie {apart} apart do not lead to the next moment (the first: episode {episode}, step "
        f"{rows[0] - store.offsets[episode]}): episodes were cut at the wrong places"
    )


def scale_actions(part: Transitions, factor: float) -> Transitions:
    return replace(part, actions=part.actions * factor)


def scale_observations(part: Transitions, factor: float) -> Transitions:
    return replace(part, observations=part.observations * factor, next_observations=part.next_observations * factor)


def scaled(
    env: Restorable | TransitionChecker,
    part: Transitions,
    name: str,
    scale: Callable[[Transitions, float], Transitions],
) -> str | None:
    """Everything of one kind was multiplied by a factor: a search over rough ones, then Newton's steps."""
    if not part.actions.is_floating_point():
        return None
    rough = (1.0, 0.1, 0.25, 0.5, 2.0, 4.0, 10.0, -1.0)
    factor = min(rough, key=lambda value: float(_residual(env, scale(part, value)).abs().mean()))
    for _ in range(6):
        here, there = _residual(env, scale(part, factor)), _residual(env, scale(part, factor * (1.0 + 1e-4)))
        slope = (there - here) / (1e-4 * factor)
        step = float((here * slope).sum() / (slope * slope).sum().clamp(min=1e-12))
        factor -= float(np.clip(step, -0.5 * abs(factor), 0.5 * abs(factor)))
    if abs(factor - 1.0) < 1e-3 or _fitting(env, scale(part, factor)) < MOST:
        return None
    return f"{name}: stored = {1.0 / factor:.4g} x those that fit"


def columns_moved(env: Restorable | TransitionChecker, part: Transitions) -> str | None:
    """The features of every agent were put into another order: the best rotation, then the best exchange, again and
    again while it helps."""
    few, size = part.take(torch.arange(min(len(part), FEW))), env.spec.observation_size
    order = torch.arange(size)
    pairs = list(combinations(range(size), 2))
    candidates = torch.stack([order.roll(shift) for shift in range(size)])
    best = torch.inf
    for _ in range(size):
        costs = _costs_of_orders(env, few, candidates)
        cost, index = costs.min(0)
        if cost > 0.99 * best:
            break
        best, order = float(cost), candidates[index]
        candidates = order.repeat(len(pairs), 1)
        first, second = torch.tensor(pairs).unbind(1)
        each = torch.arange(len(pairs))
        candidates[each, first], candidates[each, second] = order[second], order[first]
    if torch.equal(order, torch.arange(size)) or _fitting(env, _reordered(part, order)) < MOST:
        return None
    moved = [index for index in range(size) if order[index] != index]
    listed = ", ".join(f"feature {index} is stored as {int(order[index])}" for index in moved[:8])
    return f"features are in another order: {listed}{', ...' if len(moved) > 8 else ''}"


def columns_shifted(env: Restorable | TransitionChecker, part: Transitions) -> str | None:
    """Some features, of every agent or of one, have a constant added: the response to each is measured, and those that
    explain the typical misfit are picked one after the other.

    A constant that moves everybody alike changes nothing that a task without borders can tell."""
    few = part.take(torch.arange(min(len(part), FEW)))
    agents, size = env.spec.num_agents, env.spec.observation_size
    single = torch.eye(agents * size, dtype=torch.float64).view(-1, agents, size)
    places = torch.cat([single.view(agents, size, agents, size).sum(0), single])  # [size + agents size, N, O]
    width, count = 0.01, len(few)
    copies = few.take(torch.arange(count).repeat(len(places)))
    shifts = width * places.repeat_interleave(count, 0)
    typical = _residual(env, few).median(0).values
    changed = _residual(env, _shifted(copies, shifts)).view(len(places), count, -1).median(1).values
    responses = (changed - typical) / width  # what a stored constant of 1 adds to the misfit
    lengths = responses.square().sum(1)
    picked: list[int] = []
    rest = typical
    while len(picked) < size and rest.abs().max() > TOLERANCES["observations"]:
        gains = (responses @ rest).square() / lengths.clamp(min=1e-6)
        gains[lengths < 1e-6] = -1.0
        gains[:size] *= 1.0 + 1e-6  # where both explain it alike, every agent rather than one
        gains[picked] = -1.0
        picked.append(int(gains.argmax()))
        amounts, rest = torch.zeros(len(picked), dtype=torch.float64), typical
        for _ in range(REFINEMENTS):  # the response is not quite linear: speeds are limited, bodies touch
            amounts += torch.linalg.lstsq(responses[picked].t(), rest[:, None]).solution[:, 0]
            offset = (amounts[:, None, None] * places[picked]).sum(0)
            rest = _residual(env, _shifted(few, -offset)).median(0).values
        if _fitting(env, _shifted(part, -offset)) >= MOST:
            named = sorted(zip(picked, amounts.tolist(), strict=True))
            return f"observations are shifted: {', '.join(f'{by:+.4g} in {_column(env, at)}' for at, by in named)}"
    return None


def other_rewards(env: Restorable | TransitionChecker, store: EpisodeStore, part: Transitions) -> str | None:
    """Another scale, a constant, the team's reward, or rewards of a neighbouring step."""
    computed, stored = predict(env, part)["rewards"], part.rewards  # [R, N]

    def fits(guess: Tensor, target: Tensor = stored) -> bool:
        return (
            _share(((guess - target).abs() <= 2.0 * TOLERANCES["rewards"] * target.abs().clamp(min=1.0)).all(1)) >= MOST
        )

    factor = float((computed * stored).sum() / computed.square().sum().clamp(min=1e-12))
    if fits(factor * computed):
        return f"rewards: stored = {factor:.4g} x computed"
    offset = float((stored - computed).median())
    if fits(computed + offset):
        return f"rewards: stored = computed {offset:+.4g}"
    both = torch.stack([computed.flatten(), torch.ones(computed.numel(), dtype=torch.float64)], 1)
    slope, constant = torch.linalg.lstsq(both, stored.reshape(-1, 1)).solution[:, 0].tolist()
    if abs(slope) > 1e-6 and fits(slope * computed + constant):
        return f"rewards: stored = {slope:.4g} x computed {constant:+.4g}"
    for name, team in (("mean", computed.mean(1, keepdim=True)), ("sum", computed.sum(1, keepdim=True))):
        if fits(team.expand_as(stored)):
            return f"rewards: every agent's is the {name} of the team's"
    for by, name in ((1, "one step late"), (-1, "one step early")):
        rows = part.rows + by
        steps = part.steps.numpy() + by
        inside = torch.from_numpy((steps >= 0) & (steps < store.lengths[part.episodes.numpy()]))
        if inside.any() and fits(computed[inside], torch.from_numpy(store.rewards[rows[inside].numpy()]).double()):
            return f"rewards are stored {name}"
    return None


def _residual(env: Restorable | TransitionChecker, part: Transitions) -> Tensor:
    """Stored less computed moments, before and after the step, [R, 2 N O]."""
    stored, computed = stored_outcome(part), predict(env, part)
    after = (stored["observations"] - computed["observations"]).flatten(1).masked_fill(~part.shown[:, None], 0.0)
    return torch.cat([(stored["views"] - computed["views"]).flatten(1), after], 1)


def _costs_of_orders(env: Restorable | TransitionChecker, part: Transitions, orders: Tensor) -> Tensor:
    """Mean absolute residual [P] of the transitions under each order [P, O] of features."""
    copies = part.take(torch.arange(len(part)).repeat(len(orders)))
    index = orders.repeat_interleave(len(part), 0)[:, None].expand_as(copies.observations)
    copies = replace(
        copies,
        observations=copies.observations.gather(2, index),
        next_observations=copies.next_observations.gather(2, index),
    )
    return _residual(env, copies).abs().view(len(orders), -1).mean(1)


def _reordered(part: Transitions, order: Tensor) -> Transitions:
    return replace(
        part, observations=part.observations[..., order], next_observations=part.next_observations[..., order]
    )


def _shifted(part: Transitions, offset: Tensor) -> Transitions:
    return replace(part, observations=part.observations + offset, next_observations=part.next_observations + offset)


def _fitting(env: Restorable | TransitionChecker, part: Transitions) -> float:
    """Share of the transitions whose moments fit."""
    stored, computed = stored_outcome(part), predict(env, part)
    wrong = misfits(stored, differences(stored, computed, part.shown))
    return _share(~torch.stack([value for name, value in wrong.items() if name in PLACES]).any(0))


def _share(values: Tensor) -> float:
    return float(values.double().mean())


def _evenly(rows: np.ndarray, count: int) -> np.ndarray:
    return rows if len(rows) <= count else rows[np.arange(count) * len(rows) // count]


def _column(env: Restorable | TransitionChecker, place: int) -> str:
    size = env.spec.observation_size
    agent, feature = divmod(place, size)
    return f"feature {feature} of {'every agent' if agent == 0 else env.spec.agents[agent - 1]}"
