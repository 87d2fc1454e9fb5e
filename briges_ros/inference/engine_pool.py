"""Engines for several cameras of one process: each model is loaded once."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Any

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import Engine, EngineError, Progress
from briges_ros.inference.selfcheck import SelfCheck, check_engine, make_ready, open_checked_engine

log = logging.getLogger('briges_ros')


class EnginePool:
    """Opens engines; those of one model, backend and precision share their weights.

    The weights go when the last engine goes that uses them.
    """

    def __init__(self) -> None:
        self._in_use: weakref.WeakKeyDictionary[Engine, Any] = weakref.WeakKeyDictionary()
        self._opening = threading.Lock()

    def open(
        self,
        bundle: ModelBundle,
        backend: str = 'auto',
        precision: str = 'auto',
        threads: int = 0,
        image_size: tuple[int, int] | None = None,
        token_budget: int | None = None,
        progress: Progress | None = None,
    ) -> tuple[Engine, SelfCheck]:
        """As `open_checked_engine`; waits while another thread opens one.

        Raises:
            EngineError: see there.
        """
        wanted = (bundle.sha256, backend, precision, threads)
        with self._opening:
            for other in [engine for engine, key in self._in_use.items() if key == wanted]:
                try:
                    engine = other.sibling(progress)
                    check = check_engine(engine, bundle)
                    if image_size is not None:
                        make_ready(engine, bundle, image_size, token_budget)
                    break
                except EngineError as error:  # e.g. of a GPU that is gone: load it anew
                    log.warning('an engine in use is not shared: %s', error)
            else:
                engine, check = open_checked_engine(
                    bundle, backend, precision, threads, image_size, token_budget, progress
                )
            self._in_use[engine] = wanted
        return engine, check
