"""`briges check`, `bench`, `build`: what engines compute, how fast, and plans made beforehand."""

from __future__ import annotations

import re
import statistics
import time
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import BACKENDS, Engine, EngineError, precisions
from briges_ros.inference.preprocess import prepare, to_inverse_depth
from briges_ros.inference.selfcheck import (
    TOLERANCE,
    WHOLE,
    SelfCheck,
    make_ready,
    open_checked_engine,
)

REFERENCE = ('onnxruntime', 'fp32')  # what the others are compared with: it runs everywhere


def run_check(model: str, backend: str, precision: str) -> None:
    """Print how every output of an engine compares with the bundle's reference.

    Raises:
        BrigesError: an engine does not load, or computes wrong numbers; with the numbers.
    """
    bundle = ModelBundle.load(model)
    with Console(stderr=True).status('loading'):
        engine, check = open_checked_engine(bundle, backend, precision)
    tolerance = TOLERANCE[engine.precision]
    table = Table(
        'graph',
        'output',
        'relative error',
        'correlation',
        'fitted scale',
        title=f'{bundle.name} on {engine.name} ({engine.precision}) beside float32',
        caption=f'tolerated: relative error {tolerance.error:g}, scale 1 +- {tolerance.scale:g}',
    )
    for c in check.comparisons:
        table.add_row(
            c.graph, c.output, f'{c.relative_error:.2e}', f'{c.correlation:.6f}', f'{c.scale:.6f}'
        )
    Console().print(table)
    print(
        f'{bundle.name} on {engine.name} ({engine.precision}): relative error '
        f'{check.relative_error:.2e}, correlation {check.correlation:.6f}: passed'
    )


@dataclass(frozen=True)
class _Candidate:
    engine: Engine
    check: SelfCheck
    milliseconds: list[float]


def run_bench(model: str, size: str, token_budget: int | None, runs: int, threads: int) -> None:
    """Print the time from image to inverse depth of every engine that runs and passes.

    Raises:
        BrigesError: the size is none, or no engine runs.
    """
    width, height = _image_size(size)
    bundle = ModelBundle.load(model)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    console = Console()
    candidates = []
    for backend, precision in _combinations(bundle, console):
        try:
            engine, check = open_checked_engine(bundle, backend, precision, threads)
            engine.infer(*prepare(image, bundle, token_budget))
        except EngineError as error:
            console.print(f'skipped: {error}', style='dim', highlight=False, soft_wrap=True)
        else:
            candidates.append(_Candidate(engine, check, []))
    if not candidates:
        raise EngineError(f'no engine runs {bundle.name} here; the reasons are above')
    for _ in track(range(runs), f'{size}, {runs} frames', console=Console(stderr=True)):
        for candidate in candidates:
            start = time.perf_counter()
            output = candidate.engine.infer(*prepare(image, bundle, token_budget))
            to_inverse_depth(output, bundle)
            candidate.milliseconds.append((time.perf_counter() - start) * 1e3)
    console.print(_table(bundle, image, token_budget, candidates))


@dataclass(frozen=True)
class BuildJob:
    """What `briges build` is asked for.

    Attributes:
        model: a bundle's name or folder.
        sizes: of the cameras' images, 'WIDTHxHEIGHT' each.
        token_budget: most patches; None = the bundle's.
        precision: 'fp16', 'fp32' or 'int8'.
        compute_capability: of the GPU, e.g. '8.6', with TensorRT-RTX; None = the GPU at hand.
    """

    model: str
    sizes: list[str]
    token_budget: int | None = None
    precision: str = 'fp16'
    compute_capability: str | None = None


