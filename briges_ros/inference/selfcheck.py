"""Is what the engine computes what the network computes?

Engines that build, run fast and are wrong are the worst bug in this field, so every engine is
compared with the bundle's float32 reference before it is used.
"""

from __future__ import annotations

import logging
import zipfile
from dataclasses import dataclass

import numpy as np

from briges_ros.inference.bundle import BundleError, ModelBundle
from briges_ros.inference.engine import BACKENDS, Engine, EngineError, open_engine

log = logging.getLogger('briges_ros')

# Root mean square error relative to the reference's standard deviation. fp32 backends measure about
# 1e-6, so 1e-3 is generous and still catches weights that are off by a few per cent. bf16 keeps 8
# bits of mantissa through 12 blocks, which is a few per cent.
TOLERANCE = {'fp32': 1e-3, 'bf16': 0.1}


@dataclass(frozen=True)
class SelfCheck:
    """Outcome of a self-check.

    Attributes:
        relative_error: RMS error over the reference's standard deviation.
        correlation: of output and reference.
    """

    relative_error: float
    correlation: float


def open_checked_engine(
    bundle: ModelBundle, backend: str = 'auto', threads: int = 0
) -> tuple[Engine, SelfCheck]:
    """Load a bundle on a backend that computes what it should.

    Args:
        bundle: the checked bundle.
        backend: one of `BACKENDS`, or 'auto' for the fastest that loads and passes.
        threads: CPU threads; 0 lets the backend choose.

    Returns:
        The engine, and how it compared with the bundle's reference.

    Raises:
        EngineError: none does; says why for each.
    """
    reasons = []
    for name in BACKENDS if backend == 'auto' else [backend]:
        try:
            engine = open_engine(bundle, name, threads)
        except EngineError as error:
            reasons.append(str(error))
            log.info('backend skipped: %s', error)
            continue
        try:
            return engine, check_engine(engine, bundle)
        except EngineError as error:
            reasons.append(str(error))
            log.warning('backend skipped: %s', error)
    raise EngineError('; '.join(reasons))


def check_engine(engine: Engine, bundle: ModelBundle) -> SelfCheck:
    """Run the bundle's reference inputs and compare.

    They lie in its ``selfcheck.npz``: ``image`` and, with a gate, ``segmentation_image``, as
    `Engine.infer` takes them, and ``inverse_depth``, what it has to return (metres, if that is what
    the network gives).

    Raises:
        BundleError: the bundle's reference cannot be read.
        EngineError: the output differs from the reference by more than the precision explains.
    """
    try:
        with np.load(bundle.selfcheck, allow_pickle=False) as data:
            inputs = [data['image']]
            if bundle.segmentation_input is not None:
                inputs.append(data['segmentation_image'])
            reference = data['inverse_depth'].astype(np.float64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as why:
        raise BundleError(
            f'{bundle.selfcheck} cannot be read ({why}); make the bundle anew, e.g.: '
            f'briges export {bundle.name}'
        ) from why
    output = engine.infer(*inputs).astype(np.float64)
    if output.shape != reference.shape or not np.isfinite(output).all():
        raise EngineError(
            f'{engine.name} gives shape {output.shape} or non-finite values in the self-check; '
            'choose another backend'
        )
    error = float(np.sqrt(np.mean((output - reference) ** 2)) / reference.std())
    result = SelfCheck(error, float(np.corrcoef(output.ravel(), reference.ravel())[0, 1]))
    tolerance = TOLERANCE[engine.precision]
    if not error <= tolerance:
        raise EngineError(
            f'{engine.name} ({engine.precision}) fails the self-check of {bundle.name}: relative '
            f'error {error:.3g} over {tolerance:g}, correlation {result.correlation:.4f}; '
            'choose another backend'
        )
    return result
