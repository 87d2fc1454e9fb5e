"""The OpenVINO backend, on the CPU: int8 and bf16 where the CPU has them, and float32."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import openvino

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import Arrays, EngineError, Graph, GraphEngine, Progress, one_line

SIZES_KEPT = 4  # compiled graphs: one for each of some cameras

Sizes = tuple[tuple[int, ...], ...]
"""Shapes of a graph's inputs; none where it is compiled for any."""


def precisions(bundle: ModelBundle, device: str) -> tuple[str, ...]:
    """See `engine.precisions`. A CPU with bf16 has int8 too, and that is faster."""
    capabilities = openvino.Core().get_property(device, 'OPTIMIZATION_CAPABILITIES')
    return (
        *(('int8',) if bundle.int8_graphs and 'INT8' in capabilities else ()),
        *(('bf16',) if 'BF16' in capabilities else ()),
        'fp32',
    )


def open_engine(
    bundle: ModelBundle, device: str, precision: str, threads: int, _progress: Progress | None
) -> GraphEngine:
    """Load the bundle's graphs; ``threads`` 0 lets OpenVINO choose.

    Raises:
        EngineError: OpenVINO does not load a graph.
    """
    core = openvino.Core()
    config: dict[str, object] = {
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_PRECISION_HINT': 'bf16' if precision == 'bf16' else 'f32',
    }
    if threads:
        config['INFERENCE_NUM_THREADS'] = threads
    loaded = {
        # The depth encoder is compiled for inputs of any size: for one size it is a tenth faster,
        # but that takes seven seconds, with the first frame of a camera. The others are compiled
        # for the size at hand, in a third of a second, because OpenVINO (2026.4) computes int8
        # convolutions wrongly where sizes are open.
        name: _LoadedGraph(core, device, path, config, any_size=name == 'depth_encoder')
        for name, path in bundle.graphs_in(precision).items()
    }
    return GraphEngine('openvino', precision, bundle, loaded)


class _LoadedGraph:
    """See `engine.LoadedGraph`. Compiled at once for any size, or for each size that comes."""

    def __init__(
        self,
        core: openvino.Core,
        device: str,
        path: Path,
        config: dict[str, object],
        any_size: bool,
    ) -> None:
        self._core, self._device, self._config = core, device, config
        try:
            self._model = core.read_model(str(path))
            self._any_size = self._compile(self._model) if any_size else None
        except RuntimeError as error:
            raise EngineError(
                f'openvino does not load {path}: {one_line(error)}; choose another backend'
            ) from error
        self._by_sizes: dict[Sizes, openvino.CompiledModel] = {}
        self._compiling = threading.Lock()

    def runner(self) -> Graph:
        """See `engine.LoadedGraph.runner`."""
        requests: dict[Sizes, openvino.InferRequest] = {}

        def run(inputs: Arrays) -> Arrays:
            sizes = (
                ()
                if self._any_size is not None
                else tuple(array.shape for array in inputs.values())
            )
            request = requests.pop(sizes, None)
            if request is None:
                request = self._compiled(inputs, sizes).create_infer_request()
                _make_room(requests)
            requests[sizes] = request
            # Features are read where they were written: no copies between the graphs.
            results = request.infer(inputs, share_inputs=True, share_outputs=True)
            return {output.any_name: results[output] for output in results}

        return run

    def _compiled(self, inputs: Arrays, sizes: Sizes) -> openvino.CompiledModel:
        if self._any_size is not None:
            return self._any_size
        with self._compiling:  # two cameras of one size need it once
            compiled = self._by_sizes.pop(sizes, None)
            if compiled is None:
                fixed = self._model.clone()
                fixed.reshape({name: list(array.shape) for name, array in inputs.items()})
                compiled = self._compile(fixed)
                _make_room(self._by_sizes)
            self._by_sizes[sizes] = compiled
        return compiled

    def _compile(self, model: openvino.Model) -> openvino.CompiledModel:
        return self._core.compile_model(model, self._device, self._config)


def _make_room(by_sizes: dict[Sizes, Any]) -> None:
    """Drop what was not used for the longest time, if there is one too many."""
    if len(by_sizes) == SIZES_KEPT:
        del by_sizes[next(iter(by_sizes))]
