"""How honest the standard deviation of depth is, and how far a scale without a sensor can be off.

Anchors go in, other pixels score (those of benchmarks/alignment.py). Of honest sigmas, 68 % of the
errors are smaller; of two honest ones, the smaller is better. The second is measured by Winkler's
interval score (JASA 1972) of the interval of one sigma, width + 2 / 0.317 * what is missed, as a
part of the depth: as a ratio to that of one relative sigma for all pixels of a frame, from the
residuals of its fit (1.4826 times their median), beside the same depth.

    python benchmarks/uncertainty.py [--data ../shared/data] [--cache FOLDER] [--output FILE.json]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from alignment import (
    Case,
    drive_frames,
    hand_held_frames,
    single_frames,
    some,
    with_outliers,
)
from numpy.typing import NDArray
from predictions import Predictions, arguments
from rich.console import Console
from rich.progress import track
from rich.table import Table

from briges_ros import Anchors
from briges_ros.alignment import FitFailure, ScaleTracker, fit_inverse_depth, refine, sample
from briges_ros.alignment.ground import ground_prior
from briges_ros.alignment.uncertainty import depth_sigma, local_error
from briges_ros.depth_image import depth_from_inverse

MOST = 5000  # anchors that a frame is fitted to
LIMITS_M = (0.1, 100.0)
BINS_M = (0.0, 2.0, 5.0, 10.0, 20.0, 100.0)
MISSED = 1 - 0.6827
CAR_HEIGHT_M = 1.65  # of the cameras of KITTI over the road (Geiger et al., IJRR 2013)
CAR_TILT = 0.015
FLOOR_TRIES = 1500

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One setting on the frames of one kind.

    Attributes:
        group, setting, refined: which.
        frames: how many had a fit.
        within: share of errors within one sigma, mean over frames.
        spread: standard deviation of that share over frames.
        by_range: the share by true depth, BINS_M; None where nothing is.
        sigma: median over pixels of sigma / depth, mean over frames.
        score: interval score.
        score_ratio: to that of one sigma for all pixels.
        one_within: share of errors within that.
    """

    group: str
    setting: str
    refined: bool
    frames: int
    within: float
    spread: float
    by_range: list[float | None]
    sigma: float
    score: float
    score_ratio: float
    one_within: float


@dataclass(frozen=True)
class Ground:
    """Frames whose scale came from the height over the ground.

    Attributes:
        group: which.
        frames: of them.
        found: how many gave a prior; the rest is None if none did.
        ratio: median of depth / true depth, mean over these.
        abs_rel: their mean relative error.
        fit_abs_rel: that of a fit to the ground truth.
        within: share of errors within one sigma.
    """

    group: str
    frames: int
    found: int
    ratio: float | None
    abs_rel: float | None
    fit_abs_rel: float | None
    within: float | None


def groups(data: Path, predict: Predictions) -> Iterator[tuple[str, Case]]:
    """All frames, with the name of their kind."""
    for case in single_frames(data, predict):
        yield 'frames, LiDAR' if case.limits[1] > 50 else 'frames, RGB-D', case
    for case in drive_frames(data, predict):
        yield 'drive', case
    for case in hand_held_frames(data, predict):
        yield 'hand-held', case


def settings(case: Case) -> dict[str, Anchors]:
    """Anchors of a frame."""
    rng = np.random.default_rng(sum(case.name.encode()))
    few = some(case.pool, 200, rng)
    return {
        '30': some(case.pool, 30, rng),
        '200': few,
        '200, 30 % wrong': with_outliers(few, 0.3, 'uniform', rng),
        'all': case.pool.thinned(MOST),
    }


