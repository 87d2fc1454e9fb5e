"""Flicker of depth over time at static points, and how fast a step in true scale is followed.

A hand-held camera turns by up to 20 degrees from frame to frame (6 Hz); its path is known. Points
of the ground truth of one frame are followed through the next ones by their geometry, while the
sensor still sees them there. Flicker is the standard deviation over time of log(depth / true depth)
at a point; depth that follows the truth with a constant error has none. Of all points, the median
and the root mean square, which the few at edges of objects decide.
All methods are scored on the same points and frames: those for which the fit of each frame on its
own gives a depth.

    python benchmarks/flicker.py [--data ../shared/data] [--cache FOLDER] [--output FILE.json]
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from predictions import Predictions, arguments
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.spatial.transform import Rotation

from briges_ros import Anchors, CameraModel
from briges_ros.alignment import (
    AffineFit,
    FitFailure,
    ScaleEstimate,
    ScaleTracker,
    fit_inverse_depth,
    refine,
    sample,
)
from briges_ros.alignment.aligner import Aligner
from briges_ros.cli.demo_data import load_drive
from briges_ros.cli.inputs import read_image
from briges_ros.training.datasets import KITTI_TRAINING_FRAMES

COUNTS = (20, 50, 200)
LIMITS_M = (0.1, 100.0)
STARTS = 3  # points start in every third frame
LENGTH = 8  # and are followed for so many, 1.3 s
LEAST = 4  # in which they must be seen at least
SPACING = 12  # pixels between points
SEEN = 0.05  # the sensor agrees that the point is there
STEPS = (0.5, 0.8, 0.9, 1.05, 1.1, 1.2, 1.5, 2.0)
STEP_AT = 10

Depth = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Sequence:
    """Frames of one camera that moves.

    Attributes:
        stamps: seconds.
        poses: (4, 4) each, from the camera's optical frame to the world.
        depth: (H, W) each, metres, NaN unknown.
        relative: (H, W) each, what the network says.
        images: (H, W, 3) uint8 RGB each.
    """

    camera: CameraModel
    stamps: list[float]
    poses: list[NDArray[np.float64]]
    depth: list[Depth]
    relative: list[Depth]
    images: list[NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Points:
    """Static points, where they are seen.

    Attributes:
        count: number of points.
        seen: by frame: its number, which points, their columns and rows, their true depth.
    """

    count: int
    seen: list[tuple[int, NDArray[np.intp], NDArray[np.float32], NDArray[np.float32], Depth]]


@dataclass(frozen=True)
class Row:
    """One method with one number of anchors.

    Attributes:
        median, rms: flicker, see above.
        median_ratio, rms_ratio: to that of the fit of each frame on its own.
        abs_rel: mean relative error at the same points.
        covered: share of all points and frames with a depth, not only the common ones.
    """

    anchors: int
    method: str
    median: float
    median_ratio: float
    rms: float
    rms_ratio: float
    abs_rel: float
    covered: float


def hand_held(data: Path, predict: Predictions) -> Sequence:
    """The sequence `tum_rpy`."""
    folder = data / 'tum_rpy'
    meta = json.loads((folder / 'meta.json').read_text())
    poses, depth, relative, images = [], [], [], []
    for number, row in enumerate(meta['poses_world_camera']):
        T = np.eye(4)
        T[:3, :3] = Rotation.from_quat(row[4:8]).as_matrix()
        T[:3, 3] = row[1:4]
        poses.append(T)
        raw = cv2.imread(str(folder / f'depth/{number:03d}.png'), cv2.IMREAD_UNCHANGED)
        depth.append(np.where(raw > 0, raw / 5000, np.nan).astype(np.float32))
        images.append(read_image(folder / f'rgb/{number:03d}.jpg'))
        relative.append(predict(f'tum_{number:03d}', images[-1]))
    height, width = depth[0].shape
    camera = CameraModel(width, height, np.array(meta['K']), D=meta['D'])
    stamps = [float(row[0]) for row in meta['poses_world_camera']]
    return Sequence(camera, stamps, poses, depth, relative, images)


def static_points(sequence: Sequence) -> list[Points]:
    """Points of every third frame, followed through the next ones."""
    camera = sequence.camera
    columns = np.arange(SPACING // 2, camera.width, SPACING)
    u, v = (a.ravel() for a in np.meshgrid(columns, np.arange(6, camera.height, SPACING)))
    result = []
    for start in range(0, len(sequence.poses), STARTS):
        z = sequence.depth[start][v, u]
        known = np.isfinite(z)
        z = z[known, None]
        xyz = np.hstack([camera.rays()[v[known], u[known]] * z, z])
        T = sequence.poses[start]
        world = xyz @ T[:3, :3].T + T[:3, 3]
        seen = []
        for number in range(start, min(start + LENGTH, len(sequence.poses))):
            T = np.linalg.inv(sequence.poses[number])
            here = world @ T[:3, :3].T + T[:3, 3]
            uv, in_view = camera.project(here)
            index = np.flatnonzero(in_view)
            x, y = np.rint(uv[index]).astype(int).T
            z = here[index, 2]
            with np.errstate(invalid='ignore'):
                agrees = np.abs(sequence.depth[number][y, x] / z - 1) < SEEN
            index = index[agrees]
            at = uv[index].astype(np.float32)
            seen.append((number, index, at[:, 0], at[:, 1], here[index, 2].astype(np.float32)))
        result.append(Points(len(world), seen))
    return result


def random_anchors(depth: Depth, count: int, rng: np.random.Generator) -> Anchors:
    """Pixels of the ground truth, with noise."""
    v, u = np.nonzero(np.isfinite(depth))
    chosen = rng.choice(len(u), count, replace=False)
    z = depth[v[chosen], u[chosen]].astype(np.float64)
    sigma = 0.01 + 0.005 * z
    z = np.maximum(z + sigma * rng.normal(size=count), 0.05)
    return Anchors(u[chosen], v[chosen], z, sigma, (depth.shape[1], depth.shape[0]))


def fitted(
    relative: Depth, anchors: Anchors, previous: AffineFit | None = None
) -> AffineFit | FitFailure:
    """The fit to the anchors."""
    p = sample(relative, anchors.u, anchors.v)
    return fit_inverse_depth(p, anchors.depth, anchors.sigma, previous=previous)


def depths(
    relative: Depth,
    scale: ScaleEstimate | AffineFit | FitFailure,
    anchors: Anchors | None = None,
) -> Depth:
    """Metres, refined by anchors if any; NaN where there are none."""
    if isinstance(scale, FitFailure) or not np.isfinite(scale.scale):
        return np.full(relative.shape, np.nan, np.float32)
    if anchors is None:
        inverse = np.float32(scale.scale) * relative + np.float32(scale.shift)
    else:
        inverse = refine(
            relative,
            scale.scale,
            scale.shift,
            scale.model_error,
            anchors.u,
            anchors.v,
            anchors.depth,
            anchors.sigma,
        ).inverse_depth
    with np.errstate(divide='ignore'):
        depth = np.clip(1 / np.maximum(inverse, 0), *LIMITS_M).astype(np.float32)
    low, high = scale.relative_range
    depth[(relative < low) | (relative > high)] = np.nan
    return depth


class Whole:
    """All of it, as the pipeline does: tracked, refined, with the depth of the last frame."""

    def __init__(self, camera: CameraModel) -> None:
        self.camera = camera
        self.aligner = Aligner()

    def __call__(
        self, image: NDArray[np.uint8], relative: Depth, anchors: Anchors, stamp: float
    ) -> Depth:
        """The depth of a frame."""
        alignment = self.aligner.align(image, relative, self.camera, anchors, stamp)
        depth = depths(alignment.relative, alignment.scale)
        self.aligner.remember(image, depth, alignment, self.camera, stamp)
        return depth


def errors(points: list[Points], depth: list[Depth]) -> list[NDArray[np.float64]]:
    """By group of points, (frames, points) of log(depth / true depth), NaN where not seen."""
    result = []
    for group in points:
        error = np.full((len(group.seen), group.count), np.nan)
        for row, (number, index, u, v, z) in enumerate(group.seen):
            error[row, index] = np.log(sample(depth[number], u, v) / z)
        result.append(error)
    return result


def flicker(error: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Median and root mean square of the standard deviations over time."""
    deviations = []
    for group in error:
        often = np.isfinite(group).sum(axis=0) >= LEAST
        deviations.append(np.nanstd(group[:, often], axis=0, ddof=1))
    deviation = np.concatenate(deviations)
    return np.array([np.median(deviation), np.sqrt(np.square(deviation).mean())])


