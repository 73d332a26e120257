"""MuJoCo's own bindings are compiled and bring no types."""

from typing import Any

def __getattr__(name: str) -> Any: ...
