"""Pixels that hang between surfaces, and what it costs to be rid of them.

On RGB-D frames with their truth. First the enlarging of what a network gives, by bilinear
interpolation and as the package does it: of the network's own output, and of the truth itself made
as small as that, which shows what is done to edges that no network has blurred. Then the depth that
is published, from 200 anchors, without the last step (`settle_flying_pixels`) and with it; and from
nine tenths of a LiDAR, scored on the last.

A pixel near a depth edge hangs when its inverse depth lies well between the least and the greatest
of the surroundings (0.2 to 0.8 of the way). A pixel of the reduced truth hangs when no measurement
of the true depth within 8 pixels is within 4 % of it.

    python benchmarks/flying_pixels.py [--model compact] [--data ../shared/data]
        [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from briges_ros import Anchors, DepthPipeline
from briges_ros.alignment.tracker import ScaleState
from briges_ros.cli.demo_data import load_drive
from briges_ros.depth_image import resize_inverse_depth, settle_flying_pixels
from briges_ros.evaluation.borders import band_radius, border_metrics, depth_borders, near
from briges_ros.evaluation.frames import SingleFrame, SingleFrames
from briges_ros.evaluation.metrics import affine_invariant_depth, depth_metrics
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.preprocess import prepare, to_inverse_depth
from briges_ros.inference.selfcheck import open_checked_engine
from briges_ros.training.datasets import KITTI_TRAINING_FRAMES

Image32 = NDArray[np.float32]
Resize = Callable[[Image32, int, int], Image32]

RANGE_M = (1e-3, 10.0)
RUNS = 40
ANCHORS = 200


def bilinear(inverse: Image32, width: int, height: int) -> Image32:
    """The straightforward way."""
    return cv2.resize(inverse, (width, height), interpolation=cv2.INTER_LINEAR)


METHODS: dict[str, Resize] = {'bilinear': bilinear, 'briges_ros': resize_inverse_depth}


def hanging(depth: Image32, truth: Image32) -> float:
    """Part of the pixels near the true depth edges that lie between the two sides."""
    radius = band_radius(*truth.shape)
    known = np.isfinite(depth) & (depth > RANGE_M[0])
    inverse = (1.0 / np.where(known, depth, 1.0)).astype(np.float32)
    window = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    greatest = cv2.dilate(np.where(known, inverse, np.float32(-1e6)), window)
    least = cv2.erode(np.where(known, inverse, np.float32(1e6)), window)
    edge = near(depth_borders(truth, 1.1), radius) & (greatest > 1.15 * least) & known
    part = ((inverse - least)[edge]) / (greatest - least)[edge]
    return float(((part > 0.2) & (part < 0.8)).mean())


def invented(inverse: Image32, truth: Image32) -> float:
    """Part of the pixels that are on no surface near by."""
    known = np.isfinite(truth)
    full = cv2.erode(known.astype(np.uint8), np.ones((17, 17), np.uint8)) > 0
    nearest = np.full(truth.shape, np.inf)
    for down in range(-8, 9, 4):
        for right in range(-8, 9, 4):
            moved = np.roll(truth, (down, right), (0, 1))
            nearest = np.fmin(nearest, np.abs(moved * inverse - 1.0))
    return float((nearest[full] > 0.04).mean())


def cost(inverse: Image32) -> dict[str, float]:
    """Best milliseconds to 640 x 480 of runs in turns."""
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(RUNS):
        for name, resize in METHODS.items():
            start = time.perf_counter()
            resize(inverse, 640, 480)
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: min(values) for name, values in times.items()}


def resized(bundle: ModelBundle, data: Path) -> dict[str, Any]:
    """What enlarging does to edges: of the network's output, and of the truth made as small."""
    engine, _ = open_checked_engine(bundle, 'auto', 'auto', 1)
    columns = ('hanging', 'band AbsRel', 'wide F1', 'AbsRel', 'invented', 'invented, blurred')
    scores: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    for frame, truth in rgbd(data):
        height, width = truth.shape
        output = to_inverse_depth(engine.infer(*prepare(frame.image, bundle)), bundle)
        known = np.isfinite(truth)
        true_inverse = cv2.medianBlur(np.where(known, 1.0 / truth, 0).astype(np.float32), 5)
        smooth_truth = np.where(true_inverse > 0, 1.0 / true_inverse, np.nan).astype(np.float32)
        step = round(width / output.shape[1])
        small = np.ascontiguousarray(true_inverse[::step, ::step])
        blurred = cv2.GaussianBlur(small, (0, 0), 1.2)
        for name, resize in METHODS.items():
            depth = affine_invariant_depth(resize(output, width, height), truth, *RANGE_M)
            scores[name].append(
                [
                    *edges(depth.astype(np.float32), truth),
                    *(
                        invented(resize(image, width, height), smooth_truth)
                        for image in (small, blurred)
                    ),
                ]
            )
    milliseconds = cost(output)
    return {
        name: dict(zip(columns, np.nanmean(values, axis=0).tolist(), strict=True))
        | {'ms, best': milliseconds[name]}
        for name, values in scores.items()
    }


