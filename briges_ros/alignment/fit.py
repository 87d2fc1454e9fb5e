"""Robust fit of scale and shift: 1/z = scale * relative + shift.

An inverse depth y = s p + t that is off from a true 1/z has the *relative* error e = y z - 1. A
depth network errs by a part of the depth, about alike near and far, so e has about the same spread
everywhere, while an error in inverse depth would count near things alone, and an error in metres
far ones alone. A sensor of noise sigma adds sigma / z to the spread of e.

What is minimised is the usual measure of depth, the mean of |z' - z| / z = |e| / (1 + e), over the
anchors that agree, by iteratively reweighted least squares: for given weights it is linear least
squares in (s, t) on e, that is, least squares in inverse depth weighted with z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# Spread of e that a depth network is granted, beside that of the sensor: used for the search, and
# as what the spread measured on few anchors is drawn towards, as if seen on this many anchors more.
_MODEL_ERROR = 0.1
_MODEL_ERROR_WEIGHT = 10
# Limits to the spread measured. However well a network does on some anchors, it is not that good;
# and one that does worse is not to be called right for it.
_MODEL_ERROR_RANGE = (0.01, 0.2)
# An anchor is an inlier while |e| is below this many times its spread,
# sqrt(model^2 + (sigma / z)^2).
_INLIER_SPREADS = 3.0
# Errors up to this many spreads count squared, greater ones linearly: the mean of |e| has no
# minimum that equations could be solved for, and with few anchors squares are the better estimate.
_SQUARED_UP_TO = 0.5
_HYPOTHESES = 128
_SAMPLE = 640
_MAX_ITERATIONS = 10
_CONVERGED = 1e-3  # relative change of scale and shift
# Lines of which the depths differ by more than this, as a logarithm, for half of the anchors, say
# different things; and this many that agree with the second, as a part of those with the first, are
# too many to choose between them.
_ANOTHER_DEPTH = 0.4
_GREATEST_RIVAL = 0.85
# One reading, see `one_reading`: within this of one depth, as a logarithm; for such shares of the
# anchors; over this much of the relief that the network sees.
_ONE_READING = 0.02
_ONE_READING_SHARE = (0.2, 0.7)
_ONE_READING_RELIEF = 0.25
_DISTRUST = 1e-3  # how much they count
# What is at least needed to trust a fit, see `fit_inverse_depth`.
_MIN_ANCHORS = 5
_MIN_INLIERS = 5
_MIN_INLIER_SHARE = 0.4
# Odds, as a logarithm, by which the anchors must favour the fit over chance.
_MIN_EVIDENCE = math.log(1000.0)
_PARAMETERS = 3  # scale, shift and spread, each of which costs log(N) / 2 (Schwarz 1978)
_GREATEST_ERROR = 0.5  # of an anchor that a flat fit is still drawn through
# Median relative depth error of the inliers at which metres are withheld: metres are held to be
# false from 25 % on, and inliers look better than all pixels do.
_GREATEST_RESIDUAL = 0.16
# An expected relative error of this much halves the quality.
_HALF_QUALITY = 0.25
# Of the anchors that must agree when only the scale moves: nothing else speaks for it.
_MIN_SCALE_SHARE = 0.6
# Anchors are at about one depth, see `_flat`: this share of them within this much of it, and the
# median within this much.
_FLAT_WITHIN = 0.25
_FLAT_SHARE = 0.8
_FLAT_MEDIAN = 0.1
_FLAT_MIN_ANCHORS = 50
# Relief, as a part of the inverse depth, that a flat fit keeps: the scale has to be positive.
_FLAT_RELIEF = 0.01

_DOES_NOT_GROW = (
    'the relative depth does not grow towards the near anchors, or these are all at one depth'
)


@dataclass(frozen=True, eq=False)
class AffineFit:
    """Scale and shift that take relative inverse depth to inverse depth in 1/m.

    Attributes:
        scale: s in 1/z = s p + t, positive, 1/m per unit of p.
        shift: t, 1/m.
        covariance: (2, 2) float64 of (scale, shift), symmetric and positive semidefinite: inverse
            of the weighted normal equations times the variance of the residuals. It takes the
            errors of the anchors as independent; neighbours in an image are not quite.
        inliers: Number of anchors that agree with the fit.
        outliers: Number of usable anchors that do not.
        residual: Median of the relative depth error |z' - z| / z over the inliers.
        inlier_mask: (N,) bool over the anchors given.
        relative_range: Relative inverse depth, least and greatest, for which the fit says anything.
            Unbounded where the anchors tell scale from shift. Where they are at about one depth,
            what seems nearer or farther than all of them is unknown.
        model_error: Relative standard deviation of the network about the fit, without the noise of
            the anchors.
        quality: How far the metres may be trusted, 0 to 1: the share of inliers over 1 + (E /
            0.25)^2, E being the relative error to be expected in the middle and at the ends of the
            anchors' range, from `model_error` and `covariance`. Halved where the anchors do not
            tell scale from shift.
        scale_only: The ratio of shift to scale is that of an earlier fit.
        note: What else is to be known of it, a few words for people.
    """

    scale: float
    shift: float
    covariance: FloatArray
    inliers: int
    outliers: int
    residual: float
    inlier_mask: npt.NDArray[np.bool_]
    relative_range: tuple[float, float] = (-math.inf, math.inf)
    model_error: float = _MODEL_ERROR
    quality: float = 0.0
    scale_only: bool = False
    note: str = ''


@dataclass(frozen=True)
class FitFailure:
    """Why there is no fit.

    Attributes:
        reason: A few words for people.
    """

    reason: str


@dataclass(frozen=True)
class _Line:
    """What RANSAC found.

    Attributes:
        s, t: the line.
        rival: as a part of those that agree with it, how many agree with another one at most,
            that says another depth.
    """

    s: float
    t: float
    rival: float


def sample(
    relative: npt.NDArray[np.float32], u: npt.NDArray[np.float32], v: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Read an image at anchors, bilinearly.

    Args:
        relative: (H, W) float32.
        u: (N,) columns in pixels of `relative`; whole numbers are pixel centres.
        v: (N,) rows.

    Returns:
        (N,) float32. NaN outside the image, which reaches half a pixel beyond the outermost
        centres, and next to a NaN.
    """
    h, w = relative.shape
    u = np.asarray(u, dtype=np.float32)
    v = np.asarray(v, dtype=np.float32)
    inside = (u >= -0.5) & (u < w - 0.5) & (v >= -0.5) & (v < h - 0.5)
    x = np.clip(np.where(inside, u, np.float32(0)), 0, w - 1)
    y = np.clip(np.where(inside, v, np.float32(0)), 0, h - 1)
    column = np.minimum(x.astype(np.intp), max(w - 2, 0))
    row = np.minimum(y.astype(np.intp), max(h - 2, 0))
    right = min(1, w - 1)
    down = w * min(1, h - 1)
    flat = np.ascontiguousarray(relative, np.float32).reshape(-1)
    corner = row * w + column
    x -= column.astype(np.float32)
    y -= row.astype(np.float32)
    top = flat[corner] * (1 - x) + flat[corner + right] * x
    bottom = flat[corner + down] * (1 - x) + flat[corner + down + right] * x
    values: npt.NDArray[np.float32] = top * (1 - y) + bottom * y
    values[~inside] = np.nan
    return values


