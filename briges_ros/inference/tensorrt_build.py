"""Serialised TensorRT engines from the graphs of a bundle and of the image processing around it.

Works with TensorRT 10.3 (JetPack 6) to 11 and with TensorRT-RTX; where they differ is in `_Library`
and `_configure`. A plan of TensorRT-RTX is built without a GPU; TensorRT measures on the one that
the plan is for.

Every graph is fixed to its sizes before the parser sees it, so that what ``torch.onnx`` computes
from an image's size is a constant for the builder, and a plan has no shapes to choose from.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import EngineError, Progress, one_line
from briges_ros.inference.preprocess import input_size

if TYPE_CHECKING:
    import onnx

log = logging.getLogger('briges_ros')

LIBRARIES = ('tensorrt', 'tensorrt_rtx')
PRECISIONS = ('fp16', 'fp32', 'int8')
CONVERSION = 1  # of what `half_precision` and `image_graphs` make; raised whenever that changes
QUANTISED = frozenset({'QuantizeLinear', 'DequantizeLinear'})
LEVELS = tuple(f'level{i}' for i in range(4))
# What TensorRT says of memory that it does not get.
ASKED_FOR = re.compile(
    r'(?:Requested amount of GPU memory \(|Requested size was |Tactic Device request: )'
    r'(\d+) ?(bytes|MB)'
)
UNITS = {'bytes': 1, 'MB': 1_000_000}
LARGEST_MESSAGE = (1 << 31) - 1  # bytes that protobuf puts into one message

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        precision: 'fp16' (with float32 where it is needed, see `half_precision`), 'fp32', or 'int8'
            for graphs that are quantised already: where QuantizeLinear and DequantizeLinear say so
            they compute in integers, and elsewhere in float32, with products of 11 bits (TF32).
            TensorRT wants them symmetric (zero points of 0, int8 on both sides) and biases in
            float.
        workspace: most bytes of scratch memory on the device; None leaves it to the library.
        level: 0 (builds fastest) to 5 (runs fastest); None for the library's own, 3.
        compute_capabilities: of the GPUs that the plan is for, such as ('8.6', '8.9'). Only for
            TensorRT-RTX; empty: its own choice.
    """

    precision: str = 'fp16'
    workspace: int | None = None
    level: int | None = None
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise EngineError(
                f'unknown precision {self.precision!r}; choose {", ".join(PRECISIONS)}'
            )


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a plan: ``dtype`` is 'float32', 'float16' or 'uint8'."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class BuiltGraph:
    """A serialised engine and what goes in and comes out.

    Attributes:
        plan: what the library's ``Runtime`` deserialises.
        inputs, outputs: in the graph's order.
        timing_cache: what was measured, to build the next graph faster; empty for TensorRT-RTX,
            which measures nothing.
    """

    plan: bytes = field(repr=False)
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    timing_cache: bytes = field(default=b'', repr=False)


def import_tensorrt() -> ModuleType:
    """TensorRT, or else TensorRT-RTX.

    Raises:
        EngineError: neither can be imported; with the mend.
    """
    reasons = []
    for name in LIBRARIES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: a library that it loads is missing
            reasons.append(str(error).splitlines()[0])
    raise EngineError(
        f'TensorRT is not installed ({"; ".join(reasons)}): on a Jetson it comes with JetPack, '
        'elsewhere: pip install tensorrt, or on an RTX GPU: pip install tensorrt-rtx'
    )