def compare(sequence: Sequence, points: list[Points], count: int) -> list[Row]:
    """All methods with the same anchors."""
    rng = np.random.default_rng(count)
    tracker = ScaleTracker()
    as_a_whole = Whole(sequence.camera)
    result: dict[str, list[Depth]] = {}
    for number, relative in enumerate(sequence.relative):
        stamp = sequence.stamps[number]
        anchors = random_anchors(sequence.depth[number], count, rng)
        alone = fitted(relative, anchors)
        tracked = tracker.update(fitted(relative, anchors, tracker.expected(stamp)), stamp)
        best = fitted(relative, Anchors.from_depth(sequence.depth[number], 5000))
        best = alone if isinstance(best, FitFailure) else best
        whole = as_a_whole(sequence.images[number], relative, anchors, stamp)
        for name, depth in {
            'fit of each frame': depths(relative, alone),
            'fit of each frame to 5000 anchors': depths(relative, best),
            'tracked': depths(relative, tracked),
            'fit of each frame, refined': depths(relative, alone, anchors),
            'tracked, refined': depths(relative, tracked, anchors),
            'tracked, refined, carried': whole,
        }.items():
            result.setdefault(name, []).append(depth)
    error = {name: errors(points, depth) for name, depth in result.items()}
    common = [
        np.logical_and.reduce([np.isfinite(error[name][group]) for name in error])
        for group in range(len(points))
    ]
    seen = sum(len(index) for group in points for _, index, *_ in group.seen)
    rows: list[Row] = []
    first = None
    for name, groups in error.items():
        covered = sum(int(np.isfinite(group).sum()) for group in groups) / seen
        same = [np.where(mask, group, np.nan) for mask, group in zip(common, groups, strict=True)]
        value = flicker(same)
        first = value if first is None else first
        (median, rms), (median_ratio, rms_ratio) = value, value / first
        abs_rel = float(np.nanmean(np.abs(np.expm1(np.concatenate([g.ravel() for g in same])))))
        rows.append(Row(count, name, median, median_ratio, rms, rms_ratio, abs_rel, covered))
    return rows