def fit_inverse_depth(
    relative: npt.NDArray[np.float32],
    depth: npt.NDArray[np.float32],
    sigma: npt.NDArray[np.float32],
    *,
    weight: npt.NDArray[np.floating] | None = None,
    previous: AffineFit | None = None,
    seed: int = 0,
) -> AffineFit | FitFailure:
    """Fit scale and shift to anchors, of which some may be wrong.

    RANSAC over pairs of anchors (all hypotheses at once, scored by truncated squares on a sample of
    at most 640 anchors) finds the consensus; iteratively reweighted least squares on all anchors
    settles it. An anchor agrees while its relative error |e| is below three times
    sqrt(m^2 + (sigma / z)^2), m being the error of the network: 0.1 for the search, then as
    measured on the inliers, between 0.01 and 0.2.

    Metres drawn from anchors that have nothing to do with the relative depth would be made up. So
    the fit must explain the depths of the anchors 1000 times better than their mere distribution
    does, after a charge for its parameters (`evidence`). Where it does not, because there are few
    anchors or all lie at about one depth (a wall, a table from above), only the scale of `previous`
    moves, if they agree with its ratio of shift to scale. Without it, that one depth is the fit,
    for as much of the image as they stand for: see `AffineFit.relative_range`. Many anchors at one
    depth, over things that the network sees at different ones, do not count (`one_reading`); and
    where another line, of another depth, has nearly as many anchors, neither is taken.

    Args:
        relative: (N,) relative inverse depth at the anchors, larger is nearer. What is not finite
            is not used.
        depth: (N,) metres along optical Z.
        sigma: (N,) standard deviation of `depth`, metres.
        weight: (N,) how much each anchor counts, beside its noise; by default 1. What is not
            positive is not used.
        previous: The last fit, if it still stands for the scene.
        seed: Seed of the hypotheses. The same input and seed give the same fit.

    Returns:
        The fit, or why there is none: fewer than 5 usable anchors; fewer than 5, or than 40 %, in
        agreement, or two parties of them; relative depth that falls where the anchors come nearer,
        that does not explain them, or that is off by more than 16 % at half of those that agree.

    Raises:
        ValueError: The vectors differ in length.
    """
    if weight is None:
        weight = np.ones(np.shape(depth))
    if not np.shape(relative) == np.shape(depth) == np.shape(sigma) == np.shape(weight):
        raise ValueError(
            f'relative, depth, sigma and weight must have one length, got {np.shape(relative)}, '
            f'{np.shape(depth)}, {np.shape(sigma)} and {np.shape(weight)}'
        )
    usable = np.isfinite(relative) & np.isfinite(depth) & (depth > 0) & np.isfinite(sigma)
    usable &= np.isfinite(weight) & (weight > 0)
    count = int(usable.sum())
    if count < _MIN_ANCHORS:
        return FitFailure(f'{count} usable anchors, at least {_MIN_ANCHORS} needed')
    p = np.asarray(relative, dtype=np.float64)[usable]
    z = np.asarray(depth, dtype=np.float64)[usable]
    noise = np.asarray(sigma, dtype=np.float64)[usable] / z
    part = np.asarray(weight, dtype=np.float64)[usable]
    part[one_reading(p, z)] *= _DISTRUST
    part /= part.mean()
    # Centred and scaled, so that the equations are well conditioned whatever the network's unit.
    centre, unit = _median(p), float(p.max() - p.min())
    if unit <= 1e-6 * abs(centre) or unit < 1e-30:
        failure = FitFailure('the relative depth is the same at all anchors')
        return _scale_only(previous, p, z, noise, usable) or failure
    p -= centre
    p /= unit

    def degenerate(reason: str) -> AffineFit | FitFailure:
        moved = _scale_only(previous, p * unit + centre, z, noise, usable)
        return moved or _flat(p, z, centre, unit, usable) or FitFailure(reason)

    rng = np.random.default_rng(seed)
    few = rng.choice(count, _SAMPLE, replace=False) if count > _SAMPLE else np.arange(count)
    start = _search(p[few], z[few], np.hypot(noise[few], _MODEL_ERROR), part[few], rng)
    if start is None:
        return degenerate(_DOES_NOT_GROW)
    if start.rival > _GREATEST_RIVAL:
        return FitFailure('the anchors fall into two parts that ask for different depths')
    s, t, model = _refine(start.s, start.t, p, z, noise, part)

    spread = np.hypot(noise, model)
    error = (s * p + t) * z - 1
    inlier = np.abs(error) < _INLIER_SPREADS * spread
    inliers = int(inlier.sum())
    if inliers < max(_MIN_INLIERS, _MIN_INLIER_SHARE * count):
        moved = _scale_only(previous, p * unit + centre, z, noise, usable)
        return moved or FitFailure(
            f'only {inliers} of {count} anchors agree with the relative depth'
        )
    if s <= 0:
        return degenerate(_DOES_NOT_GROW)
    normal, _ = _equations(part * inlier / (spread * spread), p, z)
    singular = not np.linalg.det(normal) > 1e-12 * normal[0, 0] * normal[1, 1]
    if singular or evidence(error[few], z[few], spread[few], count) < _MIN_EVIDENCE:
        return degenerate('the anchors do not tell scale from shift: one depth fits them as well')

    # z' = z / (1 + e), so |z' - z| / z = |e| / (1 + e).
    residual = _median(np.abs(error[inlier]) / (1 + error[inlier]))
    if residual > _GREATEST_RESIDUAL:
        return FitFailure(f'the relative depth is off by {residual:.0%} at half of the anchors')

    chi2 = float((part * np.square(error / spread))[inlier].sum()) / (inliers - 2)
    covariance = np.linalg.inv(normal) * chi2
    ends = np.quantile(p[inlier], (0.05, 0.5, 0.95))
    design = np.stack([ends, np.ones(3)])
    y = np.maximum(s * ends + t, 1e-9)
    variance = np.einsum('ik,ij,jk->k', design, covariance, design) / (y * y)
    # Back to the network's unit: s (p - centre) / unit + t.
    back = np.array([[1 / unit, 0.0], [-centre / unit, 1.0]])
    covariance = back @ covariance @ back.T
    mask = np.zeros(len(usable), np.bool_)
    mask[usable] = inlier
    return AffineFit(
        scale=s / unit,
        shift=t - s * centre / unit,
        covariance=(covariance + covariance.T) / 2,
        inliers=inliers,
        outliers=count - inliers,
        residual=residual,
        inlier_mask=mask,
        model_error=model,
        quality=quality(inliers / count, model, float(variance.mean())),
    )


