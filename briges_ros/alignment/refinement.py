"""Local refinement: inverse depth that agrees with the anchors, after a fit of scale and shift.

A network errs by a field of factors that are alike in a neighbourhood and on one surface. At an
anchor the factor is known: exp(r), r = -log(y z) with y = s p + t. It is carried to the pixels by
inverse distance weighting with the power 4 (Shepard, ACM 1968) in the space of column, row and
log y: what seems to be at another depth is far away, so that hardly anything crosses strong edges.
Such an interpolation is an average of the residuals and of a prior at 0: bounded, right at the
anchors, gone far from all of them. On real frames it does as well as kriging with an exponential
covariance, and solves no equations.

Such a field has steps between anchors; so it is smoothed at last, but for the network's own edges.

The sums run over a pyramid of cells, near ones fine and far ones coarse, as those of Barnes and Hut
(Nature 1986) do. Before, the neighbours of every anchor vote on it: what few of them share counts
little. Being an outlier of the fit is no reason to be left out, as long as there are not too many:
where the network is wrong, all anchors are outliers, and agree with one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from briges_ros.alignment.fit import sample

Array32 = npt.NDArray[np.float32]

# The unit of distance is this part of the image's width, or a factor e in depth.
REACH = 0.3
# Beside its distance, an anchor at another depth counts less by (1 + (log ratio / this)^2)^2.
SAME_DEPTH = 0.5
# The prior counts as much as one anchor at distance 1.
_PRIOR = 1.0
# Factors up to this one are taken for errors of the network; an anchor that asks for more is wrong.
BOUND = math.log(4.0)
# A network may be far off in a part of the image, and what the anchors say there is what refinement
# is for. But many anchors may also be wrong together, see `_wrong_together`: those that are off by
# more than so many standard deviations and a factor of 1.5,
_WRONG = 4.0
_FAR_OFF = 0.4
# if this share of them lies at one depth, over things that the network sees spread so much more;
_ONE_DEPTH = 0.06
_ONE_DEPTH_SHARE = 0.5
_RELIEF = 3.0
# or if they are this share of all anchors, and so many times fewer lie halfway.
_BLOCK_SHARE = 0.28
_VALLEY = 0.4
_MIN_TOGETHER = 8
# The mean of a cell stands for its anchors: no nearer than this part of the cell; and the next
# coarser cells, which hold the same anchors, count this much.
_BLUR = 0.7
_FADE = 0.125
# The correction is smoothed over this part of the spacing of the anchors to either side, and no
# more than this part of the image's width; but not across relief of the network's, as a logarithm,
# that is more than this.
_SMOOTH = 0.4
_SMOOTH_MOST = 0.05
_RELIEF_OF_NOTE = 0.1
# Cells of the finest level are between these, pixels; farther ones are looked up at every such
# pixel only.
_CELLS = (2, 32)
_FAR_STEP = 8
# The vote is taken among anchors within about so many times their spacing; residuals that differ
# by less than this agree (or by up to twice that, as bins fall).
_ELECTORATE = 3.0
_AGREE = 0.1
# Where a share w of all anchors is hardly voted for by any, an anchor needs more than about so many
# times w (w - w0) of the strongest party to be believed; w0 is what a poor network makes of good
# anchors, as far as they are many enough to tell.
_DOUBT = 40.0
_NO_DOUBT = 0.1
_NO_DOUBT_ANCHORS = 100
_LEAST_VOTED = 0.2
_LEAST_WEIGHT = 1e-6
# A pixel that the fit puts beyond all is brought back beside anchors only, half at this distance,
# and then it is taken to be so many times as far as the farthest anchors.
_RESCUE_DISTANCE = 0.2
_RESCUE_DEPTH = 2.0


@dataclass(frozen=True, eq=False)
class Refinement:
    """Inverse depth after local refinement.

    Attributes:
        inverse_depth: (H, W) float32, 1/m; 0 or less is beyond any range, NaN unknown. Positive
            values of the fit are changed by a factor between 1/4 and 4.
        sigma: (H, W) float32, standard deviation of its relative error: that of the network far
            from anchors, that of the sensor at them, and between as the distance has it.
    """

    inverse_depth: Array32
    sigma: Array32


def refine(
    relative: Array32,
    scale: float,
    shift: float,
    model_error: float,
    u: Array32,
    v: Array32,
    depth: Array32,
    sigma: Array32,
    weight: npt.NDArray[np.floating] | None = None,
) -> Refinement:
    """Correct 1/z = scale * relative + shift by what the anchors around each pixel say.

    Args:
        relative: (H, W) float32 inverse depth up to scale and shift, larger is nearer.
        scale: 1/m per unit of `relative`.
        shift: 1/m.
        model_error: Relative standard deviation of the network about the fit.
        u: (N,) columns of the anchors in pixels of `relative`.
        v: (N,) rows.
        depth: (N,) metres along optical Z. Anchors that are not positive, out of the image, or off
            by more than a factor of 4 are not used.
        sigma: (N,) standard deviation of `depth`, metres.
        weight: (N,) how much each anchor counts, beside its noise; by default 1.

    Returns:
        The refined inverse depth; without usable anchors that of the fit.
    """
    inverse = np.multiply(relative, np.float32(scale), dtype=np.float32)
    inverse += np.float32(shift)
    u, v, depth, sigma = (np.asarray(a, np.float32) for a in (u, v, depth, sigma))
    y = np.float32(scale) * sample(relative, u, v) + np.float32(shift)
    usable = np.isfinite(y) & np.isfinite(depth) & (depth > 0) & np.isfinite(sigma)
    if weight is not None:
        weight = np.asarray(weight, np.float32)
        usable &= np.isfinite(weight) & (weight > 0)
    floor = np.float32(0.0)
    if usable.any():
        floor = np.float32(1 / (_RESCUE_DEPTH * np.quantile(depth[usable], 0.99)))
        off = np.log(np.maximum(y, floor) * np.where(usable, depth, 1))
        usable[usable] = ~_wrong_together(off[usable], depth[usable], model_error)
        usable &= np.abs(off) < BOUND
    if not usable.any() or min(inverse.shape) < _FAR_STEP:
        return Refinement(inverse, np.full(inverse.shape, model_error, np.float32))
    u, v, depth, sigma = (a[usable] for a in (u, v, depth, sigma))
    nearness = np.log(np.maximum(y[usable], floor))
    residual = -nearness - np.log(depth)
    spacing = math.sqrt(inverse.size / len(u))
    counts = _votes(u, v, residual, _ELECTORATE * spacing, inverse.shape)
    if weight is not None:
        counts *= weight[usable]
    noise = float(np.median(np.square(sigma / depth)))

    unit = np.float32(1 / (REACH * inverse.shape[1]))
    # An error of the network grows with the square root of the distance. So noise is distance:
    # what is nearer than that to a noisy anchor does not know better.
    soft = np.float32(min(noise / max(model_error, 1e-3) ** 2, 1.0) / 4)
    size = 2 ** math.floor(math.log2(spacing) - 0.5)
    size = min(max(size, _CELLS[0]), _CELLS[1])
    values = (counts, u * unit * counts, v * unit * counts, nearness * counts, residual * counts)
    cells = _cells(values, u, v, size, inverse.shape)
    near, weighted, step = _interpolated(inverse, floor, cells, size, unit, soft)

    def full(field: Array32) -> Array32:
        return _enlarged(field, step)[: inverse.shape[0], : inverse.shape[1]]

    low = inverse < floor
    if low.any():
        back = full(near / (near + np.float32(_RESCUE_DISTANCE**-4)))
        inverse[low] += (floor - inverse[low]) * back[low]
    correction = weighted / (near + np.float32(_PRIOR))
    reach = int(min(_SMOOTH * spacing, _SMOOTH_MOST * inverse.shape[1]) / step)
    if reach:
        picked = inverse[step // 2 :: step, step // 2 :: step]
        seen = np.asarray(np.log(np.fmax(picked, floor)), np.float32)
        h, w = seen.shape
        correction[:h, :w] = _guided(correction[:h, :w], seen, reach)
    inverse *= full(np.exp(correction))
    distance = 1 / np.sqrt(np.sqrt(near) + np.float32(1e-6))
    variance = np.float32(model_error**2) * (1 - np.exp(-2 * distance)) + np.float32(noise)
    return Refinement(inverse, full(np.sqrt(variance)))


def _wrong_together(off: Array32, depth: Array32, model_error: float) -> npt.NDArray[np.bool_]:
    """Tell which anchors are wrong, though they agree with one another, as on one object.

    A network that is wrong there is wrong in another way. It has some relief left wrong, but does
    not see relief where all is at one depth, as when a sensor returns one range for a whole region
    (dust, a reflection, a stuck cell). And its errors grow from small ones: between many anchors
    that fit and many that are off by a factor there are others, where anchors of another surface
    or another scale leave a gap.

    Args:
        off: (N,) log of the anchors' depth over that of the fit.
        depth: (N,) metres.
        model_error: Relative standard deviation of the network about the fit.
    """
    none = np.zeros(len(off), np.bool_)
    least = max(_WRONG * model_error, _FAR_OFF)
    far = np.abs(off) > least
    if far.sum() < _MIN_TOGETHER:
        return none
    log_depth = np.log(depth[far])
    order = np.argsort(log_depth)
    sorted_depth = log_depth[order]
    counts = np.searchsorted(sorted_depth, sorted_depth + _ONE_DEPTH) - np.arange(len(order))
    first = int(counts.argmax())
    if counts[first] > max(_ONE_DEPTH_SHARE * len(order), _MIN_TOGETHER):
        alike = order[first : first + counts[first]]
        # The network's own log depth is off by `off` from that of the anchor.
        seen = _spread(log_depth[alike] - off[far][alike])
        if seen > _RELIEF * max(_spread(log_depth[alike]), _ONE_DEPTH / _RELIEF):
            return far
    side = off * np.sign(np.median(off[far]))
    block = side > least
    if block.sum() > _BLOCK_SHARE * len(off):
        part = side / np.median(side[block])
        halfway = ((part > 0.35) & (part < 0.65)).sum()
        if halfway < _VALLEY * ((part > 0.85) & (part < 1.15)).sum():
            return far
    return none


def _spread(values: Array32) -> float:
    """Between the tenth and the ninetieth percentile."""
    low, high = np.quantile(values, (0.1, 0.9))
    return float(high - low)


def _interpolated(
    inverse: Array32,
    floor: np.float32,
    cells: Array32,
    size: int,
    unit: np.float32,
    soft: np.float32,
) -> tuple[Array32, Array32, int]:
    """Sums of weights and of weighted residuals over all anchors, around pixels.

    Args:
        inverse: (H, W) inverse depth of the fit.
        floor: Least that is taken for inverse depth.
        cells: (5, rows, columns) sums over the finest cells, see `_sums`.
        size: Of those, pixels.
        unit: Distance of a pixel.
        soft: Least distance.

    Returns:
        Both, (h, w), and every how many pixels they are given.
    """
    pyramid = [cells]
    while min(pyramid[-1].shape[1:]) > 2:
        pyramid.append(_halved(pyramid[-1]))
    total: tuple[Array32, Array32] | None = None
    step = coarser = 0
    for level in reversed(range(len(pyramid))):
        cell = size << level
        coarser, step = step, min(max(cell // 2, 2), _FAR_STEP // 2 if level == 0 else _FAR_STEP)
        picked = inverse[step // 2 :: step, step // 2 :: step]
        blur = soft if level == 0 else np.float32(math.hypot(soft, _BLUR * cell * unit))
        own = _sums(np.log(np.fmax(picked, floor)), pyramid[level], cell, step, unit, blur)
        for sums, far in zip(own, total or (), strict=False):
            enlarged = _enlarged(far, coarser // step)
            sums += np.float32(_FADE) * enlarged[: sums.shape[0], : sums.shape[1]]
        total = own
    assert total is not None
    return (*total, step)


def _guided(field: Array32, guide: Array32, reach: int) -> Array32:
    """Smooth a field but for the edges of a guide: the guided filter (He, Sun and Tang, ECCV 2010).

    Args:
        field, guide: (h, w) float32.
        reach: The windows are (2 reach + 1) wide.
    """
    window = 2 * reach + 1, 2 * reach + 1

    def mean(values: Array32) -> Array32:
        return np.asarray(cv2.blur(values, window, borderType=cv2.BORDER_REFLECT), np.float32)

    mean_guide, mean_field = mean(guide), mean(field)
    slope = mean(guide * field) - mean_guide * mean_field
    slope /= mean(guide * guide) - mean_guide * mean_guide + np.float32(_RELIEF_OF_NOTE**2)
    mean_field -= slope * mean_guide  # the offset
    smooth = mean(slope)
    smooth *= guide
    smooth += mean(mean_field)
    return smooth


def _votes(
    u: Array32, v: Array32, residual: Array32, cell: float, shape: tuple[int, ...]
) -> Array32:
    """How far each anchor is to be believed, 0 to 1, by how many around it say about the same.

    That is, by its party's share of the strongest party in 3 x 3 cells, in which the fit has a vote
    as well; and the more of all anchors have no party, the more an anchor needs one.
    """
    bins = int(2 * BOUND / _AGREE) + 3
    rows, columns = int(shape[0] / cell) + 2, int(shape[1] / cell) + 2
    place = (v / cell + 0.5).astype(np.intp) * columns + (u / cell + 0.5).astype(np.intp)
    index = place * bins + ((residual + BOUND) / _AGREE + 1).astype(np.intp)
    single = np.bincount(index, minlength=rows * columns * bins).astype(np.float32)
    single = single.reshape(rows, columns, bins)
    party = single.copy()
    party[:, :, 1:] += single[:, :, :-1]
    party[:, :, :-1] += single[:, :, 1:]
    padded = np.pad(party, ((1, 1), (1, 1), (0, 0)))
    tall = padded[:-2] + padded[1:-1] + padded[2:]
    party = tall[:, :-2] + tall[:, 1:-1] + tall[:, 2:]
    centre = int(BOUND / _AGREE) + 1
    party[:, :, centre - 1 : centre + 2] += 1
    # An anchor's own vote counts half.
    strongest = party.max(axis=2).reshape(-1)[place] - np.float32(0.5)
    share = (party.reshape(-1)[index] - np.float32(0.5)) / strongest
    wrong = float((share < _LEAST_VOTED).mean())
    doubt = _DOUBT * wrong * max(wrong - _NO_DOUBT * min(1.0, len(u) / _NO_DOUBT_ANCHORS), 0.0)
    believed = share / (share + np.float32(doubt + 1e-3))
    return np.maximum(share * believed**4, np.float32(_LEAST_WEIGHT))


def _cells(
    values: Sequence[Array32], u: Array32, v: Array32, cell: int, shape: tuple[int, ...]
) -> Array32:
    """Sums of the anchors' values over cells, (values, rows, columns)."""
    rows, columns = -(-shape[0] // cell), -(-shape[1] // cell)
    place = ((v + 0.5) / cell).astype(np.intp) * columns + ((u + 0.5) / cell).astype(np.intp)
    sums = [np.bincount(place, value, rows * columns) for value in values]
    return np.stack(sums).reshape(-1, rows, columns).astype(np.float32)


def _halved(cells: Array32) -> Array32:
    """Sums over 2 x 2 cells."""
    _, rows, columns = cells.shape
    cells = np.pad(cells, ((0, 0), (0, rows % 2), (0, columns % 2)))
    cells = cells[:, 0::2] + cells[:, 1::2]
    return cells[:, :, 0::2] + cells[:, :, 1::2]


def _sums(
    nearness: Array32, cells: Array32, cell: int, step: int, unit: np.float32, blur: np.float32
) -> tuple[Array32, Array32]:
    """Sums of the weights, and of the weighted residuals, over the 3 x 3 cells around pixels.

    Args:
        nearness: (h, w) log inverse depth at every `step`-th pixel.
        cells: (5, rows, columns) sums of weight, and with it of column, row, nearness and residual.
        cell: Their size in pixels, a multiple of `step`.
        step: See above.
        unit: Distance of a pixel.
        blur: Least distance.

    Returns:
        Both, (rows * cell / step, columns * cell / step).
    """
    _, rows, columns = cells.shape
    parts = cell // step
    missing = rows * parts - nearness.shape[0], columns * parts - nearness.shape[1]
    x = cv2.copyMakeBorder(nearness, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE)
    # A plane for each place within a cell: so cells need not be enlarged to meet the pixels.
    x = np.ascontiguousarray(x.reshape(rows, parts, columns, parts).transpose(1, 3, 0, 2))
    within = (np.arange(parts) * step + step // 2)[:, None, None]
    u = ((within + np.arange(columns) * cell) * unit).astype(np.float32)
    v = ((within + np.arange(rows)[:, None] * cell) * unit).astype(np.float32)
    weight = cells[0]
    means = cells[1:] / np.maximum(weight, np.float32(1e-9))
    weight, means = np.pad(weight, 1), np.pad(means, ((0, 0), (1, 1), (1, 1)))
    near, weighted = np.zeros_like(x), np.zeros_like(x)
    least = max(blur * blur, np.float32(1e-8))
    # Few large planes are taken one by one, as that is what the processor's cache holds.
    group = 1 if parts <= 2 else parts
    ratio, d = np.empty_like(x[:group]), np.empty_like(x[:group])
    for first in range(0, parts, group):
        some = slice(first, first + group)
        for i in range(3):
            for j in range(3):
                at = slice(i, i + rows), slice(j, j + columns)
                mean_u, mean_v, mean_x, residual = means[:, at[0], at[1]]
                # d = (distance^2 (1 + (log ratio / same depth)^2))^2
                np.subtract(x[some], mean_x, out=ratio)
                np.square(ratio, out=ratio)
                np.add(ratio, (np.square(u - mean_u) + least)[None], out=d)
                d += np.square(v[some] - mean_v)[:, None]
                ratio *= np.float32(1 / SAME_DEPTH**2)
                ratio += 1
                d *= ratio
                np.square(d, out=d)
                np.divide(weight[at], d, out=d)
                near[some] += d
                d *= residual
                weighted[some] += d
    shape = rows * parts, columns * parts
    back = [np.ascontiguousarray(a.transpose(2, 0, 3, 1)).reshape(shape) for a in (near, weighted)]
    return back[0], back[1]


def _enlarged(field: Array32, factor: int) -> Array32:
    """Enlarge bilinearly."""
    if factor == 1:
        return field
    size = field.shape[1] * factor, field.shape[0] * factor
    return np.asarray(cv2.resize(field, size, interpolation=cv2.INTER_LINEAR), np.float32)
