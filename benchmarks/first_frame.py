"""How late the first frame is, and what it helps to say the images' size beforehand.

Each run is a process of its own: it loads the compact model, with the size or without, then times
frames of that size from image to inverse depth. Printed is the first beside the fastest of those
that follow, each as the best of several runs, which take turns.

    OMP_NUM_THREADS=1 python benchmarks/first_frame.py [--size 640x480] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from briges_ros import DepthPipeline
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import EngineError, precisions

BACKENDS = ('openvino', 'onnxruntime')
RUNS, FRAMES = 3, 5
KNOWN = {False: 'not known', True: 'known'}


def run(backend: str, precision: str, size: tuple[int, int], known: bool) -> dict[str, float]:
    """Milliseconds to load the model, of the first frame, and of one later on."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (FRAMES + 1, size[1], size[0], 3), dtype=np.uint8)
    laps = [time.perf_counter()]
    pipeline = DepthPipeline.load(
        'compact', backend, precision=precision, threads=1, image_size=size if known else None
    )
    laps.append(time.perf_counter())
    for image in images:
        pipeline(image)
        laps.append(time.perf_counter())
    load, first, *later = (1e3 * float(lap) for lap in np.diff(laps))
    return {'load_ms': load, 'first_ms': first, 'later_ms': min(later)}


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', default='640x480', help='of the images')
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    width, height = map(int, options.size.split('x'))
    bundle, engines, console = ModelBundle.load('compact'), [], Console(width=100)
    for backend in BACKENDS:
        try:
            engines += [(backend, precision) for precision in precisions(bundle, backend)]
        except EngineError as error:
            console.print(f'skipped: {error}')
    best: dict[str, dict[str, float]] = {}
    # A new process each time: what one engine compiled may be of use to the next.
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        for _ in range(RUNS):
            for engine in engines:
                for known in KNOWN:
                    name = f'{" ".join(engine)}, size {KNOWN[known]}'
                    found = pool.apply(run, (*engine, (width, height), known))
                    before = best.setdefault(name, found)
                    best[name] = {key: min(value, before[key]) for key, value in found.items()}
    table = Table(
        '', 'load ms', 'first frame ms', 'later ms', 'first, later = 1', title=options.size
    )
    for name, row in best.items():
        row['first_to_later'] = row['first_ms'] / row['later_ms']
        times = (f'{row[key]:.0f}' for key in ('load_ms', 'first_ms', 'later_ms'))
        table.add_row(name, *times, f'{row["first_to_later"]:.2f} x')
    console.print(table)
    if options.output:
        options.output.write_text(json.dumps({options.size: best}, indent=1) + '\n')


if __name__ == '__main__':
    main()
