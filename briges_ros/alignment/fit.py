"""Robust fit of scale and shift: 1/z = scale * relative + shift.

What is minimised. An inverse depth y = s p + t that is off from a true 1/z has the *relative* error
e = y z - 1. A depth network errs by a part of the depth (around a tenth, near and far alike), so e has about
the same spread everywhere, whereas an error in inverse depth would count near things alone, and an error
in metres far ones alone. Up to sign and second order e is also what the measure AbsRel = |z' - z| / z
averages. The fit is therefore linear least squares in (s, t) on e, which is least squares in inverse depth
weighted with z. A sensor of noise sigma adds sigma / z to the spread of e.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

# Spread of e that a depth network must be granted: its errors beside those of the sensor.
_MODEL_ERROR = 0.1
# An anchor is an inlier while |e| is below this many times its spread sqrt(model^2 + (sigma / z)^2).
_INLIER_SPREADS = 2.5
# Huber's constant: residuals up to this many spreads count squared, greater ones linearly.
_HUBER = 1.345
_HYPOTHESES = 256
_SAMPLE = 1000
_ITERATIONS = 10
# What is at least needed to trust a fit; see `fit_inverse_depth`.
_MIN_ANCHORS = 10
_MIN_INLIER_SHARE = 0.4
_MIN_LEVER = 0.5
_MIN_SIGNIFICANCE = 3.0
_LEAST_SPREAD = 0.002


@dataclass(frozen=True, eq=False)
class AffineFit:
    """Scale and shift that take relative inverse depth to inverse depth in 1/m.

    Attributes:
        scale: s in 1/z = s p + t, positive, 1/m per unit of p.
        shift: t, 1/m.
        covariance: (2, 2) float64 of (scale, shift), symmetric and positive semidefinite. Errors of the
            anchors are taken as independent; those of a network are not quite.
        inliers: Number of anchors that agree with the fit.
        outliers: Number of usable anchors that do not.
        residual: Median of |relative depth error| over the inliers.
        inlier_mask: (N,) bool over the anchors given.
    """

    scale: float
    shift: float
    covariance: npt.NDArray[np.float64]
    inliers: int
    outliers: int
    residual: float
    inlier_mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FitFailure:
    """Why there is no fit, in a few words for people."""

    reason: str


def sample(relative: Vector, u: Vector, v: Vector) -> Vector:
    """Reads an image at anchors, bilinearly.

    Args:
        relative: (H, W) float32.
        u: (N,) columns in pixels of `relative`; whole numbers are pixel centres.
        v: (N,) rows.

    Returns:
        (N,) float32; NaN outside the image, which reaches half a pixel beyond the outermost centres, and
        next to a NaN.
    """
    h, w = relative.shape
    u = np.asarray(u, dtype=np.float32)
    v = np.asarray(v, dtype=np.float32)
    inside = (u >= -0.5) & (u < w - 0.5) & (v >= -0.5) & (v < h - 0.5)
    x = np.clip(np.where(inside, u, 0), 0, w - 1)
    y = np.clip(np.where(inside, v, 0), 0, h - 1)
    x0 = np.minimum(x.astype(np.intp), max(w - 2, 0))
    y0 = np.minimum(y.astype(np.intp), max(h - 2, 0))
    right, down = min(1, w - 1), w * min(1, h - 1)
    x -= x0
    y -= y0
    flat = np.ascontiguousarray(relative, np.float32).reshape(-1)
    corner = y0 * w + x0
    top = flat[corner] * (1 - x) + flat[corner + right] * x
    bottom = flat[corner + down] * (1 - x) + flat[corner + down + right] * x
    values = top * (1 - y) + bottom * y
    return np.where(inside, values, np.float32(np.nan)).astype(np.float32)


def fit_inverse_depth(
    relative: Vector, depth: Vector, sigma: Vector, *, seed: int = 0
) -> AffineFit | FitFailure:
    """Fits scale and shift to anchors, some of which may be wrong.

    RANSAC over pairs of anchors (all hypotheses at once, scored with truncated squares on a sample of at
    most 1000 anchors) finds the consensus; iteratively reweighted least squares with Huber's weights on
    all anchors then settles it. An anchor agrees if its relative error |e| is below 2.5 spreads, the
    spread being that of the model and the sensor together, sqrt(m^2 + (sigma / z)^2). m is 0.1 for the search and
    then measured from the inliers, never taken greater.

    Args:
        relative: (N,) relative inverse depth at the anchors, larger is nearer. Not finite: not used.
        depth: (N,) metres.
        sigma: (N,) standard deviation of `depth`, metres.
        seed: Seed of the hypotheses. The same input and seed give the same fit.

    Returns:
        The fit, or why there is none: fewer than 10 usable anchors; fewer than 10 or 40 % in agreement;
        anchors that span so little depth, or relative depth, that they cannot tell scale from shift;
        relative depth that falls where the anchors come nearer.

    Raises:
        ValueError: The vectors differ in length.
    """
    if not np.shape(relative) == np.shape(depth) == np.shape(sigma):
        raise ValueError(
            f'relative, depth and sigma must have one length, got {np.shape(relative)}, '
            f'{np.shape(depth)} and {np.shape(sigma)}'
        )
    usable = np.isfinite(relative) & np.isfinite(depth) & (depth > 0) & np.isfinite(sigma)
    count = int(usable.sum())
    if count < _MIN_ANCHORS:
        return FitFailure(f'{count} usable anchors, at least {_MIN_ANCHORS} needed')
    p = np.asarray(relative, dtype=np.float64)[usable]
    z = np.asarray(depth, dtype=np.float64)[usable]
    noise2 = np.square(np.asarray(sigma, dtype=np.float64)[usable] / z)
    # Centred and scaled, so that the equations below are well conditioned whatever the network's unit is.
    centre, unit = float(np.median(p)), float(p.max() - p.min())
    if unit <= 1e-6 * max(abs(centre), 1e-30):
        return FitFailure('the relative depth is the same at all anchors')
    p = (p - centre) / unit
    pz = p * z

    s, t = _ransac(p, z, noise2, np.random.default_rng(seed))
    if not math.isfinite(s):
        return FitFailure('relative depth and anchors do not agree anywhere')
    model = _MODEL_ERROR
    for _ in range(_ITERATIONS):
        error = s * pz + t * z - 1
        spread = np.sqrt(noise2 + model * model)
        size = np.abs(error) / spread
        inlier = size < _INLIER_SPREADS
        if int(inlier.sum()) < _MIN_ANCHORS:
            break
        weight = np.minimum(1.0, _HUBER / np.maximum(size, 1e-12)) / (spread * spread)
        weight *= inlier
        normal = _normal_equations(weight, pz, z)
        right = np.array([weight @ pz, weight @ z])
        if np.linalg.cond(normal) > 1e12:
            break
        before = (s, t)
        s, t = (float(value) for value in np.linalg.solve(normal, right))
        model = min(_MODEL_ERROR, max(_LEAST_SPREAD, 1.4826 * float(np.median(np.abs(error[inlier])))))
        if abs(s - before[0]) + abs(t - before[1]) < 1e-6 * (abs(s) + abs(t)):
            break
    return _judge(s, t, pz, z, noise2, model, usable, centre, unit)


def _ransac(
    p: npt.NDArray[np.float64],
    z: npt.NDArray[np.float64],
    noise2: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Best (s, t) through two anchors, by the mean of squared errors cut off at the inlier bound."""
    if len(p) > _SAMPLE:
        chosen = rng.choice(len(p), _SAMPLE, replace=False)
        p, z, noise2 = p[chosen], z[chosen], noise2[chosen]
    # One anchor from the farther half and one from the nearer: a wide pair pins the line down better.
    order = np.argsort(p, kind='stable')
    half = len(p) // 2
    far = order[rng.integers(0, half, _HYPOTHESES)]
    near = order[rng.integers(half, len(p), _HYPOTHESES)]
    with np.errstate(divide='ignore', invalid='ignore'):
        s = (1 / z[near] - 1 / z[far]) / (p[near] - p[far])
    good = np.isfinite(s) & (s > 0)
    if not good.any():
        return math.nan, math.nan
    s, far = s[good], far[good]
    t = 1 / z[far] - s * p[far]
    scaled = 1 / (_INLIER_SPREADS * np.sqrt(_MODEL_ERROR**2 + noise2))
    lines = np.stack([s, t, np.ones_like(s)], axis=1).astype(np.float32)
    terms = np.stack([p * z * scaled, z * scaled, -scaled]).astype(np.float32)
    cost = lines @ terms
    np.multiply(cost, cost, out=cost)
    np.minimum(cost, 1.0, out=cost)
    best = int(cost.sum(axis=1).argmin())
    return float(s[best]), float(t[best])


