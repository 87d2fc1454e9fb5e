"""The TensorRT backend: a whole frame on the GPU, from pixels to metric depth.

Everything is allocated when the engine is opened, and its sizes are fixed. Between the host and
the device go the pixels, the relative map and the depth, each once, through page-locked memory;
the features never leave the device. The two encoders run on streams of their own:

    main  pixels up -+-> image -> depth encoder ---------------+-> gates, decoder -> relative down
    side             +-> segmentation image -> its encoder ----+

and all that is one CUDA graph, launched by one call. The fit to the anchors is made on the host,
from the relative map; a second graph turns that map, which is still on the device, into depth.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from briges_ros.depth_image import depth_from_inverse, resize_inverse_depth
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.device_memory import Device, open_device
from briges_ros.inference.engine import Arrays, EngineError, Progress, check_segmentation
from briges_ros.inference.engine_cache import EngineCache, EngineKey
from briges_ros.inference.preprocess import network_input, to_inverse_depth
from briges_ros.inference.tensorrt_build import (
    CONVERSION,
    BuildOptions,
    BuiltGraph,
    Shape,
    Shapes,
    TensorInfo,
    build_bundle,
    build_graph,
    import_tensorrt,
    network_shapes,
    tensorrt_logger,
)

log = logging.getLogger('briges_ros')

LOG_EVERY_S = 10.0  # while a graph is being built
ALIGNMENT = 256  # bytes; of what cudaMalloc gives
# Graphs before and after the network.
INPUT, SEGMENTATION_INPUT, RELATIVE, DEPTH = 'input', 'segmentation_input', 'relative', 'depth'
# The network's inputs are all called 'image'; on the device each has a name of its own.
RENAMED = {('segmentation_encoder', 'image'): 'segmentation_image'}
# What the host writes or reads. All else stays on the device.
ON_HOST = ('pixels', 'image', 'segmentation_image', 'inverse_depth', 'relative', 'fit', 'depth')
ENDS = (-math.inf, math.inf)
# Part of the pixels that may differ between host and device: OpenCV 4 resizes cubically with
# rounded weights, and whether a pixel is at an edge may hang on its last bit.
ROUNDED_OTHERWISE = 0.05

Size = tuple[int, int]
"""(width, height), pixels."""


class StalePlanError(EngineError):
    """A plan that the library at hand does not load: it has to be built again."""


@dataclass(frozen=True)
class Gpu:
    """What plans are for: a name, which TensorRT-RTX ignores, and a compute capability: '8.6'."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class Plan:
    """A built graph, as it lies in the cache."""

    key: EngineKey
    graph: BuiltGraph
    built: bool


class Graph(Protocol):
    """A graph that is ready to run on the device; its inputs and outputs are as it was built."""

    @property
    def inputs(self) -> Sequence[TensorInfo]: ...

    @property
    def outputs(self) -> Sequence[TensorInfo]: ...

    def bind(self, tensor: str, address: int) -> None:
        """Say where an input or output lies."""
        ...

    def enqueue(self, stream: int) -> None:
        """Queue a run on a stream, by its handle."""
        ...

    def capturable(self, stream: int) -> bool:
        """May a run on this stream be part of a CUDA graph?"""
        ...

    def close(self) -> None:
        """Free what it holds on the device."""
        ...


