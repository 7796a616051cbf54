"""What a dataset is, on one card; and whether a folder still holds what its manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from marl_flow.datasets import catalog
from marl_flow.datasets.store import EpisodeStore, open_store

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def verify(folder: Path) -> dict[str, Any]:
    """The card of the store in a folder, after every check: structure, file hashes, digest, finite numbers.

    A fault is the UserError of `open_store`.
    """
    return card(open_store(folder, verify=True))


def card(store: EpisodeStore, num_bins: int = 20) -> dict[str, Any]:
    """Plain JSON values that describe a store: sizes, undiscounted returns, ranges per feature, provenance."""
    entry = catalog.CATALOG.get(store.dataset_id)
    agent_returns, team_returns = store.agent_returns(), store.team_returns()
    counts, edges = np.histogram(team_returns, bins=num_bins)
    lengths = store.lengths
    real = store.real_frames
    ranges = {"observations": _ranges(store.observations if real is None else store.observations[real])}
    if not store.spec.action.is_discrete:
        ranges["actions"] = _ranges(store.actions)
    return {
        "dataset_id": store.dataset_id,
        "task_id": store.spec.task_id,
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
        "provenance": dict(store.provenance),
    }


def render_card(card: dict[str, Any]) -> str:
    """The card as text for a terminal."""
    lengths, team = card["lengths"], card["team_return"]
    span = f"{lengths['min']}" if lengths["min"] == lengths["max"] else f"{lengths['min']}-{lengths['max']}"
    final = "" if card["has_final_observation"] else "; final observations absent"
    lines = [
        card["dataset_id"],
        f"  task        {card['task_id']}",
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
        lines += [f"  source      {card['source']}", f"  licence     {card['licence']}"]
    lines += [f"  {key:<11} {_plain(value)}" for key, value in card["provenance"].items()]
    lines += [f"  digest      {card['digest'] or 'none (not on disk)'}"]
    return "\n".join(lines)


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
