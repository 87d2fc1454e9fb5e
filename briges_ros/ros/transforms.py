"""Where a sparse sensor sits in the camera, and the camera on the robot: by parameter or by TF.

How far the camera moved between two moments, TF alone can tell. tf2_ros comes with a ROS
installation and cannot be had from PyPI, so it is optional: this is the only module that imports
it. Without it the parameters `sparse.extrinsics` and `camera.height` say where things are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rclpy.time import Time

from briges_ros.errors import BrigesError, quoted

try:
    import tf2_ros
except ImportError:
    tf2_ros = None

_PARAMETER_HINT = (
    "set the parameter 'sparse.extrinsics' (x, y, z, qx, qy, qz, qw of the sensor in the camera), "
    "or that of the source, as 'sparse.points.extrinsics'"
)


_FARTHEST = 1e9  # m, that a frame can be away


class TransformError(BrigesError):
    """The pose of a sensor in the camera is not known; the text says how to give it."""


class Transforms:
    """Looks poses up; one per activation of the node."""

    def __init__(self, node: Any) -> None:
        self._buffer = None
        self._listener = None
        if tf2_ros is not None:
            # Without the node: with it the buffer adds a service that it never takes back.
            self._buffer = tf2_ros.Buffer()
            self._listener = tf2_ros.TransformListener(self._buffer, node, spin_thread=False)

    def close(self) -> None:
        """Stop listening to /tf."""
        if self._listener is not None:
            self._listener.unregister()
            self._listener = None
        self._buffer = None

    def forget(self) -> None:
        """Forget what moves: time began again, and TF takes nothing older than what it has.

        What is static stays (tf2::BufferCore::clear).
        """
        if self._buffer is not None:
            self._buffer.clear()

    def camera_from_sensor(
        self,
        camera_frame: str,
        sensor_frame: str,
        stamp: Any,
        extrinsics: Sequence[float] | None,
    ) -> np.ndarray | None:
        """Return T_camera_sensor, which maps points of the sensor to the optical frame.

        The frame itself needs no transform; else the parameter wins; else TF is asked, at the
        time of the measurement or, where TF has not got that far, for the latest.

        Args:
            camera_frame: frame_id of the image.
            sensor_frame: frame_id of the measurement.
            stamp: builtin_interfaces/Time of the measurement.
            extrinsics: x, y, z in metres and the quaternion x, y, z, w; None: not given.

        Returns:
            (4, 4) float64, or None for the identity.

        Raises:
            TransformError: none of the ways knows the pose.
        """
        if sensor_frame and sensor_frame == camera_frame:
            return None
        if extrinsics is not None:
            return matrix(extrinsics[:3], extrinsics[3:])
        if not sensor_frame or not camera_frame:
            raise TransformError(
                f"its frame_id is {quoted(sensor_frame)} and the image's is "
                f'{quoted(camera_frame)}: have both drivers fill frame_id, or {_PARAMETER_HINT}'
            )
        if self._buffer is None:
            raise TransformError(
                f"its frame {quoted(sensor_frame)} is not the image's frame "
                f'{quoted(camera_frame)}, and without tf2_ros the pose cannot be looked up: '
                f'install tf2_ros, or {_PARAMETER_HINT}'
            )
        try:
            found = self._lookup(camera_frame, sensor_frame, Time.from_msg(stamp))
        except (tf2_ros.TransformException, ValueError) as error:  # ValueError: a negative stamp
            raise TransformError(
                f"its frame {quoted(sensor_frame)} has no transform to the image's frame "
                f'{quoted(camera_frame)} ({_why(error)}): publish it on /tf or /tf_static, or '
                f'{_PARAMETER_HINT}'
            ) from error
        return _matrix_of(found.transform)

    def base_from_camera(self, base_frame: str, camera_frame: str, stamp: Any) -> np.ndarray:
        """Return T_base_camera, (4, 4) float64, which maps points of the optical frame to the base.

        Args:
            base_frame: frame of the robot, x forward and z up from the ground.
            camera_frame: frame_id of the image.
            stamp: builtin_interfaces/Time of the image.

        Raises:
            TransformError: TF does not know it.
        """
        mend = "set 'camera.height' and 'camera.pitch' instead"
        if not base_frame:
            raise TransformError(f"'base_frame' is empty: name the frame of the robot, or {mend}")
        if self._buffer is None:
            raise TransformError(f'without tf2_ros TF cannot be asked: install it, or {mend}')
        try:
            found = self._lookup(base_frame, camera_frame, Time.from_msg(stamp))
        except (tf2_ros.TransformException, ValueError) as error:  # ValueError: a negative stamp
            raise TransformError(
                f"TF does not know the image's frame {quoted(camera_frame)} in 'base_frame' "
                f'{quoted(base_frame)} ({_why(error)}): publish it on /tf_static, or {mend}'
            ) from error
        return _matrix_of(found.transform)

    def motion(self, frame: str, since: int, until: int, fixed_frame: str) -> np.ndarray | None:
        """Return how far a frame moved: what takes its points from one moment to another.

        A point that stands still in `fixed_frame`, and was at p in the frame at `since`, is at
        `motion @ p` in it at `until`.

        Args:
            frame: frame_id of what moves.
            since: nanoseconds.
            until: nanoseconds.
            fixed_frame: a frame in which the surroundings stand still, as odom (REP 105).

        Returns:
            (4, 4) float64, or None for the identity: there is no time between, or one of the times
            is not given (zero, which TF would take for the latest).

        Raises:
            TransformError: TF does not know.
        """
        if since == until or since <= 0 or until <= 0:
            return None
        if self._buffer is None:
            raise TransformError('without tf2_ros the motion of the camera is not known')
        before, after = Time(nanoseconds=since), Time(nanoseconds=until)
        try:
            found = self._buffer.lookup_transform_full(frame, after, frame, before, fixed_frame)
        except tf2_ros.TransformException as error:
            raise TransformError(
                f'TF has no motion of {quoted(frame)} in the fixed frame {quoted(fixed_frame)} '
                f'({_why(error)})'
            ) from error
        return _matrix_of(found.transform)

    def _lookup(self, target: str, source: str, time: Time) -> Any:
        assert self._buffer is not None
        try:
            return self._buffer.lookup_transform(target, source, time)
        except tf2_ros.ExtrapolationException:
            return self._buffer.lookup_transform(target, source, Time())


def _matrix_of(transform: Any) -> np.ndarray:
    """Return the (4, 4) float64 of a geometry_msgs/Transform.

    Raises:
        TransformError: it is none.
    """
    t, q = transform.translation, transform.rotation
    values = np.array([t.x, t.y, t.z, q.x, q.y, q.z, q.w])
    length = float(np.linalg.norm(values[3:]))
    # TF takes any number for a translation, and the product of what it has may overflow.
    if not (np.abs(values[:3]) <= _FARTHEST).all() or not abs(length - 1) < 1e-2:
        raise TransformError(
            f'TF has a translation of {t.x:g}, {t.y:g}, {t.z:g} m and a quaternion of length '
            f'{length:g} there, which is no pose: mend what publishes it'
        )
    return matrix((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))


def _why(error: Exception) -> str:
    """What TF says, which names frames that come from messages."""
    return quoted(str(error), 300)


def matrix(translation: Sequence[float], quaternion: Sequence[float]) -> np.ndarray:
    """Return the (4, 4) float64 transform of a translation and a quaternion x, y, z, w."""
    x, y, z, w = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    transform = np.eye(4)
    transform[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    transform[:3, 3] = translation
    return transform
