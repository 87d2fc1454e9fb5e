"""When to try again after the backend failed: after 1 s, then 2, 4 and so on, up to 60."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

FIRST = 1.0  # s from a failure to the first try
LONGEST = 60.0  # s between two tries


class Recovery:
    """Tells when a try is due. The node does it, and says how it went.

    A backend that fails again within a minute of its return goes on with the pause where it was,
    so that one which loads, passes its self-check and fails does not do so once a second.

    Args:
        clock: monotonic time in seconds.

    Attributes:
        failures: of the backend while the node was active, since the start.
        why: what the last failure, or the last try, said; '' if no try is pending.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = 0
        self.why = ''
        self._clock = clock
        self._pause = FIRST
        self._next = math.inf
        self._returned = -math.inf

    @property
    def pending(self) -> bool:
        """Whether there is to be another try."""
        return bool(self.why)

    @property
    def due(self) -> bool:
        """Whether it is time for it."""
        return self.pending and self._clock() >= self._next

    def failed(self, why: str) -> None:
        """Take in that the backend failed, or that a try did.

        Args:
            why: in words, not empty.
        """
        if not self.pending:
            self.failures += 1
            if self._clock() - self._returned > LONGEST:
                self._pause = FIRST
        self.why = why
        self._next = self._clock() + self._pause
        self._pause = min(2 * self._pause, LONGEST)

    def succeeded(self) -> None:
        """Take in that the node is active again."""
        self.why = ''
        self._returned = self._clock()

    def stop(self) -> None:
        """End the tries: somebody else decides."""
        self.why = ''
        self._returned = -math.inf

    def __str__(self) -> str:
        """What failed, and when the next try is."""
        wait = self._next - self._clock()
        then = f'next try in {math.ceil(wait)} s' if wait > 0 else 'trying again'
        return f'the backend failed: {self.why}; {then}'
