"""What more cameras cost: on one loaded model, beside a model for each.

Pipelines of one process, each in a thread of its own, as the node runs them, on images of noise of
640x480. Each row is measured in a fresh process. Memory is the private part of the process, so that
libraries are not counted. Frames per second are of all cameras together.

    python benchmarks/cameras.py [--model compact] [--backend auto] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from briges_ros import DepthPipeline
from briges_ros.inference.engine_pool import EnginePool

CAMERAS = (1, 2, 4)
SECONDS = 15.0
WIDTH, HEIGHT = 640, 480


def private_mb() -> float:
    """Memory of this process that it shares with none."""
    lines = Path('/proc/self/smaps_rollup').read_text().splitlines()[1:]
    sizes = {line.split(':')[0]: float(line.split()[1]) for line in lines}
    return (sizes['Private_Clean'] + sizes['Private_Dirty']) / 1024


def measure(model: str, backend: str, cameras: int, shared: bool) -> dict[str, float]:
    """Load, run all at once for a while, and count."""
    images = np.random.default_rng(0).integers(0, 256, (cameras, HEIGHT, WIDTH, 3), np.uint8)
    pool = EnginePool() if shared else None
    begin = time.perf_counter()
    pipelines = [DepthPipeline.load(model, backend, engines=pool) for _ in images]
    loading = time.perf_counter() - begin
    for pipeline, image in zip(pipelines, images, strict=True):
        pipeline(image)
    counts = [0] * cameras
    end = time.perf_counter() + SECONDS

    def run(index: int) -> None:
        while time.perf_counter() < end:
            pipelines[index](images[index])
            counts[index] += 1

    threads = [threading.Thread(target=run, args=(index,)) for index in range(cameras)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        'load_s': loading,
        'memory_mb': private_mb(),
        'frames_per_s': sum(counts) / (time.perf_counter() - begin),
        'least_served': min(counts) / (sum(counts) / cameras),
    }


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='compact')
    parser.add_argument('--backend', default='auto')
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    console = Console(width=120)
    results: dict[str, dict[str, float]] = {}
    for cameras in CAMERAS:
        for shared in (True, False):
            name = f'{cameras}, {"one model" if shared else "a model each"}'
            console.print(f'{name} ...')
            arguments: Any = (options.model, options.backend, cameras, shared)
            with multiprocessing.get_context('spawn').Pool(1) as process:
                results[name] = process.apply(measure, arguments)
    table = Table(title=f'{options.model}, {options.backend}: cameras at once')
    for title in (
        'cameras',
        'MB',
        'MB per further camera',
        'loading, s',
        'frames/s',
        'least : mean',
    ):
        table.add_column(title)
    for cameras in CAMERAS:
        for kind in ('one model', 'a model each'):
            row = results[f'{cameras}, {kind}']
            more = row['memory_mb'] - results[f'1, {kind}']['memory_mb']
            row['mb_per_further_camera'] = more / (cameras - 1) if cameras > 1 else 0.0
            table.add_row(
                f'{cameras}, {kind}',
                f'{row["memory_mb"]:.0f}',
                f'{row["mb_per_further_camera"]:.1f}' if cameras > 1 else '',
                f'{row["load_s"]:.1f}',
                f'{row["frames_per_s"]:.1f}',
                f'{row["least_served"]:.2f}',
            )
    console.print(table)
    most = CAMERAS[-1]
    ours, theirs = (results[f'{most}, {kind}'] for kind in ('one model', 'a model each'))
    console.print(
        f'{most} cameras on one model : a model each: memory '
        f'{ours["memory_mb"] / theirs["memory_mb"]:.2f} x, of which per further camera '
        f'{ours["mb_per_further_camera"] / theirs["mb_per_further_camera"]:.3f} x; frames/s '
        f'{ours["frames_per_s"] / theirs["frames_per_s"]:.2f} x'
    )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
    main()
