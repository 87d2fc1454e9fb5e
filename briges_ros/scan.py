"""A planar laser scan from what a depth camera sees, for 2D navigation and SLAM.

A scan lives in a frame with x forward and z up, and counts its angles counter-clockwise from x
(sensor_msgs/LaserScan, REP 103). An optical frame has z forward, so a scan in it would stand on
edge: this one is made in the base frame, which is also where its ranges begin.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from briges_ros.camera import CameraModel
from briges_ros.point_cloud import check_size

Vector = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

_COLUMNS_PER_BEAM = 2.0  # in the middle of the image, so that no beam falls between two columns
_ROW_STEP = 4  # sight lines are looked at in every so many-th row


@dataclass(frozen=True, eq=False)
class Scan:
    """Ranges by angle, in the base frame.

    Attributes:
        angle_min: of the first beam, radians counter-clockwise from x; may be beyond pi for a
            camera that looks back.
        angle_increment: radians from beam to beam.
        ranges: (N,) float32 metres from the origin of the base frame in its xy plane; +inf = free
            as far as the scan goes, NaN = unknown (REP 117).
    """

    angle_min: float
    angle_increment: float
    ranges: npt.NDArray[np.float32]

    @property
    def angle_max(self) -> float:
        """Angle of the last beam, radians."""
        return self.angle_min + (len(self.ranges) - 1) * self.angle_increment


def laser_scan(
    depth: npt.NDArray[np.float32],
    camera: CameraModel,
    obstacles: npt.NDArray[np.bool_],
    T_base_camera: npt.NDArray[np.float64],
    min_range: float,
    max_range: float,
    max_height: float,
) -> Scan:
    """Flatten the obstacles in a depth image to a scan.

    A beam has the range of its nearest obstacle. One without an obstacle is free only if that was
    seen: at least half of the sight lines in its direction that arrive at `max_range` between the
    ground and `max_height` must be known to arrive there, and at least half of those that pass
    below must be known at all. Else it is unknown: a camera that looks at the floor in front of the
    robot says nothing about what is farther.

    Args:
        depth: (H, W) float32 metres along optical Z; NaN unknown, +inf beyond range (REP 118).
        camera: The camera of the image, H x W.
        obstacles: (H, W) bool, the pixels to flatten, from `obstacle_mask`.
        T_base_camera: (4, 4), takes points of the optical frame to the base frame.
        min_range: Metres along optical Z from which on depth is known; with the geometry it says
            which angles can occur, so that they are the same in every scan.
        max_range: Metres from the origin of the base frame; obstacles farther away are left out.
        max_height: Metres over z = 0 of the base frame that the obstacles reach up to.

    Returns:
        The scan.

    Raises:
        ValueError: Depth, camera and obstacles differ in size.
    """
    check_size(depth, camera)
    if obstacles.shape != depth.shape:
        raise ValueError(f'obstacles are {obstacles.shape}, but the depth is {depth.shape}')
    T = np.ascontiguousarray(T_base_camera, np.float64)
    lines = _sight_lines(camera, T.tobytes(), min_range, max_range, max_height)
    z = depth.ravel()
    free = lines.arriving.mostly(z[lines.arriving.pixel] >= lines.end)
    free &= lines.passing.mostly(~np.isnan(z[lines.passing.pixel]))
    ranges = np.where(free, np.float32(math.inf), np.float32(math.nan))

    farthest = np.float32(max_range + math.hypot(*T[:2, 3]))
    pixel = np.flatnonzero(obstacles & (depth <= farthest))
    x, y, _ = _points(camera.rays().reshape(-1, 2)[pixel], z[pixel], T)
    distance = np.hypot(x, y)
    within = distance <= max_range
    nearest = np.full(len(ranges), math.inf, np.float32)
    np.minimum.at(nearest, lines.beam(x[within], y[within]), distance[within])
    np.copyto(ranges, nearest, where=np.isfinite(nearest))
    return Scan(lines.forward + lines.first, lines.increment, ranges)


@dataclass(frozen=True, eq=False)
class _Bundle:
    """Some pixels of the image by the beam that they are in."""

    pixel: Index  # flat
    beam: Index
    count: Index  # of them in each beam

    def mostly(self, true: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Tell of each beam whether something is true of half of its pixels, or more."""
        yes = np.bincount(self.beam[true], minlength=len(self.count))
        return np.asarray((2 * yes >= self.count) & (self.count > 0))


