"""What the library says through `logging`, said through the ROS log."""

from __future__ import annotations

import logging
from typing import Any


class RosLogHandler(logging.Handler):
    """Forwards records to an rclpy logger, which has its own levels and sinks."""

    def __init__(self, logger: Any) -> None:
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Forward a record."""
        text = record.getMessage()
        # One call per level: rclpy forbids a line of code to log at several.
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def forward_library_log(logger: Any) -> None:
    """Send the log of the library to an rclpy logger, in place of any other sink."""
    library = logging.getLogger('briges_ros')
    library.setLevel(logging.INFO)
    library.handlers = [RosLogHandler(logger)]
    library.propagate = False
