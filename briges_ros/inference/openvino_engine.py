"""The OpenVINO backend, on the CPU: int8 and bf16 where the CPU has them, and float32."""

from __future__ import annotations

from pathlib import Path

import openvino

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import Arrays, EngineError, Graph, GraphEngine, Progress, one_line

SIZES_KEPT = 4  # compiled graphs: one for each of some cameras


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
    graphs = {
        # The depth encoder is compiled for inputs of any size: for one size it is a tenth faster,
        # but that takes seven seconds, with the first frame of a camera. The others are compiled
        # for the size at hand, in a third of a second, because OpenVINO (2026.4) computes int8
        # convolutions wrongly where sizes are open.
        name: _open_graph(core, device, path, config, any_size=name == 'depth_encoder')
        for name, path in bundle.graphs_in(precision).items()
    }
    return GraphEngine('openvino', precision, bundle, graphs)


def _open_graph(
    core: openvino.Core, device: str, path: Path, config: dict[str, object], any_size: bool
) -> Graph:
    try:
        model = core.read_model(str(path))
        if any_size:
            open_request = core.compile_model(model, device, config).create_infer_request()
    except RuntimeError as error:
        raise EngineError(
            f'openvino does not load {path}: {one_line(error)}; choose another backend'
        ) from error

    def compiled(inputs: Arrays) -> openvino.InferRequest:
        fixed = model.clone()
        fixed.reshape({name: list(array.shape) for name, array in inputs.items()})
        return core.compile_model(fixed, device, config).create_infer_request()

    requests: dict[tuple[tuple[int, ...], ...], openvino.InferRequest] = {}

    def run(inputs: Arrays) -> Arrays:
        if any_size:
            request = open_request
        else:
            sizes = tuple(array.shape for array in inputs.values())
            request = requests.pop(sizes, None) or compiled(inputs)
            if len(requests) == SIZES_KEPT:
                del requests[next(iter(requests))]  # not used for the longest time
            requests[sizes] = request
        # Features are read where they were written: no copies between the graphs.
        results = request.infer(inputs, share_inputs=True, share_outputs=True)
        return {output.any_name: results[output] for output in results}

    return run
