"""`briges check` and `briges bench`: what this machine's engines compute, and how fast."""

from __future__ import annotations

import re
import statistics
import time
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import BACKENDS, Engine, EngineError, precisions
from briges_ros.inference.preprocess import prepare, to_inverse_depth
from briges_ros.inference.selfcheck import (
    TOLERANCE,
    WHOLE,
    SelfCheck,
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
    match = re.fullmatch(r'(\d{1,5})x(\d{1,5})', size)
    if match is None or 0 in map(int, match.groups()):
        raise BrigesError(f'--size {size} is no image size; give WIDTHxHEIGHT, e.g. 640x480')
    width, height = map(int, match.groups())
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
