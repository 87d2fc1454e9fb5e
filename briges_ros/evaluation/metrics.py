"""Depth metrics, and the alignment of relative depth that comes before them.

Sources: scale and shift by least squares in inverse depth on the valid pixels, then clamping to the
data set's range: MiDaS (arXiv 1907.01341) and Depth Anything (arXiv 2401.10891). AbsRel, delta,
RMSE and log10: Eigen et al. (arXiv 1406.2283). SILog: KITTI's depth benchmark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DepthMetrics:
    """How a depth map z compares with the truth z*, over the n pixels where both are known.

    Attributes:
        abs_rel: mean |z - z*| / z*.
        delta1, delta2, delta3: share of pixels with max(z/z*, z*/z) < 1.25, 1.25^2, 1.25^3.
        rmse_m: sqrt(mean (z - z*)^2), metres.
        log10: mean |log10 z - log10 z*|.
        silog: scale-invariant logarithmic error as KITTI's benchmark states it, in units of
            log(m) x 100: 100 sqrt(mean d^2 - (mean d)^2) with d = ln z - ln z*; it does not change
            when z is multiplied by a constant.
        pixels: n.
    """

    abs_rel: float
    delta1: float
    delta2: float
    delta3: float
    rmse_m: float
    log10: float
    silog: float
    pixels: int


def depth_metrics(depth: NDArray[np.floating], truth: NDArray[np.floating]) -> DepthMetrics:
    """Compare depth with the truth where both are finite and the truth positive.

    Args:
        depth, truth: same shape, metres. Depth that is not positive counts as 1 nm in ratios and
            logarithms: wrong by any measure, and still a number.

    Returns:
        All NaN, with 0 pixels, if nothing can be compared.
    """
    valid = np.isfinite(depth) & np.isfinite(truth) & (truth > 0)
    z, t = depth[valid].astype(np.float64), truth[valid].astype(np.float64)
    if z.size == 0:
        nan = math.nan
        return DepthMetrics(nan, nan, nan, nan, nan, nan, nan, 0)
    positive = np.maximum(z, 1e-9)
    ratio = np.maximum(positive / t, t / positive)
    difference = np.log(positive / t)
    return DepthMetrics(
        abs_rel=float(np.mean(np.abs(z - t) / t)),
        delta1=float(np.mean(ratio < 1.25)),
        delta2=float(np.mean(ratio < 1.25**2)),
        delta3=float(np.mean(ratio < 1.25**3)),
        rmse_m=float(np.sqrt(np.mean((z - t) ** 2))),
        log10=float(np.mean(np.abs(difference)) / math.log(10.0)),
        silog=100.0 * float(np.std(difference)),
        pixels=int(z.size),
    )


def affine_invariant_depth(
    relative: NDArray[np.floating],
    truth: NDArray[np.floating],
    min_depth: float,
    max_depth: float,
) -> NDArray[np.float64]:
    """Metres from relative inverse depth by least squares against the truth itself.

    Args:
        relative: (H, W) inverse depth up to scale and shift.
        truth: (H, W) metres; NaN, inf or 0 = unknown.
        min_depth, max_depth: the data set's range, metres; the result is clamped to it.
    """
    valid = np.isfinite(relative) & np.isfinite(truth) & (truth > min_depth) & (truth < max_depth)
    p = relative[valid].astype(np.float64)
    design = np.stack([p, np.ones_like(p)], axis=1)
    (scale, shift), *_ = np.linalg.lstsq(design, 1.0 / truth[valid], rcond=None)
    inverse = scale * relative.astype(np.float64) + shift
    return np.clip(1.0 / np.maximum(inverse, 1.0 / max_depth), min_depth, max_depth)
