"""Depth images: units, validity, encodings, resizing and colours.

Depth is float32 metres along the optical Z axis. Validity follows REP 118: NaN is unknown, +inf is beyond
range; in the 16-bit millimetre encoding (16UC1) 0 is invalid. Inverse depth is larger where it is nearer.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Image32 = npt.NDArray[np.float32]

# A 2 x 2 cell counts as a depth edge when its contrast exceeds that of its flattest neighbour this many
# times over, and also this part of the image's range of inverse depth (below that, noise).
_EDGE_RATIO = 3.0
_EDGE_FLOOR = 0.01

_BEYOND_RANGE_GREY = 48


def depth_from_inverse(
    relative: Image32, scale: float, shift: float, min_range: float, max_range: float
) -> Image32:
    """Turns relative inverse depth into metres: 1/z = scale * relative + shift.

    Args:
        relative: (H, W) float32 inverse depth up to scale and shift, larger is nearer.
        scale: Scale in 1/m per unit of `relative`; NaN, with `shift`, when unknown.
        shift: Shift in 1/m.
        min_range: Metres; what is nearer cannot be trusted and becomes NaN.
        max_range: Metres, may be inf; what is as far or farther becomes +inf, and so does what has no
            positive inverse depth at all.

    Returns:
        (H, W) float32 metres. NaN where `relative` is not finite, and everywhere if the scale is NaN.

    Raises:
        ValueError: `scale` is not positive, or not 0 <= min_range < max_range.
    """
    if scale <= 0:
        raise ValueError(f'scale must be positive (larger inverse depth is nearer), got {scale}')
    if not 0 <= min_range < max_range:
        raise ValueError(f'need 0 <= min_range < max_range, got {min_range} and {max_range}')
    depth: Image32 = np.multiply(relative, np.float32(scale), dtype=np.float32)
    depth += np.float32(shift)
    beyond = depth <= np.float32(1.0 / max_range)  # NaN compares false and stays NaN
    with np.errstate(divide='ignore'):
        np.reciprocal(depth, out=depth)
    unknown = depth < np.float32(min_range)
    np.putmask(depth, unknown, np.nan)
    np.putmask(depth, beyond, np.inf)
    np.putmask(depth, np.isinf(relative), np.nan)
    return depth


def to_millimetres(depth: Image32) -> npt.NDArray[np.uint16]:
    """Encodes depth as 16UC1.

    Args:
        depth: (H, W) float32 metres.

    Returns:
        (H, W) uint16 millimetres, rounded; 0 where the depth is NaN, infinite, not positive, or does not
        fit into 16 bits (farther than 65.535 m).
    """
    millimetres = np.multiply(depth, np.float32(1000.0), dtype=np.float32)
    millimetres += np.float32(0.5)
    fits = (millimetres >= 1.0) & (millimetres < 65536.0)
    np.putmask(millimetres, ~fits, 0.0)
    return millimetres.astype(np.uint16)


def from_millimetres(millimetres: npt.NDArray[np.uint16]) -> Image32:
    """Decodes 16UC1.

    Args:
        millimetres: (H, W) uint16, 0 where invalid.

    Returns:
        (H, W) float32 metres, NaN where invalid.
    """
    depth: Image32 = np.divide(millimetres, np.float32(1000.0), dtype=np.float32)
    np.putmask(depth, millimetres == 0, np.nan)
    return depth


def resize_inverse_depth(relative: Image32, width: int, height: int) -> Image32:
    """Resizes inverse depth without inventing surfaces between near and far ones.

    Bilinear interpolation is exact on planes, since their inverse depth is linear in the image. Across a
    depth edge it would make points that float between object and background ('flying pixels'), so
    there the nearest value is taken. An edge is a 2 x 2 cell with far more contrast than the flattest
    cell beside it: on a plane, however steep, all cells have the same contrast. The rule does not change
    when `relative` is scaled or shifted.

    Args:
        relative: (h, w) float32 inverse depth. Values that are not finite do not spread.
        width: New width in pixels.
        height: New height in pixels.

    Returns:
        (height, width) float32, a new array.
    """
    h, w = relative.shape
    relative = np.ascontiguousarray(relative, np.float32)
    if (h, w) == (height, width):
        return relative.copy()
    finite = np.isfinite(relative)
    source = relative if finite.all() else np.where(finite, relative, np.float32(0))
    edges = _edge_cells(source)
    if source is not relative:
        # The zeros put in above must not be blended, so cells that touch one are edges.
        edges |= cv2.dilate((~finite).astype(np.uint8), np.ones((2, 2), np.uint8), anchor=(0, 0))
    out = cv2.resize(source, (width, height), interpolation=cv2.INTER_LINEAR)
    if edges.any():
        # Positions in the small image, as cv2.resize has them: pixel edges map to pixel edges.
        x = np.clip((np.arange(width) + 0.5) * (w / width) - 0.5, 0, w - 1)
        y = np.clip((np.arange(height) + 0.5) * (h / height) - 0.5, 0, h - 1)
        at_edge = edges.take(y.astype(np.intp), axis=0).take(x.astype(np.intp), axis=1)
        rows = (y + 0.5).astype(np.intp)
        columns = (x + 0.5).astype(np.intp)
        nearest = relative.take(rows, axis=0).take(columns, axis=1)
        cv2.copyTo(nearest, at_edge, out)
    return np.asarray(out, dtype=np.float32)


def _edge_cells(values: Image32) -> npt.NDArray[np.uint8]:
    """Marks with 1 the cells (y..y+1, x..x+1) of `values` (h, w) that straddle a depth edge."""
    two = np.ones((2, 2), np.uint8)
    contrast = cv2.dilate(values, two, anchor=(0, 0))
    contrast -= cv2.erode(values, two, anchor=(0, 0))
    flattest = cv2.erode(contrast, np.ones((3, 3), np.uint8))
    low, high = np.percentile(values[::4, ::4], (2, 98))
    flattest *= _EDGE_RATIO
    flattest += np.float32(_EDGE_FLOOR * (high - low))
    return (contrast > flattest).astype(np.uint8)


def colorize(inverse_depth: Image32) -> npt.NDArray[np.uint8]:
    """Colours inverse depth for people: near is warm, far is cool.

    The range of colours is that of the values between the 2nd and the 98th percentile, so a few odd
    pixels do not bleach the picture.

    Args:
        inverse_depth: (H, W) float32, relative or in 1/m. For a depth image pass `1 / depth`.

    Returns:
        (H, W, 3) uint8 RGB: the turbo colour map, black where the value is not finite, dark grey where it
        is 0 (depth +inf: beyond range).
    """
    values = np.asarray(inverse_depth, dtype=np.float32)
    finite = np.isfinite(values)
    beyond = values == 0
    shown = finite & ~beyond
    sample = values[::4, ::4][shown[::4, ::4]]
    if sample.size == 0:
        sample = values[shown]
    low, high = np.percentile(sample, (2, 98)) if sample.size else (0.0, 1.0)
    gain = 255.0 / max(float(high - low), 1e-12)
    with np.errstate(invalid='ignore', over='ignore'):
        levels = np.clip((values - np.float32(low)) * np.float32(gain), 0, 255)
    levels[~shown] = 0
    bgr = cv2.applyColorMap(levels.astype(np.uint8), cv2.COLORMAP_TURBO)
    rgb = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    rgb[~finite] = 0
    rgb[beyond] = _BEYOND_RANGE_GREY
    return rgb