def one_reading(
    p: npt.NDArray[np.floating[Any]], z: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.intp]:
    """Find anchors that all give one depth, over things that the network sees at different depths.

    In a scene, hardly a tenth of the anchors are within 2 % of any one depth, unless they are on a
    wall that faces the camera, and then they are alike to the network, too. A fifth and more are a
    reflection, dust on a lens, a part of the sensor that is stuck. If it is nearly all, there is
    nothing to say so.

    Args:
        p: (N,) relative inverse depth; NaN is not looked at.
        z: (N,) metres.

    Returns:
        Their indices, none as a rule. A fit hardly counts them, a refinement must not at all.
    """
    alike = same_depth(z)
    low, high = _ONE_READING_SHARE
    if not low * len(z) < len(alike) < high * len(z) or len(alike) < _MIN_ANCHORS:
        return alike[:0]
    here, all_over = (np.ptp(np.nanquantile(x, (0.1, 0.9))) for x in (p[alike], p))
    return alike if here > _ONE_READING_RELIEF * all_over else alike[:0]


def same_depth(z: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.intp]:
    """Find the indices of the most of z, (N,) metres, that are within 2 % of each other."""
    order = np.argsort(z)
    log_z = np.log(z[order])
    counts = np.searchsorted(log_z, log_z + _ONE_READING) - np.arange(len(z))
    first = int(counts.argmax())
    return order[first : first + counts[first]]


