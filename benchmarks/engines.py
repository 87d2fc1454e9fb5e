"""Speed and accuracy of this machine's engines, beside torch float32 eager and beside arithmetic.

From the uint8 image to inverse depth. The engines take turns, so that a busy neighbour slows all of
them alike; medians, and ratios to torch running the same network out of the box. A floor stands
beside each: the network's multiplications and additions over what this machine does in a large
matrix product of the same precision, or the bytes of its weights over what it copies, whichever is
longer. With --data, AbsRel on held-out NYUv2 frames too, as a ratio to float32.

    python benchmarks/engines.py [--model compact] [--runs 20] [--data ../shared/data]
        [--frames 60] [--output FILE.json]
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

from briges_ros.depth_image import resize_inverse_depth
from briges_ros.evaluation.metrics import affine_invariant_depth, depth_metrics
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import BACKENDS, Engine, EngineError, precisions
from briges_ros.inference.preprocess import prepare
from briges_ros.inference.selfcheck import open_checked_engine
from briges_ros.training.datasets import NyuV2

CAMERAS = {'640x480': (640, 480), '1242x375': (1242, 375)}
EAGER = 'torch eager fp32'
NYU_RANGE_M = (1e-3, 10.0)
LARGE = 2048  # rows and columns of the matrix product that stands for the machine's ceiling
WEIGHT_BYTES = {'int8': 1, 'fp16': 2, 'bf16': 2, 'fp32': 4}

Infer = Callable[..., np.ndarray]


def torch_eager(bundle: ModelBundle) -> tuple[Infer, Callable[..., float]]:
    """The same network as torch runs it out of the box, and its FLOPs for some inputs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from briges_ros.network.briges import Briges
    from briges_ros.network.compact import load_compact_briges

    model = load_compact_briges(bundle.folder)
    if bundle.gate == 'none':
        model = Briges(model.depth_encoder, model.decoder)

    def infer(*inputs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(*map(torch.from_numpy, inputs)).numpy()[0, 0]

    def flops(*inputs: np.ndarray) -> float:
        # no_grad: the counter does not see into inference mode.
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*map(torch.from_numpy, inputs))
        return float(counter.get_total_flops())

    return infer, flops


def ceilings() -> dict[str, float]:
    """What the machine reaches: FLOP/s of a large matrix product by precision, bytes/s of a copy.

    Best of some, in OpenVINO, which has the fastest of these kernels here.
    """
    import openvino
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(LARGE, LARGE)).astype(np.float32) for _ in range(2))
    core = openvino.Core()

    def product(precision: str) -> float:
        left = ops.parameter([LARGE, LARGE], np.float32)
        x, weights = left, ops.constant(b)
        if precision == 'int8':
            limits = [ops.constant(np.float32(v)) for v in (-5.0, 5.0)]
            x = ops.fake_quantize(x, *limits, *limits, 256)
            weights = ops.fake_quantize(weights, *limits, *limits, 255)
        model = openvino.Model([ops.matmul(x, weights, False, True)], [left])
        hint = 'bf16' if precision == 'bf16' else 'f32'
        config = {'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': hint}
        request = core.compile_model(model, 'CPU', config).create_infer_request()
        return 2 * LARGE**3 / best(lambda: request.infer([a], share_inputs=True))

    result = {precision: product(precision) for precision in ('int8', 'fp32')}
    if 'BF16' in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        result['bf16'] = product('bf16')
    source, target = np.ones(1 << 27, np.uint8), np.empty(1 << 27, np.uint8)
    result['copy'] = 2 * source.nbytes / best(lambda: np.copyto(target, source))
    return result


