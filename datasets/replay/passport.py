"""What a dataset is, on one card; whether its folder still holds that; whether it fits its environment.

The passport is the card and the outcome of the last replay, kept as `passport.json` beside the manifest: no times in
it, so that the same data and the same environment give the same bytes.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from marl_flow.datasets import catalog
from marl_flow.datasets.replay.check import Disagreement, replay
from marl_flow.datasets.store import EpisodeStore, open_store
from marl_flow.datasets.writer import PASSPORT
from marl_flow.files import disk_errors, read_json, write_json
from marl_flow.interfaces import Restorable, TaskSpec, TransitionChecker, UserError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
PASSPORT_VERSION = 1
FROM_CATALOG = ("published_mean", "published_source", "licence", "source", "citation")
"""Entries of a card that are known of a dataset rather than computed from it: a newer package may say more."""
NOT_REPLAYED = "not replayed: no environment of this task was at hand"
WIDTH = 120


class DoesNotFit(UserError):
    """A dataset that is whole, but differs from its environment when it is played again."""


def verify(
    folder: Path,
    make_env: Callable[[TaskSpec, int], Restorable | TransitionChecker] | None = None,
    transitions: int | None = None,
) -> dict[str, Any]:
    """The passport of the store in a folder, written again after every check.

    Structure, file hashes, digest and finite numbers (`open_store`); the card as the passport has it, if there is one;
    and that many steps (None: all) played again in the environment that `make_env` builds for a task and a number of
    rows. None: no environment of the task is installed, which the passport then says unless it knows of a replay. A
    fault is a UserError; a dataset that does not fit its environment has a passport all the same, which says so.
    """
    store = open_store(folder, verify=True)
    found, known = card(store), _read_passport(folder)
    if known is not None:
        _refuse_another_card(folder, found, known)
    if make_env is not None:
        outcome = replay(store, lambda num_envs: make_env(store.spec, num_envs), transitions=transitions).to_json()
    else:
        outcome = {"message": NOT_REPLAYED} if known is None else known["replay"]
    passport = {"format_version": PASSPORT_VERSION, **found, "replay": outcome}
    if passport != known:
        with disk_errors(folder):
            write_json(folder / PASSPORT, passport)
    if not outcome.get("fits", True):
        raise DoesNotFit(f"{store.dataset_id} {outcome['message']}")
    return passport


def show(folder: Path, dataset_id: str | None = None) -> str:
    """The card of the store in a folder with what its passport says of the last replay, as text for a terminal.

    `dataset_id` is the one that must be found there (None: any).
    """
    found, known = card(open_store(folder, dataset_id=dataset_id)), _read_passport(folder)
    if known is not None:
        _refuse_another_card(folder, found, known)
    return render_card(found | {"replay": {"message": NOT_REPLAYED} if known is None else known["replay"]})


def _read_passport(folder: Path) -> dict[str, Any] | None:
    """The passport in a folder, None where there is none."""
    known = read_json(folder / PASSPORT)
    if known is None:
        return None
    if known.get("format_version") != PASSPORT_VERSION or not _is_outcome(known.get("replay")):
        raise UserError(
            f"{folder / PASSPORT}: expected format_version {PASSPORT_VERSION} and the entry replay with a message, "
            f"found {known.get('format_version')!r} and {sorted(known)}; delete the file and verify again"
        )
    return known


def _is_outcome(record: Any) -> bool:
    """Whether this is what `verify` writes of a replay."""
    if not isinstance(record, dict) or not isinstance(record.get("message"), str):
        return False
    disagreement = record.get("disagreement", {})
    names = {field.name for field in fields(Disagreement)}
    return isinstance(disagreement, dict) and all(
        isinstance(worst, dict) and set(worst) == names for worst in disagreement.values()
    )


def _refuse_another_card(folder: Path, found: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raises unless the passport's card is the one computed from the data."""
    ours, theirs = dict(_leaves(found)), dict(_leaves({key: known[key] for key in found if key in known}))
    for name in [*ours, *(theirs.keys() - ours.keys())]:
        if name.partition(".")[0] not in FROM_CATALOG and not _same(ours.get(name), theirs.get(name)):
            raise UserError(
                f"{folder / PASSPORT}: {name} is {theirs.get(name)!r} there and {ours.get(name)!r} in the data, so it "
                "was edited or belongs to other data; delete the file and verify again"
            )


