"""Camera models: from pixels to rays and from points to pixels.

Conventions, as ROS has them (REP 103, REP 104, sensor_msgs/CameraInfo): the optical frame has x to
the right, y down and z forward; pixel (u, v) with whole numbers is the *centre* of a pixel, so an
image of width W covers u from -0.5 to W - 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from briges_ros.errors import quoted

FloatArray = npt.NDArray[np.float64]

# Newton's method squares its error in each step. So after a step this small (in x/z) no other is
# needed, and a ray that is not found in this many steps does not exist.
_CONVERGED = 1e-6
_MAX_NEWTON_STEPS = 30

# Models whose coefficients are OpenCV's k1, k2, p1, p2, k3, k4, k5, k6. The names tell how many of
# them are usual; their number counts, as in OpenCV.
_POLYNOMIAL = ('plumb_bob', 'rational_polynomial')
_NUMBERS_OF_COEFFICIENTS = (0, 4, 5, 8, 12, 14)
_FISHEYE = 'equidistant'

# What no camera has less of (pixels of focal length), or more of (anything in a calibration). What
# is made of it would overflow, or be rays that are all alike.
_SHORTEST, _LARGEST = 1e-2, 1e9

# Off the axis, of a fisheye. What lies at 80 degrees is six times as far away as deep; beyond, a
# depth along the optical axis says less and less, and at 90 degrees nothing.
_WIDEST = math.radians(80.0)


@dataclass(frozen=True, eq=False)
class CameraModel:
    """Intrinsics of a camera, with or without lens distortion.

    A raw image is described by `K` and `D`, a rectified one by `P` (REP 104); `rectified` says
    which of them the image at hand is. `D` and `model` are not looked at when the image is
    rectified. The rectifying rotation R is not part of the model: points go in and come out in the
    frame of the (rectified) camera.

    Args:
        width: Image width in pixels.
        height: Image height in pixels.
        K: (3, 3) or flat (9,) intrinsics of the raw image, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]],
            pixels.
        D: Distortion coefficients in OpenCV's order: (k1, k2, p1, p2[, k3[, k4, k5, k6]]) of
            'plumb_bob' and 'rational_polynomial', (k1, k2, k3, k4) of 'equidistant'. None of the
            former means an image without distortion.
        model: Distortion model as CameraInfo names it. 'none' and an empty name count as
            'plumb_bob' if there is no distortion, since simulated cameras often leave it out.
        P: (3, 4) or flat (12,) projection matrix of the rectified image, needed if `rectified`.
        rectified: True if the image was rectified, so that `P` holds for it.

    Raises:
        ValueError: Size, intrinsics or distortion that cannot be right; the message says how to
            mend it.
    """

    width: int
    height: int
    K: FloatArray
    D: FloatArray = ()  # type: ignore[assignment]  # any array-like is taken and kept as float64
    model: str = 'plumb_bob'
    P: FloatArray | None = None
    rectified: bool = False

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f'image size must be positive, not {self.width} x {self.height}')
        self._keep('width', int(self.width))
        self._keep('height', int(self.height))
        self._keep('K', _matrix(self.K, (3, 3), 'K'))
        _check_intrinsics(self.K, 'K')
        self._keep('D', _read_only(np.atleast_1d(np.asarray(self.D, dtype=np.float64)).ravel()))
        if self.P is not None:
            self._keep('P', _matrix(self.P, (3, 4), 'P'))
            if not np.isfinite(self.P).all():
                raise ValueError('P holds a value that is not finite; calibrate the camera')
        if self.rectified:
            if self.P is None:
                raise ValueError(
                    'a rectified image needs P; give it, or set rectified=False to use K and D'
                )
            _check_intrinsics(self.P[:, :3], 'P')
        else:
            self._check_distortion()

    def _keep(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen for everyone but the constructor

    def _check_distortion(self) -> None:
        if self.model in ('', 'none') and not self.D.any():
            self._keep('model', 'plumb_bob')
        if self.model not in (*_POLYNOMIAL, _FISHEYE):
            known = ', '.join((*_POLYNOMIAL, _FISHEYE))
            raise ValueError(
                f'distortion model {quoted(self.model)} is not supported, only {known}; rectify '
                'the image (image_proc) and use the rectified topic'
            )
        numbers = (0, 4) if self.model == _FISHEYE else _NUMBERS_OF_COEFFICIENTS
        if self.D.size not in numbers:
            raise ValueError(
                f"'{self.model}' takes {', '.join(map(str, numbers[:-1]))} or {numbers[-1]} "
                f'distortion coefficients, got {self.D.size}; calibrate with this model, or '
                'rectify the image'
            )
        if not (np.abs(self.D) <= _LARGEST).all():
            raise ValueError(
                'D holds a value that is not finite, or larger than any lens has; calibrate the '
                'camera again'
            )
        if self.D[8:].any():
            raise ValueError(
                'D has coefficients of a thin prism or a tilted sensor (the 9th and further), '
                'which are not supported; calibrate with 8 coefficients, or rectify the image'
            )

    @classmethod
    def from_fov(cls, width: int, height: int, horizontal_fov: float) -> CameraModel:
        """Make an ideal camera, square pixels and centred, from its horizontal field of view.

        Args:
            width: Image width in pixels.
            height: Image height in pixels.
            horizontal_fov: Angle in radians between the left and the right edge of the image.

        Returns:
            The camera.

        Raises:
            ValueError: The angle is not between 0 and pi.
        """
        if not 0.0 < horizontal_fov < math.pi:
            raise ValueError(
                f'horizontal field of view must lie between 0 and pi radians, got {horizontal_fov}'
            )
        f = width / (2.0 * math.tan(horizontal_fov / 2.0))
        K = [[f, 0.0, (width - 1) / 2.0], [0.0, f, (height - 1) / 2.0], [0.0, 0.0, 1.0]]
        return cls(width, height, np.array(K))

    @property
    def fx(self) -> float:
        """Horizontal focal length of the image at hand, pixels."""
        return float(self._projection[0, 0])

    @property
    def fy(self) -> float:
        """Vertical focal length of the image at hand, pixels."""
        return float(self._projection[1, 1])

    @property
    def cx(self) -> float:
        """Column of the principal point of the image at hand, pixels."""
        return float(self._projection[0, 2])

    @property
    def cy(self) -> float:
        """Row of the principal point of the image at hand, pixels."""
        return float(self._projection[1, 2])

    @property
    def distorted(self) -> bool:
        """Whether the image at hand has lens distortion."""
        return not self.rectified and (self.model == _FISHEYE or bool(self.D.any()))

    @property
    def _projection(self) -> FloatArray:
        if self.rectified:
            assert self.P is not None  # the constructor saw to it
            return self.P[:, :3]
        return self.K

    @cached_property
    def _lens(self) -> _Lens:
        return _Fisheye(self.D) if self.model == _FISHEYE else _Polynomial(self.D)

    @cached_property
    def _rays(self) -> npt.NDArray[np.float32]:
        x = (np.arange(self.width) - self.cx) / self.fx
        y = (np.arange(self.height) - self.cy) / self.fy
        rays = np.empty((self.height, self.width, 2), np.float32)
        if self.distorted:
            # In bands of rows: the float64 temporaries of a whole image would not stay in the
            # cache.
            rows = max(1, 16384 // self.width)
            for top in range(0, self.height, rows):
                band = np.meshgrid(x, y[top : top + rows])
                rays[top : top + rows] = np.stack(self._lens.undistort(*band), axis=-1)
        else:
            rays[..., 0] = x
            rays[..., 1] = y[:, None]
        rays.setflags(write=False)
        return rays

    def rays(self) -> npt.NDArray[np.float32]:
        """Give the viewing ray of every pixel.

        Computed at the first call (some 0.1 s for a distorted VGA image) and kept.

        Returns:
            (height, width, 2) float32, read-only: x/z and y/z at each pixel centre. NaN where the
            lens model has no ray for the pixel, which happens in corners beyond its calibrated
            field, and for those of a fisheye that look 80 degrees and more off the axis.
        """
        return self._rays

    def project(
        self, xyz: npt.NDArray[np.floating[Any]]
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Project points of the optical frame into the image.

        Args:
            xyz: (N, 3) points, metres.

        Returns:
            uv: (N, 2) float64 pixels. NaN for points that have no place in the image plane: not
                finite, at or behind the camera, or so far off the axis that pixels have no rays
                there (a distortion polynomial folds back, and would put them inside the image).
            in_view: (N,) bool, True where the point falls on the image.

        Raises:
            ValueError: `xyz` is not (N, 3).
        """
        xyz = np.asarray(xyz)
        if xyz.ndim != 2 or xyz.shape[1] != 3:
            raise ValueError(f'points must be an (N, 3) array, got {xyz.shape}')
        x, y, z = (xyz[:, i].astype(np.float64) for i in range(3))
        with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
            x /= z
            y /= z
            valid = (z > 0) & (z < np.inf) & np.isfinite(x) & np.isfinite(y)
            if self.distorted:
                valid &= self._lens.is_valid(x, y)
                x, y = self._lens.distort(x, y)
            uv = np.empty((len(xyz), 2))
            np.multiply(x, self.fx, out=uv[:, 0])
            np.multiply(y, self.fy, out=uv[:, 1])
            uv += (self.cx, self.cy)
        uv[~valid] = np.nan
        u, v = uv[:, 0], uv[:, 1]
        in_view = (u >= -0.5) & (u < self.width - 0.5) & (v >= -0.5) & (v < self.height - 0.5)
        return uv, in_view

    def scaled(self, width: int, height: int) -> CameraModel:
        """Give the camera of the same image resized to another size.

        Edges of the image stay edges, as cv2.resize has it: u' + 0.5 = (u + 0.5) * width' / width.

        Args:
            width: New width in pixels.
            height: New height in pixels.

        Returns:
            The camera of the resized image.
        """
        sx, sy = width / self.width, height / self.height

        def resized(matrix: FloatArray) -> FloatArray:
            out: FloatArray = matrix * np.array([[sx], [sy], [1.0]])
            out[0, 2] += 0.5 * sx - 0.5
            out[1, 2] += 0.5 * sy - 0.5
            return out

        return self._changed(width, height, resized)

    def cropped(self, left: int, top: int, width: int, height: int) -> CameraModel:
        """Give the camera of a part of the image.

        Args:
            left, top: First column and row of the part, pixels.
            width, height: Size of the part, pixels.

        Returns:
            The camera of the part.
        """

        def moved(matrix: FloatArray) -> FloatArray:
            out = matrix.copy()
            out[:2, 2] -= (left, top)
            return out

        return self._changed(width, height, moved)

    def _changed(
        self, width: int, height: int, change: Callable[[FloatArray], FloatArray]
    ) -> CameraModel:
        P = None if self.P is None else change(self.P)
        return CameraModel(width, height, change(self.K), self.D, self.model, P, self.rectified)


