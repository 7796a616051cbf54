"""What our exports say of themselves, so that nothing is lost on the way back: a JSON record other readers skip."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marl_flow.config import from_json
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError

RECORD_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """The task, whether final observations are there, and the id and digest of the store that was exported."""

    spec: TaskSpec
    has_final_observation: bool
    origin: Mapping[str, Any]


def record_of(store: EpisodeStore) -> dict[str, Any]:
    """The record of a store in plain JSON values."""
    return {
        "format_version": RECORD_VERSION,
        "task": store.spec.to_json(),
        "has_final_observation": store.has_final_observation,
        "exported_from": {"dataset_id": store.dataset_id, "digest": store.digest},
    }


def parse_record(text: str, where: str) -> Record:
    """The record in a file's text; anything missing, unknown or of another type is refused."""
    try:
        record = json.loads(text)
        if not isinstance(record, dict) or record.get("format_version") != RECORD_VERSION:
            raise UserError(f"expected format_version {RECORD_VERSION}")
        if not isinstance(record["has_final_observation"], bool) or not isinstance(record["exported_from"], dict):
            raise UserError("expected has_final_observation and exported_from")
        return Record(
            spec=_spec(record["task"]),
            has_final_observation=record["has_final_observation"],
            origin=record["exported_from"],
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: expected the record of a marl_flow export, found a malformed one: {error}"
        ) from error


def check_task(requested: TaskSpec, found: TaskSpec, where: str) -> None:
    """Raises unless the files are of the requested task."""
    if requested != found:
        raise UserError(
            f"{where}: expected data of the requested task, {requested.to_json()}, found {found.to_json()}; "
            "pass the task the files are of"
        )


def _spec(record: Mapping[str, Any]) -> TaskSpec:
    absent = {
        field.name: field.default for field in dataclasses.fields(TaskSpec) if field.default is not dataclasses.MISSING
    }
    return from_json(TaskSpec, {**absent, **record, "action": from_json(ActionSpec, record["action"])})
