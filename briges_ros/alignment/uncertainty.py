"""How far depth in metres can be off, pixel by pixel.

The depth of a pixel, 1/z = y = s p + t, has the relative variance

    (sigma / z)^2 = J C J' / y^2 + m^2 z + (c g)^2

- J C J' / y^2, J = (p, 1), is what the covariance C of scale and shift amounts to (first-order
  propagation of errors): it grows with range, where the shift decides.
- m is the relative error of the network about the fit at one metre, after a local refinement if
  there is one, measured at the anchors around, see `local_error`: it is not alike all over the
  image. On roads it grows with about the square root of the range, between a constant part of the
  depth and a constant error of inverse depth; in rooms, that makes no difference. What it shows of
  the first term is not counted twice.
- g is how far the inverse depth around is from that of a plane, as a part of it: 0 on a plane,
  however steep, up to 1 beside something very near. Edges of a depth map are off by some pixels,
  where a pixel takes the depth of the wrong side, and the encoder sees patches.

"One sigma" is meant as for a normal distribution: 68 % of the errors are smaller.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from briges_ros.alignment.neighbours import left_out
from briges_ros.alignment.refinement import BOUND
from briges_ros.alignment.tracker import INDEPENDENT_ANCHORS, ScaleEstimate

Image32 = npt.NDArray[np.float32]
Vector = npt.NDArray[np.floating[Any]]

# The error of a network that nobody measured, and the least one.
_UNKNOWN = 0.2
_FLOOR = 0.008
# Few anchors flatter their fit: the variance that they show is too small by this over their number.
_FLATTERY = 30
# The error is measured at the points of a grid, each from so many anchors around, out of no more
# than so many (it is smooth), each of these beside no more than so many others.
_GRID = (12, 16)
_AROUND = 12
_MEASURED = 150
_OTHERS = 1500
# A normal distribution has the standard deviation 1.4826 times its median absolute deviation.
_SIGMA_PER_MAD = 1.4826
# Errors between anchors grow with the square root of the distance, no more than by this.
_GROWTH = (0.5, 3.0)
# The window of an edge is 5 pixels of an image of this width, or 20 of 640: patches are 14.
_EDGE_WINDOW = 5
_EDGE_IMAGE = 160
_EDGE_WEIGHT = 0.25


def local_error(
    u: Vector,
    v: Vector,
    depth: Vector,
    sigma: Vector,
    inverse: Vector,
    size: tuple[int, int],
    *,
    refined: bool,
) -> Image32 | None:
    """Measure the relative error of the depth over the image, at anchors of the sensor.

    At each point of a grid, from the 12 anchors next to it: what is common to their errors (the
    network is off there as a whole: the median), and how they scatter about that (the median
    absolute deviation); both squared and added, less the noise of the sensor. Medians, since some
    anchors may be wrong.

    If the anchors also refine the depth around them, their errors are those of a refinement by the
    others (cross-validation); and a point of the grid that is farther from the anchors than these
    are from each other is taken to err more, with the square root of the distance.

    Args:
        u: (N,) columns of the anchors, pixels.
        v: (N,) rows.
        depth: (N,) metres.
        sigma: (N,) standard deviation of `depth`, metres.
        inverse: (N,) s p + t at the anchors, 1/m: inverse depth by the fit alone.
        size: (width, height) of the image.
        refined: Whether the depth that is published is refined by these anchors.

    Returns:
        (12, 16) float32, sigma / z / sqrt(z), z in metres, evenly over the image: cells, whose
        values are at their centres, as `cv2.resize` has it. None with fewer than two usable
        anchors.
    """
    with np.errstate(divide='ignore', invalid='ignore'):
        residual = -np.log(np.maximum(inverse, 1e-6) * np.asarray(depth, np.float32))
        usable = np.isfinite(residual)
    if refined:
        usable &= np.abs(residual) < BOUND
    index = np.flatnonzero(usable)
    if len(index) < 2:
        return None
    residual = np.clip(residual[index], -BOUND, BOUND)
    u, v, depth, sigma, inverse = (
        np.asarray(a, np.float32)[index] for a in (u, v, depth, sigma, inverse)
    )
    count = len(index)
    few = _regular(count, _OTHERS)
    u, v, depth, sigma, inverse, residual = (
        a[few] for a in (u, v, depth, sigma, inverse, residual)
    )
    some = _regular(len(few), _MEASURED)
    if refined:
        error, spacing = left_out(some, u, v, np.log(inverse), residual, size[0])
    else:
        error, spacing = residual[some], None
    # From here on, as at a depth of one metre.
    nearness = np.sqrt(inverse[some])
    error = error * nearness

    rows, columns = _GRID
    y = (np.arange(rows, dtype=np.float32) + 0.5) * (size[1] / rows) - 0.5
    x = (np.arange(columns, dtype=np.float32) + 0.5) * (size[0] / columns) - 0.5
    x, y = np.meshgrid(x, y)
    x, y = x.reshape(-1, 1), y.reshape(-1, 1)
    around = min(_AROUND, len(some))
    distance = np.square(x - u[some]) + np.square(y - v[some])
    near = np.argpartition(distance, around - 1, axis=1)[:, :around]
    common = np.median(error[near], axis=1)
    scatter = _SIGMA_PER_MAD * np.median(np.abs(error[near] - common[:, None]), axis=1)
    noise = np.median(((sigma / depth)[some] * nearness)[near], axis=1)
    least = _FLOOR * np.median(nearness[near], axis=1)
    variance = np.maximum(common**2 + scatter**2 - noise**2, least**2) * (1 + _FLATTERY / count)
    if spacing is not None:
        # To the nearest of all anchors, if those looked at are spread as all are.
        distance = np.sqrt((np.square(x - u) + np.square(y - v)).min(axis=1) * (len(few) / count))
        growth = np.sqrt(distance / np.maximum(np.median(spacing[near], axis=1), 1.0))
        variance *= np.square(np.clip(growth, *_GROWTH))
    return np.sqrt(variance).astype(np.float32).reshape(_GRID)


def depth_sigma(
    depth: Image32, relative: Image32, scale: ScaleEstimate, error: Image32 | None = None
) -> Image32:
    """Give the standard deviation of a depth image.

    Args:
        depth: (H, W) float32 metres; NaN unknown, +inf beyond range (REP 118).
        relative: (H, W) float32 relative inverse depth that it was made from.
        scale: How.
        error: As measured at the anchors of this frame (`local_error`); None without fresh ones, to
            take what the last fit says of the network.

    Returns:
        (H, W) float32 metres. NaN where the depth is unknown. +inf where it is beyond range: that
        is no measurement of so many metres, so whoever weights with 1 / sigma^2 gives it none.
    """
    height, width = depth.shape
    smaller = max(1.0, max(width, height) / _EDGE_IMAGE)
    w, h = max(1, round(width / smaller)), max(1, round(height / smaller))
    p = cv2.resize(relative, (w, h), interpolation=cv2.INTER_NEAREST)
    p = np.where(np.isfinite(p), p, np.float32(0))  # there the depth is NaN, and so is its sigma
    # In float64, as the terms of J C J' all but cancel; the image is small.
    (ss, st), (_, tt) = scale.covariance
    inverse = np.maximum(scale.scale * p.astype(np.float64) + scale.shift, 1e-3)
    variance = np.maximum((ss * p + 2 * st) * p + tt, 0) / np.square(inverse)
    if error is None:
        known = math.isfinite(scale.model_error)
        variance += (scale.model_error if known else _UNKNOWN) ** 2
    else:
        # The more anchors there are, the more of it their errors show.
        variance -= variance.min()
        variance *= min(1.0, INDEPENDENT_ANCHORS / max(scale.inliers, 1))
        variance += np.square(cv2.resize(error, (w, h))) / inverse
    inverse = inverse.astype(np.float32)
    window = np.ones((_EDGE_WINDOW, _EDGE_WINDOW), np.uint8)
    greatest = cv2.dilate(inverse, window)
    contrast = greatest + cv2.erode(inverse, window)
    contrast -= 2 * inverse
    contrast /= greatest
    variance += np.square(_EDGE_WEIGHT * contrast)
    sigma: Image32 = cv2.resize(np.sqrt(variance).astype(np.float32), (width, height))
    sigma *= depth
    return sigma


def _regular(count: int, most: int) -> npt.NDArray[np.intp]:
    """Indices of at most so many out of `count`, at about equal steps."""
    return np.arange(min(count, most)) * count // min(count, most)
