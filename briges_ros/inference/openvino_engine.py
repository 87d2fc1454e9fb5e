"""The OpenVINO backend (CPU; bf16 where the CPU has it, else float32)."""

from __future__ import annotations

from pathlib import Path

import openvino

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import Arrays, EngineError, Graph, GraphEngine

DEVICE = 'CPU'


def open_engine(bundle: ModelBundle, threads: int) -> GraphEngine:
    """Load the bundle's graphs; ``threads`` 0 lets OpenVINO choose.

    Raises:
        EngineError: OpenVINO does not load a graph.
    """
    core = openvino.Core()
    precision = (
        'bf16' if 'BF16' in core.get_property(DEVICE, 'OPTIMIZATION_CAPABILITIES') else 'f32'
    )
    config: dict[str, object] = {
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_PRECISION_HINT': precision,
    }
    if threads:
        config['INFERENCE_NUM_THREADS'] = threads
    graphs = {name: _open_graph(core, path, config) for name, path in bundle.graphs.items()}
    return GraphEngine('openvino', 'bf16' if precision == 'bf16' else 'fp32', graphs)


def _open_graph(core: openvino.Core, path: Path, config: dict[str, object]) -> Graph:
    try:
        request = core.compile_model(str(path), DEVICE, config).create_infer_request()
    except RuntimeError as error:
        raise EngineError(f'openvino does not load {path}: {error}') from error

    def run(inputs: Arrays) -> Arrays:
        # Features are read where they were written: no copies between the graphs.
        results = request.infer(inputs, share_inputs=True, share_outputs=True)
        return {output.any_name: results[output] for output in results}

    return run
