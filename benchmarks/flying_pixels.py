"""Pixels that hang between surfaces, and what it costs to be rid of them.

On RGB-D frames with their truth. Twice: the network's own output, and the truth itself made as
small as that, which shows what is done to edges that no network has blurred. Each is brought to the
size of the image by bilinear interpolation, and as the package does it.

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
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from briges_ros.depth_image import resize_inverse_depth
from briges_ros.evaluation.borders import band_radius, border_metrics, depth_borders, near
from briges_ros.evaluation.frames import SingleFrames
from briges_ros.evaluation.metrics import affine_invariant_depth, depth_metrics
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.preprocess import prepare, to_inverse_depth
from briges_ros.inference.selfcheck import open_checked_engine

Image32 = NDArray[np.float32]
Resize = Callable[[Image32, int, int], Image32]

RANGE_M = (1e-3, 10.0)
RUNS = 40


def bilinear(inverse: Image32, width: int, height: int) -> Image32:
    """The straightforward way."""
    return cv2.resize(inverse, (width, height), interpolation=cv2.INTER_LINEAR)


METHODS: dict[str, Resize] = {'bilinear': bilinear, 'briges_ros': resize_inverse_depth}


def hanging(depth: Image32, truth: Image32) -> float:
    """Part of the pixels near the true depth edges that lie between the two sides."""
    radius = band_radius(*truth.shape)
    inverse = 1.0 / depth
    window = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    greatest, least = cv2.dilate(inverse, window), cv2.erode(inverse, window)
    edge = near(depth_borders(truth, 1.1), radius) & (greatest > 1.15 * least)
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


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='compact')
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    bundle = ModelBundle.load(options.model)
    engine, _ = open_checked_engine(bundle, 'auto', 'auto', 1)
    frames = SingleFrames(options.data / 'frames')
    columns = ('hanging', 'band AbsRel', 'wide F1', 'AbsRel', 'invented', 'invented, blurred')
    scores: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    cv2.setNumThreads(1)
    for index in track(range(len(frames)), 'frames'):
        frame = frames[index]
        if frame.kind != 'rgbd':
            continue
        counts = (frame.depth > RANGE_M[0]) & (frame.depth < RANGE_M[1])
        truth = np.where(counts, frame.depth, np.nan).astype(np.float32)
        height, width = truth.shape
        output = to_inverse_depth(engine.infer(*prepare(frame.image, bundle)), bundle)
        true_inverse = cv2.medianBlur(np.where(counts, 1.0 / frame.depth, 0).astype(np.float32), 5)
        smooth_truth = np.where(true_inverse > 0, 1.0 / true_inverse, np.nan).astype(np.float32)
        step = round(width / output.shape[1])
        small = np.ascontiguousarray(true_inverse[::step, ::step])
        blurred = cv2.GaussianBlur(small, (0, 0), 1.2)
        for name, resize in METHODS.items():
            inverse = resize(output, width, height)
            depth = affine_invariant_depth(inverse, truth, *RANGE_M).astype(np.float32)
            border = border_metrics(depth, truth)
            scores[name].append(
                [
                    hanging(depth, truth),
                    border.abs_rel,
                    border.wide_f1,
                    depth_metrics(depth, truth).abs_rel,
                    *(
                        invented(resize(image, width, height), smooth_truth)
                        for image in (small, blurred)
                    ),
                ]
            )
    means = {name: np.nanmean(values, axis=0) for name, values in scores.items()}
    milliseconds = cost(output)
    table = Table(title=f'{bundle.name}, {len(scores["bilinear"])} RGB-D frames')
    for title in ('', *columns, 'ms, best'):
        table.add_column(title)
    for name, values in means.items():
        table.add_row(name, *(f'{value:.4f}' for value in values), f'{milliseconds[name]:.2f}')
    ratios = means['briges_ros'] / means['bilinear']
    table.add_row('ratio', *(f'{ratio:.2f} x' for ratio in ratios))
    Console(width=120).print(table)
    if options.output:
        result = {
            name: {**dict(zip(columns, map(float, values), strict=True)), 'ms': milliseconds[name]}
            for name, values in means.items()
        }
        options.output.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
