"""What it costs to compute the segmentation on every n-th frame only, of a model with gates.

On sequences of real frames, in order: AbsRel under the affine-invariant protocol for n = 1, 2, 4, 8
as a ratio to n = 1, how far the inverse depth moves, and the time from image to inverse depth.

    python benchmarks/key_frames.py --model FOLDER_OF_A_GATED_BUNDLE [--data ../shared/data]
        [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from briges_ros import DepthPipeline
from briges_ros.cli.demo_data import load_drive
from briges_ros.evaluation.metrics import affine_invariant_depth, depth_metrics
from briges_ros.training.datasets import KITTI_TRAINING_FRAMES

EVERY = (1, 2, 4, 8)
Frame = tuple[np.ndarray, np.ndarray]  # image, depth in metres with NaN unknown


def drive_frames(data: Path) -> Iterator[Frame]:
    """The unseen part of the KITTI drive, 10 Hz; all LiDAR points are truth."""
    drive = load_drive(data / 'kitti_drive')
    for frame in drive.frames[KITTI_TRAINING_FRAMES:]:
        depth = np.full(frame.image.shape[:2], np.nan)
        at = np.rint(frame.truth.v).astype(int), np.rint(frame.truth.u).astype(int)
        depth[at] = frame.truth.depth
        yield frame.image, depth


def hand_held_frames(data: Path) -> Iterator[Frame]:
    """TUM freiburg1_rpy at 6 Hz: a hand-held camera that turns quickly."""
    folder = data / 'tum_rpy'
    for path in sorted((folder / 'rgb').iterdir()):
        raw = cv2.imread(str(folder / 'depth' / f'{path.stem}.png'), cv2.IMREAD_UNCHANGED)
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        yield image, np.where(raw > 0, raw / 5000.0, np.nan)


SEQUENCES = {
    'KITTI drive, frames 30-49 (10 Hz)': (drive_frames, (1e-3, 80.0)),
    'TUM freiburg1_rpy (6 Hz)': (hand_held_frames, (1e-3, 10.0)),
}


def measure(pipeline: DepthPipeline, frames: list[Frame], limits: tuple[float, float]) -> dict:
    """By n: mean AbsRel, mean change of the inverse depth against n = 1, median milliseconds."""
    exact: list[np.ndarray] = []
    result = {}
    for every in EVERY:
        pipeline.segmentation_every_n_frames = every
        scores, changes, times = [], [], []
        for index, (image, truth) in enumerate(track(frames, f'every {every}')):
            frame = pipeline(image, stamp=float(index) + 1000.0 * every)
            depth = affine_invariant_depth(frame.relative, truth, *limits)
            scores.append(depth_metrics(depth, truth).abs_rel)
            times.append(frame.timing['preprocess'] + frame.timing['inference'])
            if every == 1:
                exact.append(frame.relative)
            changes.append(float(np.std(frame.relative - exact[index]) / np.std(exact[index])))
        result[every] = {
            'abs_rel': float(np.mean(scores)),
            'change': float(np.mean(changes)),
            'median_ms': float(np.median(times)),
            'mean_ms': float(np.mean(times)),
        }
    return result


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', required=True, help='a bundle with gates: a name or a folder')
    parser.add_argument('--backend', default='auto')
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    pipeline = DepthPipeline.load(options.model, options.backend)
    if pipeline.bundle.gate == 'none':
        parser.error(f'{options.model} has no gates, so it computes no segmentation')
    console, results = Console(width=110), {}
    for name, (load, limits) in SEQUENCES.items():
        rows = results[name] = measure(pipeline, list(load(options.data)), limits)
        table = Table(title=f'{name}, {pipeline.engine.name} {pipeline.engine.precision}')
        for title in ('every', 'AbsRel', 'AbsRel, n = 1 is 1', 'change', 'mean ms', 'n = 1 is 1'):
            table.add_column(title)
        for every, row in rows.items():
            table.add_row(
                str(every),
                f'{row["abs_rel"]:.4f}',
                f'{row["abs_rel"] / rows[1]["abs_rel"]:.4f} x',
                f'{100 * row["change"]:.2f} %',
                f'{row["mean_ms"]:.0f}',
                f'{row["mean_ms"] / rows[1]["mean_ms"]:.2f} x',
            )
        console.print(table)
    if options.output:
        values = {'bundle_sha256': pipeline.bundle.sha256, 'sequences': results}
        options.output.write_text(json.dumps(values, indent=2) + '\n')


if __name__ == '__main__':
    main()
