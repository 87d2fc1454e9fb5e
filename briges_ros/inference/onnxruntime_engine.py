"""The onnxruntime backend (CPU, float32)."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import Arrays, EngineError, Graph, GraphEngine


def open_engine(bundle: ModelBundle, threads: int) -> GraphEngine:
    """Load the bundle's graphs; ``threads`` 0 means one for each core.

    Raises:
        EngineError: onnxruntime does not load a graph.
    """
    graphs = {name: _open_graph(path, threads) for name, path in bundle.graphs.items()}
    return GraphEngine('onnxruntime', 'fp32', graphs)


def _open_graph(path: Path, threads: int) -> Graph:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    # Idle workers must sleep: on a robot the other nodes need the cores between two frames.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=['CPUExecutionProvider']
        )
    except Exception as error:  # its errors share no base class
        raise EngineError(f'onnxruntime does not load {path}: {error}') from error
    names = [value.name for value in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run
