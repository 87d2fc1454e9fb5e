"""What others do to bring relative inverse depth p to metres, from their published formulas.

Each takes the anchors and returns inverse depth in 1/m at the wanted pixels; nothing in it knows
which anchors are wrong. Where a formula says nothing (no positive result, a singular system), the
caller's clamp to the range of the data set decides, for all alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.linear_model import RANSACRegressor

Vector = NDArray[np.float64]

NEIGHBOURS = 5  # of Prior Depth Anything
MOGE_TRUNCATION = 1.0  # of the relative error
LINES = 2000  # tried for the truncated L1: all pairs up to 63 anchors, a random choice beyond
LINE_ANCHORS = 2000  # that the lines are judged by


@dataclass(frozen=True, eq=False)
class Problem:
    """Anchors, and where depth is wanted.

    Attributes:
        uv: (N, 2) pixels of the anchors.
        p: (N,) relative inverse depth there.
        z: (N,) metres.
        wanted_uv: (M, 2) pixels.
        wanted_p: (M,) relative inverse depth there.
        least_p: least relative inverse depth of the image.
        seed: of what is drawn at random.
    """

    uv: Vector
    p: Vector
    z: Vector
    wanted_uv: Vector
    wanted_p: Vector
    least_p: float
    seed: int


def line_of_least_squares(p: Vector, z: Vector) -> tuple[float, float]:
    """The (scale, shift) of least squares in inverse depth."""
    design = np.stack([p, np.ones_like(p)], axis=1)
    scale, shift = np.linalg.lstsq(design, 1 / z, rcond=None)[0]
    return float(scale), float(shift)


def least_squares(problem: Problem) -> Vector:
    """Argmin sum (s p + t - 1/z)^2: MiDaS (arXiv 1907.01341), VI-Depth (arXiv 2303.12134)."""
    scale, shift = line_of_least_squares(problem.p, problem.z)
    return scale * problem.wanted_p + shift


def ransac(problem: Problem) -> Vector:
    """scikit-learn's RANSAC in inverse depth, its defaults: Marsal et al. (IROS 2025)."""
    model = RANSACRegressor(random_state=problem.seed)
    try:
        model.fit(problem.p[:, None], 1 / problem.z)
    except ValueError:  # it found no consensus
        return least_squares(problem)
    return np.asarray(model.predict(problem.wanted_p[:, None]))


def truncated_l1(problem: Problem) -> Vector:
    """Argmin sum min(|s p + t - 1/z| z, 1): MoGe (arXiv 2410.19115), here in inverse depth.

    A minimum of L1 goes through two anchors: lines through pairs are tried.
    """
    p, z = problem.p, problem.z
    rng = np.random.default_rng(problem.seed)
    first, second = (
        np.triu_indices(len(p), 1) if len(p) < 64 else rng.integers(len(p), size=(2, LINES))
    )
    with np.errstate(divide='ignore', invalid='ignore'):
        s = (1 / z[first] - 1 / z[second]) / (p[first] - p[second])
    first, s = first[np.isfinite(s)], s[np.isfinite(s)]
    if not len(s):
        return least_squares(problem)
    t = 1 / z[first] - s * p[first]
    few = rng.choice(len(p), min(len(p), LINE_ANCHORS), replace=False)
    costs = [
        np.minimum(np.abs((a * p[few] + b) * z[few] - 1), MOGE_TRUNCATION).sum()
        for a, b in zip(s, t, strict=True)
    ]
    best = int(np.argmin(costs))
    return s[best] * problem.wanted_p + t[best]


def nearest_anchors(problem: Problem) -> Vector:
    """Each pixel has its own least squares: Prior Depth Anything (arXiv 2505.10565).

    The five anchors nearest in the image count, weighted by the inverse of their distance. Where
    they all have the same p, the system is singular, and the solution of least norm is taken.
    """
    tree = cKDTree(problem.uv)
    distance, index = tree.query(problem.wanted_uv, min(NEIGHBOURS, len(problem.p)))
    w = 1 / np.maximum(distance, 1e-3)
    w /= w.sum(axis=1, keepdims=True)
    design = np.stack([w * problem.p[index], w], axis=2)
    solution = np.linalg.pinv(design) @ (w / problem.z[index])[..., None]
    return solution[:, 0, 0] * problem.wanted_p + solution[:, 1, 0]


def median_ratio(problem: Problem) -> Vector:
    """Z' = z_p median(z) / median(z_p): SfMLearner (arXiv 1704.07813), with z_p = 1/p.

    It knows no shift: p is counted from the least of the image, as the networks that it was made
    for give it.
    """
    positive = np.maximum(problem.p - problem.least_p, 1e-9)
    ratio = np.median(problem.z) / np.median(1 / positive)
    return (problem.wanted_p - problem.least_p) / ratio


BASELINES: dict[str, Callable[[Problem], Vector]] = {
    'least squares': least_squares,
    'RANSAC': ransac,
    'truncated L1': truncated_l1,
    'nearest anchors': nearest_anchors,
    'median ratio': median_ratio,
}
