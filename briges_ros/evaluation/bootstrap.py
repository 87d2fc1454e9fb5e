"""How far a mean over frames may be off: percentile bootstrap, in blocks where frames are related.

The bootstrap draws as many frames as there are, with replacement, and takes the mean, many times
over; the interval holds the middle 95 % of these means (Efron and Tibshirani, 1993, chapter 13). It
presumes that frames are independent. Neighbours that show one scene are not: they are good or bad
together, and the interval comes out too narrow. The circular block bootstrap (Politis and Romano,
1992) draws runs of neighbours instead, the last frame being followed by the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
_AT_ONCE = 100  # resamples held in memory


@dataclass(frozen=True)
class Interval:
    """A mean over frames and its confidence interval.

    Attributes:
        mean: over the frames that have the value.
        low, high: ends of the interval; NaN with fewer than two frames.
        frames: how many these are.
    """

    mean: float
    low: float
    high: float
    frames: int


def mean_interval(values: NDArray[np.floating], block: int = 1, seed: int = 0) -> Interval:
    """The mean of a measure over frames, with its 95 % interval.

    Args:
        values: (N,) one for each frame, neighbours next to each other; NaN = the frame has none.
        block: frames drawn together; at most half of them all, so that blocks can differ.
        seed: the same values and seed give the same interval.
    """
    known = np.isfinite(values)
    count = int(known.sum())
    if count == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(np.mean(values[known]))
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    rng = np.random.default_rng(seed)
    means = _resampled_means(np.where(known, values, 0.0), known, block, rng)
    low, high = (float(q) for q in np.nanquantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Interval(mean, low, high, count)


def paired_difference(
    ours: NDArray[np.floating], theirs: NDArray[np.floating], block: int = 1, seed: int = 0
) -> Interval:
    """The mean of ours - theirs over the frames of both, with its 95 % interval.

    Two runs on the same frames are good and bad on the same ones, so the difference is known far
    better than either mean. An interval without 0 is a difference that the choice of frames does
    not explain.

    Args:
        ours, theirs: (N,) a measure for the same frames in the same order.
        block, seed: see `mean_interval`.

    Raises:
        ValueError: they differ in length.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f'{ours.shape} values of ours and {theirs.shape} of theirs')
    return mean_interval(ours - theirs, block, seed)


def _resampled_means(
    values: NDArray[np.floating], known: NDArray[np.bool_], block: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(RESAMPLES,) means over frames drawn in blocks."""
    count = len(values)
    block = max(1, min(block, count // 2))
    members = (np.arange(count)[:, None] + np.arange(block)) % count
    sums, sizes = values[members].sum(axis=1), known[members].sum(axis=1)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, _AT_ONCE):
        blocks = rng.integers(0, count, (_AT_ONCE, math.ceil(count / block)))
        with np.errstate(invalid='ignore'):  # no frame drawn that has a value
            means[start : start + _AT_ONCE] = sums[blocks].sum(axis=1) / sizes[blocks].sum(axis=1)
    return means
