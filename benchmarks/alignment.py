"""Metres from sparse anchors, right and wrong ones, beside what others do with the same anchors.

Every figure is AbsRel on pixels that no method has seen, as a ratio to that of the oracle (least
squares in inverse depth on all clean ground truth) and to that of each baseline (baselines.py), on
the same anchors in the same run. The network's output does not depend on the anchors: it is made
once and kept in --cache.

    python benchmarks/alignment.py [--data ../shared/data] [--cache FOLDER] [--output FILE.json]
    python benchmarks/alignment.py --speed            # milliseconds, beside least squares
    python benchmarks/alignment.py --false-metric 10000
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from baselines import BASELINES, Problem, line_of_least_squares
from numpy.typing import NDArray
from predictions import Predictions, arguments
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation, Slerp

from briges_ros import Anchors, CameraModel
from briges_ros.alignment import fit_inverse_depth, refine, sample
from briges_ros.alignment.aligner import MAX_FIT_ANCHORS, Aligner
from briges_ros.alignment.edges import edge_weight
from briges_ros.alignment.tracker import ScaleState
from briges_ros.cli.demo_data import load_drive
from briges_ros.cli.inputs import read_image
from briges_ros.depth_image import depth_from_inverse
from briges_ros.evaluation.frames import SingleFrames
from briges_ros.training.datasets import KITTI_TRAINING_FRAMES

Vector = NDArray[np.float64]

TRAINED_ON = {'d13_kitticity'}  # a single frame that is also one of the drive's training part
RANGES_M = {'rgbd': (0.1, 10.0), 'lidar': (1.0, 80.0)}  # as evaluations of NYUv2 and KITTI clamp
COUNTS = (5, 20, 200, 20000)
OUTLIERS = (0.3, 0.5)
TILTS_DEG = (1, 3)
DELAYS_S = (0.05, 0.1)
NEAR_M = 3.0
BIAS_M = 0.5
SCORED = 10000  # pixels a frame, for speed
TUM_EVERY = 6


@dataclass(frozen=True, eq=False)
class Case:
    """A frame: what the network says of it, what can be anchors, and what scores.

    Attributes:
        name, group: which frame of which data.
        relative: (H, W) float32, the network's output.
        camera: of the image.
        pool: pixels that anchors may be taken from.
        truth: other pixels, to score on.
        limits: metres; what any method says is clamped to them.
        delayed: by seconds, `pool` as a sensor saw it that long before.
    """

    name: str
    group: str
    relative: NDArray[np.float32]
    camera: CameraModel
    pool: Anchors
    truth: Anchors
    limits: tuple[float, float]
    delayed: dict[float, Anchors] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """How many anchors, and what is wrong with them."""

    anchors: int
    trouble: str
    make: Callable[[Case, np.random.Generator], Anchors | None]

    @property
    def name(self) -> str:
        """For the table."""
        return f'{self.anchors} {self.trouble}'


def single_frames(data: Path, predict: Predictions) -> Iterator[Case]:
    """Frames of several data sets; a tenth of their pixels scores."""
    frames = SingleFrames(data / 'frames')
    for number, name in enumerate(frames.names):
        if name in TRAINED_ON:
            continue
        frame = frames[number]
        pool, truth = split(frame.depth, number)
        relative = predict(f'frames_{name}', frame.image)
        yield Case(name, 'frames', relative, frame.camera, pool, truth, RANGES_M[frame.kind])


def drive_frames(data: Path, predict: Predictions) -> Iterator[Case]:
    """The part of the drive that nothing trained on; a tenth of the LiDAR points scores."""
    drive = load_drive(data / 'kitti_drive')
    T = drive.T_camera_sensor
    for number in range(KITTI_TRAINING_FRAMES, len(drive.frames)):
        frame, before = drive.frames[number], drive.frames[number - 1]
        delayed = {}
        for delay in DELAYS_S:
            # The car drives straight on: what it saw then was so much farther ahead. The sweep
            # before is real and 100 ms old, one in between is not there.
            travelled = forward_motion(before.points, frame.points) * delay / 0.1
            back = np.eye(4)
            back[2, 3] = travelled
            points, transform = (before.points, T) if delay == 0.1 else (frame.points, back @ T)
            delayed[delay] = Anchors.from_points(points, drive.camera, transform)
        yield Case(
            f'{number:06d}',
            'drive',
            predict(f'kitti_{number:06d}', frame.image),
            drive.camera,
            Anchors.from_points(frame.points, drive.camera, T),
            frame.truth,
            RANGES_M['lidar'],
            delayed,
        )


def forward_motion(before: NDArray[np.float32], now: NDArray[np.float32]) -> float:
    """Metres between two sweeps along x, the LiDAR's forward axis, at which they match best."""
    tree = cKDTree(before)
    points = now[(now[:, 2] > -1.2) & (np.linalg.norm(now, axis=1) < 30)][::7]  # not the road
    steps = np.arange(-0.5, 2.6, 0.1)

    def mismatch(step: float) -> float:
        moved = points + np.array([step, 0, 0], np.float32)
        return float(np.minimum(tree.query(moved)[0], 0.5).mean())

    return float(min(steps, key=mismatch))


