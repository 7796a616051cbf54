"""Named generators and environment seeds from one root seed. The only file that may touch global random state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

SeedPurpose = Literal["collect", "evaluate", "train", "behaviour"]


def derive_seed(root: int, *names: str | int) -> int:
    """An integer in [0, 2**63) that depends on the root seed and the names only."""
    text = "/".join([str(root), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(root: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for the named use, e.g. `generator(seed, "batches")`."""
    return torch.Generator(device=device).manual_seed(derive_seed(root, *names))


def environment_seeds(purpose: SeedPurpose, root: int, count: int, start: int = 0) -> tuple[int, ...]:
    """Seeds of episodes start to start + count. Purposes never share seeds; evaluation uses root 0 for every method."""
    return tuple(derive_seed(root, "environment", purpose, index) for index in range(start, start + count))


@contextmanager
def global_scope(source: torch.Generator) -> Iterator[None]:
    """Seeds torch's global CPU state from `source` inside the block and restores it after: for building networks."""
    seed = int(torch.randint(2**62, (), generator=source, device=source.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread inside the block: how work is split over threads changes the last bits of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def row_uniform(
    seeds: Sequence[int] | Tensor, stream: int, count: int, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Uniform float64 numbers [E, count] in [0, 1); row e depends on (seeds[e], stream) only.

    A counter-based generator (the output function of SplitMix64, Steele, Lea and Flood 2014): the same bits on every
    device and in every batch, so that an episode does not depend on the episodes beside it.
    """
    rows = torch.as_tensor(seeds, dtype=torch.int64, device=device)
    key = _mix(_mix(rows + _GOLDEN) + stream * 2 + 1)
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=device)
    bits = _mix(key[:, None] + counter[None, :] * _GOLDEN)
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53
