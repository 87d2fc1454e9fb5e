"""Where the camera is over the ground: for what is published of obstacles, and for a scale."""

from __future__ import annotations

from typing import Any

import numpy as np

from briges_ros.errors import BrigesError
from briges_ros.obstacles import ground_of_base, level_camera_pose
from briges_ros.ros.parameters import Settings
from briges_ros.ros.throttle import ThrottledLog
from briges_ros.ros.transforms import Transforms


class CameraMount:
    """Finds the pose of the camera by parameter or TF, and says once when it cannot.

    Args:
        transforms: of the node.
        log: for why the pose is not known.
    """

    def __init__(self, transforms: Transforms, log: ThrottledLog) -> None:
        self._transforms = transforms
        self._log = log
        self._known = True

    def pose(self, settings: Settings, camera_frame: str, stamp: Any) -> np.ndarray | None:
        """Return T_base_camera, (4, 4), of the image with this frame and stamp; None: not known."""
        try:
            if settings.camera_height > 0:
                pose = level_camera_pose(settings.camera_height, settings.camera_pitch)
            else:
                pose = self._transforms.base_from_camera(settings.base_frame, camera_frame, stamp)
            ground_of_base(pose)
        except BrigesError as error:
            if self._known:
                self._log.warning(
                    "'depth/obstacles' and 'depth/scan' are not published, and 'prior.ground' has "
                    f'no effect, as the pose of the camera is not known: {error}'
                )
            self._known = False
            return None
        if not self._known:
            self._log.info("the pose of the camera is known: 'depth/obstacles' is published")
        self._known = True
        return pose
