"""What runs a bundle, and how one is chosen.

An `Engine` takes a network input and returns inverse depth. How it keeps the features between the
graphs is its own business: on a GPU they never leave the device.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle

log = logging.getLogger('briges_ros')

# Fastest first, as measured by benchmarks/engines.py; 'auto' takes the first that loads.
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


def open_engine(bundle: ModelBundle, backend: str = 'auto', threads: int = 0) -> Engine:
    """Load a bundle on a backend.

    Args:
        bundle: the checked bundle.
        backend: one of `BACKENDS`, or 'auto' for the fastest that loads.
        threads: CPU threads; 0 lets the backend choose.

    Raises:
        EngineError: unknown backend, or none that loads; says why for each.
    """
    if backend != 'auto' and backend not in BACKENDS:
        raise EngineError(f'unknown backend {backend!r}; choose auto, {", ".join(BACKENDS)}')
    reasons = []
    for name in BACKENDS if backend == 'auto' else [backend]:
        try:
            module = importlib.import_module(BACKENDS[name])
            engine: Engine = module.open_engine(bundle, threads)
        except ImportError as error:
            reasons.append(f'{name}: {error}; pip install {name}')
        except EngineError as error:
            reasons.append(f'{name}: {error}')
        else:
            for reason in reasons:
                log.info('skipped %s', reason)
            return engine
    raise EngineError(f'no engine for {bundle.name}: ' + '; '.join(reasons))


def graph_paths(bundle: ModelBundle) -> dict[str, Path]:
    """The graphs that the CPU engines run, checked to be ones they can.

    Raises:
        EngineError: the bundle has a gate, which these engines do not feed yet.
    """
    if bundle.gate != 'none':
        raise EngineError(f'{bundle.name} has gate {bundle.gate!r}, which needs a newer version')
    return bundle.graphs
