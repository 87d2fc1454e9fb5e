"""Sparse sensors: messages kept for a while, and turned into anchors when a frame asks for them."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from briges_ros.alignment.anchors import Anchors
from briges_ros.camera import CameraModel, Undistortion
from briges_ros.errors import BrigesError
from briges_ros.point_cloud import organised_points
from briges_ros.ros.conversions import (
    MessageError,
    camera_from_info,
    cloud_to_points,
    image_to_depth,
    stamp_seconds,
)
from briges_ros.ros.parameters import Settings
from briges_ros.ros.throttle import ThrottledLog
from briges_ros.ros.transforms import Transforms

T = TypeVar('T')

_KEPT = 60  # messages per topic: a 30 Hz depth camera may run ahead of the network by 2 s
_LOOP = 1.0  # s; stamps that go back by more mean that time began again
_MAX_POINTS = 20_000  # of a depth image from another camera; more cost time and add nothing


class StampedBuffer(Generic[T]):
    """The last messages of one topic, by stamp. Filled and asked from different threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[tuple[float, T]] = deque(maxlen=_KEPT)
        self.latest: float | None = None  # stamp of the last message, kept or not

    def add(self, stamp: float, message: T) -> None:
        """Keep a message; a stamp far in the past of the last one empties the buffer first."""
        with self._lock:
            if self._entries and stamp < self._entries[-1][0] - _LOOP:
                self._entries.clear()
            self._entries.append((stamp, message))
            self.latest = stamp

    def nearest(self, stamp: float, max_age: float) -> T | None:
        """Return the message nearest to `stamp` (seconds), or None if none is within `max_age`.

        Messages that are too old for this stamp are dropped: images come in order.
        """
        with self._lock:
            while self._entries and self._entries[0][0] < stamp - max_age:
                self._entries.popleft()
            if not self._entries:
                return None
            nearest, message = min(self._entries, key=lambda entry: abs(entry[0] - stamp))
        return message if abs(nearest - stamp) <= max_age else None


@dataclass(frozen=True)
class FrameContext:
    """What the anchors of a frame depend on."""

    stamp: float  # s, of the image
    frame_id: str  # optical frame, of the image
    camera: CameraModel
    settings: Settings
    undistortion: Undistortion | None = None  # what the image went through


class SparseInputs:
    """Subscribes to the sparse sensors while it exists, and makes anchors of what they sent."""

    def __init__(self, node: Any, transforms: Transforms, log: ThrottledLog) -> None:
        self._node = node
        self._transforms = transforms
        self._log = log
        self._clouds: StampedBuffer[PointCloud2] = StampedBuffer()
        self._depths: StampedBuffer[Image] = StampedBuffer()
        self._depth_info: CameraInfo | None = None
        self.note = ''  # why the last frame got no anchors from some sensor
        self._subscriptions = [
            node.create_subscription(message_type, topic, callback, qos_profile_sensor_data)
            for message_type, topic, callback in (
                (PointCloud2, 'sparse/points', _adder(self._clouds)),
                (Image, 'sparse/depth', _adder(self._depths)),
                (CameraInfo, 'sparse/camera_info', self._receive_info),
            )
        ]
        self._cloud_topic, self._depth_topic, self._info_topic = (
            subscription.topic_name for subscription in self._subscriptions
        )

    def close(self) -> None:
        """Drop the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def anchors(self, context: FrameContext) -> Anchors | None:
        """Return the anchors of the messages nearest to the frame; None if there is no message.

        A message that cannot be used is reported and left out; the frame goes on without it.
        """
        self.note = ''
        found = [
            anchors
            for topic, buffer, convert in (
                (self._cloud_topic, self._clouds, self._from_cloud),
                (self._depth_topic, self._depths, self._from_depth),
            )
            if (anchors := self._of_topic(topic, buffer, convert, context)) is not None
        ]
        if not found:
            self.note = self.note or self._why_none(context)
            return None
        if len(found) == 1:
            return found[0]
        u, v, depth, sigma = (
            np.concatenate([getattr(anchors, name) for anchors in found])
            for name in ('u', 'v', 'depth', 'sigma')
        )
        return Anchors(u, v, depth, sigma, found[0].size)

    def _why_none(self, context: FrameContext) -> str:
        """Return why no sensor has a message for this frame, in words."""
        limit = context.settings.sparse_max_age
        for topic, buffer in (
            (self._cloud_topic, self._clouds),
            (self._depth_topic, self._depths),
        ):
            if buffer.latest is not None:
                apart = buffer.latest - context.stamp
                why = (
                    f"the last message of '{topic}' is {abs(apart):.2f} s "
                    f'{"younger" if apart > 0 else "older"} than the image, more than '
                    f"'sparse.max_age' {limit:g} s: does the sensor still send, by the same clock?"
                )
                self._log.warning(why)
                return why
        return f"nothing came on '{self._cloud_topic}' or '{self._depth_topic}' yet"

    def _of_topic(
        self,
        topic: str,
        buffer: StampedBuffer[Any],
        convert: Callable[[Any, FrameContext], Anchors],
        context: FrameContext,
    ) -> Anchors | None:
        message = buffer.nearest(context.stamp, context.settings.sparse_max_age)
        if message is None:
            return None
        try:
            anchors = convert(message, context)
        except BrigesError as error:
            self.note = f"'{topic}': {error}"
            self._log.error(self.note)
            return None
        if len(anchors) == 0:
            self.note = (
                f"'{topic}': nothing of it falls into the image: check that its frame "
                f"'{message.header.frame_id}' and the extrinsics are right"
            )
            self._log.warning(self.note)
        return anchors

    def _from_cloud(self, message: PointCloud2, context: FrameContext) -> Anchors:
        points = cloud_to_points(message)
        return Anchors.from_points(points, context.camera, self._pose(message, context))

    def _from_depth(self, message: Image, context: FrameContext) -> Anchors:
        depth = image_to_depth(message)
        height, width = depth.shape
        camera = context.camera
        if message.header.frame_id == context.frame_id and (
            (width, height) == (camera.width, camera.height)
        ):
            if context.undistortion is not None:
                depth = context.undistortion.depth(depth)
            return Anchors.from_depth(depth)
        # Another camera: its pixels become points, and those are seen from ours.
        info = self._depth_info
        if info is None:
            raise MessageError(
                f"it has {width} x {height} pixels in frame '{message.header.frame_id}', the image "
                f"{camera.width} x {camera.height} in '{context.frame_id}', so it needs its own "
                f"camera_info on '{self._info_topic}'"
            )
        if (info.width, info.height) != (width, height):
            raise MessageError(
                f"it has {width} x {height} pixels, but '{self._info_topic}' describes "
                f'{info.width} x {info.height}: publish the camera_info of this depth image'
            )
        stride = max(1, math.isqrt(depth.size // _MAX_POINTS))
        points = organised_points(depth, camera_from_info(info), stride).reshape(-1, 3)
        return Anchors.from_points(points, camera, self._pose(message, context))

    def _pose(self, message: Any, context: FrameContext) -> np.ndarray | None:
        return self._transforms.camera_from_sensor(
            context.frame_id,
            message.header.frame_id,
            message.header.stamp,
            context.settings.extrinsics,
        )

    def _receive_info(self, message: CameraInfo) -> None:
        self._depth_info = message


def _adder(buffer: StampedBuffer[Any]) -> Callable[[Any], None]:
    return lambda message: buffer.add(stamp_seconds(message.header.stamp), message)
