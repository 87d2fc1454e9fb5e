"""Newest frame wins: one frame in flight, one waiting, older ones dropped and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar('T')


class FrameWorker(Generic[T]):
    """Runs `process` on the newest item, in a thread of its own, one at a time.

    Callbacks of the executor only hand items over, so that they never wait for the network and
    the node keeps answering services while a frame is being computed.

    Args:
        process: called with each item; must not raise.
    """

    def __init__(self, process: Callable[[T], None]) -> None:
        self._process = process
        self._condition = threading.Condition()
        self._waiting: T | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name='depth_worker', daemon=True)
        self._thread.start()

    def put(self, item: T) -> bool:
        """Hand over the newest item; return whether one that still waited is dropped for it."""
        with self._condition:
            dropped = self._waiting is not None
            self._waiting = item
            self._condition.notify()
        return dropped

    def stop(self) -> None:
        """Drop what waits, let what is in flight finish, and end the thread."""
        with self._condition:
            self._stopping = True
            self._waiting = None
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopping or self._waiting is not None)
                if self._stopping:
                    return
                item, self._waiting = self._waiting, None
            assert item is not None
            self._process(item)
            del item  # a frame that is done must not stay alive while waiting for the next
