"""Offline multi-agent reinforcement learning benchmark suite around CoFlow (arXiv 2605.01457)."""

__version__ = "0.2.0"
