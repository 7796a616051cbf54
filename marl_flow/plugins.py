"""What other packages offer: objects named `module:attribute`, and entry points that name them."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from marl_flow.interfaces import UserError


def load_object(reference: str, example: str) -> Any:
    """The object that `module:attribute` names, by importing the module; `example` shows the form in errors."""
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise UserError(f"expected module:name such as {example}, got {reference!r}")
    try:
        found: Any = import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{reference}: cannot import the module {module_name} ({error}); install its package, or run in the folder "
            "that holds it"
        ) from error
    except SyntaxError as error:
        raise UserError(f"{reference}: {error.filename}, line {error.lineno}: {error.msg}; mend the module") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            known = [
                key
                for key, value in vars(found).items()
                if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module_name
            ]
            raise UserError(
                f"{reference}: the module has no attribute {name}; it defines {', '.join(known[:12]) or 'none'}"
            )
        found = getattr(found, name)
    return found


def offered_names(group: str) -> tuple[str, ...]:
    """Names of an entry point group, from all installed packages."""
    return tuple(dict.fromkeys(point.name for point in entry_points(group=group)))


def offered_reference(group: str, name: str) -> str | None:
    """The `module:attribute` that an installed package offers under a name; None if none does."""
    values = sorted({point.value for point in entry_points(group=group, name=name)})
    if len(values) > 1:
        raise UserError(
            f"{name} is an entry point of {group} in several packages ({', '.join(values)}); uninstall one, or name it "
            "as module:attribute"
        )
    return values[0] if values else None
