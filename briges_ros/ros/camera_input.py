"""The image and the camera_info: received, paired, and missed when they do not come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from briges_ros.ros.camera_view import CameraView, same_settings, view_of
from briges_ros.ros.compat import NO_SUBSCRIPTION_EVENTS
from briges_ros.ros.conversions import same_calibration
from briges_ros.ros.endpoints import other_types, type_name
from briges_ros.ros.image_encodings import compressed_to_rgb, image_to_rgb
from briges_ros.ros.limits import check_limits
from briges_ros.ros.parameters import Settings

ImageMessage: TypeAlias = Image | CompressedImage

_INFO_PATIENCE = 1.0  # s from the first image on, before a given field of view stands in


@dataclass(frozen=True)
class CameraTopics:
    """Fully qualified names, as remapped."""

    image: str
    camera_info: str


class CameraInput:
    """Subscribes to the camera while it exists.

    Images go to `on_image` as they come, except that before the first camera_info the newest one
    waits for it: the two topics arrive in any order, and the first image is not to be lost. It
    waits for a second only if the user gave a field of view.

    Args:
        node: the rclpy node.
        settings: returns the parameters in force.
        on_image: called with each image message, in the executor's thread.
    """

    def __init__(
        self, node: Any, settings: Callable[[], Settings], on_image: Callable[[ImageMessage], None]
    ) -> None:
        self._node = node
        self._settings = settings
        self._on_image = on_image
        compressed = settings().image_transport == 'compressed'
        self._image_type = CompressedImage if compressed else Image
        self._info: CameraInfo | None = None
        self._early: ImageMessage | None = None  # waits for the first camera_info
        self._first_image = math.inf  # when it came
        self._view: tuple[CameraInfo | None, tuple[int, int], Settings, CameraView] | None = None
        self._last_image = time.monotonic()  # or when the wait began
        # As in image_transport, 'image' is the base name, and remapping it moves the compressed
        # topic along.
        image_topic = node.resolve_topic_name('image') + ('/compressed' if compressed else '')
        self._subscriptions = [
            node.create_subscription(
                message_type,
                topic,
                receive,
                qos_profile_sensor_data,
                event_callbacks=NO_SUBSCRIPTION_EVENTS,
            )
            for message_type, topic, receive in (
                (CameraInfo, 'camera_info', self._receive_info),
                (self._image_type, image_topic, self._receive_image),
            )
        ]
        info, image = self._subscriptions
        self.topics = CameraTopics(image=image.topic_name, camera_info=info.topic_name)

    def close(self) -> None:
        """Drop the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        # What takes the images knows this object: a circle that would keep the engine in memory.
        self._on_image = _nowhere

    @property
    def focal_length(self) -> float:
        """Of the camera_info as it comes, whatever the parameters make of it; 0 without one."""
        return 0.0 if self._info is None else float(self._info.k[0])

    def look(self, message: ImageMessage, settings: Settings) -> tuple[np.ndarray, CameraView]:
        """Return an image as depth is to be computed of it, and how it is seen.

        Args:
            message: the image.
            settings: the parameters of this frame.

        Returns:
            (H, W, 3) uint8 RGB, and its view: the same object while calibration, size and
            parameters stay the same.

        Raises:
            MessageError: the image or the camera_info cannot be used, or do not belong together.
        """
        check_limits(message)
        compressed = isinstance(message, CompressedImage)
        image = compressed_to_rgb(message) if compressed else image_to_rgb(message)
        view = self._view_of((image.shape[1], image.shape[0]), settings)
        return (image if view.undistortion is None else view.undistortion(image)), view

    def _view_of(self, size: tuple[int, int], settings: Settings) -> CameraView:
        info = self._info
        if self._view is not None:
            known, known_size, known_settings, view = self._view
            if (
                (known is info or (known and info and same_calibration(known, info)))
                and known_size == size
                and same_settings(known_settings, settings)
            ):
                return view
        view = view_of(info, self.topics.camera_info, size, settings)
        self._view = info, size, settings, view
        return view

    def silence(self, patience: float) -> str:
        """Return what is missing, in words with the mend, or '' if images and camera_info come.

        Args:
            patience: seconds of waiting that are still normal.
        """
        now = time.monotonic()
        waited = now - self._last_image
        if waited > patience:
            return f"no image on '{self.topics.image}' for {waited:.0f} s: " + self._cause(
                self.topics.image, self._image_type, 'image'
            )
        if self._early is not None and now - self._first_image > patience:
            return (
                f"images arrive, but no camera_info on '{self.topics.camera_info}', and without "
                'it there are no metres: '
                + self._cause(self.topics.camera_info, CameraInfo, 'camera_info')
                + "; for a camera that has none, set 'horizontal_fov'"
            )
        return ''

    def _cause(self, topic: str, message_type: type, name: str) -> str:
        """Return why nothing arrives on a topic, as far as the graph tells."""
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not publishers:
            return f'nobody publishes it; start the camera, or remap: -r {name}:=/your/topic'
        if other := other_types(self._node, topic, message_type):
            return (
                f'its publishers send {other}, not {type_name(message_type)}; remap to another '
                "topic, or set 'image_transport' to what the camera sends"
            )
        return (
            f'it has {len(publishers)} publisher(s), but nothing comes through; does it publish '
            '(ros2 topic hz), and does it run with the Fast DDS profile for large messages '
            '(config/fastdds_large_messages.xml)?'
        )

    def _receive_image(self, message: ImageMessage) -> None:
        self._last_image = time.monotonic()
        self._first_image = min(self._first_image, self._last_image)
        if self._info is not None or self._does_without():
            self._early = None
            self._on_image(message)
        else:
            self._early = message

    def _does_without(self) -> bool:
        """Whether the field of view that the user gave stands in for the camera_info."""
        waited = self._last_image - self._first_image
        return waited > _INFO_PATIENCE and self._settings().horizontal_fov > 0

    def _receive_info(self, message: CameraInfo) -> None:
        self._info = message
        early, self._early = self._early, None
        if early is not None:
            self._on_image(early)


def _nowhere(_: ImageMessage) -> None:
    """Take an image that comes after the end."""
