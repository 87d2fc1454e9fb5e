"""Anchors: pixels whose depth in metres is known from another sensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from briges_ros.alignment.fit import sample
from briges_ros.alignment.occlusion import hidden_points
from briges_ros.alignment.thinning import even_choice
from briges_ros.camera import CameraModel

Vector = npt.NDArray[np.float32]

# Directions in which the cone of a ranger is looked at: in one of 25 degrees they are 15 pixels
# apart for a VGA camera.
_CONE_RAYS = 256
# The surface that answered is the nearest one of this part of the cone. Less of it gives no echo,
# and would leave the choice to single pixels that a network has wrong.
_CONE_ECHO = 0.05
# What is nearest may lie in the part of a cone that the camera does not see: no more than this.
_CONE_UNSEEN = 0.1

# A factor e in depth counts as much as this part of the width and height that the anchors cover.
_DEPTH_EXTENT = 0.1
# The curve from relative inverse depth to log depth, see `spread`.
_CURVE_SAMPLES = 2000
_CURVE_STEPS = 24


@dataclass(frozen=True)
class RangeNoise:
    """Standard deviation of a sensor's range r: floor + per_metre * r + per_metre2 * r^2.

    A time of flight is off by about as much near and far (`floor`), calibration and the clock by a
    part of the range (`per_metre`), and triangulation (stereo, structured light) by r^2 times the
    error of the disparity over focal length and baseline (`per_metre2`).

    The defaults are for a sensor that nobody described. They cover spinning LiDAR (2-3 cm), and
    calibration that is a little off.

    Attributes:
        floor: Metres, positive.
        per_metre: Part of the range, not negative.
        per_metre2: 1/m, not negative.
    """

    floor: float = 0.02
    per_metre: float = 0.005
    per_metre2: float = 0.0

    def sigma(self, distance: npt.NDArray[Any]) -> Vector:
        """Give the standard deviation in metres at these ranges (N,), metres."""
        r = np.asarray(distance, np.float32)
        sigma = np.multiply(r, np.float32(self.per_metre2))
        sigma += np.float32(self.per_metre)
        sigma *= r
        sigma += np.float32(self.floor)
        return sigma


@dataclass(frozen=True)
class Dropped:
    """How many measurements became no anchors, by the first reason that applied.

    Attributes:
        not_finite: NaN, or a coordinate that is infinite: an invalid measurement (REP 117).
        not_positive: Range zero or negative, which some drivers send for 'nothing there'.
        too_near: Nearer than the sensor's least range, or -inf (REP 117: too near to measure).
        too_far: Farther than its greatest range, or +inf (REP 117: nothing in range).
        behind_camera: Behind the image plane. So is half of what a spinning LiDAR sees.
        outside_image: In front of the camera, but beside the image.
        hidden: The sensor sees it past the edge of something that hides it from the camera.
        duplicate: The same point once more.
    """

    not_finite: int = 0
    not_positive: int = 0
    too_near: int = 0
    too_far: int = 0
    behind_camera: int = 0
    outside_image: int = 0
    hidden: int = 0
    duplicate: int = 0

    def __add__(self, other: Dropped) -> Dropped:
        mine, theirs = self.by_reason(), other.by_reason()
        return Dropped(**{reason: mine[reason] + theirs[reason] for reason in mine})

    def by_reason(self) -> dict[str, int]:
        """Give all the counts by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


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
        weight: (N,) how much each counts beside its noise; by default 1.
        group: (N,) integers: anchors of one number, 0 and up, are alternatives, only one of which
            was measured (`settled` picks it); -1 is an anchor on its own. None: all are.
        dropped: What else was measured, and why it is not here.

    Raises:
        ValueError: Lengths differ, or a value is not finite, or a depth or sigma is not positive,
            or a weight is negative.
    """

    u: Vector
    v: Vector
    depth: Vector
    sigma: Vector
    size: tuple[int, int] | None = None
    weight: Vector = None  # type: ignore[assignment]  # the constructor fills it in
    group: npt.NDArray[np.int32] | None = None
    dropped: Dropped = Dropped()

    def __post_init__(self) -> None:
        if self.weight is None:
            object.__setattr__(self, 'weight', np.ones(np.shape(self.depth), np.float32))
        for name in ('u', 'v', 'depth', 'sigma', 'weight'):
            values = np.asarray(getattr(self, name), dtype=np.float32)
            self._check_length(name, values)
            if not np.isfinite(values).all():
                raise ValueError(
                    f'{name} holds values that are not finite; leave those anchors out'
                )
            object.__setattr__(self, name, values)
        if (self.depth <= 0).any() or (self.sigma <= 0).any():
            raise ValueError('depth and sigma of anchors must be positive; leave the others out')
        if (self.weight < 0).any():
            raise ValueError('weight of anchors must not be negative')
        if self.group is not None:
            group = np.asarray(self.group, dtype=np.int32)
            self._check_length('group', group)
            object.__setattr__(self, 'group', group)

    def _check_length(self, name: str, values: npt.NDArray[Any]) -> None:
        if values.shape != (np.size(self.u),):
            raise ValueError(
                f'u, v, depth, sigma, weight and group must be vectors of one length, {name} has '
                f'shape {values.shape} and u {np.shape(self.u)}'
            )

    def __len__(self) -> int:
        return len(self.depth)

    @property
    def measurements(self) -> int:
        """Number of measurements these anchors stand for: a group is one."""
        if self.group is None:
            return len(self)
        return int((self.group < 0).sum()) + len(np.unique(self.group[self.group >= 0]))

    @classmethod
    def empty(cls, dropped: Dropped = Dropped()) -> Anchors:
        """Make no anchors at all."""
        none = np.empty(0, np.float32)
        return cls(none, none, none, none, dropped=dropped)

    @classmethod
    def joined(cls, parts: Sequence[Anchors]) -> Anchors:
        """Put the anchors of several sensors together.

        Args:
            parts: Anchors in one image; groups stay apart.

        Raises:
            ValueError: They belong to images of different sizes.
        """
        sizes = {part.size for part in parts if part.size is not None}
        if len(sizes) > 1:
            raise ValueError(f'anchors in images of different sizes cannot be joined: {sizes}')
        if len(parts) < 2:
            return parts[0] if parts else cls.empty()
        groups, number = [], 0
        for part in parts:
            group = np.full(len(part), -1, np.int32) if part.group is None else part.group
            groups.append(np.where(group < 0, np.int32(-1), group + np.int32(number)))
            number = max(number, int(groups[-1].max(initial=-1)) + 1)
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ('u', 'v', 'depth', 'sigma', 'weight')
        }
        return cls(
            **columns,
            size=next(iter(sizes), None),
            group=np.concatenate(groups) if number else None,
            dropped=sum((part.dropped for part in parts), Dropped()),
        )

    @classmethod
    def from_points(
        cls,
        xyz: npt.NDArray[np.floating[Any]],
        camera: CameraModel,
        T_camera_sensor: npt.NDArray[np.floating[Any]] | None = None,
        sigma: npt.ArrayLike | RangeNoise | None = None,
        min_range: float = 0.1,
        max_range: float = 200.0,
    ) -> Anchors:
        """Project points of a LiDAR or another range sensor into the image.

        Points that are not finite, out of range or out of view are dropped, and so are repetitions,
        which would pass for more evidence than they are. So are points the sensor sees but the
        camera does not: a sensor mounted apart from the camera looks past the edges of near
        objects, and its points on the background would land on those objects in the image. Whether
        and where that can happen follows from the translation of `T_camera_sensor`. So give the
        points as the sensor measured them, with their transform; points moved to the camera frame
        beforehand (no transform) are taken to be seen from the camera, and none is dropped as
        hidden.

        Args:
            xyz: (N, 3) points in the sensor's frame, metres.
            camera: The camera of the image.
            T_camera_sensor: (4, 4) transform that takes points of the sensor's frame to the optical
                frame of the camera; None if they are in the optical frame already.
            sigma: Standard deviation of the depth in metres, one for all or (N,); or the noise of
                the sensor's range, which is along the ray: of it, the part along optical Z is
                taken. By default 0.02 + 0.005 * depth.
            min_range: Least distance from the sensor in metres.
            max_range: Greatest distance from the sensor in metres.

        Returns:
            The anchors; there may be none.

        Raises:
            ValueError: Wrong shapes, or a transform that is not finite or not rigid.
        """
        xyz = np.asarray(xyz)
        if xyz.ndim != 2 or xyz.shape[1] != 3:
            raise ValueError(f'points must be an (N, 3) array, got {xyz.shape}')
        T = np.eye(4) if T_camera_sensor is None else rigid_transform(T_camera_sensor)
        count, size = len(xyz), (camera.width, camera.height)
        double = np.result_type(xyz, np.float32) != np.float32
        xyz = np.ascontiguousarray(xyz, np.float64 if double else np.float32)
        if not count:
            return replace(cls.empty(), size=size)

        # As columns, which all that follows is quicker on. OpenCV for the products: einsum takes
        # thirty times as long, and the threads of BLAS would contend with those of the inference.
        with np.errstate(over='ignore', invalid='ignore'):
            squared = _transformed(np.square(xyz), np.ones((1, 3)))[0]
        # A distance that overflows is no more a measurement than one that is infinite.
        usable = (squared >= min_range * min_range) & (squared > 0)
        usable &= squared <= min(max_range * max_range, float(np.finfo(squared.dtype).max))
        in_range = int(np.count_nonzero(usable))
        nan_if_infinite = np.where(np.isinf(squared), np.nan, squared)
        dropped = _out_of_range(nan_if_infinite, in_range, min_range * min_range)
        x, y, z = _transformed(xyz, T[:3])
        index = np.flatnonzero(usable & (z > 0))
        behind = in_range - len(index)
        xyz = np.stack([values.take(index) for values in (x, y, z)])
        uv, in_view = camera.project(xyz.T)
        keep = np.flatnonzero(in_view)
        u, v = (uv[:, i].take(keep).astype(np.float32) for i in range(2))
        x, y, z = (values.take(keep).astype(np.float32) for values in xyz)
        outside = len(index) - len(keep)

        hidden = hidden_points(u, v, x, y, z, T[:3, 3], camera)
        again = _repeated(u, v, z) & ~hidden
        dropped += Dropped(
            behind_camera=behind,
            outside_image=outside,
            hidden=int(np.count_nonzero(hidden)),
            duplicate=int(np.count_nonzero(again)),
        )
        if dropped.hidden or dropped.duplicate:
            seen = np.flatnonzero(~(hidden | again))
            keep = keep.take(seen)
            u, v, x, y, z = (values.take(seen) for values in (u, v, x, y, z))
        index = index.take(keep)
        if isinstance(sigma, RangeNoise):
            # Along the camera's own ray, as if it stood where the sensor does.
            along_z = z / np.sqrt(x * x + y * y + z * z)
            deviation = sigma.sigma(np.sqrt(squared.take(index))) * along_z
        else:
            deviation = _sigma(sigma, z, count, index)
        return cls(u, v, z, deviation, size, dropped=dropped)

    @classmethod
    def from_scan(
        cls,
        ranges: npt.NDArray[np.floating[Any]],
        angles: npt.NDArray[np.floating[Any]],
        camera: CameraModel,
        T_camera_sensor: npt.NDArray[np.floating[Any]] | None = None,
        sigma: float | RangeNoise | None = None,
        min_range: float = 0.1,
        max_range: float = 200.0,
        T_first_last: npt.NDArray[np.floating[Any]] | None = None,
    ) -> Anchors:
        """Project the ranges of a planar scanner into the image; else as `from_points`.

        Args:
            ranges: (N,) metres; NaN, -inf and +inf as REP 117 has them.
            angles: (N,) radians about z of the sensor's frame, from x towards y.
            camera: The camera of the image.
            T_camera_sensor: (4, 4) from the sensor's frame, at the time of the first ray, to the
                optical frame of the camera; None if that is the optical frame.
            sigma: Standard deviation of the depth in metres, or the noise by range.
            min_range: Least range in metres.
            max_range: Greatest range in metres.
            T_first_last: (4, 4) from the sensor's frame at the time of the last ray to that at the
                first: how far the sensor moved while it scanned. Rays between are interpolated,
                which is off by range * angle^2 / 8 at most.

        Raises:
            ValueError: Wrong shapes, or a transform that is not finite or not rigid.
        """
        ranges, angles = np.asarray(ranges, np.float32), np.asarray(angles, np.float32)
        if ranges.ndim != 1 or ranges.shape != angles.shape:
            raise ValueError(
                f'ranges and angles must be vectors of one length, got {ranges.shape} and '
                f'{angles.shape}'
            )
        usable = (ranges > 0) & (ranges >= min_range) & (ranges <= max_range) & (ranges < np.inf)
        index = np.flatnonzero(usable)
        dropped = _out_of_range(ranges, len(index), min_range)
        r, angle = ranges[index], angles[index]
        xyz = np.stack([r * np.cos(angle), r * np.sin(angle), np.zeros_like(r)], axis=1)
        if T_first_last is not None and len(ranges) > 1:
            part = (index / (len(ranges) - 1)).astype(np.float32)[:, None]
            moved = xyz @ rigid_transform(T_first_last)[:3, :3].T + T_first_last[:3, 3]
            xyz += part * (moved.astype(np.float32) - xyz)
        anchors = cls.from_points(xyz, camera, T_camera_sensor, sigma, 0.0, math.inf)
        return replace(anchors, dropped=dropped + anchors.dropped)

    @classmethod
    def from_cone(
        cls,
        distance: float,
        field_of_view: float,
        camera: CameraModel,
        T_camera_sensor: npt.NDArray[np.floating[Any]] | None = None,
        sigma: float | RangeNoise | None = None,
        min_range: float = 0.0,
        max_range: float = math.inf,
    ) -> Anchors:
        """Take the reading of a sonar or another ranger that has a beam, not a ray.

        What it says is that the nearest surface in its cone is at `distance` (sensor_msgs/Range:
        'the object causing the range reading may have been anywhere within -field_of_view/2 and
        field_of_view/2 at the measured range', angles from the x axis of the sensor). Where in the
        cone that is, the measurement does not tell, but the relative depth does. So the anchors are
        one group of alternatives all over the cone; `settled` picks the one that is nearest. One
        reading never counts for more than one anchor.

        Args:
            distance: Metres.
            field_of_view: Angle of the whole cone in radians, 0 (a ray) to pi.
            camera: The camera of the image.
            T_camera_sensor: (4, 4) from the sensor's frame, x along the axis of the cone, to the
                optical frame of the camera; None if that is the optical frame.
            sigma: Standard deviation of the distance in metres, or the noise by range. To it comes
                what the cone leaves open: the depth of the cap, distance * (1 - cos(fov / 2)).
            min_range: Least distance in metres.
            max_range: Greatest distance in metres.

        Returns:
            The anchors. None if the distance is out of range, and if more than a tenth of the cone
            is out of the image, since the nearest surface may be there.

        Raises:
            ValueError: An angle out of range, or a transform that is not finite or not rigid.
        """
        if not 0 <= field_of_view <= math.pi:
            raise ValueError(f'field_of_view must be 0 to pi radians, got {field_of_view}')
        T = np.eye(4) if T_camera_sensor is None else rigid_transform(T_camera_sensor)
        if not (distance > 0 and min_range <= distance <= max_range and distance < math.inf):
            return cls.empty(_out_of_range(np.array([distance]), 0, min_range))
        # Evenly over the cap: a spiral of golden angles (Vogel 1979), even steps along its axis.
        rays = _CONE_RAYS if field_of_view > 0 else 1
        depth_of_cap = 1 - math.cos(field_of_view / 2)
        along = 1 - depth_of_cap * (np.arange(rays) + 0.5) / rays
        turn = np.arange(rays) * (math.pi * (3 - math.sqrt(5)))
        across = np.sqrt(1 - along * along)
        directions = np.stack([along, across * np.cos(turn), across * np.sin(turn)], axis=1)
        xyz = distance * directions @ T[:3, :3].T + T[:3, 3]
        uv, in_view = camera.project(xyz)
        if in_view.mean() < 1 - _CONE_UNSEEN:
            behind = xyz[:, 2].mean() <= 0
            reason = {'behind_camera': 1} if behind else {'outside_image': 1}
            return cls.empty(Dropped(**reason))
        xyz, uv = xyz[in_view], uv[in_view]
        noise = sigma if sigma is not None else RangeNoise()
        spread = float(noise.sigma(np.array(distance))) if isinstance(noise, RangeNoise) else noise
        along_z = xyz[:, 2] / np.linalg.norm(xyz, axis=1)
        deviation = np.hypot(spread, distance * depth_of_cap) * along_z
        u, v, z = (values.astype(np.float32) for values in (uv[:, 0], uv[:, 1], xyz[:, 2]))
        size, group = (camera.width, camera.height), np.zeros(len(z), np.int32)
        return cls(u, v, z, deviation.astype(np.float32), size, group=group)

    @classmethod
    def from_depth(
        cls,
        depth: npt.NDArray[np.floating[Any]],
        max_count: int = 20000,
        sigma: npt.ArrayLike | RangeNoise | None = None,
        min_range: float = 0.0,
        max_range: float = math.inf,
    ) -> Anchors:
        """Take the valid pixels of a depth image that is registered to the camera's image.

        The depth image must have the size of the camera's image; a depth image of another size, or
        of another camera, is points to project (`from_points`).

        Args:
            depth: (H, W) metres along optical Z; NaN, infinite, 0 or negative is no measurement.
            max_count: At most this many anchors are kept, evenly over the image.
            sigma: Standard deviation of the depth in metres, one for all or (H, W), or the noise by
                depth; by default 0.02 + 0.005 * depth.
            min_range: Least depth in metres.
            max_range: Greatest depth in metres.

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
        usable = (depth > 0) & (depth < np.inf)
        if min_range > 0:
            usable &= depth >= min_range
        if max_range < np.inf:
            usable &= depth <= max_range
        index = np.flatnonzero(usable)
        dropped = _out_of_range(depth, len(index), min_range)
        if len(index) > 4 * max_count:
            # Every so many-th first: quicker, and as even where so many pixels are valid.
            index = index[np.arange(4 * max_count) * len(index) // (4 * max_count)]
        v, u = np.divmod(index, depth.shape[1])
        if len(index) > max_count:
            chosen = even_choice((u, v), max_count)
            index, u, v = index[chosen], u[chosen], v[chosen]
        z = depth.reshape(-1)[index].astype(np.float32)
        if isinstance(sigma, RangeNoise):
            deviation = sigma.sigma(z)
        else:
            flat = sigma if sigma is None or np.ndim(sigma) == 0 else np.reshape(sigma, -1)
            deviation = _sigma(flat, z, depth.size, index)
        size = (depth.shape[1], depth.shape[0])
        return cls(u.astype(np.float32), v.astype(np.float32), z, deviation, size, dropped=dropped)

    def take(self, chosen: npt.NDArray[Any]) -> Anchors:
        """Keep the anchors that a mask (N,) or indices (M,) choose."""
        return replace(
            self,
            u=self.u[chosen],
            v=self.v[chosen],
            depth=self.depth[chosen],
            sigma=self.sigma[chosen],
            weight=self.weight[chosen],
            group=None if self.group is None else self.group[chosen],
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
        return self.take(inside)

    def weighted(self, by: float | Vector) -> Anchors:
        """Have each anchor count `by` times, one number or (N,), what it did."""
        return replace(self, weight=self.weight * np.asarray(by, np.float32))

    def settled(self, relative: npt.NDArray[np.float32]) -> Anchors:
        """Keep of each group the anchor that was measured: the nearest by the relative depth.

        Not quite the nearest: a twentieth of the group may be nearer, which is too little of a cone
        to give an echo, and leaves the choice not to single pixels that the network has wrong.

        Args:
            relative: (H, W) float32 inverse depth of the image, larger is nearer, up to scale and
                shift.

        Returns:
            Anchors without groups. A group whose pixels are all NaN in `relative` has none.
        """
        if self.group is None:
            return self
        p = sample(relative, self.u, self.v)
        keep = self.group < 0
        for number in np.unique(self.group[~keep]):
            members = np.flatnonzero((self.group == number) & np.isfinite(p))
            if members.size:
                ranked = members[np.argsort(-p[members], kind='stable')]
                keep[ranked[int(_CONE_ECHO * len(ranked))]] = True
        return replace(self.take(keep), group=None)

    def thinned(self, max_count: int) -> Anchors:
        """Keep at most `max_count` of the anchors, evenly over the image, always the same ones.

        Args:
            max_count: Number to keep.

        Returns:
            The chosen anchors in their old order, or all of them if there are no more than that.
        """
        if len(self) <= max_count:
            return self
        return self.take(even_choice((self.u, self.v), max_count))

    def spread(self, max_count: int, relative: npt.NDArray[np.float32]) -> Anchors:
        """Keep at most `max_count`, evenly over image and depth, always the same ones.

        The few far ones are worth more than their share of the image: they tell scale from shift.
        So evenly over cells of column, row and log depth; but of the depth that goes with the
        prediction there, in the median over all that the network sees about as near. By what it
        measures, an anchor that is wrong would have a cell to itself, and be worth more than those
        that confirm one another.

        Args:
            max_count: Number to keep.
            relative: (H, W) float32 inverse depth of the image, larger is nearer, up to scale and
                shift.

        Returns:
            The chosen anchors in their old order, or all of them if there are no more than that.
        """
        if len(self) <= max_count:
            return self
        height, width = relative.shape
        column = np.rint(self.u).clip(0, width - 1).astype(np.int32)
        row = np.rint(self.v).clip(0, height - 1).astype(np.int32)
        p = np.ascontiguousarray(relative, np.float32).reshape(-1).take(row * width + column)
        p[~np.isfinite(p)] = 0  # of no use to a fit, wherever they are counted
        # The curve, from the nearest of the sample to the farthest, in steps of as many anchors.
        every = -(-len(p) // _CURVE_SAMPLES)
        few, depth = p[::every], self.depth[::every]
        order = np.argsort(few, kind='stable')
        steps = order[: len(order) // _CURVE_STEPS * _CURVE_STEPS].reshape(_CURVE_STEPS, -1)
        if not steps.size:
            return self.thinned(max_count)
        log_depth = np.log(np.median(depth[steps], axis=1))
        nearness = few[steps[:, steps.shape[1] // 2]]
        low, high = float(few[order[0]]), float(few[order[-1]])
        levels = np.interp(np.linspace(low, high, 256), nearness, log_depth).astype(np.float32)
        level = (p - np.float32(low)) * np.float32(255 / max(high - low, 1e-30))
        extent = _DEPTH_EXTENT * float(np.ptp(self.u) + np.ptp(self.v))
        predicted = extent * levels.take(level.clip(0, 255).astype(np.uint8))
        return self.take(even_choice((self.u, self.v, predicted), max_count))


def rigid_transform(T: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Check that a (4, 4) matrix is a rotation and a translation, and return it as float64.

    Raises:
        ValueError: It is not.
    """
    checked = np.asarray(T, dtype=np.float64)
    if checked.shape != (4, 4) or not np.isfinite(checked).all():
        raise ValueError('T_camera_sensor must be a (4, 4) matrix of finite numbers')
    R = checked[:3, :3]
    if np.abs(R @ R.T - np.eye(3)).max() > 1e-3 or np.linalg.det(R) < 0:
        raise ValueError(
            'T_camera_sensor is not a rigid transform: its rotation part must be orthonormal'
        )
    return checked


def _transformed(xyz: npt.NDArray[Any], matrix: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Multiply (N, 3) points by a (M, 3) or (M, 4) matrix, the fourth column added; (M, N)."""
    product = cv2.transform(xyz[:, None], matrix).reshape(len(xyz), len(matrix))
    return np.ascontiguousarray(product.T)


def _out_of_range(values: npt.NDArray[Any], used: int, min_range: float) -> Dropped:
    """Say why ranges (or depths) are of no use: all but `used`, which are none of these."""
    if used == values.size:
        return Dropped()
    nan = int(np.count_nonzero(np.isnan(values)))
    not_positive = int(np.count_nonzero(values <= 0))
    too_near = int(np.count_nonzero(values < min_range)) if min_range > 0 else not_positive
    minus_inf = int(np.count_nonzero(np.isneginf(values))) if not_positive else 0
    too_near += minus_inf - not_positive
    not_positive -= minus_inf
    return Dropped(
        not_finite=nan,
        not_positive=not_positive,
        too_near=too_near,
        too_far=values.size - used - nan - not_positive - too_near,
    )


def _sigma(
    sigma: npt.ArrayLike | None, z: npt.NDArray[Any], count: int, index: npt.NDArray[np.intp]
) -> Vector:
    """Give the standard deviations of the anchors `index` out of `count` measurements."""
    if sigma is None:
        return RangeNoise().sigma(z)
    values = np.asarray(sigma, dtype=np.float32)
    if values.ndim == 0:
        return np.broadcast_to(values, z.shape)
    if values.shape != (count,):
        raise ValueError(
            f'sigma must be one number, or one for each of the {count} measurements, '
            f'got {values.shape}'
        )
    return values[index]


def _repeated(u: Vector, v: Vector, z: Vector) -> npt.NDArray[np.bool_]:
    """Find points that are there already, (N,) bool."""
    pixels = np.stack([u, v], axis=1).view(np.uint64)[:, 0]
    ordered = np.sort(pixels)
    if (ordered[1:] != ordered[:-1]).all():
        return np.zeros(len(u), np.bool_)
    pixel = np.unique(pixels, return_inverse=True)[1].astype(np.uint64)
    points = pixel << np.uint64(32) | z.view(np.uint32)
    repeated = np.ones(len(u), np.bool_)
    repeated[np.unique(points, return_index=True)[1]] = False
    return repeated
