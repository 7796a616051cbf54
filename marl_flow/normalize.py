"""Normalisers: fitted once on raw data, stored with the weights, applied and inverted inside an algorithm.

    kind        apply                                                   invert
    cdf         empirical cumulative probability, mapped to [-1, 1];    the same curve backwards; clipped to the
                inputs are clipped to the data's range                  data's range; a constant feature is left alone
    limits      [minimum, maximum] -> [-1, 1], linear beyond            clipped to [-1, 1] first
    standard    (x - mean) / standard deviation                         no clipping

`cdf` and `limits` map as `Guowei-Zou/coflow-release: diffuser/datasets/normalization.py` does, with three deviations:
a curve keeps at most `num_knots` of its points (the release keeps every unique value: gigabytes), a constant feature
under `limits` maps to 0 (there it divides by zero), and inverting `limits` clips each entry that is out of range
(there, all entries or none, with a tolerance).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from marl_flow.interfaces import TaskSpec, UserError

Kind = Literal["cdf", "limits", "standard"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TABLES = {"cdf": ("values", "levels"), "limits": ("center", "scale"), "standard": ("center", "scale")}


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalizer:
    """A map of each feature, the same for all agents or one per agent.

    `tables`, float32, with leading axes [D], or [N, D] when `per_agent`: for cdf `values` and `levels` [..., knots],
    rising raw values and their levels in [-1, 1], the last repeated as filling (a constant feature repeats its value);
    otherwise `center` and `scale`, level = (x - center) / scale.
    """

    kind: Kind
    per_agent: bool
    tables: Mapping[str, Tensor]

    @classmethod
    def fit(
        cls,
        kind: str,
        values: np.ndarray,
        per_agent: bool = False,
        num_knots: int = 4096,
        rows: np.ndarray | None = None,
    ) -> Normalizer:
        """A normaliser of raw values [M, N, D], of which `rows` [M] bool count (None: all).

        Works feature by feature on every value, without sampling: beside its result it holds a few copies of one
        feature's numbers at a time, so the data may be a memory map larger than memory.
        """
        values = np.asarray(values)
        checked = _known_kind(kind)
        if values.ndim != 3 or values.size == 0 or num_knots < 2:
            raise ValueError(f"expected values [M, N, D] and num_knots >= 2, got {values.shape} and {num_knots}")
        agents: list[slice | int] = list(range(values.shape[1])) if per_agent else [slice(None)]
        columns: list[tuple[np.ndarray, np.ndarray]] = []
        for agent in agents:
            for feature in range(values.shape[2]):
                column = values[:, agent, feature] if rows is None else values[rows, agent, feature]
                column = np.ascontiguousarray(column, dtype=np.float32).ravel()
                if not np.isfinite(column).all():
                    raise UserError(f"expected finite values to normalise, found others in feature {feature}")
                columns.append(_FIT[checked](column, num_knots))
        leading = (values.shape[1], values.shape[2]) if per_agent else (values.shape[2],)
        tables = {
            name: torch.from_numpy(_stack([column[i] for column in columns]).reshape(*leading, -1))
            for i, name in enumerate(_TABLES[checked])
        }
        if checked != "cdf":
            tables = {name: table[..., 0].contiguous() for name, table in tables.items()}
        return cls(kind=checked, per_agent=per_agent, tables=tables)

    def apply(self, x: Tensor) -> Tensor:
        """Levels [..., N, D] float32 of raw values [..., N, D]."""
        x = self._checked(x)
        if self.kind == "cdf":
            return self._along(x, self.tables["values"], self.tables["levels"])
        return (x - self.tables["center"]) / self.tables["scale"]

    def invert(self, x: Tensor) -> Tensor:
        """Raw values [..., N, D] float32 of levels [..., N, D]."""
        x = self._checked(x)
        if self.kind == "cdf":
            return self._along(x, self.tables["levels"], self.tables["values"])
        if self.kind == "limits":
            x = x.clamp(-1.0, 1.0)
        return x * self.tables["scale"] + self.tables["center"]

    def to(self, device: torch.device | str) -> Normalizer:
        tables = {name: table.to(device) for name, table in self.tables.items()}
        return Normalizer(kind=self.kind, per_agent=self.per_agent, tables=tables)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors, ready for safetensors; `kind` is the position in `KINDS`."""
        return {
            "kind": torch.tensor(KINDS.index(self.kind)),
            "per_agent": torch.tensor(self.per_agent),
            **self.tables,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Normalizer:
        if "kind" not in state or not 0 <= int(state["kind"]) < len(KINDS):
            raise UserError(
                f"expected a normaliser's `kind`, found the entries {sorted(state)}; another version wrote it"
            )
        kind = KINDS[int(state["kind"])]
        expected = {"kind", "per_agent", *_TABLES[kind]}
        if set(state) != expected:
            raise UserError(f"a {kind} normaliser has the entries {sorted(expected)}, found {sorted(state)}")
        tables = {name: state[name] for name in _TABLES[kind]}
        return cls(kind=kind, per_agent=bool(state["per_agent"]), tables=tables)

    def _checked(self, x: Tensor) -> Tensor:
        """The input as float32, its last axes as they were when fitted."""
        table = self.tables[_TABLES[self.kind][0]]
        shape = table.shape[:-1] if self.kind == "cdf" else table.shape
        if x.shape[-len(shape) :] != shape:
            raise ValueError(f"the normaliser was fitted on {tuple(shape)} features, got values {tuple(x.shape)}")
        return x.to(torch.float32)

    def _along(self, x: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """x [..., N, D] mapped along the curves through the points (before, after), clipped to their ends."""
        knots = before.shape[-1]
        before, after = before.reshape(-1, knots), after.reshape(-1, knots)  # [F, knots], F = D or N * D
        columns = x.reshape(-1, before.shape[0]).t().contiguous()  # [F, M]
        inside = torch.minimum(torch.maximum(columns, before[:, :1]), before[:, -1:])
        # The first point at or above: the one before it is strictly below, so filling never forms a segment.
        above = torch.searchsorted(before, inside).clamp_(1, knots - 1)
        low, high = before.gather(1, above - 1), before.gather(1, above)
        start, stop = after.gather(1, above - 1), after.gather(1, above)
        fraction = (inside - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
        values = self.tables["values"].reshape(-1, knots)
        constant = values[:, :1] == values[:, -1:]
        return torch.where(constant, columns, start + fraction * (stop - start)).t().reshape(x.shape)


class EpisodeArrays(Protocol):
    """What `Normalizers.fit` reads of an episode store."""

    @property
    def spec(self) -> TaskSpec: ...
    @property
    def observations(self) -> np.ndarray: ...
    @property
    def actions(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray:
        """Steps before each episode, [K + 1]; an episode has one row of observations more than steps."""
        ...

    @property
    def real_frames(self) -> np.ndarray | None:
        """Which rows of `observations` the environment showed, [rows] bool; None: all."""
        ...

    def returns_to_go(self, discount: float) -> np.ndarray:
        """[steps, N] float32."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalizers:
    """The normalisers of one training run; `actions` is None for discrete actions.

    `returns` serves return-conditioned policies: a linear map of raw discounted returns-to-go [..., N, 1], so that a
    target above the data's best is still told apart. `changes` is of one step's change of normalised observations.
    """

    observations: Normalizer
    actions: Normalizer | None
    returns: Normalizer
    changes: Normalizer

    @classmethod
    def fit(cls, kind: str, store: EpisodeArrays, *, discount: float) -> Normalizers:
        """Observations and actions by `kind`, shared by the agents as in every release configuration that is used.

        Every real frame and step counts, final observations included where the data have them.
        """
        discrete = store.spec.action.is_discrete
        observations = Normalizer.fit(kind, store.observations, rows=store.real_frames)
        return cls(
            observations=observations,
            actions=None if discrete else Normalizer.fit(kind, store.actions),
            returns=Normalizer.fit("standard", store.returns_to_go(discount)[..., None]),
            changes=Normalizer.fit("standard", _changes(observations, store)),
        )

    def to(self, device: torch.device | str) -> Normalizers:
        return Normalizers(**{name: part.to(device) if part else None for name, part in self._parts()})  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors named part/table, ready for safetensors."""
        return {
            f"{name}/{key}": value for name, part in self._parts() if part for key, value in part.state_dict().items()
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Normalizers:
        names = [field.name for field in fields(cls)]
        tables_of: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, table = key.partition("/")
            tables_of.setdefault(name, {})[table] = value
        if not set(names) >= set(tables_of) >= {"observations", "returns", "changes"}:
            raise UserError(f"expected normalisers of {names} (actions optional), found {sorted(tables_of)}")
        normalizers = {
            name: Normalizer.from_state_dict(tables_of[name]) if name in tables_of else None for name in names
        }
        return cls(**normalizers)  # type: ignore[arg-type]

    def _parts(self) -> list[tuple[str, Normalizer | None]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def _changes(observations: Normalizer, store: EpisodeArrays, max_rows: int = 200_000) -> np.ndarray:
    """Changes [M, N, O] from a normalised frame to the next real one; at most `max_rows`, evenly sampled."""
    first = np.ones(len(store.observations), dtype=bool)
    first[store.offsets[1:] + np.arange(len(store.offsets) - 1)] = False  # the last row of an episode has no next
    if store.real_frames is not None:
        first[:-1] &= store.real_frames[1:]
    rows = np.flatnonzero(first)
    if not len(rows):
        return np.zeros((1, *store.observations.shape[1:]), dtype=np.float32)
    rows = rows[np.linspace(0, len(rows) - 1, min(max_rows, len(rows))).astype(np.int64)]
    before = observations.apply(torch.from_numpy(store.observations[rows]))
    return (observations.apply(torch.from_numpy(store.observations[rows + 1])) - before).numpy()


def _known_kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise UserError(f"unknown normaliser {kind!r}; known: {', '.join(KINDS)}")
    return kind


def _stack(columns: list[np.ndarray]) -> np.ndarray:
    """Rows [F, longest] float32, short ones filled with their last entry."""
    longest = max(map(len, columns))
    return np.stack([np.pad(column, (0, longest - len(column)), mode="edge") for column in columns]).astype(np.float32)


def _fit_cdf(column: np.ndarray, num_knots: int) -> tuple[np.ndarray, np.ndarray]:
    values, counts = np.unique(column, return_counts=True)
    probability = np.cumsum(counts) / column.size
    if len(values) > num_knots:
        kept = _thin(probability, num_knots)
        values, probability = values[kept], probability[kept]
    if len(values) == 1:
        values, probability = values.repeat(2), probability.repeat(2)
    return values, 2.0 * probability - 1.0


def _thin(probability: np.ndarray, num_knots: int) -> np.ndarray:
    """At most `num_knots` points of a rising curve that ends in 1: evenly spaced in probability, and both sides of
    every jump. The curve through them is off by at most 4 / num_knots in probability.
    """
    jumps = np.flatnonzero(np.diff(probability, prepend=0.0) > 4.0 / num_knots)  # fewer than num_knots / 4
    even = np.linspace(probability[0], 1.0, num_knots - 2 * len(jumps))
    kept = np.searchsorted(probability, even)
    return np.unique(np.concatenate([kept, jumps, np.maximum(jumps - 1, 0)]))


def _fit_limits(column: np.ndarray, num_knots: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.float64(column.min()), np.float64(column.max())
    return np.array([(low + high) / 2]), np.array([(high - low) / 2 if high > low else 1.0])


def _fit_standard(column: np.ndarray, num_knots: int) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = column.mean(dtype=np.float64), column.std(dtype=np.float64)
    return np.array([mean]), np.array([deviation if deviation > 1e-6 else 1.0])  # a constant feature is only centred


_FIT: dict[Kind, Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]] = {
    "cdf": _fit_cdf,
    "limits": _fit_limits,
    "standard": _fit_standard,
}
