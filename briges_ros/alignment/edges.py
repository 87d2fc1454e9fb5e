"""Depth edges of the prediction: anchors on them say little about it.

Where near and far meet, a pixel of calibration error, of delay or of the network's blur takes an
anchor from one surface to the other. Such anchors are not wrong, but their error in the fit is that
of the step, not that of the sensor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from briges_ros.depth_image import EDGE_RATIO

Vector = npt.NDArray[np.float32]

# Half the distance between two samples, as a part of the width of the image: 1 pixel of VGA. Four
# samples in a row then see an edge blurred over six, as networks at half the resolution have them.
_HALF_STEP = 1 / 640
# An edge of this part of the range of the image halves the weight.
_HALF_WEIGHT = 0.02
_SAMPLES_OF_RANGE = 4000


def edge_weight(relative: npt.NDArray[np.float32], u: Vector, v: Vector) -> Vector:
    """Say how far anchors can be compared with the prediction: less, the stronger an edge is there.

    Along the row and the column through an anchor, three steps are taken. On a plane they are
    alike, however steep it is, as inverse depth is linear in the image there; at an edge, sharp or
    blurred, one is far greater than the least of them (the rule of `depth_image`). What is left of
    the greatest after three times the least, over the range of the image (2nd to 98th percentile),
    is e, and the weight is 1 / (1 + (e / 0.02)^2). It is the same for any scale and shift of
    `relative`.

    Args:
        relative: (H, W) float32 inverse depth, up to scale and shift.
        u: (N,) float32 columns in pixels of `relative`.
        v: (N,) float32 rows. Anchors outside the image get the weight of its border.

    Returns:
        (N,) float32, 0 to 1; 0 next to what is not finite.
    """
    height, width = relative.shape
    flat = np.ascontiguousarray(relative, np.float32).reshape(-1)
    half = max(1, round(_HALF_STEP * width))
    step = np.zeros(len(u), np.float32)
    column = np.rint(u).clip(0, width - 1).astype(np.int32)
    row = np.rint(v).clip(0, height - 1).astype(np.int32)
    for along, other, length, stride, other_stride in (
        (column, row, width, 1, width),
        (row, column, height, width, 1),
    ):
        if length <= 6 * half:
            continue
        # Near the border, those inside it: a sample repeated would look like a flat side.
        centre = along.clip(3 * half, length - 1 - 3 * half) * stride + other * other_stride
        a, b, c, d = (flat.take(centre + at * half * stride) for at in (-3, -1, 1, 3))
        with np.errstate(invalid='ignore'):
            first, middle, last = np.abs(b - a), np.abs(c - b), np.abs(d - c)
        greatest = np.maximum(np.maximum(first, middle), last)
        least = np.minimum(np.minimum(first, middle), last)
        with np.errstate(invalid='ignore'):
            np.maximum(step, greatest - np.float32(EDGE_RATIO) * least, out=step)
    every = max(1, int(np.sqrt(flat.size / _SAMPLES_OF_RANGE)))
    few = relative[::every, ::every]
    few = few[np.isfinite(few)]
    low, high = np.percentile(few, (2, 98)) if few.size else (0.0, 0.0)
    step *= np.float32(1 / max(_HALF_WEIGHT * float(high - low), 1e-30))
    with np.errstate(over='ignore'):
        weight: Vector = np.float32(1) / (np.float32(1) + step * step)
    weight[np.isnan(weight)] = 0
    return weight
