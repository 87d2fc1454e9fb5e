"""Depth images: units, validity, encodings, resizing and colours.

Depth is float32 metres along the optical Z axis. Validity follows REP 118: NaN is unknown, +inf is
beyond range; in the encoding in 16-bit millimetres (16UC1) 0 is invalid. Inverse depth is larger
where it is nearer.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Image32 = npt.NDArray[np.float32]

# A 2 x 2 cell is a depth edge when its contrast is more than so many times that of the flattest
# cell beside it, and more than this part of the image's range besides (below that it is noise).
EDGE_RATIO = 3.0
EDGE_FLOOR = 0.01

# Pixels fly on the flanks of blurred edges: see `settle_flying_pixels`. The widths of such flanks
# that are looked for, one after the other, as parts of the size of the image: the wide ones of a
# network, the narrow ones that a refinement leaves.
FLANKS = (0.034, 0.0145)
# A flank holds at least this part of the contrast of the surroundings three times as wide (of a
# plane it holds a third, and less than 0.45 where two planes meet), and its ends are so many times
# as far from each other as from the camera.
FLANK_PART = 0.5
FLANK_RATIO = 1.15
# On it, values go on rising and falling by this part of its contrast within half its width. On
# either side of a sharp edge they do not.
FLANK_SLOPE = 0.12
# What is closer to a measurement than this part of the image's size is where it belongs.
MEASURED = 0.0073

# What would have to be moved so many times nearer or farther may as well belong to the other side.
FARTHEST_MOVE = 1.25

_BEYOND_RANGE_GREY = 48


def depth_from_inverse(
    relative: Image32, scale: float, shift: float, min_range: float, max_range: float
) -> Image32:
    """Turn relative inverse depth into metres: 1/z = scale * relative + shift.

    Args:
        relative: (H, W) float32 inverse depth up to scale and shift, larger is nearer.
        scale: 1/m per unit of `relative`; NaN when unknown.
        shift: 1/m; NaN when unknown.
        min_range: Metres. What is nearer cannot be trusted and becomes NaN.
        max_range: Metres, may be inf. What is as far or farther becomes +inf, and so does what has
            no positive inverse depth.

    Returns:
        (H, W) float32 metres. NaN where `relative` is not finite, and everywhere if scale or shift
        is NaN.

    Raises:
        ValueError: `scale` is not positive, or not 0 <= min_range < max_range.
    """
    if scale <= 0:
        raise ValueError(f'scale must be positive (larger inverse depth is nearer), got {scale}')
    if not 0 <= min_range < max_range:
        raise ValueError(f'need 0 <= min_range < max_range, got {min_range} and {max_range}')
    depth: Image32 = np.multiply(relative, np.float32(scale), dtype=np.float32)
    depth += np.float32(shift)
    beyond = depth <= np.float32(1.0 / max_range)  # NaN compares false, and stays NaN
    with np.errstate(divide='ignore', over='ignore'):
        np.reciprocal(depth, out=depth)
    np.copyto(depth, np.float32(math.nan), where=depth < np.float32(min_range))
    np.copyto(depth, np.float32(math.inf), where=beyond)
    np.copyto(depth, np.float32(math.nan), where=np.isinf(relative))
    return depth


def to_millimetres(depth: Image32) -> npt.NDArray[np.uint16]:
    """Encode depth as 16UC1.

    Args:
        depth: (H, W) float32 metres.

    Returns:
        (H, W) uint16 millimetres, rounded. 0 where the depth is NaN, infinite, not positive, or
        does not fit into 16 bits (65.5355 m and more).
    """
    millimetres: Image32 = np.multiply(depth, np.float32(1000.0), dtype=np.float32)
    millimetres += np.float32(0.5)
    fits = (millimetres >= 1.0) & (millimetres < 65536.0)
    np.copyto(millimetres, np.float32(0.0), where=~fits)
    return millimetres.astype(np.uint16)


def from_millimetres(millimetres: npt.NDArray[np.uint16]) -> Image32:
    """Decode 16UC1.

    Args:
        millimetres: (H, W) uint16, 0 where invalid.

    Returns:
        (H, W) float32 metres, NaN where invalid.
    """
    depth: Image32 = np.divide(millimetres, np.float32(1000.0), dtype=np.float32)
    np.copyto(depth, np.float32(math.nan), where=millimetres == 0)
    return depth


def resize_inverse_depth(relative: Image32, width: int, height: int) -> Image32:
    """Resize inverse depth without inventing surfaces between near and far ones.

    Bilinear interpolation is exact on planes, whose inverse depth is linear in the image. Across a
    depth edge it makes points that float between object and background ('flying pixels'), so there
    the nearest value is taken. An edge is a 2 x 2 cell with far more contrast than the flattest
    cell beside it: on a plane, however steep, all cells have the same contrast. The rule holds for
    any scale and shift of `relative`. Enlarging does not sharpen edges that are blurred in
    `relative` itself.

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
    out: Image32 = np.empty((height, width), np.float32)
    if min(h, w) < 2:
        cv2.resize(relative, (width, height), dst=out, interpolation=cv2.INTER_NEAREST)
        return out
    finite = np.isfinite(relative)
    source = relative if finite.all() else np.where(finite, relative, np.float32(0.0))
    edges = _edge_cells(source)
    if source is not relative:
        # The zeros put in must not be blended with anything: cells that touch one count as edges.
        edges |= _over_cells(cv2.dilate, (~finite).astype(np.uint8)).astype(np.bool_)
    cv2.resize(source, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
    if edges.any():
        # Where the new pixels lie in the old image, as cv2.resize has it: image edge on image edge.
        x = np.clip((np.arange(width) + 0.5) * (w / width) - 0.5, 0, w - 1)
        y = np.clip((np.arange(height) + 0.5) * (h / height) - 0.5, 0, h - 1)
        cell_x = np.minimum(x.astype(np.intp), w - 2)
        cell_y = np.minimum(y.astype(np.intp), h - 2)
        at_edge = edges.take(cell_y, axis=0).take(cell_x, axis=1)
        rows, columns = (y + 0.5).astype(np.intp), (x + 0.5).astype(np.intp)
        nearest = relative.take(rows, axis=0).take(columns, axis=1)
        np.copyto(out, nearest, where=at_edge)
    return out


def settle_flying_pixels(
    relative: Image32,
    scale: float,
    shift: float,
    measured: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Give the pixels that fly between an object and its background the place of one of them.

    Networks blur depth edges, and a blurred edge is a curtain of points on which nothing is. A
    pixel on the flank of one takes the greatest or the least value around it, whichever is closer
    to its own (the toggle mapping of Kramer and Bruckner, 1975), so that thin things keep the
    width that they have at half of their height. Planes, however steep, and creases between planes
    stay as they are.

    Args:
        relative: (H, W) float32 inverse depth, 1/z = scale * relative + shift; changed in place,
            but not beside values that are not finite.
        scale, shift: see `depth_from_inverse`.
        measured: (u, v), (N,) each, pixels of the image whose depth was measured: these and those
            beside them stay.

    Returns:
        (M,) indices into the flattened image of what was moved; and (M,) whether that was so far,
        by more than a quarter, that its depth is better held to be unknown.
    """
    size = math.sqrt(relative.size)
    widest, *_ = widths = [_odd(part * size) for part in FLANKS]
    before = relative.copy()
    beside = ~np.isfinite(relative)
    if beside.any():
        beside = cv2.dilate(beside.view(np.uint8), _window(widest)).view(np.bool_)
    stay = beside
    if measured is not None:
        stay = stay | _around(*measured, _odd(2 * MEASURED * size), relative.shape)
    moved = np.zeros(relative.shape, np.bool_)
    for width in widths:
        index, values = _on_flanks(relative, width, -shift / scale)
        here = ~stay.ravel()[index]
        moved.ravel()[index[here]] = True
        relative.ravel()[index[here]] = values[here]
        # The narrow ones are what refinement leaves, also between what was measured.
        stay = beside
    index = np.flatnonzero(moved)
    was, now = (scale * x.ravel()[index] + shift for x in (before, relative))
    far_off = (now > FARTHEST_MOVE * was) | (was > FARTHEST_MOVE * now)
    return index, far_off & (np.maximum(was, now) > 0)


def _on_flanks(
    relative: Image32, width: int, infinity: float
) -> tuple[npt.NDArray[np.intp], Image32]:
    """Find the pixels on flanks of a width: (N,) indices, and (N,) what is closer to each.

    Args:
        relative: (H, W) float32 inverse depth.
        width: Pixels, odd.
        infinity: Relative inverse depth of what is infinitely far.
    """
    nearest, least = _extremes(relative, width)
    # The surroundings, three times as wide: every fourth pixel will do.
    window = _window(_odd(width / 2))
    high, low = cv2.dilate(nearest[::4, ::4], window), cv2.erode(least[::4, ::4], window)
    enough = (FLANK_RATIO - 1.0) * np.maximum(low - infinity, 0.0)
    enough = np.maximum(FLANK_PART * (high - low), enough).astype(np.float32)
    size = relative.shape[::-1]
    enough = np.asarray(cv2.resize(enough, size, interpolation=cv2.INTER_NEAREST))
    index = np.flatnonzero(np.subtract(nearest, least) > enough)
    near, far = nearest.ravel()[index], least.ravel()[index]
    apart = near - infinity > FLANK_RATIO * np.maximum(far - infinity, 0.0)
    index, near, far = index[apart], near[apart], far[apart]
    values = relative.ravel()[index]
    above, below = (x.ravel()[index] for x in _extremes(relative, _odd(0.45 * width)))
    flies = np.minimum(above - values, values - below) > FLANK_SLOPE * (near - far)
    index, near, far, values = index[flies], near[flies], far[flies], values[flies]
    return index, np.where(near - values < values - far, near, far)


def _extremes(values: Image32, width: int) -> tuple[Image32, Image32]:
    """Greatest and least of the width x width pixels around each."""
    return cv2.dilate(values, _window(width)), cv2.erode(values, _window(width))


def _around(
    u: npt.NDArray[Any], v: npt.NDArray[Any], width: int, shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Where the width x width pixels around (N,) pixels are; (H, W)."""
    at = np.zeros(shape, np.uint8)
    column, row = (np.rint(x).astype(np.intp) for x in (u, v))
    at[np.clip(row, 0, shape[0] - 1), np.clip(column, 0, shape[1] - 1)] = 1
    return cv2.dilate(at, _window(width)).view(np.bool_)


def _window(width: int) -> npt.NDArray[np.uint8]:
    return np.ones((width, width), np.uint8)


def _odd(width: float) -> int:
    """The odd number next to it, at least 3."""
    return max(3, 2 * round((width - 1) / 2) + 1)


def _over_cells(reduce: Any, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Maximum (cv2.dilate) or minimum (cv2.erode) of cells (y..y+1, x..x+1); (h - 1, w - 1)."""
    return np.asarray(reduce(values, np.ones((2, 2), np.uint8), anchor=(0, 0)))[:-1, :-1]


def _edge_cells(values: Image32) -> npt.NDArray[np.bool_]:
    """Find the cells (y..y+1, x..x+1) of (h, w) values that straddle an edge; (h - 1, w - 1)."""
    contrast = _over_cells(cv2.dilate, values) - _over_cells(cv2.erode, values)
    flattest = cv2.erode(contrast, np.ones((3, 3), np.uint8))
    low, high = np.percentile(values[::4, ::4], (2, 98))
    floor = np.float32(EDGE_FLOOR * (high - low))
    return np.asarray(contrast > np.float32(EDGE_RATIO) * flattest + floor, np.bool_)


def colorize(inverse_depth: Image32) -> npt.NDArray[np.uint8]:
    """Colour inverse depth for people: near is warm, far is cool.

    The colours span the values between the 2nd and the 98th percentile, so that a few odd pixels do
    not bleach the picture.

    Args:
        inverse_depth: (H, W) float32, relative or in 1/m. For a depth image pass `1 / depth`.

    Returns:
        (H, W, 3) uint8 RGB in the turbo colour map; black where the value is not finite, dark grey
        where it is 0 (a depth of +inf: beyond range).
    """
    values = np.asarray(inverse_depth, dtype=np.float32)
    finite = np.isfinite(values)
    beyond = values == 0
    shown = finite & ~beyond
    sample = values[::4, ::4][shown[::4, ::4]]
    if not sample.size:
        sample = values[shown]
    low, high = np.percentile(sample, (2, 98)) if sample.size else (0.0, 1.0)
    gain = 255.0 / max(float(high - low), 1e-12)
    levels = cv2.convertScaleAbs(np.maximum(values, np.float32(low)), alpha=gain, beta=-low * gain)
    bgr = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)
    rgb = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    rgb[~finite] = 0
    rgb[beyond] = _BEYOND_RANGE_GREY
    return rgb
