"""Anchors: pixels whose depth in metres is known from another sensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from briges_ros.camera import CameraModel

Vector = npt.NDArray[np.float32]

# Noise of a sensor nobody described: 2 cm, and half a percent of the range. It covers spinning
# LiDAR (2-3 cm), and calibration that is a little off.
_SIGMA_FLOOR = 0.02
_SIGMA_PER_METRE = 0.005

# Occlusion, see `_hidden`. The cell is 0.16 degrees: 2 pixels at the focal length of KITTI, where
# the rows of a 64-beam LiDAR are 5 pixels apart. The widest window, +-7 cells, spans the gap of a
# 16-beam LiDAR.
_CELL_RADIANS = 0.0028
_WINDOWS = (0, 1, 3, 7)
_OCCLUDER_MARGIN = 0.1


@dataclass(frozen=True, eq=False)
class Anchors:
    """Sparse depth in an image, from any sensor.

    Args:
        u: (N,) columns, pixels, kept as float32; a whole number is a pixel's centre.
        v: (N,) rows, pixels.
        depth: (N,) metres along optical Z.
        sigma: (N,) standard deviation of `depth`, metres.
        size: (width, height) in pixels of the image that u and v belong to; None if that is not
            known. `from_points` and `from_depth` know it, so that the pipeline can tell when they
            are given with an image of another size.

    Raises:
        ValueError: Lengths differ, or a value is not finite, or a depth or sigma is not positive.
    """

    u: Vector
    v: Vector
    depth: Vector
    sigma: Vector
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ('u', 'v', 'depth', 'sigma'):
            values = np.asarray(getattr(self, name), dtype=np.float32)
            if values.shape != (np.size(self.u),):
                raise ValueError(
                    f'u, v, depth and sigma must be vectors of one length, {name} has shape '
                    f'{values.shape} and u {np.shape(self.u)}'
                )
            if not np.isfinite(values).all():
                raise ValueError(
                    f'{name} holds values that are not finite; leave those anchors out'
                )
            object.__setattr__(self, name, values)
        if (self.depth <= 0).any() or (self.sigma <= 0).any():
            raise ValueError('depth and sigma of anchors must be positive; leave the others out')

    def __len__(self) -> int:
        return len(self.depth)

    @classmethod
    def empty(cls) -> Anchors:
        """Make no anchors at all."""
        none = np.empty(0, np.float32)
        return cls(none, none, none, none)

    @classmethod
    def from_points(
        cls,
        xyz: npt.NDArray[np.floating[Any]],
        camera: CameraModel,
        T_camera_sensor: npt.NDArray[np.floating[Any]] | None = None,
        sigma: npt.ArrayLike | None = None,
        min_range: float = 0.1,
        max_range: float = 200.0,
    ) -> Anchors:
        """Project points of a LiDAR or another range sensor into the image.

        Points that are not finite, out of range or out of view are dropped. So are points the
        sensor sees but the camera does not: a sensor mounted apart from the camera looks past the
        edges of near objects, and its points on the background would land on those objects in the
        image. Whether and where that can happen follows from the translation of `T_camera_sensor`.
        So give the points as the sensor measured them, with their transform; points moved to the
        camera frame beforehand (no transform) are taken to be seen from the camera, and none is
        dropped as hidden.

        Args:
            xyz: (N, 3) points in the sensor's frame, metres.
            camera: The camera of the image.
            T_camera_sensor: (4, 4) transform that takes points of the sensor's frame to the optical
                frame of the camera; None if they are in the optical frame already.
            sigma: Standard deviation of the depth in metres, one for all or (N,); by default
                0.02 + 0.005 * depth.
            min_range: Least depth along optical Z in metres.
            max_range: Greatest depth along optical Z in metres.

        Returns:
            The anchors; there may be none.

        Raises:
            ValueError: Wrong shapes, or a transform that is not finite or not rigid.
        """
        xyz = np.asarray(xyz)
        if xyz.ndim != 2 or xyz.shape[1] != 3:
            raise ValueError(f'points must be an (N, 3) array, got {xyz.shape}')
        xyz = xyz.astype(np.result_type(xyz, np.float32), copy=False)
        origin = np.zeros(3)
        if T_camera_sensor is not None:
            T = rigid_transform(T_camera_sensor)
            origin = T[:3, 3]
            xyz = np.einsum('ij,kj->ik', xyz, T[:3, :3].astype(xyz.dtype))
            xyz += origin.astype(xyz.dtype)
        count = len(xyz)
        # A spinning LiDAR sees all around: the range comes first, as it halves the work.
        index = np.flatnonzero((xyz[:, 2] >= min_range) & (xyz[:, 2] <= max_range))
        xyz = xyz.take(index, axis=0)
        uv, in_view = camera.project(xyz)
        keep = np.flatnonzero(in_view)
        hidden = _hidden(uv.take(keep, axis=0), xyz.take(keep, axis=0), origin, camera)
        keep = keep[~hidden]
        u, v = (uv[:, i].take(keep).astype(np.float32) for i in range(2))
        z = xyz[:, 2].take(keep).astype(np.float32)
        size = (camera.width, camera.height)
        return cls(u, v, z, _sigma(sigma, z, count, index[keep]), size)

    @classmethod
    def from_depth(
        cls,
        depth: npt.NDArray[np.floating[Any]],
        max_count: int = 20000,
        sigma: npt.ArrayLike | None = None,
    ) -> Anchors:
        """Take the valid pixels of a depth image that is registered to the camera's image.

        The depth image must have the size of the camera's image; a depth image of another size, or
        of another camera, is points to project (`from_points`).

        Args:
            depth: (H, W) metres along optical Z; NaN, infinite, 0 or negative is no measurement.
            max_count: At most this many anchors are kept, evenly over the image.
            sigma: Standard deviation of the depth in metres, one for all or (H, W); by default
                0.02 + 0.005 * depth.

        Returns:
            The anchors; there may be none.

        Raises:
            ValueError: `depth` is not a two-dimensional array of floating point numbers, or `sigma`
                does not fit it.
        """
        depth = np.asarray(depth)
        if depth.ndim != 2:
            raise ValueError(f'depth must be an (H, W) array, got {depth.shape}')
        if depth.dtype.kind != 'f':
            # Whole numbers are millimetres nearly always, and would pass for kilometres.
            raise ValueError(
                f'depth must be floating point metres, got {depth.dtype}; convert millimetres '
                'with briges_ros.depth_image.from_millimetres'
            )
        index = np.flatnonzero((depth > 0) & (depth < np.inf))
        if len(index) > 4 * max_count:
            # Every so many-th first: quicker, and as even where so many pixels are valid.
            index = index[np.arange(4 * max_count) * len(index) // (4 * max_count)]
        v, u = np.divmod(index, depth.shape[1])
        if len(index) > max_count:
            chosen = _even_choice(u, v, max_count)
            index, u, v = index[chosen], u[chosen], v[chosen]
        z = depth.ravel()[index]
        if sigma is not None and np.ndim(sigma) == 2:
            sigma = np.ravel(sigma)
        return cls(
            u.astype(np.float32),
            v.astype(np.float32),
            z.astype(np.float32),
            _sigma(sigma, z, depth.size, index),
            (depth.shape[1], depth.shape[0]),
        )

    def _of(self, chosen: npt.NDArray[Any]) -> Anchors:
        return Anchors(
            self.u[chosen], self.v[chosen], self.depth[chosen], self.sigma[chosen], self.size
        )

    def within(self, width: int, height: int) -> Anchors:
        """Keep the anchors that lie in an image of this size, in pixels.

        Returns:
            Those, in their old order, or all of them if none lies outside.
        """
        inside = (self.u >= -0.5) & (self.u < width - 0.5)
        inside &= (self.v >= -0.5) & (self.v < height - 0.5)
        if inside.all():
            return self
        return self._of(inside)

    def thinned(self, max_count: int) -> Anchors:
        """Keep at most `max_count` of the anchors, evenly over the image, always the same ones.

        Args:
            max_count: Number to keep.

        Returns:
            The chosen anchors in their old order, or all of them if there are no more than that.
        """
        if len(self) <= max_count:
            return self
        chosen = _even_choice(self.u, self.v, max_count)
        return self._of(chosen)


def rigid_transform(T: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Check that a (4, 4) matrix is a rotation and a translation, and return it as float64.

    Raises:
        ValueError: It is not.
    """
    checked = np.asarray(T, dtype=np.float64)
    if checked.shape != (4, 4) or not np.isfinite(checked).all():
        raise ValueError('T_camera_sensor must be a (4, 4) matrix of finite numbers')
    R = checked[:3, :3]
    if not np.allclose(R @ R.T, np.eye(3), atol=1e-3) or np.linalg.det(R) < 0:
        raise ValueError(
            'T_camera_sensor is not a rigid transform: its rotation part must be orthonormal'
        )
    return checked


