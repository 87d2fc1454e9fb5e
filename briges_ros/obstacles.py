"""The ground in a depth image, and what stands on it.

A plane n . P = h (unit normal n down, h the height of the camera over it) is linear in the inverse
depth of the rays r = (x/z, y/z, 1): 1/z = (n / h) . r. So it is still a plane where scale and shift
of the depth are a little wrong, and the fit is linear. The residual 1 - z (n / h) . r of a point is
its height over the plane as a share of the camera's height, and to first order the relative error
of the depth of a point of the ground: the same at all distances, where the depth is good to so many
percent.

Frames: the optical frame of the camera (x right, y down, z forward), and a base frame (x forward, y
left, z up) whose z = 0 is the ground the robot stands on (REP 103, REP 105: base_footprint, or
base_link where that lies on the ground).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from briges_ros.camera import CameraModel
from briges_ros.errors import BrigesError
from briges_ros.point_cloud import check_size

FloatArray = npt.NDArray[np.float64]

# What the ground ahead may differ from the base frame's by, one standard deviation each. It may
# rise, and the camera nod (pitch); but it hardly ever leans over (roll), and what leans in a depth
# image are the blurred feet of objects. The height carries the error of the scale.
_ROLL = math.radians(1.0)
_PITCH = math.radians(3.0)
_HEIGHT = 0.15  # share of the height
_LEAST_HEIGHT = 1e-3  # m; the inverse of less overflows, and no camera is so low
_FARTHEST_TILT = math.radians(12.0)  # that a plane may have and still be the ground

_MAX_SAMPLES = 2000
_TRIALS = 150
_REACH = 0.5  # residual from the expected ground up to which a sample can be of the ground
_TOLERANCE = 0.05  # residual at which a point no longer counts as ground
_REFINEMENTS = 6
# Neighbouring pixels err together, so an image holds far fewer measurements than pixels.
_INDEPENDENT_SAMPLES = 30
_LEAST_SUPPORT = 0.02  # share of the samples that must lie on the ground for it to be seen
_LEAST_EXTENT = 0.1  # of their depths: at one depth they are a stripe of a wall
_SIGMAS = 3.0  # of the depth's error that a point must rise above to be an obstacle
_MOST_TOLERANCE = 0.25  # of the camera's height; better false alarms than obstacles that are noise
_SPREAD = 0.15  # residual up to which a sample tells how well the ground is measured
_BINS = 5
_MEDIAN_OF_NORMAL = 0.6745  # of |x|, in standard deviations


@dataclass(frozen=True, eq=False)
class Ground:
    """The ground, as a plane.

    Attributes:
        inverse: (3,) n / h in 1/m: 1/z = inverse . (x/z, y/z, 1) for the rays that meet it, all in
            the optical frame.
        noise: (a, b): the relative standard deviation of depth on it is a + b z, z in metres.
    """

    inverse: FloatArray
    noise: tuple[float, float] = (0.0, 0.0)

    @property
    def height(self) -> float:
        """Height of the camera over it, metres."""
        return 1.0 / float(np.linalg.norm(self.inverse))

    @property
    def down(self) -> FloatArray:
        """Its normal in the optical frame, (3,), towards the ground."""
        return self.inverse * self.height


def ground_of_base(T_base_camera: npt.NDArray[np.floating]) -> Ground:
    """Return the plane z = 0 of the base frame.

    Args:
        T_base_camera: (4, 4), takes points of the optical frame to the base frame.

    Raises:
        BrigesError: The camera is not above it.
    """
    down, height = -T_base_camera[2, :3], float(T_base_camera[2, 3])
    if not height >= _LEAST_HEIGHT:
        raise BrigesError(
            f'the camera lies {height:g} m over z = 0 of the base frame, which should be the '
            'ground: take a base frame on the ground, such as base_footprint'
        )
    return Ground(np.asarray(down / height, np.float64))


def level_camera_pose(height: float, pitch: float) -> FloatArray:
    """Return T_base_camera of a camera straight above the origin of the base frame, facing forward.

    Args:
        height: Metres over the ground.
        pitch: Radians that the camera looks down by (REP 103: a turn about y, which is left).

    Returns:
        (4, 4) float64, takes points of the optical frame to the base frame.
    """
    sin, cos = math.sin(pitch), math.cos(pitch)
    return np.array(
        [
            [0.0, -sin, cos, 0.0],
            [-1.0, 0.0, 0.0, 0.0],
            [0.0, -cos, -sin, height],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )


def fit_ground(
    depth: npt.NDArray[np.float32],
    camera: CameraModel,
    expected: Ground,
    last: Ground | None = None,
) -> Ground:
    """Fit the plane of the ground.

    RANSAC (Fischler and Bolles 1981) over planes that are nearly the expected one, scored by a
    truncated quadratic (MSAC: Torr and Zisserman 2000); points below a plane count against it, as
    nothing lies below the ground. Then least squares with weights that fade out (Tukey), together
    with what is expected as a prior. The same input gives the same plane.

    Args:
        depth: (H, W) float32 metres along optical Z; dense, or mostly NaN (a projected LiDAR).
        camera: The camera of the image, H x W.
        expected: Where the ground should be, from the pose of the camera.
        last: The ground of the frame before.

    Returns:
        The ground with its noise; `last` if too little of it is seen, or `expected` without one.

    Raises:
        ValueError: Depth and camera differ in size.
    """
    check_size(depth, camera)
    rays, z = _sample_below_horizon(depth, camera, expected)
    unseen = last or expected
    if len(z) < 3:
        return unseen
    scaled = rays * z[:, None]  # residual = 1 - scaled . inverse
    prior = _prior(expected)
    candidates = _candidates(rays, z, scaled, expected)
    score = _scores(scaled, candidates)
    off = candidates - expected.inverse
    score -= np.einsum('ij,jk,ik->i', off, prior, off) / _INDEPENDENT_SAMPLES
    inverse = candidates[int(np.argmax(score))]
    for tolerance in np.geomspace(2 * _TOLERANCE, _TOLERANCE, _REFINEMENTS):
        residual = 1.0 - scaled @ inverse
        weight = np.maximum(1.0 - (residual / tolerance) ** 2, 0.0) ** 2
        weighted = scaled * (weight * (_INDEPENDENT_SAMPLES / len(z) / tolerance**2))[:, None]
        inverse = np.linalg.solve(
            weighted.T @ scaled + prior, weighted.sum(axis=0) + prior @ expected.inverse
        )
    residual = 1.0 - scaled @ inverse
    on_it = z[np.abs(residual) < _TOLERANCE]
    if len(on_it) < max(3.0, _LEAST_SUPPORT * len(z)):
        return unseen
    if np.ptp(on_it) < _LEAST_EXTENT * on_it.mean():
        return unseen
    return Ground(inverse, _noise(residual, z))


def obstacle_mask(
    depth: npt.NDArray[np.float32],
    camera: CameraModel,
    ground: Ground,
    min_height: float,
    max_height: float,
) -> npt.NDArray[np.bool_]:
    """Find the pixels that show something standing on the ground.

    A pixel is an obstacle if it rises over the ground by `min_height`, and by more than three
    standard deviations of the error that its depth has, projected on the normal of the ground:
    sigma_height = (n . r) sigma_z, which for a depth that is good to so many percent is as many
    percent of the camera's height. At most a quarter of that height is put down to error.

    Args:
        depth: (H, W) float32 metres along optical Z; what is not finite is no obstacle.
        camera: The camera of the image, H x W.
        ground: From `fit_ground` or `ground_of_base`.
        min_height: Metres over the ground.
        max_height: Metres over the ground; what is higher is passed under.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: Depth and camera differ in size.
    """
    check_size(depth, camera)
    share = _height_shares(depth, camera, ground)
    height = ground.height
    low = np.float32(min_height / height)
    a, b = ground.noise
    # sigma_height / h = (1 - share) (a + b z), as (n . r) z = h (1 - share)
    with np.errstate(invalid='ignore'):  # infinite depth
        sigma = depth * np.float32(_SIGMAS * b)
        sigma += np.float32(_SIGMAS * a)
        sigma *= 1 - share
    np.clip(sigma, low, max(low, np.float32(_MOST_TOLERANCE)), out=sigma)
    mask: npt.NDArray[np.bool_] = share > sigma
    mask &= share < np.float32(max_height / height)
    return mask


def _height_shares(
    depth: npt.NDArray[np.float32], camera: CameraModel, ground: Ground
) -> npt.NDArray[np.float32]:
    """Return the heights over the ground in units of the camera's: (H, W) float32, NaN unknown."""
    a, b, c = ground.inverse.astype(np.float32)
    rays = camera.rays()
    share: npt.NDArray[np.float32] = rays[..., 0] * a
    share += rays[..., 1] * b
    share += c
    with np.errstate(invalid='ignore'):  # a depth of +inf at the horizon
        share *= depth
    np.subtract(np.float32(1.0), share, out=share)
    return share


