"""Speed of the backends on this machine, network only, beside torch float32 eager.

The runs are interleaved, so that a busy neighbour slows all of them alike; medians and ratios.

    python benchmarks/engines.py [--model compact] [--runs 15] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import BACKENDS, EngineError, open_engine
from briges_ros.inference.preprocess import prepare

CAMERAS = {'640x480': (640, 480), '1242x375': (1242, 375)}
Infer = Callable[[np.ndarray], object]


def torch_eager(bundle: ModelBundle) -> Infer | None:
    """The same network as torch runs it out of the box; None without torch."""
    try:
        import torch

        from briges_ros.network.briges import Briges
        from briges_ros.network.compact import load_compact_briges
    except ImportError:
        return None
    model = load_compact_briges(bundle.folder)
    if bundle.gate == 'none':
        model = Briges(model.depth_encoder, model.decoder)

    def infer(*inputs: np.ndarray) -> object:
        with torch.inference_mode():
            return model(*map(torch.from_numpy, inputs)).numpy()

    return infer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='compact')
    parser.add_argument('--runs', type=int, default=15)
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    bundle = ModelBundle.load(options.model)
    console = Console(width=120)
    engines: dict[str, Infer] = {}
    if (eager := torch_eager(bundle)) is not None:
        engines['torch fp32 eager'] = eager
    for name in BACKENDS:
        try:
            engine = open_engine(bundle, name)
        except EngineError as error:
            console.print(f'skipped {error}')
        else:
            engines[f'{name} {engine.precision}'] = engine.infer
    reference = next(iter(engines))
    results = {}
    for camera, size in CAMERAS.items():
        picture = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        inputs = prepare(picture, bundle)
        height, width = inputs[0].shape[2:]
        times: dict[str, list[float]] = {name: [] for name in engines}
        for run in track(range(options.runs + 2), f'{camera} -> {width}x{height}'):
            for name, infer in engines.items():
                start = time.perf_counter()
                infer(*inputs)
                if run >= 2:  # the first two warm up
                    times[name].append((time.perf_counter() - start) * 1e3)
        table = Table(title=f'{camera}: network at {width}x{height}, {options.runs} runs')
        for title in ('engine', 'median ms', f'speed relative to {reference}'):
            table.add_column(title)
        medians = {name: float(np.median(values)) for name, values in times.items()}
        for name, median in medians.items():
            table.add_row(name, f'{median:.0f}', f'{medians[reference] / median:.2f} x')
        console.print(table)
        results[camera] = medians
    if options.output:
        values = {'machine': platform.processor() or platform.machine(), 'median_ms': results}
        options.output.write_text(json.dumps(values, indent=2) + '\n')


if __name__ == '__main__':
    main()