def quality(share: float, model_error: float, variance: float) -> float:
    """See `AffineFit.quality`."""
    return share / (1 + (model_error**2 + variance) / _HALF_QUALITY**2)


def evidence(error: FloatArray, z: FloatArray, spread: FloatArray, count: int) -> float:
    """Log odds of the fit against anchors that have nothing to do with the relative depth.

    Under the fit, a part of the anchors has normal errors and the others are from anywhere; against
    it, all are. From where, their own distribution says (a kernel density of log z). The part is
    the most likely one (expectation maximisation), the parameters are charged for as by Schwarz.

    Args:
        error, z, spread: (n,) of a sample of the anchors.
        count: Number of all anchors, which the odds are for.
    """
    log_z = np.log(z)
    n = len(z)
    # As narrow as the fit sees, so that anchors all at one depth are no evidence for a fit to them.
    width = _median(spread)
    low = float(log_z.min()) - 4 * width
    cells = ((log_z - low) / (width / 2)).astype(np.intp)
    kernel = np.exp(-0.5 * np.square(np.arange(-6, 7) / 2)) / (width * math.sqrt(2 * math.pi))
    density = np.convolve(np.bincount(cells, minlength=int(cells.max()) + 8), kernel, 'same')
    # Each as the others have it, and one more that could be anywhere in their range.
    others = np.maximum(density[cells] - kernel[6], 0.0)
    anywhere = (others + 1 / max(float(np.ptp(log_z)), width)) / n
    # And all about one depth, as far as they are.
    about = log_z - _median(log_z)
    deviation = max(1.4826 * _median(np.abs(about)), float(spread.min()))
    one_depth = _normal(about, np.full(n, deviation)) + 0.05 * anywhere
    # The density of log z is that of e, as de = (1 + e) d(log z).
    fitted = _normal(error, spread) * np.maximum(1 + error, 0)
    gain = min(_gain(fitted / chance) for chance in (anywhere, one_depth)) * count / n
    return gain - 0.5 * _PARAMETERS * math.log(count)


