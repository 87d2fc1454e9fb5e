"""What runs a bundle, and how one is chosen.

An `Engine` takes a network input and returns inverse depth. How it keeps the features between the
graphs is its own business: on a GPU they never leave the device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
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

    def infer(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Network input (1, 3, h, w) -> inverse depth (h', w') up to scale and shift.

        h and w are multiples of the bundle's patch. Not safe for several threads at once.
        """
        ...


Graph = Callable[[Sequence[NDArray[np.float32]]], list[NDArray[np.float32]]]
"""A loaded ONNX graph: arrays in the order of its inputs -> arrays in that of its outputs."""


class GraphEngine:
    """An engine over graphs that take and return host arrays (the CPU backends)."""

    def __init__(self, name: str, precision: str, graphs: dict[str, Graph]) -> None:
        self.name = name
        self.precision = precision
        self._depth_encoder = graphs['depth_encoder']
        self._gate_decoder = graphs['gate_decoder']

    def infer(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.infer`."""
        (inverse_depth,) = self._gate_decoder(self._depth_encoder([image]))
        return inverse_depth.reshape(inverse_depth.shape[-2:]).astype(np.float32, copy=False)


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


def graph_paths(bundle: ModelBundle) -> dict[str, Path]:
    """The graphs that the CPU engines run, checked to be ones they can.

    Raises:
        EngineError: the bundle has a gate, which these engines do not feed yet.
    """
    if bundle.gate != 'none':
        raise EngineError(f'{bundle.name} has gate {bundle.gate!r}, which needs a newer version')
    return bundle.graphs
