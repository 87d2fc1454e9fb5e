"""What the camera_info and the parameters together say of the images, made once and kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo

from briges_ros.camera import CameraModel, Undistortion
from briges_ros.ros.conversions import MessageError, camera_from_info, info_of
from briges_ros.ros.parameters import Settings


@dataclass(frozen=True, eq=False)
class CameraView:
    """How the images of a camera are seen.

    Attributes:
        camera: of the images that depth is computed of.
        info: the camera_info of what is published; its header is empty.
        undistortion: what makes these of the camera's images; None if they are taken as they come.
        blind: (H, W) bool, pixels that show nothing the camera model knows the way to: outside of a
            fisheye's circle, or of what the raw image has for an undistorted one. None for none.
        note: what is assumed, in words; '' if it is all known.
    """

    camera: CameraModel
    info: CameraInfo
    undistortion: Undistortion | None = None
    blind: np.ndarray | None = None
    note: str = ''


def view_of(
    info: CameraInfo | None, info_topic: str, size: tuple[int, int], settings: Settings
) -> CameraView:
    """Make the view of images.

    Args:
        info: the camera_info, or None if there is none.
        info_topic: its name.
        size: width and height of the images in pixels.
        settings: image_is_rectified, undistort and horizontal_fov count.

    Raises:
        MessageError: the camera_info cannot be used, or is not of these images.
    """
    if settings.horizontal_fov > 0 and (info is None or not np.any(info.k)):
        camera = CameraModel.from_fov(*size, math.radians(settings.horizontal_fov))
        what = 'missing' if info is None else 'not calibrated (K is zero)'
        note = (
            f"camera_info of '{info_topic}' is {what}: field of view taken as "
            f'{settings.horizontal_fov:g} degrees, without distortion'
        )
        return CameraView(camera, info_of(camera), note=note)
    if info is None:  # images wait for it, but the field of view may be gone meanwhile
        raise MessageError(f"no camera_info on '{info_topic}' yet; or set 'horizontal_fov'")
    try:
        camera = camera_from_info(info, settings.image_is_rectified, size)
        if settings.undistort and camera.distorted:
            undistortion = Undistortion(camera, _ideal_intrinsics(camera, info))
            ideal = undistortion.camera
            return CameraView(ideal, info_of(ideal), undistortion, _if_any(undistortion.blind))
        blind = _if_any(np.isnan(camera.rays()[..., 0])) if camera.distorted else None
    except (MessageError, ValueError) as error:
        mend = '' if np.any(info.k) else "; or set 'horizontal_fov'"
        raise MessageError(f"its camera_info on '{info_topic}': {error}{mend}") from error
    return CameraView(camera, info_of(camera, info), blind=blind)


def same_settings(first: Settings, second: Settings) -> bool:
    """Tell whether two settings make the same view."""
    return all(
        getattr(first, name) == getattr(second, name)
        for name in ('image_is_rectified', 'undistort', 'horizontal_fov')
    )


def _ideal_intrinsics(camera: CameraModel, info: CameraInfo) -> np.ndarray:
    """Return P, so that the images are those of image_proc, or K where P is of a turned camera.

    The rectifying rotation of a stereo camera would take the images out of their frame.
    """
    unturned = not np.any(info.r) or np.allclose(info.r, np.eye(3).ravel(), atol=1e-6)
    return camera.P[:, :3] if camera.P is not None and unturned else camera.K


def _if_any(blind: Any) -> np.ndarray | None:
    return blind if blind.any() else None
