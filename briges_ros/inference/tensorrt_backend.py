"""TensorRT behind the interface of all backends: an engine for each size, opened when it is needed.

Plans have fixed sizes. That of the bundle's self-check is built first, so that a network that
comes out wrong is known before a camera is. What a camera asks for is built with its first frame,
unless `briges build` has done so; and since another size runs other kernels, it is compared with
onnxruntime's float32 on that frame before it is used.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.device_memory import open_device
from briges_ros.inference.engine import Arrays, EngineError
from briges_ros.inference.engine import open_engine as open_other
from briges_ros.inference.selfcheck import WHOLE, check, comparison
from briges_ros.inference.tensorrt_build import BuildOptions, Shapes, import_tensorrt
from briges_ros.inference.tensorrt_engine import TensorRTEngine, open_tensorrt, selfcheck_shapes

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
    bundle: ModelBundle, _device: str, precision: str, _threads: int
) -> TensorRTBackend:
    """Load or build the plans of the self-check's size.

    Raises:
        EngineError: see `open_tensorrt`.
    """
    return TensorRTBackend(bundle, precision)


class TensorRTBackend:
    """See `engine.Engine`."""

    name = 'tensorrt'

    def __init__(self, bundle: ModelBundle, precision: str) -> None:
        self.precision = precision
        self._bundle = bundle
        self._engines: dict[str, TensorRTEngine] = {}
        self._refused: dict[str, EngineError] = {}
        self._newest = self._opened(selfcheck_shapes(bundle))

    def infer(
        self, image: NDArray[np.float32], segmentation_image: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """See `engine.Engine.infer`.

        Raises:
            EngineError: the plans of this size cannot be built, or compute wrong numbers.
        """
        gated = self._bundle.segmentation_input is not None
        if segmentation_image is None and gated:
            # The segmentation of the last frame is in the engine that computed it.
            if self._newest.input_shapes['image'] != image.shape:
                raise ValueError('a frame of another size needs a segmentation input')
            return self._newest.infer(image)
        inputs = (image,) if segmentation_image is None else (image, segmentation_image)
        shapes: dict[str, Shapes] = {'depth_encoder': {'image': image.shape}}
        if segmentation_image is not None:
            if not gated:
                raise ValueError(
                    'a segmentation input goes with a gate: use prepare(image, bundle)'
                )
            shapes['segmentation_encoder'] = {'image': segmentation_image.shape}
        if str(shapes) in self._refused:
            raise self._refused[str(shapes)]
        known = str(shapes) in self._engines
        engine = self._newest = self._opened(shapes)
        output = engine.infer(*inputs)
        if not known and shapes != selfcheck_shapes(self._bundle):
            try:
                self._prove(output, inputs)
            except EngineError as error:
                self._refused[str(shapes)] = error
                raise
        return output

    def run_graph(self, graph: str, inputs: Arrays) -> Arrays:
        """See `engine.Engine.run_graph`; of the self-check's size."""
        return self._opened(selfcheck_shapes(self._bundle)).run_graph(graph, inputs)

    def _opened(self, shapes: dict[str, Shapes]) -> TensorRTEngine:
        engine = self._engines.pop(str(shapes), None)
        if engine is None:
            sizes = ', '.join(f'{s["image"][3]}x{s["image"][2]}' for s in shapes.values())
            log.info('tensorrt: plans for %s, from the cache or built, which takes minutes', sizes)
            engine = open_tensorrt(
                self._bundle, shapes=shapes, options=BuildOptions(self.precision)
            )
            while len(self._engines) > SIZES_KEPT:
                self._engines.pop(next(iter(self._engines))).close()
        self._engines[str(shapes)] = engine
        return engine

    def _prove(self, output: NDArray[np.float32], inputs: tuple[NDArray[np.float32], ...]) -> None:
        reference = open_other(self._bundle, 'onnxruntime', 'fp32').infer(*inputs)
        found = comparison(self, WHOLE, 'inverse_depth', output, reference)
        check(self, self._bundle, (found,))
        log.info(
            'tensorrt (%s): relative error %.2g on the first frame of %dx%d',
            self.precision,
            found.relative_error,
            inputs[0].shape[3],
            inputs[0].shape[2],
        )
