"""Accuracy of a model bundle on frames that never trained, beside trivial alternatives.

Every figure is printed next to what a program without a network gets from the same input, and as a
ratio to it: the best plane in inverse depth (affine-invariant protocol), the nearest anchor (metres
from sparse anchors).

    python benchmarks/accuracy.py [--model compact] [--data ../shared/data] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from briges_ros import Anchors, DepthPipeline
from briges_ros.cli.demo_data import load_drive
from briges_ros.evaluation.frames import SingleFrames
from briges_ros.evaluation.metrics import affine_invariant_depth, depth_metrics
from briges_ros.training.datasets import KITTI_TRAINING_FRAMES, NyuV2

NYU_RANGE_M = (1e-3, 10.0)
ANCHORS = 200
TRAINED_ON = {'d13_kitticity'}  # single frames that are also frames of the drive's training part


@dataclass(frozen=True)
class Row:
    """Means over frames of ours and of the alternative, as far as there are metres."""

    data: str
    protocol: str
    frames: int
    abs_rel: float
    delta1: float
    coverage: float  # share of the scored pixels that we give a depth for; theirs is 1
    alternative: str
    alternative_abs_rel: float
    alternative_delta1: float


def nyu_affine(pipeline: DepthPipeline, data: Path) -> Row:
    """The affine-invariant protocol on the held-out blocks of NYUv2."""
    ours, planes = [], []
    frames = NyuV2(data / 'nyuv2', 'held_out')
    for index in track(range(len(frames)), 'NYUv2 held-out'):
        sample = frames[index]
        truth = 1.0 / sample.inverse.astype(np.float64)
        relative = pipeline(sample.image).relative
        ours.append(depth_metrics(affine_invariant_depth(relative, truth, *NYU_RANGE_M), truth))
        planes.append(depth_metrics(plane_depth(truth, *NYU_RANGE_M), truth))
    return row(
        'NYUv2 held-out blocks 420-479, 900-959, 1380-1439',
        'affine-invariant',
        ours,
        'best plane',
        planes,
    )


def plane_depth(truth: np.ndarray, near: float, far: float) -> np.ndarray:
    """The plane (linear in inverse depth) that fits the truth best: what no network could know."""
    v, u = np.indices(truth.shape)
    known = np.isfinite(truth)
    design = np.stack([u, v, np.ones_like(u)], axis=-1).astype(float)
    solution, *_ = np.linalg.lstsq(design[known], 1.0 / truth[known], rcond=None)
    return np.clip(1.0 / np.maximum(design @ solution, 1.0 / far), near, far)


def metric_frames(pipeline: DepthPipeline, data: Path) -> Row:
    """Metres from 200 random pixels of the frames of other data sets, scored on the others."""
    ours, nearest = [], []
    frames = SingleFrames(data / 'frames')
    for number in track(range(len(frames)), 'single frames'):
        frame = frames[number]
        if frame.name in TRAINED_ON:
            continue
        depth = frame.depth
        v, u = np.nonzero(np.isfinite(depth))
        chosen = np.random.default_rng(number).choice(len(u), ANCHORS, replace=False)
        anchors = Anchors(
            u[chosen],
            v[chosen],
            depth[v[chosen], u[chosen]],
            0.02 + 0.005 * depth[v[chosen], u[chosen]],
        )
        rest = depth.copy()
        rest[v[chosen], u[chosen]] = np.nan
        ours.append(depth_metrics(pipeline(frame.image, frame.camera, anchors).depth, rest))
        nearest.append(depth_metrics(nearest_depth(anchors, depth.shape), rest))
    return row(f'{len(ours)} single frames', f'{ANCHORS} anchors', ours, 'nearest anchor', nearest)


def metric_drive(pipeline: DepthPipeline, data: Path) -> Row:
    """Metres from 90 % of the LiDAR points on the unseen part of the drive, scored on 10 %."""
    drive = load_drive(data / 'kitti_drive')
    ours, nearest = [], []
    for frame in track(drive.frames[KITTI_TRAINING_FRAMES:], 'drive, unseen frames'):
        anchors = Anchors.from_points(frame.points, drive.camera, drive.T_camera_sensor)
        at = np.rint(frame.truth.v).astype(int), np.rint(frame.truth.u).astype(int)
        depth = pipeline(frame.image, drive.camera, anchors).depth
        ours.append(depth_metrics(depth[at], frame.truth.depth))
        other = nearest_depth(anchors, depth.shape)
        nearest.append(depth_metrics(other[at], frame.truth.depth))
    return row('KITTI drive, frames 30-49', '90 % of LiDAR', ours, 'nearest point', nearest)


def nearest_depth(anchors: Anchors, shape: tuple[int, int]) -> np.ndarray:
    """Every pixel takes the depth of the nearest anchor."""
    free = np.ones(shape, np.uint8)
    v, u = np.rint(anchors.v).astype(int), np.rint(anchors.u).astype(int)
    free[v, u] = 0
    _, labels = cv2.distanceTransformWithLabels(
        free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE, labelType=cv2.DIST_LABEL_PIXEL
    )
    by_label = np.zeros(labels.max() + 1, np.float32)
    by_label[labels[v, u]] = anchors.depth
    return by_label[labels]


def row(data: str, protocol: str, ours: list, alternative: str, theirs: list) -> Row:
    """Means of both."""

    def means(results: list) -> tuple[float, float]:
        return (
            float(np.nanmean([r.abs_rel for r in results])),
            float(np.nanmean([r.delta1 for r in results])),
        )

    coverage = float(np.mean([a.pixels / b.pixels for a, b in zip(ours, theirs, strict=True)]))
    return Row(data, protocol, len(ours), *means(ours), coverage, alternative, *means(theirs))


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='compact', help='bundle: a name or a folder')
    parser.add_argument('--backend', default='auto')
    parser.add_argument('--tokens', type=int, default=None, help='token budget')
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    pipeline = DepthPipeline.load(options.model, options.backend, token_budget=options.tokens)
    rows = [
        measure(pipeline, options.data) for measure in (nyu_affine, metric_frames, metric_drive)
    ]
    engine = f'{pipeline.engine.name} {pipeline.engine.precision}'
    table = Table(title=f'{pipeline.bundle.name}, {engine}, {pipeline.token_budget} tokens')
    for title in (
        'data',
        'protocol',
        'frames',
        'AbsRel',
        'delta1',
        'covered',
        'alternative',
        'ratio',
    ):
        table.add_column(title)
    for r in rows:
        table.add_row(
            r.data,
            r.protocol,
            str(r.frames),
            f'{r.abs_rel:.4f}',
            f'{r.delta1:.4f}',
            f'{100 * r.coverage:.1f} %',
            f'{r.alternative}: {r.alternative_abs_rel:.4f} / {r.alternative_delta1:.4f}',
            f'{r.abs_rel / r.alternative_abs_rel:.2f} x',
        )
    Console(width=150).print(table)
    if options.output:
        values = {
            'model': pipeline.bundle.name,
            'bundle_sha256': pipeline.bundle.sha256,
            'engine': engine,
            'tokens': pipeline.token_budget,
            'rows': [vars(r) for r in rows],
        }
        options.output.write_text(json.dumps(values, indent=2) + '\n')


if __name__ == '__main__':
    main()