class Undistortion:
    """Takes the lens distortion out of the images of a camera.

    The maps are made once (some 0.1 s for a VGA image); an image then costs one cv2.remap.

    Args:
        camera: Of the raw images.
        K: (3, 3) intrinsics to be had; the images keep their size. Default: `camera.K`, which
            leaves the middle of the image as large as it was, and cuts off what a wide lens shows
            beyond.

    Attributes:
        camera: Of the images without distortion.
        blind: (height, width) bool, pixels that lie outside of the raw image.
    """

    def __init__(self, camera: CameraModel, K: FloatArray | None = None) -> None:
        self.camera = CameraModel(camera.width, camera.height, camera.K if K is None else K)
        rays = self.camera.rays().reshape(-1, 2)
        uv, in_view = camera.project(np.column_stack([rays, np.ones(len(rays), np.float32)]))
        size = camera.height, camera.width
        self.blind = ~in_view.reshape(size)
        # Up to half a pixel beyond the outermost centres it is still their colour.
        uv.clip(0, (camera.width - 1, camera.height - 1), out=uv)
        uv[~in_view] = -2.0  # beyond the border, and beyond what is blended with it
        self._x, self._y = (uv[:, i].astype(np.float32).reshape(size) for i in range(2))
        # In fixed point, to a 32nd of a pixel: twice as fast to interpolate by.
        self._maps = cv2.convertMaps(self._x, self._y, cv2.CV_16SC2)

    def __call__(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Give the image without distortion, black where it is blind.

        Args:
            image: (height, width, 3) uint8 of the raw camera.

        Returns:
            The same shape and type.
        """
        return np.asarray(cv2.remap(image, *self._maps, cv2.INTER_LINEAR), np.uint8)

    def depth(self, depth: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Give a depth image that is registered to the raw camera without distortion.

        Args:
            depth: (height, width) float32 metres along optical Z, which undistorting leaves as it
                is.

        Returns:
            (height, width) float32, of each pixel the nearest value; NaN where it is blind.
        """
        nearest = cv2.remap(depth, self._x, self._y, cv2.INTER_NEAREST, borderValue=math.nan)
        return np.asarray(nearest, np.float32)


class _Lens(Protocol):
    """Distortion of normalised image coordinates (x/z, y/z); arrays of one shape in and out."""

    def distort(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """From the ray to where the lens puts it."""

    def is_valid(self, x: FloatArray, y: FloatArray) -> npt.NDArray[np.bool_]:
        """Tell whether the model holds for the ray (x, y)."""

    def undistort(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Invert `distort`; NaN where no valid ray leads."""


class _Polynomial:
    """The distortion of OpenCV (calib3d), without thin prism and tilt.

    With q = r^2,

    x' = x N(q) / M(q) + 2 p1 x y + p2 (r^2 + 2 x^2), and y' likewise,
    N = 1 + k1 q + k2 q^2 + k3 q^3, M = 1 + k4 q + k5 q^2 + k6 q^3.

    Brown-Conrady ('plumb_bob') is the one whose M is 1. The radial part stands for the lens only
    out to where it stops growing; past that it folds back.
    """

    def __init__(self, D: FloatArray) -> None:
        self.k1, self.k2, self.p1, self.p2, self.k3, *rest = (*D.tolist(), *[0.0] * 8)[:8]
        self.k4, self.k5, self.k6 = rest
        N, M = np.array([1, self.k1, self.k2, self.k3]), np.array([1, *rest])
        # The radial part grows while d(r')/dr = (N + 2 q N') / M - 2 q N M' / M^2 > 0.
        odd = np.arange(1, 8, 2)  # N + 2 q N' has the coefficients 1, 3 k1, 5 k2, 7 k3
        slope = np.convolve(odd * N, M) - np.convolve(N, (odd - 1) * M)
        # Solved for 1 / q, as the leading coefficient is then never close to zero.
        turns = np.concatenate([_positive_roots(slope), _positive_roots(M)])
        self.max_r2 = 1.0 / float(turns.max()) if turns.size else math.inf

    def _radial(self, q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Give N / M and its derivative by q."""
        N = 1 + q * (self.k1 + q * (self.k2 + q * self.k3))
        slope = self.k1 + q * (2 * self.k2 + q * 3 * self.k3)
        if not (self.k4 or self.k5 or self.k6):
            return N, slope
        M = 1 + q * (self.k4 + q * (self.k5 + q * self.k6))
        N /= M
        slope -= N * (self.k4 + q * (2 * self.k5 + q * 3 * self.k6))
        slope /= M
        return N, slope

    def distort(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """From the ray to where the lens puts it."""
        r2 = x * x + y * y
        radial, _ = self._radial(r2)
        xy = 2 * x * y
        return (
            x * radial + self.p1 * xy + self.p2 * (r2 + 2 * x * x),
            y * radial + self.p1 * (r2 + 2 * y * y) + self.p2 * xy,
        )

    def jacobian(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Give the derivatives (dx'/dx, dx'/dy = dy'/dx, dy'/dy)."""
        radial, slope = self._radial(x * x + y * y)
        slope *= 2
        return (
            radial + slope * x * x + 2 * self.p1 * y + 6 * self.p2 * x,
            slope * x * y + 2 * self.p1 * x + 2 * self.p2 * y,
            radial + slope * y * y + 6 * self.p1 * y + 2 * self.p2 * x,
        )

    def is_valid(self, x: FloatArray, y: FloatArray) -> npt.NDArray[np.bool_]:
        """Tell whether (x, y) lies where the polynomial is still one to one."""
        a, b, d = self.jacobian(x, y)
        return (x * x + y * y < self.max_r2) & (a * d > b * b) & (a + d > 0)

    def undistort(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Invert `distort` by Newton's method; NaN where the valid part has no solution."""
        shape = x.shape
        target_x, target_y = x.ravel(), y.ravel()
        # A start beyond the turn would run to the wrong branch.
        r = np.hypot(target_x, target_y)
        start = np.minimum(1.0, 0.9 * math.sqrt(self.max_r2) / np.maximum(r, 1e-12))
        x, y = target_x * start, target_y * start
        open_ = np.arange(x.size)
        with np.errstate(all='ignore'):
            for _ in range(_MAX_NEWTON_STEPS):
                xo, yo = x[open_], y[open_]
                ex, ey = self.distort(xo, yo)
                ex -= target_x[open_]
                ey -= target_y[open_]
                a, b, d = self.jacobian(xo, yo)
                det = a * d - b * b
                step_x, step_y = (d * ex - b * ey) / det, (a * ey - b * ex) / det
                x[open_] = xo - step_x
                y[open_] = yo - step_y
                open_ = open_[~(np.abs(step_x) + np.abs(step_y) < _CONVERGED)]
                if not open_.size:
                    break
            lost = ~self.is_valid(x, y)
        lost[open_] = True
        x[lost] = np.nan
        y[lost] = np.nan
        return x.reshape(shape), y.reshape(shape)


class _Fisheye:
    """The distortion of cv::fisheye ('equidistant'; Kannala and Brandt 2006).

    A ray at the angle t off the axis is put at t + k1 t^3 + k2 t^5 + k3 t^7 + k4 t^9 from the
    middle. The model stands for the lens out to where that stops growing.
    """

    def __init__(self, D: FloatArray) -> None:
        self.k = (*D.tolist(), *[0.0] * 4)[:4]
        # Its derivative in t^2, solved for 1 / t^2.
        turns = _positive_roots(np.array([1, *self.k]) * np.arange(1, 10, 2))
        self.max_angle = min(_WIDEST, 1 / math.sqrt(turns.max()) if turns.size else math.inf)

    def _place(self, t: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Give the distance from the middle and its derivative by the angle."""
        k1, k2, k3, k4 = self.k
        q = t * t
        place = t * (1 + q * (k1 + q * (k2 + q * (k3 + q * k4))))
        return place, 1 + q * (3 * k1 + q * (5 * k2 + q * (7 * k3 + q * 9 * k4)))

    def distort(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """From the ray to where the lens puts it."""
        r = np.hypot(x, y)
        gain = self._place(np.arctan(r))[0] / np.maximum(r, 1e-12)
        gain[r < 1e-12] = 1.0
        return x * gain, y * gain

    def is_valid(self, x: FloatArray, y: FloatArray) -> npt.NDArray[np.bool_]:
        """Tell whether the ray (x, y) is seen."""
        return np.asarray(np.hypot(x, y) < math.tan(self.max_angle), np.bool_)

    def undistort(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Invert `distort` by Newton's method; NaN where no valid ray leads."""
        r = np.hypot(x, y)
        end, _ = self._place(np.array(self.max_angle))
        found = r < end  # it grows until there
        t = np.where(found, np.minimum(r, 0.9 * self.max_angle), 0.0)
        for _ in range(_MAX_NEWTON_STEPS):
            place, slope = self._place(t)
            step = np.where(found, (place - r) / slope, 0.0)
            t = np.clip(t - step, 0, 0.9999999 * self.max_angle)
            if np.abs(step).max() < _CONVERGED:
                break
        found &= np.abs(self._place(t)[0] - r) < _CONVERGED
        gain = np.tan(t) / np.maximum(r, 1e-12)
        gain[r < 1e-12] = 1.0
        gain[~found] = np.nan
        return x * gain, y * gain


def _positive_roots(coefficients: FloatArray) -> FloatArray:
    """Give 1 / q of the positive roots q of a polynomial; its coefficients from that of 1 on."""
    roots = np.roots(coefficients)
    real = (np.abs(roots.imag) <= 1e-9 * np.abs(roots)) & (roots.real > 0)
    return np.asarray(roots.real[real], np.float64)


def _read_only(array: FloatArray) -> FloatArray:
    array = array.copy()
    array.setflags(write=False)
    return array


def _matrix(values: npt.ArrayLike, shape: tuple[int, int], name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.size != shape[0] * shape[1]:
        raise ValueError(
            f'{name} must be a {shape[0]} x {shape[1]} matrix, got shape {array.shape}'
        )
    return _read_only(array.reshape(shape))


def _check_intrinsics(matrix: FloatArray, name: str) -> None:
    if not np.isfinite(matrix).all():
        raise ValueError(f'{name} holds a value that is not finite; calibrate the camera')
    if matrix[0, 0] == 0 or matrix[1, 1] == 0:
        raise ValueError(f'{name} is zero, so the camera is not calibrated; calibrate it')
    form = [[matrix[0, 0], 0, matrix[0, 2]], [0, matrix[1, 1], matrix[1, 2]], [0, 0, 1]]
    if matrix[0, 0] < 0 or matrix[1, 1] < 0 or not np.allclose(matrix, form):
        raise ValueError(
            f'{name} must look like [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx and fy > 0, '
            f'got {matrix.tolist()}'
        )
    if min(matrix[0, 0], matrix[1, 1]) < _SHORTEST or np.abs(matrix).max() > _LARGEST:
        raise ValueError(
            f'{name} has fx, fy, cx, cy of {matrix[0, 0]:g}, {matrix[1, 1]:g}, {matrix[0, 2]:g}, '
            f'{matrix[1, 2]:g} pixels, which no camera has; calibrate it'
        )