def _sigma(
    sigma: npt.ArrayLike | None, z: npt.NDArray[Any], count: int, index: npt.NDArray[np.intp]
) -> Vector:
    """Give the standard deviations of the anchors `index` out of `count` measurements."""
    if sigma is None:
        return (_SIGMA_FLOOR + _SIGMA_PER_METRE * z).astype(np.float32)
    values = np.asarray(sigma, dtype=np.float32)
    if values.ndim == 0:
        return np.broadcast_to(values, z.shape)
    if values.shape != (count,):
        raise ValueError(
            f'sigma must be one number, or one for each of the {count} measurements, '
            f'got {values.shape}'
        )
    return values[index]


def _hidden(
    uv: npt.NDArray[np.float64],
    xyz: npt.NDArray[np.floating[Any]],
    origin: npt.NDArray[np.float64],
    camera: CameraModel,
) -> npt.NDArray[np.bool_]:
    """Find points the sensor sees but the camera does not.

    Between the sensor's view and the camera's, a point moves by a parallax that is proportional to
    its inverse depth. Points of one surface that both see keep their order in the image; a far
    point that comes to lie behind a near one has changed places with it, so its parallax relative
    to that one is greater than their distance in the image (the ordering constraint of stereo
    matching). Hence a point is taken as hidden if, in a window of r pixels around it, some point is
    nearer by more than a margin and differs in parallax by more than r. Steep surfaces pass, as
    their parallax changes slower than their image; and without a baseline there is no parallax, and
    nothing is hidden.

    Visible points within r of an object's edge are lost too. There are enough others, and those are
    where depth maps are blurred anyway.

    Args:
        uv: (N, 2) pixels, inside the image.
        xyz: (N, 3) the points in the optical frame, metres.
        origin: (3,) the sensor in the optical frame, metres.
        camera: The camera.

    Returns:
        (N,) bool, True for hidden points.
    """
    hidden = np.zeros(len(xyz), np.bool_)
    if not len(xyz) or not origin.any():
        return hidden
    # To first order in the baseline b, a point on the ray r = (x, y, 1) shifts by
    # f (b_xy - b_z r_xy) / z.
    inverse = (1.0 / xyz[:, 2]).astype(np.float32)
    rays = xyz[:, :2] * inverse[:, None]
    baseline = np.hypot(
        camera.fx * (origin[0] - origin[2] * rays[:, 0]),
        camera.fy * (origin[1] - origin[2] * rays[:, 1]),
    ).astype(np.float32)
    cell = max(1, round(_CELL_RADIANS * camera.fx))
    columns = ((uv[:, 0] + 0.5) / cell).astype(np.intp)
    rows = ((uv[:, 1] + 0.5) / cell).astype(np.intp)
    width = -(-camera.width // cell)
    nearest = np.zeros((-(-camera.height // cell), width), np.float32)  # greatest inverse depth
    flat = rows * width + columns
    np.maximum.at(nearest.reshape(-1), flat, inverse)
    greatest_parallax = float((baseline * (inverse.max() - inverse)).max())
    for reach in _WINDOWS:
        distance = (reach + 0.5) * cell
        if greatest_parallax <= distance:
            break
        window = cv2.dilate(nearest, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
        near = window.reshape(-1)[flat]
        hidden |= (near > (1 + _OCCLUDER_MARGIN) * inverse) & (
            baseline * (near - inverse) > distance
        )
    return hidden


def _even_choice(u: npt.NDArray[Any], v: npt.NDArray[Any], max_count: int) -> npt.NDArray[np.intp]:
    """Choose `max_count` of more points evenly over the area they cover.

    The area is cut into about as many square cells as points are wanted; every cell gives its first
    point, then every cell that has one its second, and so on.

    Returns:
        (max_count,) indices, ascending.
    """
    left, top = float(u.min()), float(v.min())
    wide, tall = float(u.max()) - left + 1, float(v.max()) - top + 1
    # At most 65535 cells: NumPy sorts 16-bit integers by radix, in linear time.
    side = max(np.sqrt(wide * tall / min(max(max_count, 1), 30000)), wide / 250, tall / 250)
    columns = ((u - left) / side).astype(np.uint16)
    cells = ((v - top) / side).astype(np.uint16)
    cells *= np.uint16(int(wide / side) + 1)
    cells += columns
    order = np.argsort(cells, kind='stable')
    sizes = np.bincount(cells)
    first = np.cumsum(sizes) - sizes
    rank = np.empty(len(cells), np.intp)
    rank[order] = np.arange(len(cells)) - np.repeat(first, sizes)
    # All ranks below `level` fit; of those at `level` a regular part does.
    taken = np.cumsum(np.bincount(rank))
    level = int(np.searchsorted(taken, max_count, side='right'))
    chosen = np.flatnonzero(rank < level)
    rest = np.flatnonzero(rank == level)
    missing = max_count - len(chosen)
    picks = rest[np.arange(missing) * len(rest) // max(missing, 1)]
    return np.sort(np.concatenate([chosen, picks]))