def _leaves(record: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in a record that holds nothing else."""
    entries = record.items() if isinstance(record, Mapping) else enumerate(record) if isinstance(record, list) else ()
    if not entries:
        yield name, record
    for key, value in entries:
        yield from _leaves(value, f"{name}.{key}" if name else str(key))


def _same(ours: Any, theirs: Any) -> bool:
    """Equal, but for the last digits of sums, which differ between processors."""
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-6)
    return bool(ours == theirs)


def card(store: EpisodeStore, num_bins: int = 20) -> dict[str, Any]:
    """Plain JSON values that describe a store: sizes, undiscounted returns, ranges per feature, provenance."""
    entry = catalog.CATALOG.get(store.dataset_id)
    agent_returns, team_returns = store.agent_returns(), store.team_returns()
    counts, edges = _histogram(team_returns, num_bins)
    lengths = store.lengths
    real = store.real_frames
    ranges = {"observations": _ranges(store.observations if real is None else store.observations[real])}
    if not store.spec.action.is_discrete:
        ranges["actions"] = _ranges(store.actions)
    return {
        "dataset_id": store.dataset_id,
        "task_id": store.spec.task_id,
        "opponent": store.spec.opponent,
        "digest": store.digest,
        "episodes": store.num_episodes,
        "steps": store.num_steps,
        "terminated_episodes": int(store.terminated.sum()),
        "has_final_observation": store.has_final_observation,
        "lengths": {"mean": float(lengths.mean()), "min": int(lengths.min()), "max": int(lengths.max())},
        "arrays": {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in store.arrays()},
        "team_reward": store.spec.team_reward,
        "team_return": _summary(team_returns),
        "agent_return": {agent: _summary(agent_returns[:, i]) for i, agent in enumerate(store.spec.agents)},
        "return_histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "ranges": ranges,
        "published_mean": entry.published_mean if entry else None,
        "published_source": entry.published_source if entry else None,
        "licence": entry.licence if entry else None,
        "source": entry.source if entry else None,
        "citation": entry.citation if entry else None,
        "provenance": json.loads(json.dumps(dict(store.provenance))),
    }


def render_card(card: dict[str, Any]) -> str:
    """The card as text for a terminal; a passport is a card with the outcome of a replay."""
    lengths, team = card["lengths"], card["team_return"]
    span = f"{lengths['min']}" if lengths["min"] == lengths["max"] else f"{lengths['min']}-{lengths['max']}"
    final = "" if card["has_final_observation"] else "; final observations absent"
    lines = [
        card["dataset_id"],
        f"  task        {card['task_id']}{'' if card['opponent'] is None else ' against ' + card['opponent']}",
        f"  size        {card['episodes']:,} episodes of {span} steps (mean {lengths['mean']:.1f}), "
        f"{card['steps']:,} steps; {card['terminated_episodes']:,} terminated{final}",
    ]
    lines += [f"  {name:<13} {array['dtype']:<8} {array['shape']}" for name, array in card["arrays"].items()]
    titles = ["mean", "sd", "min", *(f"{100 * q:g}%" for q in QUANTILES), "max"]
    lines += ["", "  undiscounted return   " + "".join(f"{title:>9}" for title in titles)]
    lines += [_return_line(f"team ({card['team_reward']})", team)]
    lines += [_return_line(agent, numbers) for agent, numbers in card["agent_return"].items()]
    if card["published_mean"] is not None:
        lines += [
            f"    {'published team mean':<20}{card['published_mean']:9.1f}   these data: "
            f"{team['mean'] - card['published_mean']:+.1f}",
            f"      {card['published_source']}",
        ]
    lines += ["", "  team return, episodes per bin", *_bars(**card["return_histogram"]), ""]
    for name, ranges in card["ranges"].items():
        lines += [f"  {name}, range of each feature"]
        numbers = [f"[{low:.3g}, {high:.3g}]" for low, high in zip(ranges["min"], ranges["max"], strict=True)]
        lines += [
            "    " + "  ".join(f"{number:<16}" for number in numbers[i : i + 6]).rstrip()
            for i in range(0, len(numbers), 6)
        ]
    lines += [""]
    if card["source"] is not None:
        lines += (
            _entry("source", card["source"]) + _entry("licence", card["licence"]) + _entry("cite", card["citation"])
        )
    for key, value in card["provenance"].items():
        parts = value if isinstance(value, list) and value else [value]
        for index, part in enumerate(parts):
            lines += _entry("" if index else key, _plain(part))
    lines += _entry("digest", card["digest"] or "none (not on disk)")
    if "replay" in card:
        lines += ["", *_replay_lines(card["replay"])]
    return "\n".join(lines)


def _replay_lines(outcome: Mapping[str, Any]) -> list[str]:
    lines = _entry("replay", outcome["message"])
    if outcome.get("disagreement"):
        lines += [f"{'':14}{'disagreement':<16}{'largest':>10}{'99.9%':>10}  where the largest is"]
    for name, worst in outcome.get("disagreement", {}).items():
        feature = None if worst["feature"] is None else f"feature {worst['feature']}"
        place = [worst["agent"], feature, f"episode {worst['episode']}", f"step {worst['step']}"]
        where = ", ".join(part for part in place if part) if worst["largest"] else "nowhere"
        lines += [f"{'':14}{name:<16}{worst['largest']:10.1e}{worst['quantile_999']:10.1e}  {where}"]
    return lines


def _entry(name: str, value: str) -> list[str]:
    """A name and what it says, wrapped to the width of a terminal."""
    first, *more = textwrap.wrap(value, WIDTH - 14) or [""]
    return [f"  {name:<11} {first}", *(f"{'':14}{line}" for line in more)]


def _summary(returns: np.ndarray) -> dict[str, Any]:
    return {
        "mean": float(returns.mean()),
        "sd": float(returns.std()),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "quantiles": {
            f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(returns, QUANTILES), strict=True)
        },
    }


def _histogram(values: np.ndarray, num_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts [bins] and edges [bins + 1]; one bin where the values are too near each other for floats between them."""
    low, high = float(values.min()), float(values.max())
    if low < high and (np.diff(np.linspace(low, high, num_bins + 1)) <= 0).any():
        return np.array([len(values)]), np.array([low, high])
    return np.histogram(values, bins=num_bins)


def _ranges(values: np.ndarray) -> dict[str, list[float]]:
    """Per feature of values [rows, N, D], agents pooled."""
    return {
        "min": values.min(axis=(0, 1)).tolist(),
        "max": values.max(axis=(0, 1)).tolist(),
        "mean": values.mean(axis=(0, 1), dtype=np.float64).tolist(),
    }


def _return_line(name: str, numbers: dict[str, Any]) -> str:
    values = [numbers["mean"], numbers["sd"], numbers["min"], *numbers["quantiles"].values(), numbers["max"]]
    return f"    {name:<20}" + "".join(f"{value:9.1f}" for value in values)


def _bars(counts: list[int], edges: list[float], width: int = 40) -> list[str]:
    """One line per bin: its lower edge, a bar in eighths of a character, the count."""
    lines = []
    for count, edge in zip(counts, edges, strict=False):
        eighths = round(8 * width * count / max(counts))
        bar = "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
        lines.append(f"    {edge:10.1f} {bar:<{width}} {count:,}")
    return lines


def _plain(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