def _sample_below_horizon(
    depth: npt.NDArray[np.float32], camera: CameraModel, expected: Ground
) -> tuple[FloatArray, FloatArray]:
    """Take rays (N, 3) and depths (N,) evenly from where the ground can be."""
    index = np.flatnonzero((depth > 0) & (depth < np.inf))
    index = index[:: max(1, len(index) // (4 * _MAX_SAMPLES))]
    x, y = camera.rays().reshape(-1, 2)[index].T.astype(np.float64)
    z = depth.ravel()[index].astype(np.float64)
    rays = np.column_stack([x, y, np.ones_like(x)])
    keep = np.flatnonzero(rays @ expected.inverse * z > 1 - _REACH)  # NaN rays drop out too
    keep = keep[:: max(1, len(keep) // _MAX_SAMPLES)]
    return rays[keep], z[keep]


def _axes(expected: Ground) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the directions right, forward and down in the optical frame, each (3,)."""
    down = expected.down
    right = np.array([down[1], -down[0], 0.0])  # level, and across the optical axis
    if np.linalg.norm(right) < 1e-3:  # the camera looks straight down
        right = np.array([1.0, 0.0, 0.0])
    right /= np.linalg.norm(right)
    return right, np.cross(right, down), down


def _prior(expected: Ground) -> FloatArray:
    """Return the (3, 3) information matrix of `inverse` about the expected one."""
    sigmas = np.array([[_ROLL], [_PITCH], [_HEIGHT]])
    rows = np.stack(_axes(expected)) / sigmas * expected.height
    return np.asarray(rows.T @ rows)


def _candidates(
    rays: FloatArray, z: FloatArray, scaled: FloatArray, expected: Ground
) -> FloatArray:
    """Return (M, 3) planes through two samples each, as far as they can be the ground.

    Two are enough, as the plane leans to no side: roll is what the refinement finds.
    """
    near = np.flatnonzero(np.abs(1.0 - scaled @ expected.inverse) < _REACH)
    if len(near) < 2:
        return expected.inverse[None]
    pairs = near[np.random.default_rng(0).integers(0, len(near), (_TRIALS, 2))]
    axes = np.column_stack(_axes(expected)[1:])  # forward, down
    along = rays[pairs] @ axes
    solvable = np.abs(np.linalg.det(along)) > 1e-3
    planes = np.linalg.solve(along[solvable], 1.0 / z[pairs[solvable]][..., None])[..., 0]
    slope = np.abs(planes[:, 0]) < math.tan(_FARTHEST_TILT) * planes[:, 1]
    size = np.linalg.norm(planes, axis=1) * expected.height
    possible = slope & (size > 1 / (1 + 3 * _HEIGHT)) & (size < 1 + 3 * _HEIGHT)
    return np.vstack([expected.inverse, planes[possible] @ axes.T])


def _scores(scaled: FloatArray, candidates: FloatArray) -> FloatArray:
    """Return how well (M, 3) planes explain the samples, (M,), per sample."""
    residual = 1.0 - scaled @ candidates.T
    on_it = np.maximum(1.0 - (residual / (2 * _TOLERANCE)) ** 2, 0.0)
    return np.asarray(on_it.mean(axis=0) - (residual < -4 * _TOLERANCE).mean(axis=0))


def _noise(residual: FloatArray, z: FloatArray) -> tuple[float, float]:
    """Fit a + b z to the spread of the residuals around the ground; see `Ground.noise`.

    By medians, so that low obstacles, as long as they are few, do not hide themselves.
    """
    near = np.abs(residual) < _SPREAD
    spread, z = np.abs(residual[near]), z[near]
    order = np.argsort(z)
    parts = [part for part in np.array_split(order, _BINS) if len(part)]
    middle = np.array([np.median(z[part]) for part in parts])
    sigma = np.array([np.median(spread[part]) for part in parts]) / _MEDIAN_OF_NORMAL
    if np.ptp(middle) < 1e-3:
        return float(sigma.mean()), 0.0
    b, a = np.polyfit(middle, sigma, 1)
    if b < 0:  # the line must be one that grows, and is nowhere negative
        return float(sigma.mean()), 0.0
    if a < 0:
        return 0.0, float(sigma @ middle / (middle @ middle))
    return float(a), float(b)
