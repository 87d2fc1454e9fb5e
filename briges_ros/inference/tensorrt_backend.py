"""TensorRT behind the interface of all backends: an engine for each size, opened when it is needed.

Plans have fixed sizes. That of the bundle's self-check is built first, so that a network that
comes out wrong is known before a camera is. What a camera asks for is built with its first frame,
unless `briges build` has done so; and since another size runs other kernels, it is compared with
onnxruntime's float32 on that frame before it is used.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.device_memory import open_device
from briges_ros.inference.engine import Arrays, EngineError, Progress, check_inputs
from briges_ros.inference.engine import open_engine as open_other
from briges_ros.inference.preprocess import prepare
from briges_ros.inference.selfcheck import WHOLE, check, comparison
from briges_ros.inference.tensorrt_build import BuildOptions, Shapes, import_tensorrt
from briges_ros.inference.tensorrt_engine import (
    LoadedPlans,
    TensorRTEngine,
    open_tensorrt,
    selfcheck_shapes,
)

log = logging.getLogger('briges_ros')

SIZES_KEPT = 2  # besides the newest: each holds the weights on the device once more


def precisions(bundle: ModelBundle, _device: str) -> tuple[str, ...]:
    """See `engine.precisions`.

    Raises:
        EngineError: no TensorRT, no binding to CUDA, no driver, or no GPU.
    """
    import_tensorrt()
    open_device().close()
    # int8 comes last: what is not quantised is float32 there, so fp16 is about as fast.
    return ('fp16', 'fp32', *(('int8',) if bundle.int8_graphs else ()))


def open_engine(
    bundle: ModelBundle, _device: str, precision: str, _threads: int, progress: Progress | None
) -> TensorRTBackend:
    """Load or build the plans of the self-check's size.

    Raises:
        EngineError: see `open_tensorrt`.
    """
    return TensorRTBackend(bundle, precision, progress)


class TensorRTBackend:
    """See `engine.ImageEngine`."""

    name = 'tensorrt'

    def __init__(
        self,
        bundle: ModelBundle,
        precision: str,
        progress: Progress | None = None,
        loaded: LoadedPlans | None = None,
    ) -> None:
        self.precision = precision
        self._bundle = bundle
        self._progress = progress
        self._loaded = loaded or LoadedPlans()
        self._engines: dict[str, TensorRTEngine] = {}
        self._refused: dict[str, str] = {}  # why; an exception would keep the frame alive
        self._selfcheck_shapes = selfcheck_shapes(bundle)
        self._newest, _ = self._for_inputs(self._selfcheck_shapes)

    def infer(
        self, image: NDArray[np.float32], segmentation_image: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """See `engine.Engine.infer`.

        Raises:
            EngineError: the plans of this size cannot be built, or compute wrong numbers.
        """
        gated = self._bundle.segmentation_input is not None
        # The segmentation of the last frame is in the engine that computed it.
        same_size = self._newest.input_shapes['image'] == image.shape
        check_inputs(self._bundle, image, segmentation_image, same_size)
        if gated and segmentation_image is None:
            return self._newest.infer(image)
        inputs = (image,) if segmentation_image is None else (image, segmentation_image)
        encoders = ('depth_encoder', 'segmentation_encoder')
        shapes: dict[str, Shapes] = {
            name: {'image': array.shape} for name, array in zip(encoders, inputs, strict=False)
        }
        engine, new = self._for_inputs(shapes)
        output = engine.infer(*inputs)
        if new and shapes != self._selfcheck_shapes:
            self._prove(str(shapes), output, inputs)
        self._newest = engine
        return output

    def infer_image(
        self, image: NDArray[np.uint8], token_budget: int, reuse_segmentation: bool
    ) -> NDArray[np.float32]:
        """See `engine.ImageEngine.infer_image`.

        Raises:
            EngineError: the plans of this size cannot be built, or compute wrong numbers.
        """
        camera = image.shape[1], image.shape[0]
        key = f'{camera[0]}x{camera[1]} {token_budget}'
        engine, new = self._opened(
            key, functools.partial(open_tensorrt, self._bundle, camera, token_budget=token_budget)
        )
        if new:
            inputs = prepare(image, self._bundle, token_budget)
            self._prove(key, engine.infer(*inputs), inputs)
        self._newest = engine
        return engine.infer_image(image, reuse_segmentation and not new)

    def depth(
        self,
        scale: float,
        shift: float,
        min_range: float,
        max_range: float,
        relative_range: tuple[float, float],
    ) -> NDArray[np.float32]:
        """See `engine.ImageEngine.depth`."""
        return self._newest.depth(scale, shift, min_range, max_range, relative_range)

    def run_graph(self, graph: str, inputs: Arrays) -> Arrays:
        """See `engine.Engine.run_graph`; of the self-check's size."""
        engine, _ = self._for_inputs(self._selfcheck_shapes)
        return engine.run_graph(graph, inputs)

    def sibling(self, progress: Progress | None = None) -> TensorRTBackend:
        """See `engine.Engine.sibling`; it has execution contexts, streams and buffers of its own.

        Raises:
            EngineError: too little memory for these.
        """
        return TensorRTBackend(self._bundle, self.precision, progress, self._loaded)

    def _for_inputs(self, shapes: dict[str, Shapes]) -> tuple[TensorRTEngine, bool]:
        return self._opened(
            str(shapes), functools.partial(open_tensorrt, self._bundle, shapes=shapes)
        )

    def _opened(
        self, key: str, opener: Callable[..., TensorRTEngine]
    ) -> tuple[TensorRTEngine, bool]:
        """The engine of a size, and whether it is new."""
        if key in self._refused:
            raise EngineError(self._refused[key])
        engine = self._engines.pop(key, None)
        new = engine is None
        if engine is None:
            log.info('tensorrt: plans for %s, from the cache or built, which takes minutes', key)
            try:
                engine = opener(
                    options=BuildOptions(self.precision),
                    progress=self._progress,
                    loaded=self._loaded,
                )
            except EngineError as error:  # else each image would start to build, for minutes
                self._refused[key] = str(error)
                raise
            while len(self._engines) > SIZES_KEPT:
                self._engines.pop(next(iter(self._engines))).close()
        self._engines[key] = engine  # the last is the one that was used last
        return engine, new

    def _prove(
        self, key: str, output: NDArray[np.float32], inputs: tuple[NDArray[np.float32], ...]
    ) -> None:
        """Compare the network's output with float32, or never run this size again."""
        reference = open_other(self._bundle, 'onnxruntime', 'fp32').infer(*inputs)
        try:
            found = comparison(self, WHOLE, 'inverse_depth', output, reference)
            check(self, self._bundle, (found,))
        except EngineError as error:
            self._refused[key] = str(error)
            self._engines.pop(key).close()
            raise
        log.info(
            'tensorrt (%s): relative error %.2g on the first frame of %s',
            self.precision,
            found.relative_error,
            key,
        )