class Unsettled(DepthPipeline):
    """What the depth is without the last step."""

    def _settle(self, *_: Any) -> None:
        pass


PIPELINES: dict[str, type[DepthPipeline]] = {'as it is fitted': Unsettled, 'settled': DepthPipeline}


def published(model: str, data: Path) -> dict[str, Any]:
    """What goes out: with 200 anchors, and with nine tenths of a LiDAR."""
    columns = ('hanging', 'band AbsRel', 'wide F1', 'AbsRel', 'delta1', 'NaN')
    results: dict[str, Any] = {}
    drive = load_drive(data / 'kitti_drive')
    for name, kind in PIPELINES.items():
        pipeline = kind.load(model, threads=1)
        scores = []
        for number, (frame, truth) in enumerate(rgbd(data)):
            v, u = np.nonzero(np.isfinite(frame.depth))
            chosen = np.random.default_rng(number).choice(len(u), ANCHORS, replace=False)
            z = frame.depth[v[chosen], u[chosen]]
            anchors = Anchors(u[chosen], v[chosen], z, 0.02 + 0.005 * z)
            result = pipeline(frame.image, frame.camera, anchors)
            if result.scale.state is ScaleState.METRIC:
                metrics = depth_metrics(result.depth, truth)
                unknown = float(np.isnan(result.depth).mean())
                scores.append([*edges(result.depth, truth), metrics.delta1, unknown])
        lidar = []
        for moment in track(drive.frames[KITTI_TRAINING_FRAMES:], f'drive, {name}'):
            anchors = Anchors.from_points(moment.points, drive.camera, drive.T_camera_sensor)
            at = np.rint(moment.truth.v).astype(int), np.rint(moment.truth.u).astype(int)
            metrics = depth_metrics(
                pipeline(moment.image, drive.camera, anchors).depth[at], moment.truth.depth
            )
            lidar.append([metrics.abs_rel, metrics.delta1])
        means = np.nanmean(scores, axis=0).tolist()
        abs_rel, delta1 = np.nanmean(lidar, axis=0).tolist()
        results[name] = dict(zip(columns, means, strict=True))
        results[name] |= {'LiDAR AbsRel': abs_rel, 'LiDAR delta1': delta1}
    results['settled']['ms, best'] = settling_cost()
    return results


def settling_cost() -> float:
    """Best milliseconds for a 640 x 480 image with edges everywhere."""
    rng = np.random.default_rng(0)
    boxes = np.kron(rng.uniform(0.1, 1.0, (6, 8)), np.ones((80, 80))).astype(np.float32)
    scene = cv2.GaussianBlur(boxes, (0, 0), 5)
    times = []
    for _ in range(RUNS):
        relative = scene.copy()
        start = time.perf_counter()
        settle_flying_pixels(relative, 1.0, 0.0)
        times.append((time.perf_counter() - start) * 1e3)
    return min(times)


def rgbd(data: Path) -> Iterator[tuple[SingleFrame, Image32]]:
    """The RGB-D frames, and their depth as far as it counts."""
    frames = SingleFrames(data / 'frames')
    for index in track(range(len(frames)), 'frames'):
        frame = frames[index]
        if frame.kind == 'rgbd':
            counts = (frame.depth > RANGE_M[0]) & (frame.depth < RANGE_M[1])
            yield frame, np.where(counts, frame.depth, np.nan).astype(np.float32)


def edges(depth: Image32, truth: Image32) -> list[float]:
    """Hanging, error beside the borders, F1 of the borders, and error everywhere."""
    border = border_metrics(depth, truth)
    return [
        hanging(depth, truth),
        border.abs_rel,
        border.wide_f1,
        depth_metrics(depth, truth).abs_rel,
    ]


def show(title: str, rows: dict[str, Any]) -> None:
    """Print rows, and the last as a ratio to the first."""
    first, *_, last = rows.values()
    table = Table(title=title)
    for column in ('', *last):
        table.add_column(column)
    for name, row in rows.items():
        cells = (f'{row[c]:.4f}' if c in row else '' for c in last)
        table.add_row(name, *cells)
    ratios = (f'{last[c] / first[c]:.2f} x' if first.get(c) else '' for c in last)
    table.add_row('ratio', *ratios)
    Console(width=140).print(table)


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='compact')
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    cv2.setNumThreads(1)
    bundle = ModelBundle.load(options.model)
    results = {
        'enlarged': resized(bundle, options.data),
        'published': published(options.model, options.data),
    }
    show(f'{bundle.name}: the network, enlarged to the image', results['enlarged'])
    show(f'{bundle.name}: depth from {ANCHORS} anchors, and from a LiDAR', results['published'])
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
    main()
