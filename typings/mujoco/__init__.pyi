# For pyright: mujoco's classes and functions come from compiled modules without stubs of their own.
from typing import Any

def __getattr__(name: str) -> Any: ...