def network_shapes(
    bundle: ModelBundle, width: int, height: int, token_budget: int | None = None
) -> dict[str, Shapes]:
    """The sizes that a camera asks for.

    Args:
        bundle: the model.
        width, height: of the camera's image, pixels.
        token_budget: most patches; default: the bundle's.

    Returns:
        For each encoder its input: {'depth_encoder': {'image': (1, 3, h, w)}, ...}. Those of the
        gates and the decoder are the encoders' outputs.
    """
    w, h = input_size(width, height, token_budget or bundle.token_budget, bundle.patch)
    shapes: dict[str, Shapes] = {'depth_encoder': {'image': (1, 3, h, w)}}
    if bundle.segmentation_input is not None:
        ws, hs = bundle.segmentation_input.pixels(w // bundle.patch, h // bundle.patch)
        shapes['segmentation_encoder'] = {'image': (1, 3, hs, ws)}
    return shapes


def build_graph(
    source: Path | onnx.ModelProto,
    shapes: Mapping[str, Shape],
    options: BuildOptions,
    progress: Progress | None = None,
    timing_cache: bytes = b'',
) -> BuiltGraph:
    """Build one graph for one set of sizes.

    Args:
        source: the float32 ONNX graph, or where it lies. One that is given is changed.
        shapes: of each of its inputs.
        options: how.
        progress: see `Progress`; told of TensorRT's phases.
        timing_cache: of an earlier build with the same library on the same GPU.

    Raises:
        EngineError: no TensorRT, a graph that it cannot parse or build, or the build was stopped.
    """
    library = _Library(import_tensorrt())
    trt = library.trt
    logger = tensorrt_logger(trt)
    name = str(source) if isinstance(source, Path) else source.graph.name
    logger.forget()
    try:
        builder = trt.Builder(logger)
    except (RuntimeError, TypeError) as error:  # TypeError: what 10.x makes of a null pointer
        raise EngineError(
            f'{library.name} does not start ({logger.last_error or error}): '
            'is there an NVIDIA GPU, and is its driver as new as the library wants?'
        ) from error
    network = builder.create_network(library.network_flags())
    parser = trt.OnnxParser(network, logger)
    # The folder is where weights lie that are kept apart from a large graph.
    if not parser.parse(_typed_graph(source, name, shapes, options.precision), name):
        raise EngineError(f'{library.name} cannot build {name}: {_parser_errors(parser)}')
    inputs = _infos(trt, [network.get_input(i) for i in range(network.num_inputs)])
    outputs = _infos(trt, [network.get_output(i) for i in range(network.num_outputs)])
    for info in (*inputs, *outputs):
        if min(info.shape, default=1) < 0:
            raise EngineError(f'{name}: {info.name} has no fixed size ({info.shape})')
    config = builder.create_builder_config()
    cache = _configure(library, config, options, timing_cache)
    monitor = _progress_monitor(trt, progress)
    config.progress_monitor = monitor
    logger.forget()
    plan = builder.build_serialized_network(network, config)
    if monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        if monitor.stopped:
            raise EngineError(f'the build of {name} was stopped')
        asked = f' (it asked for {logger.needed / 1e6:.0f} MB in vain)' if logger.needed else ''
        more = '' if options.workspace is None else ' or a larger workspace'
        raise EngineError(
            f'{library.name} cannot build {name}: {logger.last_error or "no reason given"}{asked}; '
            f"close what uses the GPU's memory, or choose a smaller token_budget{more}"
        )
    measured = b'' if cache is None else bytes(config.get_timing_cache().serialize())
    return BuiltGraph(bytes(plan), inputs, outputs, measured)


def build_bundle(
    graphs: Mapping[str, Path],
    shapes: Mapping[str, Shapes],
    build: Callable[[str, Path, Shapes], BuiltGraph],
) -> dict[str, BuiltGraph]:
    """Every graph of a bundle, the encoders first: their outputs are the decoder's inputs.

    Args:
        graphs: paths by name.
        shapes: see `network_shapes`.
        build: name, path and input shapes of a graph -> its engine, built or from a cache.
    """
    built = {name: build(name, graphs[name], dict(shapes[name])) for name in shapes}
    features = {info.name: info.shape for graph in built.values() for info in graph.outputs}
    built['gate_decoder'] = build('gate_decoder', graphs['gate_decoder'], features)
    return built


class _Library:
    """What differs between TensorRT 10, 11 and TensorRT-RTX, but for `_configure`."""

    def __init__(self, trt: ModuleType) -> None:
        self.trt: Any = trt
        self.rtx = trt.__name__ == 'tensorrt_rtx'
        self.name = f'{"TensorRT-RTX" if self.rtx else "TensorRT"} {trt.__version__}'

    def network_flags(self) -> int:
        """Of a strongly typed network, which is all that TensorRT 11 and RTX know."""
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED', None)
        return 0 if flag is None else 1 << int(flag)


def _configure(library: _Library, config: Any, options: BuildOptions, timing_cache: bytes) -> Any:
    """Set what the options say; returns the timing cache, or None where there is none."""
    trt = library.trt
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.precision == 'fp32':
        if hasattr(trt.BuilderFlag, 'TF32'):
            config.clear_flag(trt.BuilderFlag.TF32)  # 11 bits are no float32; it is on by itself
        if hasattr(trt.BuilderFlag, 'STRICT_NANS'):  # 0 * NaN is not 0, nor is inf - inf
            config.set_flag(trt.BuilderFlag.STRICT_NANS)
    if options.compute_capabilities:
        if not hasattr(config, 'set_compute_capability'):
            raise EngineError(
                f'{library.name} builds only for the GPU that it runs on; '
                'compute capabilities can be chosen with tensorrt-rtx'
            )
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            member = f'SM{capability.replace(".", "")}'
            if not hasattr(trt.ComputeCapability, member):
                raise EngineError(
                    f'{library.name} does not know compute capability {capability!r}; '
                    f'it knows {_known_capabilities(trt)}'
                )
            config.set_compute_capability(getattr(trt.ComputeCapability, member), index)
    if library.rtx:  # it has no use for a timing cache, and one makes it look for a GPU
        return None
    cache = config.create_timing_cache(timing_cache)
    # One of another version or GPU is refused, and an empty one taken instead.
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b'')
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _known_capabilities(trt: Any) -> str:
    names = [name for name in dir(trt.ComputeCapability) if name.startswith('SM')]
    return ', '.join(f'{name[2:-1]}.{name[-1]}' for name in names)


