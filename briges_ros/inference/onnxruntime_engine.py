"""The onnxruntime backend: on the CPU, and with its GPU package on CUDA or TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import Arrays, EngineError, Graph, GraphEngine, Progress, one_line
from briges_ros.inference.engine_cache import EngineCache, default_folder

PROVIDERS = {
    'cpu': 'CPUExecutionProvider',
    'cuda': 'CUDAExecutionProvider',
    'tensorrt': 'TensorrtExecutionProvider',
}
NAMES = {'cpu': 'onnxruntime', 'cuda': 'onnxruntime-cuda', 'tensorrt': 'onnxruntime-tensorrt'}


def precisions(bundle: ModelBundle, device: str) -> tuple[str, ...]:
    """See `engine.precisions`.

    Raises:
        EngineError: this onnxruntime was built without the device.
    """
    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise EngineError(
            f'{NAMES[device]}: this onnxruntime is one without {PROVIDERS[device]}; '
            'pip install onnxruntime-gpu (in place of onnxruntime)'
        )
    if device == 'cpu':
        # Its int8 is no faster than its float32 where that was measured.
        return ('fp32', *(('int8',) if bundle.int8_graphs else ()))
    return ('fp16', 'fp32')


def open_engine(
    bundle: ModelBundle, device: str, precision: str, threads: int, _progress: Progress | None
) -> GraphEngine:
    """Load the bundle's graphs; ``threads`` 0 means one for each core.

    Raises:
        EngineError: onnxruntime does not load a graph.
    """
    loaded = {
        name: _LoadedGraph(_open_session(path, device, precision, threads))
        for name, path in bundle.graphs_in(precision).items()
    }
    return GraphEngine(NAMES[device], precision, bundle, loaded)


class _LoadedGraph:
    """See `engine.LoadedGraph`. A session runs in several threads at once as it is."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._outputs = [value.name for value in session.get_outputs()]
        self._types = {value.name: value.type for value in session.get_inputs()}

    def runner(self) -> Graph:
        """See `engine.LoadedGraph.runner`."""
        return self._run

    def _run(self, inputs: Arrays) -> Arrays:
        fed = {
            name: array.astype('float16') if self._types[name] == 'tensor(float16)' else array
            for name, array in inputs.items()
        }
        return dict(zip(self._outputs, self._session.run(self._outputs, fed), strict=True))


def _open_session(
    path: Path, device: str, precision: str, threads: int
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    # Idle workers must sleep: on a robot the other nodes need the cores between two frames.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    settings: dict[str, Any] = {}
    if device == 'cuda':
        # TF32 has 11 bits, and it is on by itself.
        settings = {'use_tf32': '0', 'cudnn_conv_algo_search': 'HEURISTIC'}
    elif device == 'tensorrt':
        folder = default_folder() / 'onnxruntime'
        EngineCache(folder).make_folder()  # onnxruntime loads whatever is in it
        settings = {'trt_engine_cache_enable': '1', 'trt_engine_cache_path': str(folder)}
    try:
        session = onnxruntime.InferenceSession(
            _half(path) if precision == 'fp16' else str(path),
            options,
            providers=[(PROVIDERS[device], settings)],
        )
    except Exception as error:  # its errors share no base class
        raise EngineError(
            f'{NAMES[device]} does not load {path}: {one_line(error)}; choose another backend'
        ) from error
    if PROVIDERS[device] not in session.get_providers():  # it falls back to the CPU with a warning
        raise EngineError(
            f'{NAMES[device]} found no GPU that it can use, or not the CUDA libraries that it '
            'was built for; see the list of versions in the documentation of onnxruntime-gpu'
        )
    return session


def _half(path: Path) -> bytes:
    """The graph in float16. Loading it costs a second, so it is kept nowhere."""
    import onnx  # only here: what runs float32 and int8 needs none

    from briges_ros.inference.half_precision import half_precision

    content: bytes = half_precision(onnx.load(str(path))).SerializeToString()
    return content