def errors(case: Case, anchors: Anchors, refined: bool) -> tuple[Values, ...] | None:
    """Of a frame's scored pixels: true depth, error, sigma and the one sigma for all; or None."""
    p = sample(case.relative, anchors.u, anchors.v)
    fit = fit_inverse_depth(p, anchors.depth, anchors.sigma)
    if isinstance(fit, FitFailure):
        return None
    scale = ScaleTracker().update(fit, None)
    arguments = anchors.u, anchors.v, anchors.depth, anchors.sigma
    depth = depth_from_inverse(case.relative, fit.scale, fit.shift, *LIMITS_M)
    if refined:
        inverse = refine(
            case.relative, fit.scale, fit.shift, fit.model_error, *arguments
        ).inverse_depth
        depth = depth_from_inverse(inverse, 1.0, 0.0, *LIMITS_M)
    low, high = fit.relative_range
    depth[(case.relative < low) | (case.relative > high)] = np.nan
    size = (depth.shape[1], depth.shape[0])
    error = local_error(*arguments, fit.scale * p + fit.shift, size, refined=refined)
    sigma = depth_sigma(depth, case.relative, scale, error)
    at = np.rint(case.truth.v).astype(int), np.rint(case.truth.u).astype(int)
    z, sigma, truth = depth[at], sigma[at], case.truth.depth
    known = np.isfinite(z)
    z, sigma, truth = (a[known].astype(np.float64) for a in (z, sigma, truth))
    return truth, np.abs(z - truth), sigma, 1.4826 * fit.residual * z


def score(truth: Values, error: Values, sigma: Values) -> float:
    """Interval score as a part of the depth."""
    missed = np.minimum(np.maximum(error - sigma, 0), truth)  # no more than all
    return float(np.mean((2 * sigma + 2 / MISSED * missed) / truth))


def measure(data: Path, predict: Predictions) -> list[Row]:
    """All settings on all frames."""
    parts: dict[tuple[str, str, bool], list[tuple[Values, ...]]] = {}
    for group, case in track(list(groups(data, predict)), 'frames'):
        for setting, anchors in settings(case).items():
            for refined in (False, True):
                found = errors(case, anchors, refined)
                if found is not None:
                    parts.setdefault((group, setting, refined), []).append(found)
    rows = []
    for key, frames in parts.items():
        within = [float(np.mean(error < sigma)) for _, error, sigma, _ in frames]
        truth, error, sigma, _ = (np.concatenate(a) for a in zip(*frames, strict=True))
        by_range: list[float | None] = []
        for low, high in pairwise(BINS_M):
            there = (truth >= low) & (truth < high)
            share = float(np.mean((error < sigma)[there])) if there.sum() > 100 else None
            by_range.append(share)
        ours = float(np.mean([score(t, e, s) for t, e, s, _ in frames]))
        theirs = float(np.mean([score(t, e, one) for t, e, _, one in frames]))
        rows.append(
            Row(
                *key,
                frames=len(frames),
                within=float(np.mean(within)),
                spread=float(np.std(within)),
                by_range=by_range,
                sigma=float(np.mean([np.median(s / t) for t, _, s, _ in frames])),
                score=ours,
                score_ratio=ours / theirs,
                one_within=float(np.mean([np.mean(e < one) for _, e, _, one in frames])),
            )
        )
    return sorted(rows, key=lambda row: (row.refined, row.group))