def _typed_graph(
    source: Path | onnx.ModelProto, name: str, shapes: Mapping[str, Shape], precision: str
) -> bytes:
    """The graph in its precision and sizes, for the parser."""
    try:
        import onnx  # only a build needs it

        from briges_ros.inference.half_precision import half_precision
    except ImportError as error:
        raise EngineError(f'building engines needs onnx ({error}); pip install onnx') from error
    try:
        # What stays as it is may leave large weights in their own file.
        model = (
            onnx.load(str(source), load_external_data=precision == 'fp16')
            if isinstance(source, Path)
            else source
        )
    except Exception as error:  # of protobuf and onnx, without a common base class
        raise EngineError(f'{name} is not an ONNX graph that can be read ({error})') from error
    names = {value.name for value in model.graph.input}
    if names != set(shapes):
        raise EngineError(f'{name} takes {sorted(names)}, but sizes are given of {sorted(shapes)}')
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = shapes[value.name]
        fits = len(dims) == len(shape) and all(
            not dim.HasField('dim_value') or dim.dim_value == size
            for dim, size in zip(dims, shape, strict=True)
        )
        if not fits:
            raise EngineError(f'{name}: {value.name} cannot have the size {shape}')
        for dim, size in zip(dims, shape, strict=True):
            dim.dim_value = size
    if precision != 'int8' and any(node.op_type in QUANTISED for node in model.graph.node):
        raise EngineError(f'{name} cannot be built in {precision}: it is quantised; choose int8')
    try:
        if precision == 'fp16':
            model = half_precision(model)
        if model.ByteSize() > LARGEST_MESSAGE:
            raise ValueError('larger than 2 GiB')
        return model.SerializeToString()
    except ValueError as error:
        raise EngineError(f'{name} cannot be built in {precision}: {error}') from error


def _infos(trt: Any, tensors: list[Any]) -> tuple[TensorInfo, ...]:
    types = {
        trt.DataType.FLOAT: 'float32',
        trt.DataType.HALF: 'float16',
        trt.DataType.UINT8: 'uint8',
    }
    return tuple(
        TensorInfo(t.name, types.get(t.dtype, str(t.dtype)), tuple(t.shape)) for t in tensors
    )


def _parser_errors(parser: Any) -> str:
    """The parser's errors in one line, each with its node."""
    reasons = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = ''
        if error.node_name() or error.node_operator():
            where = f'{error.node_operator()} {error.node_name()}: '
        reasons.append(where + one_line(error.desc()))
    return '; '.join(dict.fromkeys(reasons)) or 'it gives no reason'


@functools.cache
def tensorrt_logger(trt: Any) -> Any:
    """TensorRT's messages in our log; `forget` empties what it keeps of them.

    ``last_error`` is the last error, ``needed`` the most bytes of GPU memory that it asked for in
    vain. A process has one: TensorRT keeps the first that it is given and ignores all others.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.forget()

        def forget(self) -> None:
            self.last_error, self.needed = '', 0

        def log(self, severity: Any, message: str) -> None:
            line = one_line(message)
            for size, unit in ASKED_FOR.findall(line):
                self.needed = max(self.needed, int(size) * UNITS[unit])
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = line
                log.error('TensorRT: %s', line)
            elif severity == trt.ILogger.WARNING:
                log.warning('TensorRT: %s', line)
            else:
                log.debug('TensorRT: %s', line)

    return Logger()


def _progress_monitor(trt: Any, report: Progress | None) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Reports the outermost phase; within one of its steps, the phases inside are its parts."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self.stopped = False
            self._phase = ''
            self._done = 0.0
            self._parts: dict[str, _Part] = {}  # of the phases under way

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._phase, self._done = phase_name, 0.0
                within = _Part(0.0, 1.0, 0.0)
            else:
                within = self._parts.get(parent_phase, _Part(self._done, 0.0, self._done))
            step = within.step / max(num_steps, 1)
            self._parts[phase_name] = _Part(within.done, step, within.done)
            self._report(within.done)

        def step_complete(self, phase_name: str, step: int) -> bool:
            part = self._parts.get(phase_name)
            if part is not None:
                part.done = part.start + (step + 1) * part.step
                self._report(part.done)
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            self._parts.pop(phase_name, None)
            if phase_name == self._phase:
                self._report(1.0)

        def _report(self, done: float) -> None:
            self._done = max(self._done, min(done, 1.0))  # phases may be under way side by side
            if self.stopped or report is None:
                return
            try:
                self.stopped = report(self._phase, self._done) is False
            except BaseException as error:  # C++ calls us: it has to be raised once we are back
                self.failure, self.stopped = error, True

    return Monitor()


@dataclass
class _Part:
    """A phase as a part of the outermost: where it starts, what a step adds, how far it is."""

    start: float
    step: float
    done: float
