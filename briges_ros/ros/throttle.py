"""Logging that a stream of bad messages cannot flood."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

_NUMBERS = re.compile(r'[-+]?\d[\d.e+-]*')
_MAX_KINDS = 64  # within a period


class ThrottledLog:
    """Logs each kind of complaint at once, then at most once per period with the number left out.

    Two texts that differ only in numbers are of one kind. A sender who makes up new kinds without
    end gets so many lines in a period, and no more. The throttle of rclpy keys on the line of code
    that logs, so one helper that logs for all topics would let one topic silence the rest.

    Args:
        logger: an rclpy logger.
        period: seconds between two lines of one kind.
        clock: monotonic time in seconds.
    """

    def __init__(
        self, logger: Any, period: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._period = period
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, int]] = {}  # kind -> (when logged, suppressed since)

    def info(self, text: str) -> None:
        """Log `text` as information unless one of its kind was logged within the period."""
        suppressed = self._admit(text)
        if suppressed is not None:
            self._logger.info(text + suppressed)

    def warning(self, text: str) -> None:
        """Log `text` as a warning unless one of its kind was logged within the period."""
        suppressed = self._admit(text)
        if suppressed is not None:
            self._logger.warning(text + suppressed)

    def error(self, text: str) -> None:
        """Log `text` as an error unless one of its kind was logged within the period."""
        suppressed = self._admit(text)
        if suppressed is not None:
            self._logger.error(text + suppressed)

    def _admit(self, text: str) -> str | None:
        """Return what to append to the line, or None if the line is to be left out."""
        kind = _NUMBERS.sub('#', text)
        now = self._clock()
        with self._lock:
            last, suppressed = self._last.get(kind, (None, 0))
            if last is not None and now - last < self._period:
                self._last[kind] = (last, suppressed + 1)
                return None
            if len(self._last) >= _MAX_KINDS:  # texts can carry names that a sender makes up
                self._last = {k: v for k, v in self._last.items() if now - v[0] < self._period}
                if len(self._last) >= _MAX_KINDS:
                    return None
            self._last[kind] = (now, 0)
        return f' ({suppressed} more like this)' if suppressed else ''