def floor_of(case: Case) -> tuple[float, Values] | None:
    """Height over the floor and the way down, from the ground truth (RANSAC); None if no floor."""
    rng = np.random.default_rng(0)
    truth = some(case.pool, 6000, rng)
    rays = case.camera.rays()[np.rint(truth.v).astype(int), np.rint(truth.u).astype(int)]
    z = truth.depth.astype(np.float64)[:, None]
    xyz = np.hstack([rays * z, z])
    best = None
    for _ in range(FLOOR_TRIES):
        a, b, c = xyz[rng.choice(len(xyz), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        length = float(np.linalg.norm(normal))
        if length < 1e-6:
            continue
        normal *= np.sign(normal[1]) / length
        height = float(normal @ a)
        if normal[1] < 0.6 or height < 0.3:  # a wall, or a table before the camera
            continue
        under = xyz @ normal - height
        tolerance = 0.01 + 0.015 * xyz[:, 2]
        value = np.mean(np.abs(under) < tolerance) - 3 * np.mean(under > 4 * tolerance)
        if value > 0.1 and (best is None or value > best[0]):
            best = value, height, normal
    return best and (best[1], best[2])


def measure_ground(data: Path, predict: Predictions) -> list[Ground]:
    """Scale from the height, on frames where that is known."""
    parts: dict[str, list[list[float] | None]] = {}
    for group, case in track(list(groups(data, predict)), 'ground'):
        if group in ('frames, LiDAR', 'drive'):
            mount: tuple[float, Values] | None = (CAR_HEIGHT_M, np.array([0.0, 1.0, 0.0]))
        else:
            mount = floor_of(case)
        if mount is None:
            continue
        height, down = mount
        prior = ground_prior(
            case.relative,
            case.camera,
            height,
            down,
            height_sigma=0.03 * height,
            tilt_sigma=CAR_TILT,
        )
        found = parts.setdefault(group, [])
        everything = case.pool.thinned(MOST)
        p = sample(case.relative, everything.u, everything.v)
        fit = fit_inverse_depth(p, everything.depth, everything.sigma)
        if isinstance(prior, FitFailure) or isinstance(fit, FitFailure):
            found.append(None)
            continue
        at = np.rint(case.truth.v).astype(int), np.rint(case.truth.u).astype(int)
        depth = depth_from_inverse(case.relative, prior.scale, prior.shift, *LIMITS_M)
        best = depth_from_inverse(case.relative, fit.scale, fit.shift, *LIMITS_M)[at]
        scale = ScaleTracker().update(None, None, prior=prior)
        sigma = depth_sigma(depth, case.relative, scale)[at]
        depth, truth = depth[at], case.truth.depth
        known = np.isfinite(depth) & np.isfinite(best)
        depth, best, truth, sigma = (a[known] for a in (depth, best, truth, sigma))
        found.append(
            [
                float(np.median(depth / truth)),
                float(np.mean(np.abs(depth / truth - 1))),
                float(np.mean(np.abs(best / truth - 1))),
                float(np.mean(np.abs(depth - truth) < sigma)),
            ]
        )
    rows = []
    for group, all_frames in parts.items():
        values = [value for value in all_frames if value is not None]
        means = np.mean(values, axis=0).tolist() if values else [None] * 4
        rows.append(Ground(group, len(all_frames), len(values), *means))
    return rows


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = arguments(__doc__.splitlines()[0])
    options = parser.parse_args()
    predict = Predictions(options.model, options.backend, options.cache)
    rows, ground = measure(options.data, predict), measure_ground(options.data, predict)
    table = Table(title='errors within one sigma')
    titles = [f'{a:g}-{b:g} m' for a, b in pairwise(BINS_M)]
    for title in (
        'frames',
        'anchors',
        'depth',
        'within',
        *titles,
        'sigma',
        'score, ratio',
        'one for all',
    ):
        table.add_column(title)
    for row in rows:
        table.add_row(
            f'{row.frames} {row.group}',
            row.setting,
            'refined' if row.refined else 'fit',
            f'{row.within:.0%} +- {row.spread:.0%}',
            *('' if share is None else f'{share:.0%}' for share in row.by_range),
            f'{row.sigma:.1%}',
            f'{row.score:.3f} ({row.score_ratio:.2f} x)',
            f'{row.one_within:.0%}',
        )
    floors = Table(title='scale from the height over the ground')
    for title in ('frames', 'found', 'depth / truth', 'AbsRel', 'AbsRel of a fit', 'within'):
        floors.add_column(title)
    for floor in ground:
        floors.add_row(
            f'{floor.frames} {floor.group}',
            str(floor.found),
            *(
                '' if value is None else f'{value:.2f}'
                for value in (floor.ratio, floor.abs_rel, floor.fit_abs_rel, floor.within)
            ),
        )
    console = Console(width=150)
    console.print(table)
    console.print(floors)
    if options.output:
        values = {
            'model': options.model,
            'within_one_sigma': [asdict(r) for r in rows],
            'ground': [asdict(r) for r in ground],
        }
        options.output.write_text(json.dumps(values, indent=2) + '\n')


if __name__ == '__main__':
    main()
