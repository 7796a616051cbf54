"""Return and decision time against the number of sampling steps k, in both executions, from one training run.

python examples/sweep_over_k.py
"""

from __future__ import annotations

from pathlib import Path

import tyro

import marl_flow


def main(
    dataset: str = "mpe/simple_spread/expert",
    k: tuple[int, ...] = (1, 2, 3, 5, 10),
    updates: int = 3000,
    episodes: int = 100,
    out: Path = Path("runs/sweep_over_k"),
) -> None:
    """Trains CoFlow for both executions and evaluates it at every k.

    Args:
        dataset: Dataset id; a native one that is absent is built first.
        k: Numbers of sampling steps.
        updates: Gradient steps.
        episodes: Evaluation episodes, the same for every k.
        out: Run folder.
    """
    # mixed: half of the windows train each execution
    marl_flow.train(dataset, "coflow", out=out, conditioning="mixed", updates=updates)
    print(f"{'execution':<15}{'k':>3}{'return':>10}{'ms':>8}")
    for row in marl_flow.evaluate(out, k=k, episodes=episodes):
        print(f"{row.execution:<15}{row.num_sampling_steps:>3}{row.team_return_mean:>10.1f}{row.latency_ms_p50:>8.2f}")


if __name__ == "__main__":
    tyro.cli(main)
