"""Is what the engine computes what the network computes?

Engines that build, run fast and are wrong are the worst bug in this field, so every engine is
compared with the bundle's float32 reference before it is used: each graph on its own, and all of
them together.
"""

from __future__ import annotations

import logging
import zipfile
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from briges_ros.inference.bundle import BundleError, ModelBundle
from briges_ros.inference.engine import (
    AUTO,
    Arrays,
    Engine,
    EngineError,
    ImageEngine,
    Progress,
    open_engine,
    precisions,
)
from briges_ros.inference.preprocess import prepare

log = logging.getLogger('briges_ros')

WHOLE = 'whole network'
_LARGEST_REFERENCE = 1 << 30  # bytes, unpacked


@dataclass(frozen=True)
class Tolerance:
    """What a precision explains.

    Attributes:
        error: greatest `Comparison.relative_error`.
        scale: greatest difference of `Comparison.scale` from 1.
    """

    error: float
    scale: float


# fp32 backends measure about 1e-6, so this is generous and still catches weights that are off by a
# few per cent. Half keeps 11 bits and measures 2e-3. bf16 keeps 8 through 12 blocks, and int8 has
# 8 with one scale for a whole tensor: a few per cent each.
TOLERANCE = {
    'fp32': Tolerance(1e-3, 1e-3),
    'fp16': Tolerance(0.02, 0.01),
    'bf16': Tolerance(0.1, 0.03),
    'int8': Tolerance(0.15, 0.05),
}


@dataclass(frozen=True)
class Comparison:
    """One output beside its reference.

    Attributes:
        graph: which computed it; `WHOLE` for all of them, one after the other.
        output: its name.
        relative_error: root mean square error over the reference's standard deviation.
        correlation: of output and reference.
        scale: of the line through the output over the reference: 1 if no factor crept in.
    """

    graph: str
    output: str
    relative_error: float
    correlation: float
    scale: float

    def within(self, tolerance: Tolerance) -> bool:
        """Does the precision explain it? Never of what is not a number."""
        return self.relative_error <= tolerance.error and abs(self.scale - 1) <= tolerance.scale


@dataclass(frozen=True)
class SelfCheck:
    """Outcome of a self-check that passed.

    Attributes:
        comparisons: of every output of every graph; the whole network's comes last.
    """

    comparisons: tuple[Comparison, ...]

    @property
    def relative_error(self) -> float:
        """Of the whole network."""
        return self.comparisons[-1].relative_error

    @property
    def correlation(self) -> float:
        """Of the whole network."""
        return self.comparisons[-1].correlation


def open_checked_engine(
    bundle: ModelBundle,
    backend: str = 'auto',
    precision: str = 'auto',
    threads: int = 0,
    image_size: tuple[int, int] | None = None,
    token_budget: int | None = None,
    progress: Progress | None = None,
) -> tuple[Engine, SelfCheck]:
    """Load a bundle on a backend that computes what it should.

    Args:
        bundle: the checked bundle.
        backend: one of `engine.BACKENDS`, or 'auto' for the first of `AUTO` that loads and passes.
        precision: one of `engine.PRECISIONS`, or 'auto' for the fastest that passes: a backend
            whose fast precision fails the self-check falls back on its next.
        threads: CPU threads; 0 lets the backend choose.
        image_size: (width, height) of the images to come, if it is known: see `make_ready`.
        token_budget: most patches of these images; default: the bundle's.
        progress: see `open_engine`.

    Returns:
        The engine, and how it compared with the bundle's reference.

    Raises:
        EngineError: none does; says why for each.
    """
    reasons = []
    for name in AUTO if backend == 'auto' else [backend]:
        try:
            candidates = precisions(bundle, name) if precision == 'auto' else (precision,)
        except EngineError as error:
            reasons.append(str(error))
            log.info('backend skipped: %s', error)
            continue
        for candidate in candidates:
            try:
                engine = open_engine(bundle, name, candidate, threads, progress)
            except EngineError as error:
                reasons.append(str(error))
                log.info('backend skipped: %s', error)
                continue
            try:
                result = check_engine(engine, bundle)
                if image_size is not None:
                    make_ready(engine, bundle, image_size, token_budget)
                return engine, result
            except EngineError as error:
                reasons.append(str(error))
                log.warning('backend skipped: %s', error)
    raise EngineError('; '.join(reasons))


def check_engine(engine: Engine, bundle: ModelBundle) -> SelfCheck:
    """Run the bundle's reference inputs and compare.

    Raises:
        BundleError: the bundle's reference cannot be read.
        EngineError: an output differs from the reference by more than the precision explains.
    """
    comparisons = compare(engine, bundle)
    check(engine, bundle, comparisons)
    return SelfCheck(comparisons)


def check(engine: Engine, bundle: ModelBundle, comparisons: tuple[Comparison, ...]) -> None:
    """Refuse an engine that is wrong.

    Raises:
        EngineError: a comparison shows more than the precision explains.
    """
    tolerance = TOLERANCE[engine.precision]
    for c in comparisons:
        if not c.within(tolerance):
            raise EngineError(
                f'{engine.name} ({engine.precision}) fails the self-check of {bundle.name}, '
                f'{c.graph}, {c.output}: relative error {c.relative_error:.3g} (at most '
                f'{tolerance.error:g}), scale {c.scale:.4g} (1 +- {tolerance.scale:g}), '
                f'correlation {c.correlation:.4f}; choose another backend or precision'
            )