def _median(x: npt.NDArray[np.floating[Any]]) -> float:
    """The upper median: a quarter of the time of NumPy's, which has more to offer."""
    middle = len(x) // 2
    return float(np.partition(x, middle)[middle])


def _normal(x: FloatArray, deviation: FloatArray) -> FloatArray:
    """Density of the normal distribution."""
    return np.exp(-0.5 * np.square(x / deviation)) / (deviation * math.sqrt(2 * math.pi))


def _gain(ratio: FloatArray) -> float:
    """Log likelihood ratio of the mixture whose inliers are so many times likelier than chance."""
    part = 0.7
    for _ in range(5):
        mixed = part * ratio
        part = float((mixed / (mixed + 1 - part)).mean())
    return float(np.log(part * ratio + 1 - part).sum())


def _scale_only(
    previous: AffineFit | None,
    p: FloatArray,
    z: FloatArray,
    noise: FloatArray,
    usable: npt.NDArray[np.bool_],
) -> AffineFit | None:
    """Move the scale of an earlier fit, and its shift along, or None if the anchors deny it.

    Args:
        previous: The earlier fit.
        p: (N,) relative inverse depth of the usable anchors, in the network's unit.
        z: (N,) their depth, metres.
        noise: (N,) relative standard deviation of `z`.
        usable: (M,) bool, which of all anchors these are.
    """
    if previous is None:
        return None
    before = (previous.scale * p + previous.shift) * z
    if not (before > 0).any():
        return None
    spread = np.hypot(noise, previous.model_error)
    factor = 1 / _median(before[before > 0])
    for _ in range(3):
        error = factor * before - 1
        inlier = np.abs(error) < _INLIER_SPREADS * spread
        if inlier.sum() < max(_MIN_INLIERS, _MIN_SCALE_SHARE * len(z)):
            return None
        weight = inlier / (spread * spread * np.maximum(np.abs(error) / spread, _SQUARED_UP_TO))
        factor = float((weight * before).sum() / (weight * before * before).sum())
    error = factor * before - 1
    inliers = int(inlier.sum())
    # The error of the network is alike at anchors that lie together: more of them do not mend it.
    variance = float(previous.model_error**2 + np.square(error[inlier]).mean() / inliers)
    line = np.array([previous.scale, previous.shift])
    mask = np.zeros(len(usable), np.bool_)
    mask[usable] = inlier
    return AffineFit(
        scale=factor * previous.scale,
        shift=factor * previous.shift,
        covariance=factor**2 * (previous.covariance + variance * np.outer(line, line)),
        inliers=inliers,
        outliers=len(z) - inliers,
        residual=_median(np.abs(error[inlier]) / (1 + error[inlier])),
        inlier_mask=mask,
        relative_range=previous.relative_range,
        model_error=previous.model_error,
        quality=0.5 * quality(inliers / len(z), previous.model_error, variance),
        scale_only=True,
    )


