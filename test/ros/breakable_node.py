"""The depth node on a real engine that can be broken from outside.

While the file named by BREAK is there, the graphs of the engine raise, as the libraries do:

    once       the next run only
    images     all runs but those on the reference of the self-check
    all        all runs
    hang       all runs wait
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from briges_ros.inference import engine
from briges_ros.ros import health, lifecycle_node
from briges_ros.ros.depth_node import main

BREAK = Path(os.environ['BREAK'])


class BreakableEngine(engine.GraphEngine):
    """Runs graphs that break."""

    def __init__(
        self, name: str, precision: str, bundle: Any, loaded: Mapping[str, Any], *rest: Any
    ) -> None:
        breakable = {key: BreakableGraph(graph) for key, graph in loaded.items()}
        super().__init__(name, precision, bundle, breakable, *rest)


class BreakableGraph:
    """A loaded graph whose runs break."""

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded

    def runner(self) -> Any:
        """See `engine.LoadedGraph.runner`."""
        return breaking(self._loaded.runner())


def breaking(graph: Any) -> Any:
    """The graph, if it is not to break."""

    def run(inputs: Any) -> Any:
        while (how := said()) == 'hang':
            time.sleep(0.01)
        checking = any(frame.name == 'compare' for frame in traceback.extract_stack())
        if how == 'once':
            BREAK.unlink()
        if how == 'all' or (how and not checking):
            raise RuntimeError('CUDA error 719:\nunspecified launch failure')
        return graph(inputs)

    return run


def said() -> str:
    """What the file says."""
    try:
        return BREAK.read_text()
    except FileNotFoundError:
        return ''


engine.GraphEngine = BreakableEngine  # type: ignore[misc]  # the backends import it when asked for

# So that the test need not wait.
lifecycle_node._DIAGNOSTICS_PERIOD = 0.2  # s
health._STUCK = 1.0  # s

sys.exit(main())
