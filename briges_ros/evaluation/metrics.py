"""Depth metrics under the affine-invariant protocol.

Source: MiDaS (arXiv 1907.01341) and Depth Anything (arXiv 2401.10891): least-squares scale and
shift in inverse depth on the valid pixels, clamp to the data set's range, then the metrics of
Eigen et al. (arXiv 1406.2283) in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DepthMetrics:
    """AbsRel = mean |z - z*| / z*; delta1 = share of pixels with max(z/z*, z*/z) < 1.25."""

    abs_rel: float
    delta1: float
    rmse_m: float
    pixels: int


def depth_metrics(depth: NDArray[np.floating], truth: NDArray[np.floating]) -> DepthMetrics:
    """Compare depth with the truth where both are finite and the truth positive.

    Args:
        depth, truth: same shape, metres.
    """
    valid = np.isfinite(depth) & np.isfinite(truth) & (truth > 0)
    z, t = depth[valid].astype(np.float64), truth[valid].astype(np.float64)
    if z.size == 0:
        return DepthMetrics(float('nan'), float('nan'), float('nan'), 0)
    ratio = np.maximum(z / t, t / np.maximum(z, 1e-9))
    return DepthMetrics(
        abs_rel=float(np.mean(np.abs(z - t) / t)),
        delta1=float(np.mean(ratio < 1.25)),
        rmse_m=float(np.sqrt(np.mean((z - t) ** 2))),
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