def _flat(
    p: FloatArray, z: FloatArray, centre: float, unit: float, usable: npt.NDArray[np.bool_]
) -> AffineFit | None:
    """Fit anchors that lie at about one depth, or None if they do not.

    How the depth varies about it, the anchors hardly tell: plain least squares in inverse depth
    takes as much relief as they have in common with the network. That cannot be far wrong for
    pixels that the network takes to be between the anchors; the others are left out by
    `relative_range`.

    Args:
        p: (N,) relative inverse depth of the usable anchors, less `centre`, in units of `unit`.
        z: (N,) their depth, metres.
        centre, unit: To get back to the network's unit.
        usable: (M,) bool, which of all anchors these are.
    """
    error = one_depth(z) / z - 1
    inlier = np.abs(error) < _FLAT_WITHIN
    inliers = int(inlier.sum())
    if (
        len(z) < _FLAT_MIN_ANCHORS
        or inliers < _FLAT_SHARE * len(z)
        or np.median(np.abs(error)) > _FLAT_MEDIAN
    ):
        return None
    line = flat_line(p, z)
    if line is None:
        return None
    # The line through all that is not far off; those that then disagree are not stood for.
    s, t = line
    fair = np.abs(error) < _GREATEST_ERROR
    y = 1 / z[fair]
    middle, level = float(p[fair].mean()), float(y.mean())
    variance = float(np.square(p[fair] - middle).mean())
    error = (s * p + t) * z - 1
    inlier = np.abs(error) < _FLAT_WITHIN
    inliers = int(inlier.sum())
    low, high = (float(q) for q in np.quantile(p[inlier], (0.01, 0.99)))
    model = float(np.clip(error[inlier].std(), *_MODEL_ERROR_RANGE))
    # The slope may be anything that the spread of the anchors allows over their range.
    spread = float(y.std())
    covariance = np.diag([spread**2 / variance / 4, spread**2 / inliers])
    back = np.array([[1 / unit, 0.0], [-centre / unit - middle, 1.0]])
    covariance = back @ covariance @ back.T
    mask = np.zeros(len(usable), np.bool_)
    mask[usable] = inlier
    return AffineFit(
        scale=s / unit,
        shift=level - s * (centre / unit + middle),
        covariance=(covariance + covariance.T) / 2,
        inliers=inliers,
        outliers=len(z) - inliers,
        residual=_median(np.abs(error[inlier]) / (1 + error[inlier])),
        inlier_mask=mask,
        relative_range=(low * unit + centre, high * unit + centre),
        model_error=model,
        quality=0.5 * quality(inliers / len(z), model, 0.0),
        note='all at about one depth',
    )


def consensus_line(p: FloatArray, z: FloatArray, noise: FloatArray) -> tuple[float, float] | None:
    """Find the line (s, t), s > 0, through two anchors that most others agree with, if any.

    Args:
        p: (N,) relative inverse depth.
        z: (N,) metres.
        noise: (N,) relative standard deviation of z.
    """
    centre, unit = _median(p), float(np.ptp(p))
    if not unit > 0:
        return None
    spread = np.hypot(noise, _MODEL_ERROR)
    line = _search((p - centre) / unit, z, spread, np.ones(len(p)), np.random.default_rng(0))
    return None if line is None else (line.s / unit, line.t - line.s * centre / unit)


def one_depth(z: FloatArray) -> float:
    """Find the depth in metres that most of z, (N,) metres, are nearest to."""
    candidates = [float(q) for q in np.quantile(z, np.linspace(0.02, 0.98, 33))]
    return min(candidates, key=lambda c: _mean_error(z / c))


def flat_line(p: FloatArray, z: FloatArray) -> tuple[float, float] | None:
    """Find the line (s, t) about one depth, with as much relief as anchors and network share.

    Plain least squares in inverse depth over what is not far from that depth; s is positive.

    Args:
        p: (N,) relative inverse depth.
        z: (N,) metres.

    Returns:
        1/m per unit of p, and 1/m; None if p is the same everywhere.
    """
    fair = np.abs(one_depth(z) / z - 1) < _GREATEST_ERROR
    x, y = p[fair], 1 / z[fair]
    middle, level = float(x.mean()), float(y.mean())
    variance = float(np.square(x - middle).mean())
    if variance <= 0:
        return None
    slope = float(((x - middle) * (y - level)).mean()) / variance
    s = max(slope, _FLAT_RELIEF * level / math.sqrt(variance))
    return s, level - s * middle