def follow_steps(data: Path, predict: Predictions) -> dict[str, list[float]]:
    """By true step, how much of it is still missing in each of the frames after it.

    From one frame of the drive on, the sensor's metres are multiplied by the step. What is missing
    is the logarithm of the median ratio of the depth to that of the fit of the frame on its own,
    as a part of that of the step.
    """
    drive = load_drive(data / 'kitti_drive')
    result = {}
    for step in STEPS:
        as_a_whole = Whole(drive.camera)
        missing = []
        for k in range(STEP_AT + 4):
            number = KITTI_TRAINING_FRAMES + k
            frame = drive.frames[number]
            relative = predict(f'kitti_{number:06d}', frame.image)
            anchors = Anchors.from_points(frame.points, drive.camera, drive.T_camera_sensor)
            anchors = anchors.thinned(200)
            factor = np.float32(step if k >= STEP_AT else 1)
            anchors = Anchors(anchors.u, anchors.v, factor * anchors.depth, factor * anchors.sigma)
            depth = as_a_whole(frame.image, relative, anchors, 0.1 * k)
            if k >= STEP_AT:
                alone = depths(relative, fitted(relative, anchors), anchors)
                ratio = np.nanmedian(np.log(depth / alone))
                missing.append(float(abs(ratio / np.log(step))))
        result[f'{step:g}'] = missing
    return result


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = arguments(__doc__.splitlines()[0])
    options = parser.parse_args()
    predict = Predictions(options.model, options.backend, options.cache)
    sequence = hand_held(options.data, predict)
    points = static_points(sequence)
    rows = [row for count in track(COUNTS) for row in compare(sequence, points, count)]
    table = Table(title=f'{len(sequence.poses)} hand-held frames')
    for title in ('anchors', 'method', 'median flicker', 'rms flicker', 'AbsRel', 'covered'):
        table.add_column(title)
    for row in rows:
        table.add_row(
            str(row.anchors),
            row.method,
            f'{row.median:.4f} ({row.median_ratio:.2f} x)',
            f'{row.rms:.4f} ({row.rms_ratio:.2f} x)',
            f'{row.abs_rel:.4f}',
            f'{row.covered:.0%}',
        )
    steps = follow_steps(options.data, predict)
    follow = Table(title='a step in scale: what is missing of it, frame by frame')
    for title in ('step', *(f'frame {k + 1}' for k in range(4))):
        follow.add_column(title)
    for step, missing in steps.items():
        follow.add_row(f'x {step}', *(f'{part:.1%}' for part in missing))
    console = Console(width=120)
    console.print(table)
    console.print(follow)
    if options.output:
        values = {
            'model': options.model,
            'rows': [asdict(row) for row in rows],
            'missing_after_a_step': steps,
        }
        options.output.write_text(json.dumps(values, indent=2) + '\n')


if __name__ == '__main__':
    main()
