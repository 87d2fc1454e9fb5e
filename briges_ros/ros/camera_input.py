"""The image and the camera_info: received, paired, and missed when they do not come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from briges_ros.camera import CameraModel
from briges_ros.ros.conversions import (
    MessageError,
    camera_from_info,
    same_calibration,
)
from briges_ros.ros.image_encodings import compressed_to_rgb, image_to_rgb

ImageMessage: TypeAlias = Image | CompressedImage


@dataclass(frozen=True)
class CameraTopics:
    """Fully qualified names, as remapped."""

    image: str
    camera_info: str


class CameraInput:
    """Subscribes to the camera while it exists.

    Images go to `on_image` as they come, except that before the first camera_info the newest one
    waits for it: the two topics arrive in any order, and the first image is not to be lost.

    Args:
        node: the rclpy node.
        compressed: take 'image/compressed' instead of 'image'.
        on_image: called with each image message, in the executor's thread.
    """

    def __init__(
        self, node: Any, compressed: bool, on_image: Callable[[ImageMessage], None]
    ) -> None:
        self._node = node
        self._on_image = on_image
        self._image_type = CompressedImage if compressed else Image
        self._info: CameraInfo | None = None
        self._early: ImageMessage | None = None  # waits for the first camera_info
        self._early_since = 0.0
        self._camera: tuple[CameraInfo, bool, CameraModel] | None = None
        self._last_image = time.monotonic()  # or when the wait began
        # As in image_transport, 'image' is the base name, and remapping it moves the compressed
        # topic along.
        image_topic = node.resolve_topic_name('image') + ('/compressed' if compressed else '')
        self._subscriptions = [
            node.create_subscription(
                CameraInfo, 'camera_info', self._receive_info, qos_profile_sensor_data
            ),
            node.create_subscription(
                self._image_type, image_topic, self._receive_image, qos_profile_sensor_data
            ),
        ]
        info, image = self._subscriptions
        self.topics = CameraTopics(image=image.topic_name, camera_info=info.topic_name)

    def close(self) -> None:
        """Drop the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    @property
    def info(self) -> CameraInfo | None:
        """The latest camera_info, or None before the first."""
        return self._info

    def camera_of(self, image: np.ndarray, info: CameraInfo, rectified: bool) -> CameraModel:
        """Return the camera of an image, the same object while the calibration stays the same.

        Args:
            image: (H, W, 3).
            info: the camera_info to take.
            rectified: the image is rectified: P instead of K and D.

        Raises:
            MessageError: the camera_info cannot be used, or is not of this image.
        """
        try:
            self._require_size(image, info)
            if self._camera is not None:
                known, known_rectified, camera = self._camera
                if known_rectified == rectified and same_calibration(known, info):
                    return camera
            camera = camera_from_info(info, rectified)
        except MessageError as error:
            raise MessageError(f"its camera_info on '{self.topics.camera_info}': {error}") from None
        self._camera = (info, rectified, camera)
        return camera

    @staticmethod
    def _require_size(image: np.ndarray, info: CameraInfo) -> None:
        height, width = image.shape[:2]
        if (info.width, info.height) != (width, height):
            raise MessageError(
                f'it describes {info.width} x {info.height} pixels, but the image has '
                f'{width} x {height}: publish the camera_info of this image (binning and regions '
                'of interest are not applied yet)'
            )

    def pixels(self, message: ImageMessage) -> np.ndarray:
        """Return the image as (H, W, 3) uint8 RGB.

        Raises:
            MessageError: the image cannot be used.
        """
        if isinstance(message, CompressedImage):
            return compressed_to_rgb(message)
        return image_to_rgb(message)

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
        if self._early is not None and now - self._early_since > patience:
            return (
                f"images arrive, but no camera_info on '{self.topics.camera_info}', and without "
                'it there are no metres: '
                + self._cause(self.topics.camera_info, CameraInfo, 'camera_info')
            )
        return ''

    def _cause(self, topic: str, message_type: type, name: str) -> str:
        """Return why nothing arrives on a topic, as far as the graph tells."""
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not publishers:
            return f'nobody publishes it; start the camera, or remap: -r {name}:=/your/topic'
        wanted = f'{message_type.__module__.split(".")[0]}/msg/{message_type.__name__}'
        other = sorted({info.topic_type for info in publishers} - {wanted})
        if other:
            return (
                f'its publishers send {", ".join(other)}, not {wanted}; remap to another topic, or '
                "set 'image_transport' to what the camera sends"
            )
        return (
            f'it has {len(publishers)} publisher(s), but nothing comes through; does it publish '
            '(ros2 topic hz), and does it run with the Fast DDS profile for large messages '
            '(config/fastdds_large_messages.xml)?'
        )

    def _receive_image(self, message: ImageMessage) -> None:
        self._last_image = time.monotonic()
        if self._info is None:
            if self._early is None:
                self._early_since = self._last_image
            self._early = message
        else:
            self._on_image(message)

    def _receive_info(self, message: CameraInfo) -> None:
        self._info = message
        early, self._early = self._early, None
        if early is not None:
            self._on_image(early)
