"""What runs a bundle, and how one is chosen.

An `Engine` takes network inputs and returns the network's output. How it keeps the features between
the graphs is its own business: on a GPU they never leave the device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle

# Fastest first, as measured by benchmarks/engines.py; 'auto' takes the first that loads
# and passes its self-check.
BACKENDS = {
    'openvino': 'briges_ros.inference.openvino_engine',
    'onnxruntime': 'briges_ros.inference.onnxruntime_engine',
}


class EngineError(BrigesError):
    """A backend that is missing, does not load the bundle, or computes wrong numbers."""


class Engine(Protocol):
    """Runs one bundle on one backend.

    Attributes:
        name: the backend, e.g. 'openvino'.
        precision: what it computes in, e.g. 'bf16'.
    """

    name: str
    precision: str

    def infer(
        self, image: NDArray[np.float32], segmentation_image: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Run the network: ``engine.infer(*prepare(image, bundle))``.

        Not safe for several threads at once.

        Args:
            image: (1, 3, h, w) input of the depth encoder; h, w multiples of the bundle's patch.
            segmentation_image: (1, 3, hs, ws) input of the segmentation encoder; only with a gate.

        Returns:
            (h', w') output, the caller's own; `ModelBundle.output` says what it means.

        Raises:
            ValueError: a segmentation input too many or too few.
        """
        ...


Arrays = dict[str, NDArray[np.float32]]

Graph = Callable[[Arrays], Arrays]
"""A loaded ONNX graph: arrays by the names of its inputs -> arrays by those of its outputs.

What it returns may be its own memory, which its next run overwrites.
"""


class GraphEngine:
    """An engine over graphs that take and return host arrays (the CPU backends)."""

    def __init__(self, name: str, precision: str, graphs: dict[str, Graph]) -> None:
        self.name = name
        self.precision = precision
        self._depth_encoder = graphs['depth_encoder']
        self._segmentation_encoder = graphs.get('segmentation_encoder')
        self._gate_decoder = graphs['gate_decoder']

    def infer(
        self, image: NDArray[np.float32], segmentation_image: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """See `Engine.infer`."""
        if (segmentation_image is None) != (self._segmentation_encoder is None):
            raise ValueError('a segmentation input goes with a gate: use prepare(image, bundle)')
        features = self._depth_encoder({'image': image})
        if self._segmentation_encoder is not None and segmentation_image is not None:
            features |= self._segmentation_encoder({'image': segmentation_image})
        (output,) = self._gate_decoder(features).values()
        return np.array(output.reshape(output.shape[-2:]), np.float32)


def open_engine(bundle: ModelBundle, backend: str, threads: int = 0) -> Engine:
    """Load a bundle on one backend. What it computes is not checked yet: see `selfcheck`.

    Args:
        bundle: the checked bundle.
        backend: one of `BACKENDS`.
        threads: CPU threads; 0 lets the backend choose.

    Raises:
        EngineError: unknown backend, not installed, or it does not load the bundle.
    """
    if backend not in BACKENDS:
        raise EngineError(f'unknown backend {backend!r}; choose auto, {", ".join(BACKENDS)}')
    try:
        module = importlib.import_module(BACKENDS[backend])
    except ImportError as error:
        raise EngineError(f'{backend}: {error}; pip install {backend}') from error
    engine: Engine = module.open_engine(bundle, threads)
    return engine
