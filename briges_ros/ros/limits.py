"""How large a message may be: beyond what any sensor sends, and within what a robot can hold.

What a message claims costs nothing until it is believed. These limits come before anything is made
of a message, so that what is made of it is bounded too.
"""

from __future__ import annotations

from typing import Any

from sensor_msgs.msg import CompressedImage, Image, LaserScan, PointCloud2

from briges_ros.errors import quoted
from briges_ros.ros.conversions import MessageError

MAX_SIDE = 16384  # pixels; OpenCV cannot interpolate in an image of more than 32767
MAX_PIXELS = 1 << 26  # 8192 x 8192
MAX_POINTS = 1 << 22  # eight times those of a LiDAR with 128 lines of 4096
MAX_RAYS = 1 << 20
MAX_BYTES = 1 << 29  # an image of MAX_PIXELS in the largest encoding
MAX_FIELDS = 64  # of a point
MAX_FRAME_ID = 256  # characters


def check_limits(message: Any) -> None:
    """Refuse a message that is larger than what any sensor sends.

    Args:
        message: Image, CompressedImage, PointCloud2, LaserScan or Range.

    Raises:
        MessageError: it is.
    """
    frame_id = message.header.frame_id
    if len(frame_id) > MAX_FRAME_ID:
        raise _too_large(f'its frame_id {quoted(frame_id)}', f'{MAX_FRAME_ID} characters')
    if isinstance(message, LaserScan):
        rays = max(len(message.ranges), len(message.intensities))
        if rays > MAX_RAYS:
            raise _too_large(f'the scan has {rays} rays', str(MAX_RAYS))
    if isinstance(message, PointCloud2):
        points, fields = message.width * message.height, len(message.fields)
        if points > MAX_POINTS:
            raise _too_large(f'the cloud claims {points} points', str(MAX_POINTS))
        if fields > MAX_FIELDS:
            raise _too_large(f'the cloud has {fields} fields', str(MAX_FIELDS))
    if isinstance(message, Image):
        check_picture(message.width, message.height)
    if isinstance(message, (Image, CompressedImage, PointCloud2)) and len(message.data) > MAX_BYTES:
        raise _too_large(f'data holds {len(message.data)} bytes', str(MAX_BYTES))


def bytes_of(message: Any) -> int:
    """Return about how much memory a message takes, at least what it holds in large arrays."""
    if isinstance(message, LaserScan):
        return 4 * (len(message.ranges) + len(message.intensities))
    return len(getattr(message, 'data', ()))


def check_picture(width: int, height: int) -> None:
    """Refuse an image of too many pixels.

    Raises:
        MessageError: it has.
    """
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise _too_large(
            f'the image claims {width} x {height} pixels',
            f'{MAX_SIDE} along a side and {MAX_PIXELS} in all',
        )


def _too_large(what: str, limit: str) -> MessageError:
    return MessageError(f'{what}, more than the {limit} that are taken: mend the publisher')
