"""Frozen-dataclass configs: load from JSON, override by name, save, digest. Unknown keys and wrong types raise.

Not msgspec or pydantic: they would replace `_check` alone. That every field must be present, the nearest names of an
unknown one, values as text ("8,8", "none") and the value that was found in each message would stay ours.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from marl_flow.interfaces import UserError

C = TypeVar("C")
SWITCH_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
"""What a setting that is true or false may be given as."""
WHOLE = re.compile(r"[-+]?\d+(\.\d*)?([eE]\+?\d{1,2})?")
"""A whole number in another form, such as 2e5 or 200.0, when its value is whole."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names most like `name`, as text for an error message."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.4)
    return f"nearest: {', '.join(close)}" if close else f"known: {', '.join(sorted(known))}"


def to_json(config: Any) -> dict[str, Any]:
    """Plain JSON values of a config dataclass; tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def digest(*records: Any) -> str:
    """First 16 hex digits of the sha256 of the records' canonical JSON."""
    plain = [dataclasses.asdict(r) if dataclasses.is_dataclass(r) and not isinstance(r, type) else r for r in records]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_json(config_class: type[C], record: Mapping[str, Any]) -> C:
    """A config from its JSON form. Every field must be present: a missing one means another version wrote it."""
    hints = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    missing = [name for name in names if name not in record]
    unknown = [name for name in record if name not in names]
    if missing or unknown:
        raise UserError(
            f"{config_class.__name__}: expected the fields {names}, missing {missing}, unknown {unknown}; "
            "the file was written by another version or edited by hand"
        )
    values = {name: _check(name, record[name], hints[name]) for name in names}
    return _valid(lambda: config_class(**values))


def override(config: C, changes: Mapping[str, str]) -> C:
    """The config with fields set from text, e.g. {"width": "128"}."""
    hints = typing.get_type_hints(type(config))
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    values = {}
    for name, text in changes.items():
        if name not in names:
            raise UserError(f"unknown setting {name!r} of {type(config).__name__}; {nearest(name, names)}")
        values[name] = _check(name, _parse(name, text, hints[name]), hints[name])
    return _valid(lambda: dataclasses.replace(config, **values))  # type: ignore[type-var]


def _valid(make: Callable[[], C]) -> C:
    """The config that `make` returns; a ValueError of its validation becomes a UserError."""
    try:
        return make()
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def _parse(name: str, text: str, hint: Any) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if type(None) in options and text.lower() in ("none", "null"):
        return None
    for option in options:
        origin = typing.get_origin(option)
        if origin is typing.Literal or option is str:
            return text
        if option is bool and text.lower() in SWITCH_WORDS:
            return SWITCH_WORDS[text.lower()]
        if origin is tuple:
            element = typing.get_args(option)[0]
            items = [item for item in text.strip("()[] ").split(",") if item.strip()]
            return [_parse(name, item.strip(), element) for item in items]
        if option in (int, float):
            try:
                return option(text)
            except ValueError:
                if option is int and WHOLE.fullmatch(text) and float(text).is_integer():
                    return int(float(text))
                continue
    raise UserError(f"{name}: expected {_describe(hint)}, got {text!r}")


def _check(name: str, value: Any, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _check(name, value, option)
            except UserError:
                continue
    elif origin is typing.Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            if len(args) == 2 and args[1] is Ellipsis:
                return tuple(_check(name, item, args[0]) for item in value)
            if len(args) == len(value):
                return tuple(_check(name, item, arg) for item, arg in zip(value, args, strict=True))
    elif hint is type(None):
        if value is None:
            return None
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise UserError(f"{name}: expected {_describe(hint)}, got {value!r}")


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint)  # type: ignore[return-value]