def open_tensorrt(
    bundle: ModelBundle,
    camera: Size | None = None,
    shapes: Mapping[str, Shapes] | None = None,
    options: BuildOptions | None = None,
    token_budget: int | None = None,
    cache: EngineCache | None = None,
    progress: Progress | None = None,
    loaded: LoadedPlans | None = None,
) -> TensorRTEngine:
    """Load a bundle's plans, built or from the cache, and check the image processing.

    What the network computes is not checked yet: see `selfcheck`.

    Args:
        bundle: the checked bundle.
        camera: size of the images. None = the network alone, for `TensorRTEngine.infer`.
        shapes: without a camera: of the encoders' inputs, as of `network_shapes`; default: those
            of the bundle's self-check.
        options: how to build; default: fp16.
        token_budget: most patches; default: the bundle's.
        cache: of plans; default: the user's.
        progress: told how a build goes on.
        loaded: plans that other engines have in use, whose weights it shares.

    Raises:
        EngineError: no TensorRT, no GPU, a plan that cannot be built or loaded, too little memory,
            or image processing that computes wrong values; with the mend.
    """
    options, cache = options or BuildOptions(), cache or EngineCache()
    trt = import_tensorrt()
    device = open_device()  # before anything is built: that takes minutes
    try:
        gpu = Gpu(device.name, device.compute_capability)
        plan = functools.partial(
            build_plans, bundle, camera, gpu, options, token_budget, cache, progress, shapes
        )
        with device.current():
            plans = plan()
            try:
                graphs = load_graphs(trt, plans, loaded)
            except StalePlanError as error:
                if all(built.built for built in plans.values()):
                    raise
                log.warning('building again: %s', error)
                for stale in plans.values():
                    cache.discard(stale.key)
                graphs = load_graphs(trt, plan(), loaded)
            engine = TensorRTEngine(device, graphs, options.precision)
        if camera is not None:
            engine.check_image_processing(bundle)
        return engine
    except BaseException:
        device.close()
        raise


# Plans


def build_plans(
    bundle: ModelBundle,
    camera: Size | None,
    gpu: Gpu,
    options: BuildOptions,
    token_budget: int | None = None,
    cache: EngineCache | None = None,
    progress: Progress | None = None,
    shapes: Mapping[str, Shapes] | None = None,
) -> dict[str, Plan]:
    """The plans of all graphs that one camera and one GPU need, from the cache where they are.

    With TensorRT-RTX it needs no GPU, so that an image for robots can be made anywhere.

    Args:
        bundle: the model.
        camera, shapes: see `open_tensorrt`.
        gpu: what they are for; TensorRT builds for the GPU at hand only.
        options: how; ``compute_capabilities`` is set from `gpu`.
        token_budget: most patches; default: the bundle's.
        cache: of plans; default: the user's.
        progress: see `Progress`; told of the graphs by their names.

    Raises:
        EngineError: no TensorRT, a graph that it cannot parse or build, or int8 of a bundle that
            is not quantised.
    """
    trt = import_tensorrt()
    cache = cache or EngineCache()
    graphs = bundle.graphs_in(options.precision)
    if not graphs:
        raise EngineError(
            f'{bundle.name} has no int8 graphs: choose fp16, or make them with: '
            f'briges export {bundle.name} --calibrate FOLDER_OF_IMAGES'
        )
    rtx = trt.__name__ == 'tensorrt_rtx'
    options = replace(options, compute_capabilities=(gpu.compute_capability,) if rtx else ())
    same = EngineKey(
        bundle=bundle.sha256,
        graph='',
        library=f'{trt.__name__} {trt.__version__}',
        gpu='' if rtx else gpu.name,  # a plan of TensorRT-RTX is for all GPUs of its capability
        compute_capability=gpu.compute_capability,
        precision=options.precision,
        shapes=(),
        options=(
            ('conversion', str(CONVERSION)),
            ('level', str(options.level)),
            ('workspace', str(options.workspace)),
        ),
    )
    # What was measured for one graph is of use to all that come after.
    timings = replace(same, bundle='', graph='timing_cache', precision='', options=())
    known = cache.load(timings)
    timing = b'' if known is None else known.content
    plans: dict[str, Plan] = {}

    def build(
        name: str, source: Callable[[], Any], shapes: Shapes, how: BuildOptions, to: str = ''
    ) -> BuiltGraph:
        key = replace(
            same,
            graph=name,
            precision=how.precision,
            shapes=tuple(sorted(shapes.items())),
            options=(*same.options, ('to', to)),
        )

        def make() -> tuple[bytes, dict[str, Any]]:
            nonlocal timing
            log.info('building %s for %s %s', name, gpu.name, gpu.compute_capability)
            told = _Told(name, progress)
            try:
                built = build_graph(source(), shapes, how, told, timing)
            finally:
                told('', 1.0)
            timing = built.timing_cache or timing
            return built.plan, {
                'inputs': [_listed(info) for info in built.inputs],
                'outputs': [_listed(info) for info in built.outputs],
            }

        engine = cache.get(key, make)
        inputs, outputs = (
            tuple(_info(listed) for listed in engine.details[end]) for end in ('inputs', 'outputs')
        )
        plans[name] = Plan(key, BuiltGraph(engine.content, inputs, outputs), engine.built)
        return plans[name].graph

    if camera is not None:
        shapes = network_shapes(bundle, *camera, token_budget)
    network = build_bundle(
        graphs,
        shapes or selfcheck_shapes(bundle),
        lambda name, path, sizes: build(name, lambda: path, sizes, options),
    )
    if camera is not None:
        exact = replace(options, precision='fp32')
        for name, source, sizes, to in _image_graphs(bundle, camera, network):
            build(name, source, sizes, exact, to)
    if timing and (known is None or known.content != timing):
        cache.put(timings, timing, {})
    return plans