def make_ready(
    engine: Engine,
    bundle: ModelBundle,
    image_size: tuple[int, int],
    token_budget: int | None = None,
) -> None:
    """Run an image of a size once, so that whatever an engine builds for a size is there.

    The image is the self-check's own, so that an engine which compares a new size with float32, as
    TensorRT's does, does so on a real picture.

    Args:
        engine: one that passed its self-check.
        bundle: what it runs.
        image_size: (width, height), pixels.
        token_budget: most patches; default: the bundle's.

    Raises:
        EngineError: the engine does not run this size, or computes wrong numbers.
    """
    normalised = _reference(bundle)['depth_encoder'][0]['image'][0]
    picture = normalised.transpose(1, 2, 0) * np.array(bundle.std) + np.array(bundle.mean)
    pixels = np.clip(255 * picture, 0, 255).astype(np.uint8)
    image = np.asarray(cv2.resize(pixels, image_size, interpolation=cv2.INTER_LINEAR), np.uint8)
    if isinstance(engine, ImageEngine):
        engine.infer_image(image, token_budget or bundle.token_budget, reuse_segmentation=False)
    else:
        engine.infer(*prepare(image, bundle, token_budget))


def compare(engine: Engine, bundle: ModelBundle) -> tuple[Comparison, ...]:
    """What an engine makes of the bundle's reference inputs, beside what it should.

    They lie in its ``selfcheck.npz``, float32: ``image`` and, with a gate, ``segmentation_image``,
    as `Engine.infer` takes them; the encoders' outputs, ``level0`` and so on and ``segmentation``;
    and ``inverse_depth``, (h', w'), what `Engine.infer` has to return (metres, if that is what the
    network gives). Each graph is fed with the reference, so that none answers for another's
    mistake.

    Raises:
        BundleError: the bundle's reference cannot be read.
        EngineError: an output has another shape, or is not finite.
    """
    graphs = _reference(bundle)
    comparisons = []
    for graph, (inputs, outputs) in graphs.items():
        results = engine.run_graph(graph, inputs)
        comparisons += [
            comparison(engine, graph, name, results.get(name), reference)
            for name, reference in outputs.items()
        ]
    images = [graphs['depth_encoder'][0]['image']]
    if 'segmentation_encoder' in graphs:
        images.append(graphs['segmentation_encoder'][0]['image'])
    ((name, reference),) = graphs['gate_decoder'][1].items()
    output = engine.infer(*images)
    return (*comparisons, comparison(engine, WHOLE, name, output, reference[0, 0]))


def _reference(bundle: ModelBundle) -> dict[str, tuple[Arrays, Arrays]]:
    """By graph: its inputs and its outputs."""
    try:
        with zipfile.ZipFile(bundle.selfcheck) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _LARGEST_REFERENCE:
            raise ValueError(f'it unpacks to {size} bytes')
        with np.load(bundle.selfcheck, allow_pickle=False) as data:
            arrays = {name: np.asarray(data[name], np.float32) for name in data.files}
        levels = {name: array for name, array in arrays.items() if name.startswith('level')}
        output = {'inverse_depth': arrays['inverse_depth'][np.newaxis, np.newaxis]}
        graphs = {'depth_encoder': ({'image': arrays['image']}, levels)}
        features = dict(levels)
        if bundle.segmentation_input is not None:
            segmentation = {'segmentation': arrays['segmentation']}
            graphs['segmentation_encoder'] = ({'image': arrays['segmentation_image']}, segmentation)
            features |= segmentation
        if not levels:
            raise KeyError('level0')
        for name, array in arrays.items():
            if not array.std() > 0:  # nor of what is not finite
                raise ValueError(f'{name} is the same everywhere, or not finite')
    except Exception as why:  # zipfile, zlib and NumPy share no class of what a file is
        raise BundleError(
            f'{bundle.selfcheck} cannot be read ({why}); make the bundle anew, e.g.: '
            f'briges export {bundle.name}'
        ) from why
    graphs['gate_decoder'] = (features, output)
    return graphs


def comparison(
    engine: Engine,
    graph: str,
    name: str,
    output: NDArray[np.float32] | None,
    reference: NDArray[np.float32],
) -> Comparison:
    """An output beside its reference.

    Raises:
        EngineError: it has another shape, or is not finite.
    """
    if output is None or output.shape != reference.shape or not np.isfinite(output).all():
        raise EngineError(
            f'{engine.name} ({engine.precision}): {name} of the {graph} has shape '
            f'{None if output is None else output.shape} or non-finite values in the self-check; '
            'choose another backend or precision'
        )
    ours, theirs = output.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    spread = float(theirs.std())
    error = float(np.sqrt(np.mean((ours - theirs) ** 2))) / spread
    covariance = float(np.mean((ours - ours.mean()) * (theirs - theirs.mean())))
    correlation = covariance / (spread * float(ours.std())) if ours.std() > 0 else 0.0
    return Comparison(graph, name, error, correlation, covariance / spread**2)