def run_build(job: BuildJob) -> None:
    """Build the TensorRT plans that the node would build, and check them if their GPU is at hand.

    Raises:
        BrigesError: a size is none, there is no TensorRT or GPU, a graph cannot be built, or the
            plans compute wrong numbers.
    """
    from briges_ros.inference.device_memory import open_device
    from briges_ros.inference.engine_cache import EngineCache
    from briges_ros.inference.tensorrt_build import BuildOptions, import_tensorrt
    from briges_ros.inference.tensorrt_engine import Gpu, build_plans

    sizes = [_image_size(size) for size in job.sizes]
    bundle = ModelBundle.load(job.model)
    options, cache = BuildOptions(job.precision), EngineCache()
    library = import_tensorrt()
    if job.compute_capability is None:
        device = open_device()
        gpu = Gpu(device.name, device.compute_capability)
        device.close()
    else:
        if library.__name__ != 'tensorrt_rtx':
            raise BrigesError(
                'TensorRT builds for the GPU at hand; plans for another one are made where '
                'only tensorrt-rtx is installed'
            )
        gpu = Gpu('', job.compute_capability)
    table = Table('for images of', 'graph', 'MB', '', title=f'{cache.folder}')
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        task = progress.add_task('', total=1.0)
        for size in (None, *sizes):
            name = 'self-check' if size is None else f'{size[0]}x{size[1]}'
            progress.reset(task, description=name)

            def report(graph: str, done: float, name: str = name) -> None:
                progress.update(task, completed=done, description=f'{name}: {graph}')

            plans = build_plans(bundle, size, gpu, options, job.token_budget, cache, report)
            for graph, plan in plans.items():
                megabytes = f'{len(plan.graph.plan) / 1e6:.1f}'
                table.add_row(name, graph, megabytes, 'built' if plan.built else 'was there')
    Console().print(table)
    if job.compute_capability is not None:
        return  # they run elsewhere; whoever loads them checks them
    with console.status('checking'):
        engine, check = open_checked_engine(bundle, 'tensorrt', job.precision)
        for size in sizes:
            make_ready(engine, bundle, size, job.token_budget)
    print(
        f'{bundle.name} on tensorrt ({job.precision}): relative error {check.relative_error:.2e}, '
        f'correlation {check.correlation:.6f}: passed, at {", ".join(["its own size", *job.sizes])}'
    )


def _image_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d{1,5})x(\d{1,5})', text)
    if match is None or 0 in map(int, match.groups()):
        raise BrigesError(f'--size {text} is no image size; give WIDTHxHEIGHT, e.g. 640x480')
    width, height = map(int, match.groups())
    return width, height


def _combinations(bundle: ModelBundle, console: Console) -> list[tuple[str, str]]:
    """Every backend with everything that it can compute in; says why of those that cannot run."""
    combinations = []
    for backend in BACKENDS:
        try:
            combinations += [(backend, precision) for precision in precisions(bundle, backend)]
        except EngineError as error:
            console.print(f'skipped: {error}', style='dim', highlight=False, soft_wrap=True)
    return combinations


def _table(
    bundle: ModelBundle,
    image: np.ndarray,
    token_budget: int | None,
    candidates: list[_Candidate],
) -> Table:
    rows, cols = (n // bundle.patch for n in prepare(image, bundle, token_budget)[0].shape[2:])
    medians = {
        (c.engine.name, c.engine.precision): statistics.median(c.milliseconds) for c in candidates
    }
    reference = REFERENCE if REFERENCE in medians else next(iter(medians))
    table = Table(
        'engine',
        'precision',
        'median ms',
        'least ms',
        f'speed, {" ".join(reference)} = 1',
        f'relative error, {WHOLE}',
        title=f'{bundle.name}, {image.shape[1]}x{image.shape[0]} image -> {cols * rows} patches',
    )
    for candidate in sorted(candidates, key=lambda c: statistics.median(c.milliseconds)):
        key = candidate.engine.name, candidate.engine.precision
        table.add_row(
            *key,
            f'{medians[key]:.1f}',
            f'{min(candidate.milliseconds):.1f}',
            f'{medians[reference] / medians[key]:.2f} x',
            f'{candidate.check.relative_error:.1e}',
        )
    return table