def selfcheck_shapes(bundle: ModelBundle) -> dict[str, Shapes]:
    """As `network_shapes`, of the inputs of the bundle's self-check."""
    with np.load(bundle.selfcheck, allow_pickle=False) as arrays:
        shapes: dict[str, Shapes] = {'depth_encoder': {'image': arrays['image'].shape}}
        if bundle.segmentation_input is not None:
            shapes['segmentation_encoder'] = {'image': arrays['segmentation_image'].shape}
    return shapes


def _image_graphs(
    bundle: ModelBundle, camera: Size, network: Mapping[str, BuiltGraph]
) -> list[tuple[str, Callable[[], Any], Shapes, str]]:
    """Name, source, input shapes and what else decides it, of each graph around the network."""

    def made(name: str, *arguments: Any) -> Callable[[], Any]:
        def make() -> Any:
            try:
                from briges_ros.inference import image_graphs  # needs onnx, as all builds do
            except ImportError as error:
                raise EngineError(
                    f'building engines needs onnx ({error}); pip install onnx'
                ) from error
            try:
                return getattr(image_graphs, name)(*arguments)
            except ValueError as error:
                raise EngineError(f'{error}; choose another token_budget') from error

        return make

    width, height = camera
    wanted = bundle.segmentation_input
    inputs: list[tuple[str, str, str, Any, Any]] = [
        (INPUT, 'depth_encoder', 'image', bundle.mean, bundle.std)
    ]
    if wanted is not None:
        inputs.append(
            (
                SEGMENTATION_INPUT,
                'segmentation_encoder',
                'segmentation_image',
                wanted.mean,
                wanted.std,
            )
        )
    graphs: list[tuple[str, Callable[[], Any], Shapes, str]] = []
    for name, encoder, output, mean, std in inputs:
        h, w = network[encoder].inputs[0].shape[-2:]
        source = made('input_graph', camera, (w, h), mean, std, output)
        graphs.append((name, source, {'pixels': (height, width, 3)}, f'{w}x{h}'))
    shape = network['gate_decoder'].outputs[0].shape
    size = shape[3], shape[2]
    source = made('relative_graph', size, camera, bundle.output == 'metric_depth')
    graphs.append((RELATIVE, source, {'inverse_depth': shape}, f'{width}x{height}'))
    source = made('depth_graph', camera)
    graphs.append((DEPTH, source, {'relative': (height, width), 'fit': (6,)}, ''))
    return graphs