def best(run: Callable[[], object], times: int = 8) -> float:
    """Least seconds of some runs."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def weight_bytes(bundle: ModelBundle, precision: str) -> float:
    """Bytes of the weights that every frame reads at least once."""
    size = sum(path.stat().st_size for path in bundle.graphs.values())
    return size / WEIGHT_BYTES['fp32'] * WEIGHT_BYTES[precision]


def open_engines(bundle: ModelBundle, console: Console) -> dict[str, Engine]:
    """All that this machine can run; the others are named with the reason."""
    engines: dict[str, Engine] = {}
    for backend in BACKENDS:
        try:
            for precision in precisions(bundle, backend):
                engine, _ = open_checked_engine(bundle, backend, precision)
                engines[f'{backend} {precision}'] = engine
        except EngineError as error:
            console.print(f'skipped: {error}', style='dim', soft_wrap=True)
    return engines


def speed(
    bundle: ModelBundle,
    engines: dict[str, Infer],
    size: tuple[int, int],
    runs: int,
    floors: dict[str, float],
    console: Console,
) -> dict[str, dict[str, float]]:
    """Time all engines on one camera, print and return medians and floors in ms."""
    image = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    times: dict[str, list[float]] = {name: [] for name in engines}
    for run in track(range(runs + 2), f'{size[0]}x{size[1]}'):
        for name, infer in engines.items():
            start = time.perf_counter()
            infer(*prepare(image, bundle))
            if run >= 2:  # the first two warm up
                times[name].append((time.perf_counter() - start) * 1e3)
    height, width = prepare(image, bundle)[0].shape[2:]
    table = Table(title=f'{size[0]}x{size[1]} image, network at {width}x{height}, {runs} runs')
    for title in ('engine', 'median ms', f'speed, {EAGER} = 1', 'floor ms', 'median / floor'):
        table.add_column(title)
    result = {}
    for name, values in times.items():
        median, floor = float(np.median(values)), floors[name]
        result[name] = {'median_ms': median, 'floor_ms': floor}
        table.add_row(
            name,
            f'{median:.0f}',
            f'{np.median(times[EAGER]) / median:.2f} x',
            f'{floor:.0f}',
            f'{median / floor:.1f} x',
        )
    console.print(table)
    return result


def accuracy(
    bundle: ModelBundle, engines: dict[str, Infer], data: Path, count: int, console: Console
) -> dict[str, dict[str, float]]:
    """AbsRel and delta1 of every engine on held-out NYUv2 frames, affine-invariant protocol."""
    frames = NyuV2(data / 'nyuv2', 'held_out')
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).astype(int)
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for index in track(chosen, 'NYUv2 held-out'):
        sample = frames[int(index)]
        truth = 1.0 / sample.inverse.astype(np.float64)
        inputs = prepare(sample.image, bundle)
        for name, infer in engines.items():
            relative = resize_inverse_depth(infer(*inputs), truth.shape[1], truth.shape[0])
            metrics = depth_metrics(affine_invariant_depth(relative, truth, *NYU_RANGE_M), truth)
            scores[name].append((metrics.abs_rel, metrics.delta1))
    means = {name: np.mean(values, axis=0) for name, values in scores.items()}
    table = Table(title=f'NYUv2 held-out, {len(chosen)} frames, affine-invariant')
    for title in ('engine', 'AbsRel', f'AbsRel, {EAGER} = 1', 'delta1'):
        table.add_column(title)
    for name, (abs_rel, delta1) in means.items():
        ratio = abs_rel / means[EAGER][0]
        table.add_row(name, f'{abs_rel:.4f}', f'{ratio:.4f} x', f'{delta1:.4f}')
    console.print(table)
    return {
        name: {'abs_rel': float(abs_rel), 'delta1': float(delta1)}
        for name, (abs_rel, delta1) in means.items()
    }


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='compact')
    parser.add_argument('--runs', type=int, default=20)
    parser.add_argument('--data', type=Path, help='folder that holds nyuv2/; none: no accuracy')
    parser.add_argument('--frames', type=int, default=60, help='for the accuracy')
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    bundle = ModelBundle.load(options.model)
    console = Console(width=120)
    eager, count_flops = torch_eager(bundle)
    engines: dict[str, Infer] = {EAGER: eager}
    engines |= {name: engine.infer for name, engine in open_engines(bundle, console).items()}
    peak = ceilings()
    console.print(
        'ceilings: '
        + ', '.join(f'{name} {peak[name] / 1e9:.0f} GFLOP/s' for name in peak if name != 'copy')
        + f', copy {peak["copy"] / 1e9:.1f} GB/s'
    )
    results: dict[str, object] = {'speed': {}}
    for camera, size in CAMERAS.items():
        image = np.zeros((size[1], size[0], 3), np.uint8)
        flops = count_flops(*prepare(image, bundle))
        console.print(f'{camera}: {flops / 1e9:.1f} GFLOP')
        floors = {}
        for name in engines:
            precision = name.split()[-1]
            work = flops / peak.get(precision, peak['fp32'])
            floors[name] = 1e3 * max(work, weight_bytes(bundle, precision) / peak['copy'])
        results['speed'][camera] = speed(bundle, engines, size, options.runs, floors, console)
    if options.data:
        results['accuracy'] = accuracy(bundle, engines, options.data, options.frames, console)
    if options.output:
        values = {
            'machine': platform.processor() or platform.machine(),
            'bundle_sha256': bundle.sha256,
            'ceilings': peak,
            **results,
        }
        options.output.write_text(json.dumps(values, indent=2) + '\n')


if __name__ == '__main__':
    main()
