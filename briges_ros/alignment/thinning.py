"""Choosing fewer of many points, evenly over the space that they take up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_MOST_CELLS = 65535  # NumPy sorts 16-bit integers by radix, in linear time
_MOST_ALONG_AXIS = 250
_CELLS_PER_POINT = 8


def even_choice(axes: Sequence[npt.NDArray[Any]], max_count: int) -> npt.NDArray[np.intp]:
    """Choose `max_count` of more points evenly over the area, or the volume, they cover.

    The space is cut into cells of one length along all axes, as many over the first two axes as
    points are wanted, if not far more come out over all; every cell gives its first point, then
    every cell that has one its second, and so on.

    Args:
        axes: (N,) coordinates, in units that make distances along them comparable: u and v in
            pixels, perhaps a third.
        max_count: Number to choose, less than N.

    Returns:
        (max_count,) indices, ascending.
    """
    low = [float(axis.min()) for axis in axes]
    extent = [float(axis.max()) - least + 1 for axis, least in zip(axes, low, strict=True)]
    most = min(_MOST_CELLS, max(_CELLS_PER_POINT * max_count, 1))
    side = max(
        math.sqrt(extent[0] * extent[1] / max(max_count, 1)),
        (math.prod(extent) / most) ** (1 / len(extent)),
        max(extent) / _MOST_ALONG_AXIS,
    )
    while math.prod(int(length / side) + 1 for length in extent) > _MOST_CELLS:
        side *= 1.05
    cells = np.zeros(len(axes[0]), np.uint16)
    for axis, least, length in zip(axes, low, extent, strict=True):
        cells *= np.uint16(int(length / side) + 1)
        cells += ((axis - least) / side).astype(np.uint16)
    order = np.argsort(cells, kind='stable')
    sizes = np.bincount(cells)
    first = np.cumsum(sizes) - sizes
    rank = np.empty(len(cells), np.intp)
    rank[order] = np.arange(len(cells)) - np.repeat(first, sizes)
    # All ranks below `level` fit; of those at `level` a regular part does.
    taken = np.cumsum(np.bincount(rank))
    level = int(np.searchsorted(taken, max_count, side='right'))
    chosen = np.flatnonzero(rank < level)
    rest = np.flatnonzero(rank == level)
    missing = max_count - len(chosen)
    picks = rest[np.arange(missing) * len(rest) // max(missing, 1)]
    return np.sort(np.concatenate([chosen, picks]))
