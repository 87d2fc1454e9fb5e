"""Scale without a sensor: from the height of the camera over the ground.

A plane n . X = h, n the direction of gravity and h the height of the camera over it, meets the ray
X = z r, r = (x / z, y / z, 1), at

    1 / z = (n . r) / h

so that the floor is linear in the image in inverse depth (as every plane), and its depth is known
beforehand in every pixel that shows it. Which pixels these are, the fit of scale and shift finds
out: it takes all below the horizon as anchors on the floor, and those that are on something else
do not agree.

It is for a camera on a vehicle. Any level plane is a floor to it: before a hand-held camera, a desk
that fills the view passes for the ground, and all is twice as far as it is. Where most of what is
under the horizon is not ground, as in dense traffic, there is no prior.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from briges_ros.alignment.fit import AffineFit, FitFailure, fit_inverse_depth
from briges_ros.alignment.tracker import INDEPENDENT_ANCHORS, ScalePrior
from briges_ros.camera import CameraModel

# Every so many-th pixel, so that there are about this many in an image.
_SAMPLES = 3000
# Floor nearer to the horizon than this angle, n . r, tells little but how well the tilt is known.
_LEAST_SLOPE = 0.08
_LEAST_SHARE = 0.1  # of the image, below that
# How well a floor of a network is a plane, as a part of the depth.
_FLATNESS = 0.05
# Nothing is under the floor: no more than this share of the pixels may lie this much beyond it.
_BELOW = 1.25
_BELOW_SHARE = 0.15
# Scale and shift fit the floor; the rest of the scene follows them so well, as a part of the depth.
_REST_OF_SCENE = 0.2


def ground_prior(
    relative: npt.NDArray[np.float32],
    camera: CameraModel,
    height: float,
    down: npt.NDArray[np.floating[Any]] | tuple[float, float, float] = (0.0, 1.0, 0.0),
    *,
    height_sigma: float = 0.05,
    tilt_sigma: float = 0.02,
) -> ScalePrior | FitFailure:
    """Find the floor in relative depth, and the scale from the camera's height over it.

    Args:
        relative: (H, W) float32 relative inverse depth, larger is nearer.
        camera: Of the image.
        height: Of the camera over the floor, metres.
        down: (3,) direction of gravity in the optical frame; (0, 1, 0) for a camera that looks
            straight ahead.
        height_sigma: Standard deviation of `height`, metres.
        tilt_sigma: Standard deviation of the direction of gravity about the horizontal axis of the
            image, radians. A degree is 0.017: with a camera 1.6 m up, that is 0.01 1/m, which at
            10 m are 10 % of the depth.

    Returns:
        The prior, or why there is none.

    Raises:
        ValueError: The height or a standard deviation is not positive, or `down` is no direction.
    """
    if not (height > 0 and height_sigma > 0 and tilt_sigma > 0):
        raise ValueError(
            f'height and standard deviations must be positive, got {height} m, {height_sigma} m '
            f'and {tilt_sigma} rad'
        )
    n = np.asarray(down, dtype=np.float64)
    length = float(np.linalg.norm(n))
    if n.shape != (3,) or not (math.isfinite(length) and length > 0):
        raise ValueError(f'down must be a direction in the optical frame, got {down}')
    n = n / length

    step = max(1, round(math.sqrt(relative.size / _SAMPLES)))
    rays = camera.rays()[step // 2 :: step, step // 2 :: step]
    p = relative[step // 2 :: step, step // 2 :: step]
    slope = rays[..., 0] * n[0] + rays[..., 1] * n[1] + n[2]
    floor = (slope > _LEAST_SLOPE) & np.isfinite(p)
    if floor.sum() < _LEAST_SHARE * floor.size:
        return FitFailure('the camera does not look at the ground')
    p, z = p[floor], (height / slope[floor]).astype(np.float32)
    fit = fit_inverse_depth(p, z, np.float32(_FLATNESS) * z)
    if isinstance(fit, FitFailure):
        return FitFailure(f'no floor in view: {fit.reason}')
    below = (fit.scale * p + fit.shift) * z * _BELOW < 1
    if below.mean() > _BELOW_SHARE:
        return FitFailure('no floor in view: too much lies below the plane that was found')
    share = fit.inliers / (fit.inliers + fit.outliers)
    return ScalePrior(
        fit.scale,
        fit.shift,
        _covariance(fit, height, height_sigma, tilt_sigma),
        f'the floor, {height:.2f} m below ({share:.0%} of the pixels under the horizon)',
        fit.relative_range,
    )


def _covariance(
    fit: AffineFit, height: float, height_sigma: float, tilt_sigma: float
) -> npt.NDArray[np.float64]:
    x = np.array([fit.scale, fit.shift])
    covariance = fit.covariance * max(1.0, fit.inliers / INDEPENDENT_ANCHORS)
    # Scale and shift go with 1 / h, ...
    relative = math.hypot(height_sigma / height, _REST_OF_SCENE)
    covariance += relative**2 * np.outer(x, x)
    # ... and a tilt by d changes (n . r) / h by d (m . r) / h, with m . r about 1 near the axis.
    covariance[1, 1] += (tilt_sigma / height) ** 2
    return covariance
