"""The onnxruntime backend (CPU, float32)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import EngineError, Graph, GraphEngine, graph_paths


def open_engine(bundle: ModelBundle, threads: int) -> GraphEngine:
    """Load the bundle's graphs; ``threads`` 0 means one for each core.

    Raises:
        EngineError: onnxruntime does not load a graph.
    """
    graphs = {name: _open_graph(path, threads) for name, path in graph_paths(bundle).items()}
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
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = session.run(
            None, dict(zip(names, inputs, strict=True))
        )
        return outputs

    return run