@dataclass(frozen=True, eq=False)
class _SightLines:
    """Where the pixels of a camera look in the scan: the same in every frame."""

    forward: float  # angle of the middle of the image in the base frame
    first: float  # angle of the first beam from there
    increment: float
    passing: _Bundle  # pixels that look into the scan below its greatest height
    arriving: _Bundle  # those of them that are still over the ground at its greatest range
    end: Vector  # their depths there

    def beam(self, x: Vector, y: Vector) -> Index:
        """Return the beams that points of the base frame lie in, or the nearest ones."""
        turn = _turn(x, y, self.forward)
        last = len(self.passing.count) - 1
        return np.rint((turn - self.first) / self.increment).astype(np.intp).clip(0, last)


@functools.lru_cache(maxsize=4)
def _sight_lines(
    camera: CameraModel, pose: bytes, min_range: float, max_range: float, max_height: float
) -> _SightLines:
    """Lay the beams of a scan through the sight lines of a camera; `pose` is T_base_camera."""
    T = np.frombuffer(pose, np.float64).reshape(4, 4)
    rays = camera.rays().reshape(-1, 2)
    image = np.arange(len(rays)).reshape(camera.height, camera.width)
    # A camera beside the origin of the base sees near things at other angles than far ones.
    rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    pixel = image[::_ROW_STEP].ravel()
    end = _depth_at_distance(rays[pixel], T, max_range)
    pixel, end = pixel[np.isfinite(end)], end[np.isfinite(end)]  # the others stay in the scan
    x, y, z = _points(rays[pixel], end, T)
    near_x, near_y, _ = _points(rays[rim], np.float32(min_range), T)
    near_x, near_y = near_x[np.isfinite(near_x)], near_y[np.isfinite(near_x)]
    # Forward is where the optical axis points, or where the top of the image is if that is down.
    axis = T[:2, 2] if math.hypot(*T[:2, 2]) > 1e-3 else -T[:2, 1]
    forward = math.atan2(axis[1], axis[0])
    turns = _turn(np.concatenate([x, near_x]), np.concatenate([y, near_y]), forward)
    increment = _COLUMNS_PER_BEAM / camera.fx
    first, last = float(turns.min(initial=0)), float(turns.max(initial=0))
    count = round((last - first) / increment) + 1
    beam = np.rint((turns[: len(x)] - first) / increment).astype(np.intp).clip(0, count - 1)

    def bundle(chosen: npt.NDArray[np.bool_]) -> _Bundle:
        return _Bundle(pixel[chosen], beam[chosen], np.bincount(beam[chosen], minlength=count))

    passing = z < max_height
    arriving = passing & (z > 0)
    return _SightLines(forward, first, increment, bundle(passing), bundle(arriving), end[arriving])


def _points(rays: Vector, depth: Vector | np.float32, T: FloatArray) -> tuple[Vector, ...]:
    """Return x, y, z in the base frame, (N,) each, of (N, 2) rays x/z, y/z at optical depths."""
    u, v = np.ascontiguousarray(rays.T)
    a = T.astype(np.float32)
    return tuple(depth * (row[0] * u + row[1] * v + row[2]) + row[3] for row in a[:3])


def _depth_at_distance(rays: Vector, T: FloatArray, distance: float) -> Vector:
    """Return the depths, (N,), at which rays are `distance` from the z axis; NaN, inf: never."""
    x0, y0 = T[:2, 3].astype(np.float32)
    dx, dy, _ = (a - b for a, b in zip(_points(rays, np.float32(1), T), T[:3, 3], strict=True))
    a, b = dx * dx + dy * dy, x0 * dx + y0 * dy
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.asarray((np.sqrt(b * b + a * (distance**2 - x0**2 - y0**2)) - b) / a, np.float32)


def _turn(x: Vector, y: Vector, forward: float) -> Vector:
    """Return the angles of points from the direction `forward`, counter-clockwise, within +-pi."""
    cos, sin = math.cos(forward), math.sin(forward)
    return np.arctan2(y * cos - x * sin, x * cos + y * sin)
