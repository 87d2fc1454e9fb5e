"""What anchors say of one another: cross-validation of a refinement, and metres by it alone.

Where a network is far off, or a scene so flat that its relief tells nothing, no scale and shift
explains the anchors (`fit_inverse_depth` refuses). But if they are many, and each is where those
around it have it, their own metres are as good as ever: the refinement brings them to the pixels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from briges_ros.alignment.fit import (
    AffineFit,
    FitFailure,
    consensus_line,
    evidence,
    flat_line,
    quality,
    same_depth,
)
from briges_ros.alignment.refinement import REACH, SAME_DEPTH

Vector = npt.NDArray[np.floating[Any]]

# An anchor is told from so many around it; one that differs from these by more than this counts
# little.
_AROUND = 12
_AGREE = 0.15
# Few anchors are far apart, and their agreement is chance. More than so many are not looked at.
_FEWEST = 50
_MOST = 1500
# Of the anchors, this share has to be within a factor 2 of the line that is refined, ...
_NEAR = math.log(2.0)
_NEAR_SHARE = 0.75
# ... and half of them so near to where the others have them.
_GREATEST_RESIDUAL = 0.1
_INLIER = 0.3
_MIN_SHARE = 0.75
# With no network to speak for it, a quarter at one depth is no scene, see `fit`.
_ONE_READING_SHARE = 0.25
_MODEL_ERROR_RANGE = (0.05, 0.4)


def left_out(
    some: npt.NDArray[np.intp],
    u: Vector,
    v: Vector,
    nearness: Vector,
    residual: Vector,
    width: int,
) -> tuple[Vector, Vector]:
    """What a refinement by all other anchors leaves of the residuals of some.

    Inverse distance weighting with the power 4 (Shepard, ACM 1968) in the space of column, row and
    log inverse depth, as `refinement` has it, among the 12 nearest.

    Args:
        some: (n,) indices of those to leave out.
        u, v: (N,) pixels.
        nearness: (N,) log inverse depth of the fit.
        residual: (N,) log of z' / z.
        width: of the image, pixels.

    Returns:
        (n,) what is left, and (n,) the distance in the image to the nearest other anchor, pixels.
    """
    image = np.square(u[some, None] - u)
    image += np.square(v[some, None] - v)
    image[np.arange(len(some)), some] = np.inf
    spacing = np.sqrt(image.min(axis=1))
    other = np.square(nearness[some, None] - nearness)
    distance = image * np.float32(1 / (REACH * width) ** 2)
    distance += other
    other *= np.float32(1 / SAME_DEPTH**2)
    other += 1
    distance *= other
    around = min(_AROUND, len(u) - 1)
    near = np.argpartition(distance, around - 1, axis=1)[:, :around]
    distance = np.take_along_axis(distance, near, axis=1)
    theirs = residual[near]
    middle = np.median(theirs, axis=1, keepdims=True)
    weight = 1 / np.maximum(np.square(distance), 1e-8)
    weight /= np.square(1 + np.square((theirs - middle) / _AGREE))
    return residual[some] - (weight * theirs).sum(axis=1) / (weight.sum(axis=1) + 1), spacing


def fit_by_neighbours(
    relative: Vector, u: Vector, v: Vector, depth: Vector, sigma: Vector, width: int
) -> AffineFit | FitFailure:
    """Fit anchors that only their neighbours explain. Of use to a refinement, and to nothing else.

    The line is that of a consensus, or about the depth of most anchors with as much of the
    network's relief as they bear out: whichever is nearer to more of them. Each anchor is then
    predicted by a refinement of that line by the others. These predictions must explain the depths
    1000 times better than their distribution does (`evidence`), and be right within 10 % for half
    of the anchors; and the line itself must not be off by more than a factor 2 for most: anchors on
    one thing that is not there agree with each other, too.

    Args:
        relative: (N,) relative inverse depth at the anchors. What is not finite is not used.
        u, v: (N,) pixels.
        depth: (N,) metres, positive.
        sigma: (N,) standard deviation of `depth`, metres.
        width: of the image, pixels.

    Returns:
        The fit; it holds for the range of relative depth that the anchors have.
    """
    known = np.flatnonzero(np.isfinite(relative))
    if len(known) < _FEWEST:
        return FitFailure(f'{len(known)} anchors are too few to tell metres by themselves')
    known = known[np.arange(min(len(known), _MOST)) * len(known) // min(len(known), _MOST)]
    p, z, noise = (np.asarray(a, np.float64)[known] for a in (relative, depth, sigma / depth))
    lines = [line for line in (flat_line(p, z), consensus_line(p, z, noise)) if line]
    if not lines:
        return FitFailure('the relative depth is the same at all anchors')
    s, t = max(lines, key=lambda line: int(_near(line[0] * p + line[1], z).sum()))
    y = s * p + t
    if len(same_depth(z)) > _ONE_READING_SHARE * len(z):
        return FitFailure('many anchors give one depth, and the relative depth does not')
    usable = _near(y, z)
    residual = -np.log(np.where(usable, y, 1) * z)
    count, near = len(p), int(usable.sum())
    if near < max(_NEAR_SHARE * count, _FEWEST):
        return FitFailure('the anchors neither fit the relative depth nor lie at one depth')
    residual = residual[usable].astype(np.float32)
    u, v = (np.asarray(a, np.float32)[known][usable] for a in (u, v))
    nearness = np.log(y[usable]).astype(np.float32)
    left, _ = left_out(np.arange(near), u, v, nearness, residual, width)
    error = np.expm1(-left.astype(np.float64))  # y z - 1 after the refinement
    off = np.abs(error)
    inlier = off < _INLIER
    middle = float(np.median(off[inlier])) if inlier.any() else math.inf
    spread = np.hypot(noise[usable], max(1.4826 * middle, 0.01))
    if (
        inlier.sum() < _MIN_SHARE * count
        or middle > _GREATEST_RESIDUAL
        or evidence(error, z[usable], spread, near) < math.log(1000.0)
    ):
        return FitFailure('neither the relative depth nor their neighbours explain the anchors')
    model = 1.4826 * float(np.median(np.abs(residual)))
    model = min(max(model, _MODEL_ERROR_RANGE[0]), _MODEL_ERROR_RANGE[1])
    level = model * np.array([s, t])
    mask = np.zeros(len(relative), np.bool_)
    mask[known[usable][inlier]] = True
    low, high = np.quantile(p[usable][inlier], (0.01, 0.99))
    inliers = int(inlier.sum())
    return AffineFit(
        scale=s,
        shift=t,
        covariance=np.outer(level, level),
        inliers=inliers,
        outliers=count - inliers,
        residual=middle,
        inlier_mask=mask,
        relative_range=(float(low), float(high)),
        model_error=model,
        quality=0.5 * quality(inliers / count, 1.4826 * middle, 0.0),
        note='by their neighbours, as the relative depth does not explain them',
    )


def _near(y: npt.NDArray[np.float64], z: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether inverse depth is within the factor 2 of that of the anchors."""
    ratio = y * z
    return (ratio > math.exp(-_NEAR)) & (ratio < math.exp(_NEAR))
