"""Names that moved between Humble and the later distributions."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def _first(name: str, *modules: str) -> Any:
    """Return `name` from the first of the modules that exists."""
    for module in modules[:-1]:
        try:
            return getattr(import_module(module), name)
        except ImportError:
            pass
    return getattr(import_module(modules[-1]), name)


ClockType = _first('ClockType', 'rclpy.clock_type', 'rclpy.clock')
