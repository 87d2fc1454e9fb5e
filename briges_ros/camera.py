"""Camera models: from pixels to rays and from points to pixels.

Conventions, as ROS has them (REP 103, REP 104, sensor_msgs/CameraInfo): the optical frame has x to
the right, y down and z forward; pixel (u, v) with whole numbers is the *centre* of a pixel, so an
image of width W covers u from -0.5 to W - 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# Newton's method squares its error in each step. So after a step this small (in x/z) no other is
# needed, and a ray that is not found in this many steps does not exist.
_CONVERGED = 1e-6
_MAX_NEWTON_STEPS = 30


@dataclass(frozen=True, eq=False)
class CameraModel:
    """Intrinsics of a pinhole camera with optional Brown-Conrady ('plumb_bob') distortion.

    A raw image is described by `K` and `D`, a rectified one by `P` (REP 104); `rectified` says
    which of them the image at hand is. `D` and `model` are not looked at when the image is
    rectified. The rectifying rotation R is not part of the model: points go in and come out in the
    frame of the (rectified) camera.

    Args:
        width: Image width in pixels.
        height: Image height in pixels.
        K: (3, 3) or flat (9,) intrinsics of the raw image, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]],
            pixels.
        D: Distortion coefficients (k1, k2, p1, p2[, k3]) in OpenCV's order, or none for an image
            without distortion.
        model: Distortion model as CameraInfo names it. An empty name counts as 'plumb_bob' if there
            is no distortion, since simulated cameras often leave it out.
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
        if self.model == '' and not self.D.any():
            self._keep('model', 'plumb_bob')
        if self.model != 'plumb_bob':
            raise ValueError(
                f"distortion model '{self.model}' is not supported, only 'plumb_bob'; rectify the "
                'image (image_proc) and use the rectified topic'
            )
        if self.D.size not in (0, 4, 5):
            raise ValueError(
                f"'plumb_bob' takes 0, 4 or 5 distortion coefficients (k1, k2, p1, p2, k3), got "
                f'{self.D.size}; calibrate with this model, or rectify the image'
            )
        if not np.isfinite(self.D).all():
            raise ValueError('D holds a value that is not finite; calibrate the camera again')

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
        return not self.rectified and bool(self.D.any())

    @property
    def _projection(self) -> FloatArray:
        if self.rectified:
            assert self.P is not None  # the constructor saw to it
            return self.P[:, :3]
        return self.K

    @cached_property
    def _lens(self) -> _PlumbBob:
        return _PlumbBob(self.D)

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
            field.
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
                finite, at or behind the camera, or so far off the axis that the distortion
                polynomial folds back (it would put them inside the image).
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

        P = None if self.P is None else resized(self.P)
        return CameraModel(width, height, resized(self.K), self.D, self.model, P, self.rectified)


class _PlumbBob:
    """Brown-Conrady distortion of normalised image coordinates (x/z, y/z).

    x' = x (1 + k1 r^2 + k2 r^4 + k3 r^6) + 2 p1 x y + p2 (r^2 + 2 x^2), and y' likewise (OpenCV,
    calib3d). The polynomial stands for the lens only out to where it stops growing; past that it
    folds back.
    """

    def __init__(self, D: FloatArray) -> None:
        self.k1, self.k2, self.p1, self.p2, self.k3 = (*D.tolist(), 0.0)[:5]
        # The radial part grows while d(r')/dr = 1 + 3 k1 r^2 + 5 k2 r^4 + 7 k3 r^6 > 0. Solved for
        # 1 / r^2, as the leading coefficient is then never close to zero.
        roots = np.roots([1.0, 3 * self.k1, 5 * self.k2, 7 * self.k3])
        turns = roots.real[(np.abs(roots.imag) <= 1e-9 * np.abs(roots)) & (roots.real > 0)]
        self.max_r2 = 1.0 / float(turns.max()) if turns.size else math.inf

    def distort(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        r2 = x * x + y * y
        radial = 1 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        xy = 2 * x * y
        return (
            x * radial + self.p1 * xy + self.p2 * (r2 + 2 * x * x),
            y * radial + self.p1 * (r2 + 2 * y * y) + self.p2 * xy,
        )

    def jacobian(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Give the derivatives (dx'/dx, dx'/dy = dy'/dx, dy'/dy)."""
        r2 = x * x + y * y
        radial = 1 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        slope = 2 * (self.k1 + r2 * (2 * self.k2 + r2 * 3 * self.k3))
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
