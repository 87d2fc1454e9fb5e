"""How good depth is at the borders of objects.

Two views of it. The band: AbsRel of the pixels near a border. The boundaries: are there
discontinuities of depth where the truth has them, and only there? The latter is the scale-invariant
boundary F1 of Depth Pro (arXiv 2410.02073, section 3.2). For neighbouring pixels i, j (to the
right, to the left, below, above) and a ratio r,

    c(i, j) = [z(j) / z(i) > r]            j lies behind an edge at i
    precision(r) = sum c & c* / sum c      c of the prediction, c* of the truth
    recall(r) = sum c & c* / sum c*
    F1(r) = 2 precision recall / (precision + recall)

and each is averaged over ten ratios from 1.05 to 1.25, weighted by the ratio. Nothing in it changes
when depth is multiplied by a constant; it does change with the shift of relative inverse depth, so
it is computed on aligned depth.

That is the published measure, and it asks for edges one pixel wide. Networks that predict at a part
of the image's size have none, and score zero whether their edges are in the right place or not. So
there is a wide measure too: the same, of pixels as far apart as the band is wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

RATIOS = tuple(float(ratio) for ratio in np.linspace(1.05, 1.25, 10))

# Half the width of the band, as a part of the image's diagonal: the tolerance of the boundary
# measure of DAVIS (Perazzi et al., CVPR 2016). 5 pixels at 480x357, 6 at 640x480.
BAND = 0.008

# Between neighbours. Slanted floors stay below it, except at grazing angles.
_BORDER_RATIO = 1.1

# Borders are asked of truth that knows at least this share of the pixels: between the points of a
# LiDAR there are no neighbours to compare.
_LEAST_DENSITY = 0.5


@dataclass(frozen=True)
class BorderMetrics:
    """How good depth is near the borders of objects; NaN where there is nothing to measure.

    Attributes:
        abs_rel: AbsRel over the band.
        pixels: size of the band where depth and truth are known.
        precision, recall, f1: of the discontinuities between neighbours, averaged over `RATIOS`.
        wide_precision, wide_recall, wide_f1: of those between pixels a band's width apart.
    """

    abs_rel: float
    pixels: int
    precision: float
    recall: float
    f1: float
    wide_precision: float
    wide_recall: float
    wide_f1: float


def border_metrics(
    depth: NDArray[np.floating],
    truth: NDArray[np.floating],
    labels: NDArray[np.integer] | None = None,
) -> BorderMetrics:
    """Compare depth with the truth near the borders of objects.

    Args:
        depth: (H, W) metres, aligned; NaN = unknown.
        truth: (H, W) metres, NaN = unknown.
        labels: (H, W) ids of regions. With them the borders are those between regions, and only
            discontinuities in the band around them count. Without, the borders are the truth's own
            discontinuities, and discontinuities count everywhere.

    Returns:
        All NaN if the truth knows less than half of the pixels.
    """
    known = np.isfinite(truth)
    if known.mean() < _LEAST_DENSITY:
        return BorderMetrics(math.nan, 0, *[math.nan] * 6)
    borders = depth_borders(truth, _BORDER_RATIO) if labels is None else label_borders(labels)
    radius = band_radius(*truth.shape)
    band = near(borders, radius)
    scored = band & known & np.isfinite(depth)
    error = np.abs(depth[scored] - truth[scored]) / truth[scored]
    region = None if labels is None else band
    return BorderMetrics(
        float(error.mean()) if error.size else math.nan,
        int(error.size),
        *boundary_score(depth, truth, region),
        *boundary_score(depth, truth, region, distance=2 * radius),
    )


def band_radius(height: int, width: int) -> int:
    """Half the width of the band, pixels."""
    return max(1, round(BAND * math.hypot(height, width)))


def label_borders(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels with a neighbour of another label.

    Unlabelled pixels are a region like any other: in hand-labelled data they are the seams of two
    or three pixels between regions, which part two objects of one class, or objects that nobody
    named.

    Args:
        labels: (H, W) ids of regions.

    Returns:
        (H, W) bool, true on both sides of each border.
    """
    borders = np.zeros(labels.shape, np.bool_)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    borders[:, 1:] |= across
    borders[:, :-1] |= across
    borders[1:] |= down
    borders[:-1] |= down
    return borders


def depth_borders(depth: NDArray[np.floating], ratio: float) -> NDArray[np.bool_]:
    """Pixels with a neighbour whose depth differs by more than a ratio.

    Args:
        depth: (H, W) metres, NaN = unknown.
        ratio: over 1.

    Returns:
        (H, W) bool, true on both sides of each border.
    """
    with np.errstate(invalid='ignore', divide='ignore'):
        across = np.abs(np.log(depth[:, 1:] / depth[:, :-1])) > math.log(ratio)
        down = np.abs(np.log(depth[1:] / depth[:-1])) > math.log(ratio)
    borders = np.zeros(depth.shape, np.bool_)
    borders[:, 1:] |= across
    borders[:, :-1] |= across
    borders[1:] |= down
    borders[:-1] |= down
    return borders


def near(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Pixels within so many pixels of a mask, by Euclidean distance."""
    if not mask.any():
        return np.zeros(mask.shape, np.bool_)
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= radius, np.bool_)


def boundary_score(
    depth: NDArray[np.floating],
    truth: NDArray[np.floating],
    region: NDArray[np.bool_] | None = None,
    distance: int = 1,
) -> tuple[float, float, float]:
    """Precision, recall and F1 of the discontinuities of depth, averaged over `RATIOS`.

    Pairs of pixels count where both depth and truth are known at both. Without any discontinuity in
    the prediction its precision is 0.

    Args:
        depth: (H, W) metres, positive; NaN = unknown.
        truth: (H, W) metres, positive; NaN = unknown.
        region: (H, W) bool, where both pixels of a pair must lie; default: everywhere.
        distance: between the pixels of a pair, along rows or columns; 1 as published.

    Returns:
        NaN if the truth has no discontinuity at any of the ratios. Single ratios at which it has
        none count 0, as published.
    """
    known = np.isfinite(depth) & np.isfinite(truth)
    if region is not None:
        known &= region
    predicted, true = _steps(depth, known, distance), _steps(truth, known, distance)
    total, found = np.zeros(3), False
    for ratio in RATIOS:
        # A step and its opposite are two directions; a pair can be an edge in one of them only.
        edges = np.sign(predicted) * (np.abs(predicted) > math.log(ratio))
        true_edges = np.sign(true) * (np.abs(true) > math.log(ratio))
        count, true_count = np.count_nonzero(edges), np.count_nonzero(true_edges)
        if true_count:
            found = True
            hits = np.count_nonzero(edges * true_edges > 0)
            precision, recall = (hits / count if count else 0.0), hits / true_count
            f1 = 2 * precision * recall / max(precision + recall, 1e-12)
            total += ratio * np.array([precision, recall, f1])
    if not found:
        return math.nan, math.nan, math.nan
    total /= sum(RATIOS)
    return float(total[0]), float(total[1]), float(total[2])


def _steps(
    depth: NDArray[np.floating], known: NDArray[np.bool_], distance: int
) -> NDArray[np.float64]:
    """All ln z(j) / z(i) of known pairs, j to the right of i or below it: one vector."""
    z = np.log(np.where(known, depth, 1.0).astype(np.float64))
    across = known[:, distance:] & known[:, :-distance]
    down = known[distance:] & known[:-distance]
    return np.concatenate(
        [
            (z[:, distance:] - z[:, :-distance])[across],
            (z[distance:] - z[:-distance])[down],
        ]
    )