class _Told:
    """Passes the progress of one graph on, and logs it now and then."""

    def __init__(self, graph: str, progress: Progress | None) -> None:
        self._graph = graph
        self._progress = progress
        self._logged = time.monotonic()

    def __call__(self, _phase: str, done: float) -> bool | None:
        now = time.monotonic()
        if done < 1 and now - self._logged >= LOG_EVERY_S:
            self._logged = now
            log.info('tensorrt: %s is built to %.0f %%', self._graph, 100 * done)
        return None if self._progress is None else self._progress(self._graph, done)


def _listed(info: TensorInfo) -> list[Any]:
    return [info.name, info.dtype, list(info.shape)]


def _info(listed: list[Any]) -> TensorInfo:
    name, dtype, shape = listed
    return TensorInfo(str(name), str(dtype), tuple(int(size) for size in shape))


# The library


def load_graphs(
    trt: Any, plans: Mapping[str, Plan], loaded: LoadedPlans | None = None
) -> dict[str, Graph]:
    """Deserialise plans on the current device, but for those that are loaded already.

    Raises:
        StalePlanError: the library does not take a plan.
        EngineError: TensorRT does not start, or there is too little memory.
    """
    logger = tensorrt_logger(trt)
    logger.forget()
    try:
        runtime = trt.Runtime(logger)
    except (RuntimeError, TypeError) as error:  # TypeError: what 10.x makes of a null pointer
        raise EngineError(
            f'{trt.__name__} {trt.__version__} does not start ({logger.last_error or error}): '
            'is the NVIDIA driver as new as it wants?'
        ) from error
    loaded = loaded or LoadedPlans()
    return {
        name: TensorRTGraph(
            loaded.get(plan.key, functools.partial(LoadedPlan, trt, runtime, name, plan.graph))
        )
        for name, plan in plans.items()
    }


class LoadedPlans:
    """The plans that are in use on the device, for engines that share them."""

    def __init__(self) -> None:
        self._plans: weakref.WeakValueDictionary[EngineKey, LoadedPlan] = (
            weakref.WeakValueDictionary()
        )
        self._loading = threading.Lock()

    def get(self, key: EngineKey, load: Callable[[], LoadedPlan]) -> LoadedPlan:
        """The plan of a key, which is loaded if nobody uses it."""
        with self._loading:
            plan = self._plans.get(key)
            if plan is None:
                plan = self._plans[key] = load()
            return plan


class LoadedPlan:
    """A plan with its weights on the device; on the device as long as somebody holds it."""

    def __init__(self, trt: Any, runtime: Any, name: str, plan: BuiltGraph) -> None:
        self.name = name
        self._logger = tensorrt_logger(trt)
        self._logger.forget()
        engine = runtime.deserialize_cuda_engine(plan.plan)
        if engine is None and 'driver version is insufficient' in self.reason():
            raise EngineError(
                f'the NVIDIA driver is older than {trt.__name__} {trt.__version__} wants: update '
                'the driver, or install an older TensorRT'
            )
        if engine is None and re.search('out ?of ?memory', self.reason(), re.IGNORECASE):
            # Not stale: to build it again would take minutes, and as much memory.
            needed = max(self._logger.needed, len(plan.plan))
            raise EngineError(
                f'too little GPU memory: the plan of {name} needs {needed / 1e6:.0f} MB to load '
                f'({self.reason()}); close what uses the GPU'
            )
        if engine is None:
            raise StalePlanError(
                f'{trt.__name__} {trt.__version__} does not load the plan of {name} '
                f'({self.reason()}); run: briges build'
            )
        self.inputs, self.outputs = plan.inputs, plan.outputs
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {tensor: tuple(engine.get_tensor_shape(tensor)) for tensor in names}
        if found != {info.name: info.shape for info in (*self.inputs, *self.outputs)}:
            raise StalePlanError(f'the plan of {name} has other tensors than were built: {found}')
        self._engine: Any = engine

    def context(self) -> Any:
        """What runs the plan, with memory of its own for what lies between input and output.

        Raises:
            EngineError: there is too little of it.
        """
        self._logger.forget()
        context = self._engine.create_execution_context()
        if context is None:
            # The size has been 64 bits wide, under another name, since 10.1.
            engine = self._engine
            size = getattr(engine, 'device_memory_size_v2', None) or engine.device_memory_size
            raise EngineError(
                f'too little GPU memory: {self.name} needs {size / 1e6:.0f} MB to run '
                f'({self.reason()}); close what uses the GPU, or choose a smaller token_budget'
            )
        return context

    def reason(self) -> str:
        """What TensorRT said last."""
        return self._logger.last_error or 'TensorRT gives no reason'


