"""Native datasets are recipes: shipped behaviour policies and a seed, rolled out in the suite's own environment.

A behaviour is a stack of S snapshots of a small tanh network, taken while it was trained
(benchmarks/train_behaviour.py) and stored in `policies/<suite>_<task>.safetensors`, for each quality:

    <quality>/layer<i>.weight           [S, out, in]    i = 0, 1, ...; tanh after every layer
    <quality>/layer<i>.bias             [S, out]
    <quality>/log_std                   [S, A]          log of the exploration noise's standard deviation
    <quality>/observation_mean, _std    [S, O]          input = (observation - mean) / std
    <quality>/episodes_share            [S]             part of the episodes each snapshot collects, in training order

It acts with clip(mean(o) + exp(log_std) * noise, bounds), every agent by the same network, and the clipped action is
what is stored. `random` has no network: its actions are uniform in the bounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.datasets import catalog
from marl_flow.datasets.collect import collect
from marl_flow.datasets.store import EpisodeStore, open_store
from marl_flow.datasets.writer import StoreWriter
from marl_flow.interfaces import ActionSpec, Policy, UserError, VectorEnv

MakeEnv = Callable[[str, int, torch.device], VectorEnv]
"""Task id, number of parallel episodes, device."""

Progress = Callable[[int, int], None]
"""Called with (episodes done, episodes in all)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one dataset is made: how many episodes, from which root seed, against whom, how many of them side by side."""

    episodes: int
    seed: int
    opponent: str | None = None
    batch_episodes: int = 1000


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "native/mpe/simple_spread/expert-v1": Recipe(episodes=10_000, seed=1),
        "native/mpe/simple_spread/medium-v1": Recipe(episodes=10_000, seed=2),
        "native/mpe/simple_spread/medium-replay-v1": Recipe(episodes=3_900, seed=3),
        "native/mpe/simple_spread/random-v1": Recipe(episodes=10_000, seed=4),
        "native/mpe/simple_tag/expert-v1": Recipe(episodes=10_000, seed=5, opponent="native-v1"),
        "native/mpe/simple_tag/medium-v1": Recipe(episodes=10_000, seed=6, opponent="native-v1"),
        "native/mpe/simple_tag/medium-replay-v1": Recipe(episodes=2_500, seed=7, opponent="native-v1"),
        "native/mpe/simple_tag/random-v1": Recipe(episodes=10_000, seed=8, opponent="native-v1"),
        "native/mpe/simple_world/expert-v1": Recipe(episodes=10_000, seed=9, opponent="native-v1"),
        "native/mpe/simple_world/medium-v1": Recipe(episodes=10_000, seed=10, opponent="native-v1"),
        "native/mpe/simple_world/medium-replay-v1": Recipe(episodes=3_200, seed=11, opponent="native-v1"),
        "native/mpe/simple_world/random-v1": Recipe(episodes=10_000, seed=12, opponent="native-v1"),
    }
)


def build(
    dataset_id: str,
    folder: Path,
    make_env: MakeEnv,
    episodes: int | None = None,
    progress: Progress | None = None,
    policy_file: Path | None = None,
    seeds: int = 1,
) -> EpisodeStore:
    """Builds a native dataset in a new folder and opens it; `episodes` None means the recipe's number.

    It holds `episodes` of each of `seeds` seeds, one after the other: other initial states and noise, the same
    behaviour policies (the published data have other policies per seed too). The first seed's are those of `seeds` = 1.

    The same bytes on the same machine and library versions, whatever the number of threads; the same statistics
    anywhere. A shorter dataset is the beginning of a longer one where a single snapshot plays; several share whatever
    number of episodes there is. `policy_file` None means the one shipped with the package.
    """
    entry = catalog.find(dataset_id)
    name = entry.dataset_id
    recipe = RECIPES.get(str(name))
    if recipe is None:
        raise UserError(f"{name} has no recipe, so it cannot be built here; source: {entry.source}")
    episodes = recipe.episodes if episodes is None else episodes
    if episodes < 1 or seeds < 1:
        raise UserError(f"expected at least one episode and one seed to build {name}, got {episodes} and {seeds}")
    path = behaviour_file(name.task_id) if policy_file is None else policy_file
    provenance = {
        "made_by": "marl_flow.datasets.native.build",
        "seed": recipe.seed,
        "strata": [{"seed": index, "episodes": episodes} for index in range(seeds)],
        "recipe_episodes": recipe.episodes,
        "batch_episodes": recipe.batch_episodes,
        "noise": "uniform in the bounds" if name.quality == "random" else "Gaussian, clipped to the bounds",
    }
    with _one_thread():
        env = make_env(name.task_id, recipe.batch_episodes, torch.device("cpu"))
        if name.quality == "random":
            uniform = UniformPolicy(env.spec.action)
            policy_for: Callable[[range], Policy] = lambda _: uniform  # noqa: E731
        else:
            stack = read_stack(path, name.quality)
            provenance |= {"policy_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "snapshots": stack.size}
            policy_for = lambda batch: SnapshotPolicy(stack, stack.snapshots_of(batch, episodes), env.spec.action)  # noqa: E731
        with StoreWriter(folder, spec=env.spec, dataset_id=str(name), provenance=provenance) as writer:
            for index in range(seeds):
                root = recipe.seed if index == 0 else seeding.derive_seed(recipe.seed, "seed", index)
                generator = seeding.generator(root, "behaviour", str(name))
                for piece in collect(
                    env, policy_for, num_episodes=episodes, seed=root, generator=generator, dataset_id=str(name)
                ):
                    writer.append(piece)
                    if progress is not None:
                        progress(writer.num_episodes, episodes * seeds)
    return open_store(folder)


def unlike_recipe(store: EpisodeStore) -> str:
    """How a native dataset differs from what its recipe makes, such as "60 of 10,000 episodes"; else empty."""
    recipe = RECIPES.get(store.dataset_id)
    if recipe is None:
        return ""
    parts, seeds, episodes = [], len(store.provenance.get("strata", [None])), store.num_episodes
    if seeds > 1:
        parts.append(f"{episodes:,} episodes of {seeds} seeds, the recipe has {recipe.episodes:,} of one")
    elif episodes > recipe.episodes:
        parts.append(f"{episodes:,} episodes, the recipe has {recipe.episodes:,}")
    elif episodes < recipe.episodes:
        parts.append(f"{episodes:,} of {recipe.episodes:,} episodes")
    if store.spec.opponent != recipe.opponent:
        parts.append(f"against {store.spec.opponent}, the recipe's is against {recipe.opponent}")
    return "; ".join(parts)


def behaviour_file(task_id: str) -> Path:
    """The behaviour policies shipped for a task."""
    return Path(str(files("marl_flow.datasets") / "policies" / f"{task_id.replace('/', '_')}.safetensors"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """S snapshots of a network: layers of (weight [S, out, in], bias [S, out]), and the rest as drawn above."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    log_std: Tensor
    observation_mean: Tensor
    observation_std: Tensor
    episodes_share: Tensor

    @property
    def size(self) -> int:
        return len(self.episodes_share)

    def snapshots_of(self, batch: range, episodes: int) -> Tensor:
        """Which snapshot plays each episode of a batch, [E]: training order, `episodes` split by their shares.

        Surplus episodes (numbers from `episodes` on) go to the last one.
        """
        ends = torch.round(self.episodes_share.double().cumsum(0) * episodes).long()
        numbers = torch.arange(batch.start, batch.stop)
        return torch.searchsorted(ends, numbers, right=True).clamp_max(self.size - 1)

    def mean(self, observations: Tensor, snapshots: Tensor) -> Tensor:
        """Mean action [E, N, A] of observations [E, N, O] for the snapshot [E] that plays each row."""
        result = observations.new_empty(*observations.shape[:2], self.log_std.shape[-1])
        for s in snapshots.unique().tolist():
            rows = snapshots == s
            x = (observations[rows] - self.observation_mean[s]) / self.observation_std[s]
            for weight, bias in self.layers:
                x = torch.tanh(x @ weight[s].t() + bias[s])
            result[rows] = x
        return result