def _normal_equations(
    weight: npt.NDArray[np.float64], pz: npt.NDArray[np.float64], z: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    wz = weight * z
    cross = wz @ pz
    return np.array([[(weight * pz) @ pz, cross], [cross, wz @ z]])


def _judge(
    s: float,
    t: float,
    pz: npt.NDArray[np.float64],
    z: npt.NDArray[np.float64],
    noise2: npt.NDArray[np.float64],
    model: float,
    usable: npt.NDArray[np.bool_],
    centre: float,
    unit: float,
) -> AffineFit | FitFailure:
    """Accepts the line (s, t) in centred units, or says what is wrong with it."""
    error = s * pz + t * z - 1
    spread2 = noise2 + model * model
    inlier = np.square(error) < _INLIER_SPREADS**2 * spread2
    inliers = int(inlier.sum())
    if inliers < max(_MIN_ANCHORS, _MIN_INLIER_SHARE * len(z)):
        return FitFailure(f'only {inliers} of {len(z)} anchors agree with the relative depth')
    if s <= 0:
        return FitFailure('the relative depth does not grow towards the near anchors')
    weight = inlier / spread2
    normal = _normal_equations(weight, pz, z)
    total = float(weight.sum())
    chi2 = float(weight @ np.square(error)) / max(inliers - 2, 1)
    determinant = float(np.linalg.det(normal))
    flat = 'the anchors span too little depth to tell scale from shift'
    if not determinant > 1e-12 * normal[0, 0] * normal[1, 1]:
        return FitFailure(flat)
    covariance = np.linalg.inv(normal) * chi2
    # The lever: how much of the relative inverse depth s p z varies, against the scatter about the line.
    mean = float(weight @ pz) / float(weight @ z)
    lever = s * math.sqrt(float(weight @ np.square(pz - mean * z)) / total)
    scatter = max(math.sqrt(chi2 * inliers / total), _LEAST_SPREAD)
    if lever < _MIN_LEVER * scatter or s < _MIN_SIGNIFICANCE * math.sqrt(covariance[0, 0]):
        return FitFailure(flat)
    # Back to the network's units: s p' + t with p' = (p - centre) / unit.
    back = np.array([[1 / unit, 0.0], [-centre / unit, 1.0]])
    covariance = back @ covariance @ back.T
    mask = np.zeros(usable.shape, np.bool_)
    mask[usable] = inlier
    predicted = np.abs(1 / (1 + error[inlier]) - 1)
    return AffineFit(
        scale=s / unit,
        shift=t - s * centre / unit,
        covariance=(covariance + covariance.T) / 2,
        inliers=inliers,
        outliers=len(z) - inliers,
        residual=float(np.median(predicted)),
        inlier_mask=mask,
    )
