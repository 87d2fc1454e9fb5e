"""What it costs to compute the segmentation on every n-th frame only, of a model with gates.

On sequences of real frames, in order: AbsRel under the affine-invariant protocol for n = 1, 2, 4, 8
as a ratio to n = 1, with the paired difference and its interval, how far the inverse depth moves,
and the time from image to inverse depth. Every frame goes through all n before the next one does,
so that what else the machine does slows all of them alike.

    OMP_NUM_THREADS=1 python benchmarks/key_frames.py --model FOLDER_OF_A_GATED_BUNDLE
        [--data ../shared/data] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from briges_ros import DepthPipeline
from briges_ros.cli.demo_data import load_drive
from briges_ros.evaluation.bootstrap import paired_difference
from briges_ros.evaluation.metrics import affine_invariant_depth, depth_metrics
from briges_ros.training.datasets import KITTI_TRAINING_FRAMES

EVERY = (1, 2, 4, 8)
BLOCK = 8  # frames that the bootstrap draws together: as many as share a segmentation
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


def measure(
    pipelines: dict[int, DepthPipeline], frames: list[Frame], limits: tuple[float, float], at: float
) -> dict[int, dict]:
    """By n: AbsRel and its difference to n = 1, change of the inverse depth, milliseconds.

    Args:
        pipelines: one for each n.
        frames: in order.
        limits: least and greatest depth of the protocol, metres.
        at: stamp of the first frame, seconds.
    """
    scores: dict[int, list[float]] = {every: [] for every in pipelines}
    changes: dict[int, list[float]] = {every: [] for every in pipelines}
    times: dict[int, list[float]] = {every: [] for every in pipelines}
    for index, (image, truth) in enumerate(track(frames)):
        exact = None
        for every, pipeline in pipelines.items():
            frame = pipeline(image, stamp=at + index)
            exact = frame.relative if exact is None else exact
            depth = affine_invariant_depth(frame.relative, truth, *limits)
            scores[every].append(depth_metrics(depth, truth).abs_rel)
            changes[every].append(float(np.std(frame.relative - exact) / np.std(exact)))
            times[every].append(frame.timing['preprocess'] + frame.timing['inference'])
    first = np.array(scores[1])
    return {
        every: {
            'abs_rel': float(np.mean(scores[every])),
            'abs_rel_to_1': float(np.mean(scores[every]) / first.mean()),
            'abs_rel_less_1': asdict(paired_difference(np.array(scores[every]), first, BLOCK)),
            'change': float(np.mean(changes[every])),
            'mean_ms': float(np.mean(times[every])),
            'median_ms': float(np.median(times[every])),
            'time_to_1': float(np.mean(times[every]) / np.mean(times[1])),
        }
        for every in pipelines
    }


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', required=True, help='a bundle with gates: a name or a folder')
    parser.add_argument('--backend', default='onnxruntime')
    parser.add_argument('--precision', default='fp32')
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    pipelines = {
        every: DepthPipeline.load(
            options.model,
            options.backend,
            precision=options.precision,
            threads=1,
            segmentation_every_n_frames=every,
        )
        for every in EVERY
    }
    bundle, engine = pipelines[1].bundle, pipelines[1].engine
    if bundle.gate == 'none':
        parser.error(f'{options.model} has no gates, so it computes no segmentation')
    console, results = Console(width=110), {}
    for number, (name, (load, limits)) in enumerate(SEQUENCES.items()):
        frames = list(load(options.data))
        # An hour between the sequences: the first frame of each is a key frame (its size differs).
        rows = results[name] = measure(pipelines, frames, limits, 3600.0 * number)
        table = Table(title=f'{name}, {len(frames)} frames, {engine.name} {engine.precision}')
        for title in ('n', 'AbsRel', 'n = 1 is 1', 'less n = 1', 'change', 'ms', 'n = 1 is 1'):
            table.add_column(title)
        for every, row in rows.items():
            less = row['abs_rel_less_1']
            table.add_row(
                str(every),
                f'{row["abs_rel"]:.4f}',
                f'{row["abs_rel_to_1"]:.4f} x',
                f'{less["mean"]:+.5f} ({less["low"]:+.5f} to {less["high"]:+.5f})',
                f'{100 * row["change"]:.2f} %',
                f'{row["mean_ms"]:.0f}',
                f'{row["time_to_1"]:.2f} x',
            )
        console.print(table)
    if options.output:
        values = {
            'bundle_sha256': bundle.sha256,
            'engine': f'{engine.name} {engine.precision}, one thread',
            'sequences': results,
        }
        options.output.write_text(json.dumps(values, indent=1) + '\n')


if __name__ == '__main__':
    main()