def read_stack(path: Path, quality: str) -> Stack:
    """The snapshots of one quality; what does not fit together is a UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"expected behaviour policies in the package's {path.name}, found: {error}; install marl_flow anew"
        ) from error
    prefix = f"{quality}/"
    own = {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}
    names = ["log_std", "observation_mean", "observation_std", "episodes_share"]
    num_layers = sum(name.endswith(".weight") for name in own)
    expected = {*names, *(f"layer{i}.{part}" for i in range(num_layers) for part in ("weight", "bias"))}
    if not num_layers or set(own) != expected:
        raise UserError(f"{path.name}: expected {sorted(expected)} under {prefix}, found {sorted(own)}")
    stack = Stack(
        layers=tuple((own[f"layer{i}.weight"], own[f"layer{i}.bias"]) for i in range(num_layers)),
        **{name: own[name] for name in names},
    )
    total = float(stack.episodes_share.double().sum())
    sizes = {value.shape[0] for value in own.values()}
    if sizes != {stack.size} or abs(total - 1.0) > 1e-4 or (stack.episodes_share < 0).any():
        raise UserError(
            f"{path.name}: expected {stack.size} snapshots with shares that sum to 1 under {prefix}, "
            f"found {sorted(sizes)} and {total:g}"
        )
    return stack


class SnapshotPolicy:
    """Plays each row with its own snapshot [E] of the stack, noise from the generator of `reset`."""

    network_passes = 1

    def __init__(self, stack: Stack, snapshots: Tensor, action: ActionSpec) -> None:
        self.stack, self.snapshots, self.action = stack, snapshots, action

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        assert num_envs == len(self.snapshots)
        self.generator = generator

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        mean = self.stack.mean(observations.float(), self.snapshots)
        std = self.stack.log_std.exp()[self.snapshots][:, None]  # [E, 1, A]
        return self.action.clip(mean + std * torch.randn(mean.shape, generator=self.generator))


class UniformPolicy:
    """Uniform actions inside the bounds of a continuous task, whatever is observed."""

    network_passes = 0

    def __init__(self, action: ActionSpec) -> None:
        assert not action.is_discrete
        self.low, self.high = torch.tensor(action.low), torch.tensor(action.high)

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self.generator = generator

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        share = torch.rand((*observations.shape[:2], len(self.low)), generator=self.generator)
        return self.low + (self.high - self.low) * share


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread inside the block: how work is split over threads changes the last bits of some sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
