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

# What DDS tells of other ends that do not fit is not asked for: `endpoints` finds it, with a mend.
# Each kind on each topic would be one more thing for the executor to look at whenever it wakes.
_EVENTS = 'rclpy.event_handler', 'rclpy.qos_event'
NO_PUBLISHER_EVENTS = _first('PublisherEventCallbacks', *_EVENTS)(use_default_callbacks=False)
NO_SUBSCRIPTION_EVENTS = _first('SubscriptionEventCallbacks', *_EVENTS)(use_default_callbacks=False)