def _search(
    p: FloatArray,
    z: FloatArray,
    spread: FloatArray,
    part: FloatArray,
    rng: np.random.Generator,
) -> _Line | None:
    """Find the line (s, t), s > 0, through two anchors that most others agree with, if any."""
    # One anchor from the farther half and one from the nearer: a wide pair pins the line down
    # better.
    order = np.argsort(p, kind='stable')
    half = len(p) // 2
    far = order[rng.integers(0, half, _HYPOTHESES)]
    near = order[rng.integers(half, len(p), _HYPOTHESES)]
    with np.errstate(divide='ignore', invalid='ignore'):
        s = (1 / z[near] - 1 / z[far]) / (p[near] - p[far])
    good = np.isfinite(s) & (s > 0)
    if not good.any():
        return None
    s, far = s[good], far[good]
    t = 1 / z[far] - s * p[far]
    # (s p z + t z - 1) / spread, (hypotheses, anchors). No matrix product: its threads would
    # contend with those of the inference for so little work.
    scaled_z = (z / spread).astype(np.float32)
    size = s.astype(np.float32)[:, None] * p.astype(np.float32)
    size += t.astype(np.float32)[:, None]
    size *= scaled_z
    size -= (1 / spread).astype(np.float32)
    np.square(size, out=size)
    np.minimum(size, np.float32(_INLIER_SPREADS**2), out=size)
    counted = part.astype(np.float32)
    inliers = np.where(size < np.float32(_INLIER_SPREADS**2), counted, 0).sum(axis=1)
    size *= counted
    best = int(size.sum(axis=1).argmin())
    # Lines that say another depth for half of the anchors, by how many agree with them.
    y = np.maximum(s * np.quantile(p, np.linspace(0.05, 0.95, 7))[:, None] + t, 1e-6)
    other = np.median(np.abs(np.log(y / y[:, best, None])), axis=0) > _ANOTHER_DEPTH
    rival = float(inliers[other].max(initial=0)) / max(float(inliers[best]), 1e-9)
    return _Line(float(s[best]), float(t[best]), rival)


def _refine(
    s: float, t: float, p: FloatArray, z: FloatArray, noise: FloatArray, part: FloatArray
) -> tuple[float, float, float]:
    """Reweighted least squares from a line that is about right; also gives the network's error."""
    model = _MODEL_ERROR
    for _ in range(_MAX_ITERATIONS):
        error = (s * p + t) * z - 1
        spread = np.hypot(noise, model)
        size = np.abs(error) / spread
        inlier = size < _INLIER_SPREADS
        inliers = int(inlier.sum())
        if inliers < _MIN_INLIERS:
            break
        # Least squares with weights 1 / (|e| (1 + e)) has the minimum of |e| / (1 + e).
        linear = np.maximum(_SQUARED_UP_TO, size) * np.maximum(1 + error, 0.2)
        normal, right = _equations(part * inlier / (spread * spread * linear), p, z)
        (a, b), (_, d) = normal.tolist()
        determinant = a * d - b * b
        if not determinant > 1e-12 * a * d:
            break
        before = s, t
        first, second = right.tolist()
        s, t = (first * d - second * b) / determinant, (second * a - first * b) / determinant
        # Standard deviation of a normal distribution from its median absolute deviation.
        measured = 1.4826 * _median(np.abs(error[inlier]))
        model2 = inliers * measured**2 + _MODEL_ERROR_WEIGHT * _MODEL_ERROR**2
        model = math.sqrt(model2 / (inliers + _MODEL_ERROR_WEIGHT))
        model = min(max(model, _MODEL_ERROR_RANGE[0]), _MODEL_ERROR_RANGE[1])
        change = abs(s - before[0]) + abs(t - before[1])
        if change < _CONVERGED * (abs(s) + abs(t)):
            break
    return s, t, model


def _equations(weight: FloatArray, p: FloatArray, z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Normal equations of least squares on e = s p z + t z - 1: (2, 2) and right side (2,)."""
    # Plain sums and no BLAS, as in `_search`.
    wz = weight * z
    wzz = wz * z
    pwzz = p * wzz
    cross = float(pwzz.sum())
    matrix = np.array([[float((p * pwzz).sum()), cross], [cross, float(wzz.sum())]])
    return matrix, np.array([float((p * wz).sum()), float(wz.sum())])


def _mean_error(ratio: FloatArray) -> float:
    """Mean of |z' - z| / z, each cut off, from the ratio z / z'."""
    with np.errstate(divide='ignore'):
        error = np.abs(1 / ratio - 1)
    error[~(ratio > 0)] = _GREATEST_ERROR  # no depth at all
    return float(np.minimum(error, _GREATEST_ERROR).mean())
