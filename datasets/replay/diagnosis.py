"""The likeliest causes of a dataset that does not fit: each is undone and played again, and named only if that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from marl_flow.datasets.replay.transitions import MOMENTS, TOLERANCES, Env, Transitions, compare, gather
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import Restorable, UserError

NUM_SAMPLES, NUM_TRIALS = 128, 24  # mismatched steps that a cause must explain, and of them to compare guesses with
EXPLAINED = 0.95  # share of the samples that a named cause explains


def diagnose(env: Env, store: EpisodeStore, rows: np.ndarray, mismatched: Mapping[str, np.ndarray]) -> str | None:
    """What explains the mismatches among the played rows [R], as a phrase; `mismatched` [R] bool per quantity."""
    moments = np.any([mismatched[name] for name in MOMENTS if name in mismatched], axis=0)
    wrong = rows[moments if moments.any() else mismatched["rewards"]]
    if not len(wrong):
        return None
    steps = gather(store, np.unique(wrong[np.arange(NUM_SAMPLES) * len(wrong) // NUM_SAMPLES]))
    guesses = [_rewards]
    if moments.any():
        often = (_scaled_actions, _exchanged_features, _shifted_feature) if moments.mean() > 0.5 else ()
        guesses = [_another_opponent, _out_of_order, *often]
    for guess in guesses:
        try:
            if cause := guess(env, store, steps):
                return cause
        except UserError:  # what the guess makes of the data is nothing that the environment can play
            continue
    return None


def _fits(env: Env, steps: Transitions, ignored: Tensor | None = None) -> bool:
    return compare(env, steps).share_of_fitting_moments(ignored) >= EXPLAINED


def _another_opponent(env: Env, store: EpisodeStore, steps: Transitions) -> str | None:
    entries = env.opponent_entries if isinstance(env, Restorable) else None
    if entries is None or not _fits(env, steps, ignored=entries.cpu().flatten()):
        return None
    theirs, ours = store.spec.opponent, env.spec.opponent
    other = theirs if theirs not in (None, ours) else "another opponent"
    return f"only what the opponent moves differs: the data were collected against {other}, here it is {ours}"


def _out_of_order(env: Env, store: EpisodeStore, steps: Transitions) -> str | None:
    moments = compare(env, steps.take(slice(NUM_TRIALS))).computed["observations"].numpy()  # what should follow
    varied = store.observations[:256].std(0, dtype=np.float64)
    agent, feature = np.unravel_index(int(varied.argmax()), varied.shape)
    known = 0
    for moment in moments:
        room = TOLERANCES["observations"] * np.maximum(np.abs(moment), 1.0)
        near = np.abs(store.observations[:, agent, feature] - moment[agent, feature]) <= room[agent, feature]
        known += any((np.abs(store.observations[frame] - moment) <= room).all() for frame in np.flatnonzero(near))
    if known < max(2, len(moments) // 2):
        return None
    return f"rows are out of order: of {len(moments)} such steps, {known} lead to what is stored elsewhere"


def _scaled_actions(env: Env, store: EpisodeStore, steps: Transitions) -> str | None:
    for factor in (0.1, 0.25, 0.5, 2.0, 4.0, 10.0, -1.0) if steps.actions.is_floating_point() else ():
        if _fits(env, replace(steps, actions=steps.actions * factor)):
            return f"actions: stored = {1.0 / factor:.4g} x those that fit"
    return None


def _exchanged_features(env: Env, store: EpisodeStore, steps: Transitions) -> str | None:
    few, pairs = steps.take(slice(NUM_TRIALS)), torch.combinations(torch.arange(env.spec.observation_size))  # [P, 2]
    orders = torch.arange(env.spec.observation_size).repeat(len(pairs), 1).scatter(1, pairs, pairs.flip(1))
    index = orders.repeat_interleave(len(few), 0)[:, None].expand(-1, env.spec.num_agents, -1)
    residual = compare(env, few.repeat(len(pairs)).with_frames(lambda frames: frames.gather(2, index))).residual
    best = int(residual.abs().view(len(pairs), -1).mean(1).argmin())
    a, b = pairs[best].tolist()
    if not _fits(env, steps.with_frames(lambda frames: frames[..., orders[best]])):
        return None
    return f"features are in another order: feature {a} is stored as {b}, feature {b} is stored as {a}"


def _shifted_feature(env: Env, store: EpisodeStore, steps: Transitions) -> str | None:
    """A constant added to one feature, of every agent or of one: the one whose response explains the residual best."""
    few, agents, size, width = steps.take(slice(NUM_TRIALS)), env.spec.num_agents, env.spec.observation_size, 0.01
    single = torch.eye(agents * size, dtype=torch.float64).view(-1, agents, size)
    places = torch.cat([single.view(agents, size, agents, size).sum(0), single])  # [size + agents size, N, O]
    shifts = width * places.repeat_interleave(len(few), 0)
    typical = compare(env, few).residual.median(0).values
    shifted = compare(env, few.repeat(len(places)).with_frames(shifts.add)).residual
    responses = (shifted.view(len(places), len(few), -1).median(1).values - typical) / width
    sizes = responses.square().sum(1).clamp(min=1e-6)
    best, by = int(((responses @ typical).square() / sizes).argmax()), 0.0
    for _ in range(4):  # the response is not quite linear: speeds are limited, bodies touch
        rest = compare(env, few.with_frames((-by * places[best]).add)).residual.median(0).values
        by += float(responses[best] @ rest / sizes[best])
    if not _fits(env, steps.with_frames((-by * places[best]).add)):
        return None
    agent, feature = divmod(best, size)
    name = "every agent" if agent == 0 else env.spec.agents[agent - 1]
    return f"observations are shifted: {by:+.4g} in feature {feature} of {name}"


def _rewards(env: Env, store: EpisodeStore, steps: Transitions) -> str | None:
    """Another scale, a constant, or both."""
    computed, stored = compare(env, steps).computed["rewards"], steps.rewards  # [R, N]
    columns = torch.stack([computed.flatten(), torch.ones(computed.numel(), dtype=torch.float64)], 1)
    scale, constant = torch.linalg.lstsq(columns, stored.reshape(-1, 1)).solution[:, 0].tolist()
    if abs(scale) < 1e-3:  # rewards that do not vary tell no scale
        scale, constant = 1.0, float((stored - computed).median())
    room = 2.0 * TOLERANCES["rewards"] * stored.abs().clamp(min=1.0)
    fitting = ((scale * computed + constant - stored).abs() <= room).all(1)
    if float(fitting.double().mean()) >= EXPLAINED:
        times = "" if abs(scale - 1.0) < 1e-3 else f"{scale:.4g} x "
        return f"rewards: stored = {times}computed" + ("" if abs(constant) < 1e-3 else f" {constant:+.4g}")
    return None