def hand_held_frames(data: Path, predict: Predictions) -> Iterator[Case]:
    """Frames of a hand-held camera with its path; a tenth of their pixels scores."""
    folder = data / 'tum_rpy'
    meta = json.loads((folder / 'meta.json').read_text())
    poses = np.array(meta['poses_world_camera'])
    stamps, turns = poses[:, 0], Rotation.from_quat(poses[:, 4:8])

    def pose(stamp: float) -> NDArray[np.float64]:
        T = np.eye(4)
        T[:3, :3] = Slerp(stamps, turns)(stamp).as_matrix()
        T[:3, 3] = [np.interp(stamp, stamps, poses[:, i]) for i in (1, 2, 3)]
        return T

    for number in range(TUM_EVERY // 2, len(poses), TUM_EVERY):
        image = read_image(folder / f'rgb/{number:03d}.jpg')
        raw = cv2.imread(str(folder / f'depth/{number:03d}.png'), cv2.IMREAD_UNCHANGED)
        depth = np.where(raw > 0, raw / 5000, np.nan).astype(np.float32)
        camera = CameraModel(depth.shape[1], depth.shape[0], np.array(meta['K']), D=meta['D'])
        pool, truth = split(depth, number)
        delayed = {
            delay: moved(
                pool, camera, np.linalg.inv(pose(stamps[number] - delay)) @ pose(stamps[number])
            )
            for delay in DELAYS_S
        }
        relative = predict(f'tum_{number:03d}', image)
        yield Case(
            f'{number:03d}', 'hand-held', relative, camera, pool, truth, RANGES_M['rgbd'], delayed
        )


def split(depth: NDArray[np.float32], seed: int) -> tuple[Anchors, Anchors]:
    """Anchors to choose from, and at most a tenth of the pixels to score on."""
    v, u = np.nonzero(np.isfinite(depth))
    order = np.random.default_rng(seed).permutation(len(u))
    scored = min(SCORED, len(u) // 10)

    def anchors(chosen: NDArray[np.intp]) -> Anchors:
        z = depth[v[chosen], u[chosen]]
        size = (depth.shape[1], depth.shape[0])
        return Anchors(u[chosen], v[chosen], z, 0.02 + 0.005 * z, size)

    return anchors(order[scored:]), anchors(order[:scored])


def moved(anchors: Anchors, camera: CameraModel, T: NDArray[np.float64]) -> Anchors:
    """Anchors as if their points were in another place, given by (4, 4) in the optical frame."""
    rays = camera.rays()[np.rint(anchors.v).astype(int), np.rint(anchors.u).astype(int)]
    z = anchors.depth[:, None]
    xyz = np.hstack([rays * z, z])
    return Anchors.from_points(xyz @ T[:3, :3].T + T[:3, 3], camera)


def some(anchors: Anchors, count: int, rng: np.random.Generator) -> Anchors:
    """At most `count` of them, at random."""
    return picked(anchors, rng.permutation(len(anchors))[:count])


def picked(
    anchors: Anchors, chosen: NDArray[np.intp], depth: NDArray[np.float32] | None = None
) -> Anchors:
    """Those, with their depth or another."""
    z = anchors.depth[chosen] if depth is None else depth
    return Anchors(anchors.u[chosen], anchors.v[chosen], z, 0.02 + 0.005 * z, anchors.size)


def with_outliers(anchors: Anchors, share: float, kind: str, rng: np.random.Generator) -> Anchors:
    """Make a share of the anchors wrong."""
    z, count = anchors.depth.copy(), round(share * len(anchors))
    wrong = rng.permutation(len(anchors))[:count]
    if kind == 'uniform':  # anywhere between the nearest and the farthest
        z[wrong] = rng.uniform(z.min(), z.max(), count)
    elif kind == 'object':  # all of those on one part of the image, at one wrong depth
        distance = np.hypot(anchors.u - anchors.u[wrong[0]], anchors.v - anchors.v[wrong[0]])
        wrong = np.argsort(distance)[:count]
        z[wrong] = np.median(z[wrong]) * rng.choice([0.5, 2.0])
    else:
        z[wrong] += BIAS_M
    return picked(anchors, np.arange(len(z)), z)


def settings() -> list[Setting]:
    """All that is measured."""

    def outliers(count: int, share: float, kind: str) -> Setting:
        def make(case: Case, rng: np.random.Generator) -> Anchors:
            return with_outliers(some(case.pool, count, rng), share, kind, rng)

        title = {'uniform': 'uniform', 'object': 'on one object', 'bias': f'+{BIAS_M} m'}[kind]
        return Setting(count, f'{share:.0%} {title}', make)

    def tilted(count: int, degrees: float) -> Setting:
        def make(case: Case, rng: np.random.Generator) -> Anchors:
            axis = rng.normal(size=3)
            turn = Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis))
            T = np.eye(4)
            T[:3, :3] = turn.as_matrix()
            return some(moved(case.pool, case.camera, T), count, rng)

        return Setting(count, f'calibration {degrees} deg', make)

    def late(count: int, delay: float) -> Setting:
        def make(case: Case, rng: np.random.Generator) -> Anchors | None:
            return some(case.delayed[delay], count, rng) if delay in case.delayed else None

        return Setting(count, f'delay {1000 * delay:.0f} ms', make)

    def line(case: Case, rng: np.random.Generator) -> Anchors:
        row = np.median(case.pool.v)
        near = np.argsort(np.abs(case.pool.v - row), kind='stable')[: case.pool.size[0] // 2]
        return some(picked(case.pool, near), 200, rng)

    def close(case: Case, rng: np.random.Generator) -> Anchors | None:
        chosen = np.flatnonzero(case.pool.depth < NEAR_M)
        return some(picked(case.pool, chosen), 200, rng) if len(chosen) >= 200 else None

    result = [Setting(n, 'clean', lambda case, rng, n=n: some(case.pool, n, rng)) for n in COUNTS]
    result += [
        outliers(n, share, kind)
        for kind in ('uniform', 'object', 'bias')
        for n in COUNTS
        for share in OUTLIERS
    ]
    result += [tilted(n, d) for n in (200, 20000) for d in TILTS_DEG]
    result += [late(n, d) for n in (200, 20000) for d in DELAYS_S]
    return [
        *result,
        Setting(200, 'one scan line', line),
        Setting(200, 'all nearer than 3 m', close),
    ]


@dataclass(frozen=True)
class Score:
    """AbsRel of one frame in one setting.

    Attributes:
        group: of the frame.
        oracle: of least squares on all ground truth.
        fit: of our scale and shift alone; None if we give no metres.
        refined: of what we publish; None if we give no metres.
        coverage: share of the scored pixels that ours has a depth for.
        within_sigma: share of them that are off by less than one sigma.
        baselines: by name, on those pixels.
    """

    group: str
    oracle: float
    fit: float | None
    refined: float | None
    coverage: float
    within_sigma: float
    baselines: dict[str, float]


def measure(case: Case, setting: Setting, number: int) -> Score | None:
    """One frame in one setting; None if the setting is not to be had there."""
    seed = number * 1000 + sum(setting.name.encode())
    anchors = setting.make(case, np.random.default_rng(seed))
    if anchors is None:
        return None
    p = sample(case.relative, anchors.u, anchors.v)
    truth = case.truth
    wanted = sample(case.relative, truth.u, truth.v).astype(np.float64)
    known = np.ones(len(truth), bool)
    refined = ours = None
    within = math.nan
    image = np.zeros((*case.relative.shape, 3), np.uint8)  # a still: nothing looks at it
    aligner = Aligner()
    found = aligner.align(image, case.relative, case.camera, anchors, None)
    scale = found.scale
    if scale.state is ScaleState.METRIC:
        low, high = scale.relative_range
        known = (wanted >= low) & (wanted <= high)
        ours = scale.scale * wanted + scale.shift
        at = np.rint(truth.v).astype(int), np.rint(truth.u).astype(int)
        refined = scale.scale * found.relative[at].astype(np.float64) + scale.shift
        near, far = case.limits
        depth = depth_from_inverse(found.relative, scale.scale, scale.shift, near, far)
        sigma = aligner.remember(image, depth, found, case.camera, None)[at]
        finite = known & np.isfinite(sigma)
        within = float(np.mean((np.abs(depth[at] - truth.depth) < sigma)[finite]))

    def abs_rel(inverse: Vector) -> float:
        near, far = case.limits
        z = 1 / np.clip(inverse[known], 1 / far, 1 / near)
        return float(np.mean(np.abs(z / truth.depth[known] - 1)))

    everything = [
        np.concatenate([getattr(case.pool, name), getattr(truth, name)]).astype(np.float64)
        for name in ('u', 'v', 'depth')
    ]
    slope, offset = line_of_least_squares(
        sample(case.relative, everything[0], everything[1]).astype(np.float64), everything[2]
    )
    problem = Problem(
        np.stack([anchors.u, anchors.v], 1).astype(np.float64),
        p.astype(np.float64),
        anchors.depth.astype(np.float64),
        np.stack([truth.u, truth.v], 1).astype(np.float64),
        wanted,
        float(case.relative.min()),
        seed,
    )
    return Score(
        case.group,
        abs_rel(slope * wanted + offset),
        None if ours is None else abs_rel(ours),
        None if refined is None else abs_rel(refined),
        float(known.mean()) if ours is not None else 0.0,
        within,
        {name: abs_rel(method(problem)) for name, method in BASELINES.items()},
    )


@dataclass(frozen=True)
class Row:
    """Means over the frames of one group that have a fit, in one setting.

    Attributes:
        setting, group: what was measured.
        frames: that the setting is to be had in.
        refused: of these, for how many we gave no fit; the means leave them out.
        coverage, within_sigma: see `Score`.
        oracle, fit, refined: AbsRel; None if every frame was refused.
        baselines: AbsRel by name.
    """

    setting: str
    group: str
    frames: int
    refused: int
    coverage: float | None
    within_sigma: float | None
    oracle: float | None
    fit: float | None
    refined: float | None
    baselines: dict[str, float]


def row(setting: Setting, group: str, scores: list[Score]) -> Row:
    """Average."""
    fitted = [score for score in scores if score.fit is not None]

    def mean(values: list[float | None]) -> float | None:
        return float(np.mean(values)) if values else None

    return Row(
        setting.name,
        group,
        len(scores),
        len(scores) - len(fitted),
        *(
            mean([getattr(score, name) for score in fitted])
            for name in ('coverage', 'within_sigma', 'oracle', 'fit', 'refined')
        ),
        {name: float(np.mean([s.baselines[name] for s in fitted])) for name in BASELINES}
        if fitted
        else {},
    )


def accuracy(cases: list[Case], only: str) -> list[Row]:
    """All settings on all frames."""
    rows = []
    for setting in track([s for s in settings() if only in s.name], 'settings'):
        scores: dict[str, list[Score]] = {}
        for number, case in enumerate(cases):
            score = measure(case, setting, number)
            if score is not None:
                scores.setdefault(case.group, []).append(score)
        rows += [row(setting, group, some) for group, some in scores.items()]
    return rows


def show(rows: list[Row]) -> None:
    """The table of ratios."""
    table = Table(title='AbsRel of ours (fit and refinement), and its ratio to that of others')
    titles = ('setting', 'data', 'fits', 'ours', 'fit / oracle', 'ours / oracle', 'ours / fit')
    for title in (*titles, *(f'/ {name}' for name in BASELINES), 'in 1 sigma'):
        table.add_column(title)
    for r in rows:
        fits = f'{r.frames - r.refused}/{r.frames}'
        if r.refined is None:
            table.add_row(r.setting, r.group, fits, 'no metres')
            continue
        others = (r.refined / r.baselines[name] for name in BASELINES)
        ratios = (r.fit / r.oracle, r.refined / r.oracle, r.refined / r.fit, *others)
        table.add_row(
            r.setting,
            r.group,
            fits,
            f'{r.refined:.4f}',
            *(f'{ratio:.3f}' for ratio in ratios),
            f'{r.within_sigma:.0%}',
        )
    Console(width=190).print(table)


def speed(repeats: int = 50) -> list[dict[str, float | str]]:
    """Best milliseconds of this process, beside NumPy's least squares on the same anchors."""
    camera = CameraModel(1242, 375, np.array([[721.5, 0, 609.6], [0, 721.5, 172.9], [0, 0, 1]]))
    T = np.eye(4)
    T[:3, 3] = (0.06, -0.08, -0.27)
    # As in a process that handles images: once a large array was freed, the C library keeps memory
    # of that size, and arrays do not have to be mapped page by page any more.
    image = np.ones((2048, 4096), np.uint8)
    del image
    rng = np.random.default_rng(0)
    relative = cv2.resize(rng.random((12, 40)).astype(np.float32), (1242, 375)) + np.float32(0.1)
    results: list[dict[str, float | str]] = []
    for count in (200, 20000):
        u, v = rng.uniform(0, 1241, 2 * count), rng.uniform(0, 374, 2 * count)
        z = 3 / sample(relative, u, v) * np.exp(rng.normal(0, 0.1, 2 * count))
        z[rng.random(2 * count) < 0.1] = 5.0
        rays = np.stack([(u - 609.6) / 721.5, (v - 172.9) / 721.5, np.ones(2 * count)], 1)
        points = ((rays * z[:, None])[:count] - T[:3, 3]).astype(np.float32)

        def project(points: NDArray[np.float32] = points) -> Anchors:
            return Anchors.from_points(points, camera, T)

        anchors = project()
        p = sample(relative, anchors.u, anchors.v)

        def fit(anchors: Anchors = anchors) -> object:
            few = anchors.spread(MAX_FIT_ANCHORS, relative)
            weight = edge_weight(relative, few.u, few.v)
            p = sample(relative, few.u, few.v)
            return fit_inverse_depth(p, few.depth, few.sigma, weight=weight)

        known = p.astype(float), anchors.depth.astype(float)

        def lines(known: tuple[Vector, Vector] = known) -> object:
            return line_of_least_squares(*known)

        def local(anchors: Anchors = anchors) -> object:
            a = anchors
            return refine(relative, 1 / 3, 0.0, 0.1, a.u, a.v, a.depth, a.sigma)

        best = {'projection': math.inf, 'fit': math.inf, 'refinement': math.inf, 'lstsq': math.inf}
        for _ in range(repeats):
            for name, call in zip(best, (project, fit, local, lines), strict=True):
                start = time.process_time()
                call()
                best[name] = min(best[name], 1000 * (time.process_time() - start))
        results.append({'points': count, 'anchors': len(anchors), **best})
    return results


def false_metric(cases: int) -> dict[str, float | int]:
    """How often metres are given though they are off by more than 25 % in the median."""
    fits = wrong = 0
    for seed in track(range(cases), 'random cases'):
        fit, error = random_case(seed)
        fits += fit
        wrong += fit and error > 0.25
    return {'cases': cases, 'fits': fits, 'false': wrong, 'share': wrong / cases}


def random_case(seed: int) -> tuple[bool, float]:
    """Whether anchors of a random scene give metres, and the median relative error of these.

    Scenes of a floor, a back wall and boxes; networks from perfect to useless, whose errors are
    alike nearby; 5 to 2000 anchors, of which up to 45 % are wrong: scattered, on one object or
    biased.
    """
    rng = np.random.default_rng(seed)
    height, width = 60, 80
    rows = np.arange(height, dtype=np.float32)[:, None] / height
    far = np.exp(rng.uniform(np.log(0.5), np.log(80)))
    truth = np.maximum(rng.uniform(0.2, 10) * np.maximum(rows - 0.4, 0), 1) / far
    truth = np.repeat(truth, width, axis=1)
    for _ in range(rng.integers(6)):
        top, left = rng.integers(height), rng.integers(width)
        box = slice(top, top + rng.integers(5, 40)), slice(left, left + rng.integers(5, 50))
        truth[box] = np.maximum(truth[box], np.exp(rng.uniform(0, 2)) / far)
    error = rng.choice([0.0, 0.05, 0.1, 0.2, 0.4])
    field = cv2.resize(rng.normal(0, 1.3, rng.integers(3, 12, 2)).astype(np.float32), (80, 60))
    relative = truth * np.exp(np.float32(error) * field)
    if rng.random() < 0.15:
        relative = np.roll(relative[::-1, ::-1], rng.integers(80), axis=1)  # of another scene
    relative = (relative - rng.uniform(-0.01, 1)) * np.exp(rng.uniform(-7, 7))
    relative = np.ascontiguousarray(relative, np.float32)

    count = int(np.exp(rng.uniform(np.log(5), np.log(2000))))
    v, u = np.divmod(rng.permutation(truth.size)[:count], width)
    z = 1 / truth[v, u]
    near, spread = float(z.min()), float(np.ptp(z)) + 0.1
    measured = z + (0.02 + 0.005 * z) * rng.normal(size=count)
    share = rng.choice([0.0, 0.15, 0.3, 0.45])
    kind = rng.integers(3)
    if kind == 0:
        wrong = rng.random(count) < share
        measured[wrong] = near + spread * rng.random(int(wrong.sum()))
    elif kind == 1:
        place = rng.integers(count)
        distance = np.hypot(u - u[place], v - v[place])
        wrong = np.argsort(distance)[: int(share * count)]
        measured[wrong] = near + spread * rng.random()
    else:
        measured[rng.random(count) < share] += BIAS_M
    measured = np.maximum(measured, 0.02)
    anchors = Anchors(u, v, measured, 0.02 + 0.005 * measured, (width, height))
    image = np.zeros((height, width, 3), np.uint8)
    found = Aligner().align(image, relative, None, anchors, None)
    if found.scale.state is not ScaleState.METRIC:
        return False, math.nan
    low, high = found.scale.relative_range
    said = (relative >= low) & (relative <= high)
    inverse = found.scale.scale * found.relative[said] + found.scale.shift
    ours = np.where(inverse > 0, 1 / np.where(inverse > 0, inverse, 1), np.inf)
    return True, float(np.median(np.abs(ours * truth[said] - 1))) if said.any() else 0.0


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument('--only', default='', help='settings with this in their name')
    parser.add_argument('--speed', action='store_true', help='only the milliseconds')
    parser.add_argument('--false-metric', type=int, metavar='N', help='only N random cases')
    options = parser.parse_args()
    cv2.setNumThreads(1)
    values: dict[str, object] = {}
    if options.speed:
        values['milliseconds'] = speed()
        Console().print(values)
    elif options.false_metric:
        values['false_metric'] = false_metric(options.false_metric)
        Console().print(values)
    else:
        predict = Predictions(options.model, options.backend, options.cache)
        cases = [
            case
            for frames in (single_frames, drive_frames, hand_held_frames)
            for case in frames(options.data, predict)
        ]
        rows = accuracy(cases, options.only)
        show(rows)
        values['model'] = options.model
        values['rows'] = [asdict(r) for r in rows]
    if options.output:
        known = json.loads(options.output.read_text()) if options.output.is_file() else {}
        options.output.write_text(json.dumps(known | values, indent=1) + '\n')


if __name__ == '__main__':
    main()