class TensorRTGraph:
    """See `Graph`. With `LoadedPlan`, all that versions of TensorRT do differently at run time."""

    def __init__(self, loaded: LoadedPlan) -> None:
        self._loaded: LoadedPlan | None = loaded  # has to outlive its context
        self._name = loaded.name
        self.inputs, self.outputs = loaded.inputs, loaded.outputs
        self._context: Any = loaded.context()

    def bind(self, tensor: str, address: int) -> None:
        if not self._context.set_tensor_address(tensor, address):
            raise EngineError(f'{self._name} does not take {tensor} ({self._reason()})')

    def enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise EngineError(f'{self._name} does not run ({self._reason()})')

    def capturable(self, stream: int) -> bool:
        # TensorRT captures whatever has fixed sizes; TensorRT-RTX says whether it does.
        ask = getattr(self._context, 'is_stream_capturable', None)
        return True if ask is None else bool(ask(stream))

    def close(self) -> None:
        self._context = None
        self._loaded = None

    def _reason(self) -> str:
        return '' if self._loaded is None else self._loaded.reason()


# The engine


class TensorRTEngine:
    """See `Engine`, and the module. Not safe for several threads at once, but for one or another.

    Attributes:
        name: 'tensorrt'.
        precision: of the network: 'fp16', 'fp32' or 'int8'.
        input_shapes: of what `infer` takes: ``image`` and, with a gate, ``segmentation_image``.
        camera: (width, height) of the images, or None if it runs the network alone.
        captured: whether each frame is one CUDA graph.
    """

    name = 'tensorrt'

    def __init__(self, device: Device, graphs: Mapping[str, Graph], precision: str) -> None:
        """It takes the device and the graphs over, and closes them. `open_tensorrt` makes one."""
        self.precision = precision
        self.captured = True
        self._device = device
        self._graphs = graphs
        # Also when it is not closed: as soon as nobody uses it, and at the latest at exit.
        self.close = weakref.finalize(self, _release, device, tuple(graphs.values()))
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        device = self._device
        with device.current():
            self._main, self._side = device.stream(), device.stream()
            self._forked, self._joined = device.event(), device.event()
            self._addresses = self._bind()
            tensors = self._tensors()
            self._host = {
                name: device.pinned(tensors[name].shape, tensors[name].dtype)
                for name in ON_HOST
                if name in tensors
            }
            for array in self._host.values():
                array[...] = 0
            self._gated = 'segmentation_encoder' in self._graphs
            self._segmented = False  # does the device hold the features of a frame?
            self.input_shapes = {
                name: self._host[name].shape
                for name in ('image', 'segmentation_image')
                if name in self._host
            }
            pixels = self._host.get('pixels')
            self.camera: Size | None = None
            if pixels is not None:
                self.camera = (pixels.shape[1], pixels.shape[0])
            self._network = self._prepared(functools.partial(self._enqueue_network, True))
            self._network_reusing = (
                self._prepared(functools.partial(self._enqueue_network, False))
                if self._gated
                else self._network
            )
            if pixels is not None:
                self._frame = self._prepared(functools.partial(self._enqueue_frame, True))
                self._reusing = (
                    self._prepared(functools.partial(self._enqueue_frame, False))
                    if self._gated
                    else self._frame
                )
                self._depth = self._prepared(self._enqueue_depth)

    def infer(
        self, image: NDArray[np.float32], segmentation_image: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """See `Engine.infer`.

        Raises:
            EngineError: an input of another size than the engine was opened for.
            ValueError: a segmentation input for a network without a gate, or none yet for one with.
        """
        check_segmentation(self._gated, segmentation_image is not None, self._segmented)
        if segmentation_image is not None:
            self._write('segmentation_image', segmentation_image)
        self._write('image', image)
        self._run(self._network if segmentation_image is not None else self._network_reusing)
        self._segmented = self._gated
        return np.array(self._host['inverse_depth'][0, 0])

    def run_graph(self, graph: str, inputs: Arrays) -> Arrays:
        """See `Engine.run_graph`. For the self-check: the page-locked memory for it stays."""
        ends = self._graphs[graph]
        tensors = {info.name: RENAMED.get((graph, info.name), info.name) for info in ends.inputs}
        for info in (*ends.inputs, *ends.outputs):
            tensor = tensors.setdefault(info.name, info.name)
            if tensor not in self._host:
                with self._device.current():
                    self._host[tensor] = self._device.pinned(info.shape, info.dtype)
        for name, array in inputs.items():
            host = self._host[tensors[name]]
            self._write(tensors[name], array.astype(host.dtype))

        def enqueue() -> None:
            for info in ends.inputs:
                self._upload(tensors[info.name])
            self._enqueue(graph, self._main)
            for info in ends.outputs:
                self._download(info.name)

        self._run(enqueue)
        self._segmented = False  # whatever graph that was, it may be its memory
        return {info.name: self._host[info.name].astype(np.float32) for info in ends.outputs}

    def infer_image(
        self, image: NDArray[np.uint8], reuse_segmentation: bool = False
    ) -> NDArray[np.float32]:
        """Relative depth of an image: what `prepare`, `infer` and `resize_inverse_depth` give.

        Args:
            image: (H, W, 3) uint8 RGB.
            reuse_segmentation: take the segmentation features of the last image that had its own.

        Returns:
            (H, W) float32 inverse depth, up to scale and shift, or 1/m of a metric network; the
            caller's own. It stays on the device, too, for `depth`.

        Raises:
            EngineError: an image of another size than the engine was opened for.
        """
        self._write('pixels', image)
        self._run(self._reusing if reuse_segmentation else self._frame)
        self._segmented = self._segmented or not reuse_segmentation
        return np.array(self._host['relative'])

    def depth(
        self,
        scale: float,
        shift: float,
        min_range: float,
        max_range: float,
        relative_range: tuple[float, float] = ENDS,
    ) -> NDArray[np.float32]:
        """Metres of the last `infer_image`: `depth_from_inverse` of what it returned.

        Args:
            scale, shift, min_range, max_range: see `depth_from_inverse`.
            relative_range: least and greatest relative value that the fit holds for; NaN beyond.

        Returns:
            (H, W) float32 metres, NaN unknown, +inf beyond range; the caller's own.

        Raises:
            EngineError: the engine was opened without a camera.
            ValueError: `scale` is not positive, or not 0 <= min_range < max_range.
        """
        self._write('fit', fit_values(scale, shift, min_range, max_range, relative_range))
        self._run(self._depth)
        return np.array(self._host['depth'])

    def check_image_processing(self, bundle: ModelBundle) -> None:
        """Compare what runs before and after the network with the host's own, on a made-up scene.

        Raises:
            EngineError: it computes something else.
        """
        assert self.camera is not None
        image = _made_up_image(*self.camera)
        self._write('pixels', image)
        self._run(self._enqueue_inputs)
        wanted = bundle.segmentation_input
        inputs = {'image': (bundle.mean, bundle.std)}
        if wanted is not None:
            inputs['segmentation_image'] = wanted.mean, wanted.std
        for name, (mean, std) in inputs.items():
            values = self._host[name]
            expected = network_input(image, values.shape[3], values.shape[2], mean, std)
            grey_levels = np.abs(values - expected) * 255 * np.array(std).reshape(1, 3, 1, 1)
            _check(name, grey_levels < 0.5)
        output = _made_up_output(self._host['inverse_depth'].shape)
        self._write('inverse_depth', output)
        self._run(self._enqueue_relative)
        relative = np.array(self._host['relative'])
        expected = resize_inverse_depth(to_inverse_depth(output[0, 0], bundle), *self.camera)
        _check('relative', np.isclose(relative, expected, rtol=1e-3))
        # A tenth of the pixels is too near, a tenth out of range, a tenth beyond the fit.
        least, low, high, greatest = np.quantile(relative, (0.05, 0.15, 0.85, 0.95))
        ranges = 1 / float(high), 1 / float(low), (float(least), float(greatest))
        depth = self.depth(1.0, 0.0, *ranges)
        expected = depth_from_inverse(relative, 1.0, 0.0, *ranges[:2])
        expected[(relative < np.float32(least)) | (relative > np.float32(greatest))] = np.nan
        _check('depth', np.isclose(depth, expected, rtol=1e-3, equal_nan=True))

    def _write(self, name: str, array: NDArray[Any]) -> None:
        host = self._host.get(name)
        if host is None:
            raise EngineError('tensorrt was opened without a camera: give the size of its images')
        if array.shape != host.shape:
            raise EngineError(
                f'tensorrt was opened for {name} of shape {host.shape}, this one has '
                f"{array.shape}: open it for the camera's size, or resize the images"
            )
        np.copyto(host, array, casting='no')

    def _run(self, launch: Callable[[], None]) -> None:
        if not self.close.alive:
            raise EngineError('the tensorrt engine was closed: open it again')
        with self._device.current():
            try:
                launch()
            finally:  # whatever is under way may still use what an error would free
                self._device.synchronize(self._main)

    def _enqueue_network(self, segment: bool) -> None:
        self._upload('image')
        if segment and self._gated:
            self._upload('segmentation_image')
        self._enqueue_graphs(False, segment and self._gated)
        self._download('inverse_depth')

    def _enqueue_frame(self, segment: bool) -> None:
        self._upload('pixels')
        self._enqueue_graphs(True, segment and self._gated)
        self._enqueue(RELATIVE, self._main)
        self._download('relative')

    def _enqueue_inputs(self) -> None:
        self._upload('pixels')
        self._enqueue(INPUT, self._main)
        self._download('image')
        if self._gated:
            self._enqueue(SEGMENTATION_INPUT, self._main)
            self._download('segmentation_image')

    def _enqueue_relative(self) -> None:
        self._upload('inverse_depth')
        self._enqueue(RELATIVE, self._main)
        self._download('relative')

    def _enqueue_depth(self) -> None:
        self._upload('fit')
        self._enqueue(DEPTH, self._main)
        self._download('depth')

    def _enqueue_graphs(self, from_pixels: bool, segment: bool) -> None:
        device, main, side = self._device, self._main, self._side
        if segment:
            device.record(self._forked, main)
            device.wait(side, self._forked)
        if from_pixels:
            self._enqueue(INPUT, main)
        self._enqueue('depth_encoder', main)
        if segment:
            if from_pixels:
                self._enqueue(SEGMENTATION_INPUT, side)
            self._enqueue('segmentation_encoder', side)
            device.record(self._joined, side)
            device.wait(main, self._joined)
        self._enqueue('gate_decoder', main)

    def _enqueue(self, graph: str, stream: Any) -> None:
        self._graphs[graph].enqueue(self._device.handle(stream))

    def _upload(self, name: str) -> None:
        self._device.upload(self._addresses[name], self._host[name], self._main)

    def _download(self, name: str) -> None:
        self._device.download(self._host[name], self._addresses[name], self._main)

    def _prepared(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Run it once, since TensorRT sets up a graph on its first run; then capture it.

        One execution context may be in several CUDA graphs, because its sizes and addresses are
        the same in all of them, and they run one after the other on one stream.
        """
        self._run(enqueue)
        if not self.captured:
            return enqueue
        handle = self._device.handle(self._main)
        try:
            if not all(graph.capturable(handle) for graph in self._graphs.values()):
                raise EngineError('TensorRT does not allow it')
            return self._device.capture(self._main, enqueue)
        except EngineError as error:
            log.warning('frames are not captured as a CUDA graph, which costs speed: %s', error)
            self.captured = False
            return enqueue

    def _tensors(self) -> dict[str, TensorInfo]:
        """Everything on the device, by its name there."""
        tensors: dict[str, TensorInfo] = {}
        for graph, tensor, info in self._ends():
            same = tensors.setdefault(tensor, info)
            if (same.dtype, same.shape) != (info.dtype, info.shape):
                raise EngineError(
                    f'{graph} takes or gives {tensor} as {info.dtype} {info.shape}, its neighbour '
                    f'as {same.dtype} {same.shape}; make the bundle anew: briges export'
                )
        return tensors

    def _ends(self) -> list[tuple[str, str, TensorInfo]]:
        """Of each graph its inputs and outputs, with their names on the device."""
        return [
            (name, RENAMED.get((name, info.name), info.name), info)
            for name, graph in self._graphs.items()
            for info in (*graph.inputs, *graph.outputs)
        ]

    def _bind(self) -> dict[str, int]:
        """Allocate all tensors at once, and tell the graphs where they are."""
        offsets, size = {}, 0
        for tensor, info in self._tensors().items():
            offsets[tensor] = size
            used = math.prod(info.shape) * np.dtype(info.dtype).itemsize
            size += -(-used // ALIGNMENT) * ALIGNMENT
        start = self._device.allocate(size)
        for name, tensor, info in self._ends():
            self._graphs[name].bind(info.name, start + offsets[tensor])
        return {tensor: start + offset for tensor, offset in offsets.items()}


def _release(device: Device, graphs: Sequence[Graph]) -> None:
    with device.current():
        for graph in graphs:
            graph.close()
    device.close()


def _check(name: str, right: NDArray[np.bool_]) -> None:
    part = 1 - float(np.mean(right))
    if part > ROUNDED_OTHERWISE:
        raise EngineError(
            f'tensorrt computes {name} wrongly on this GPU ({100 * part:.0f} % of the pixels); '
            'choose another backend, or another version of TensorRT'
        )


def fit_values(
    scale: float,
    shift: float,
    min_range: float,
    max_range: float,
    relative_range: tuple[float, float] = ENDS,
) -> NDArray[np.float32]:
    """The ``fit`` of the depth graph; see `TensorRTEngine.depth`."""
    if scale <= 0:
        raise ValueError(f'scale must be positive (larger inverse depth is nearer), got {scale}')
    if not 0 <= min_range < max_range:
        raise ValueError(f'need 0 <= min_range < max_range, got {min_range} and {max_range}')
    least, greatest = relative_range
    return np.array([scale, shift, least, greatest, min_range, 1.0 / max_range], np.float32)


def _made_up_image(width: int, height: int) -> NDArray[np.uint8]:
    """Noise beside a gradient."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image[:, width // 2 :] = np.linspace(0, 255, height, dtype=np.uint8)[:, None, None]
    return image


def _made_up_output(shape: Shape) -> NDArray[np.float32]:
    """A slope with a box before it, as a network may give it."""
    height, width = shape[-2:]
    y, x = np.mgrid[:height, :width] / max(height, width)
    values = 0.2 + y + 0.3 * x
    values[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 3.0
    return values.astype(np.float32).reshape(shape)
