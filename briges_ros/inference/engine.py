"""What runs a bundle, and how one is chosen.

An `Engine` takes network inputs and returns the network's output. How it keeps the features between
the graphs is its own business: on a GPU they never leave the device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle

PRECISIONS = ('int8', 'fp16', 'bf16', 'fp32')


class EngineError(BrigesError):
    """A backend that is missing, does not load the bundle, or computes wrong numbers."""


Arrays = dict[str, NDArray[np.float32]]

Progress = Callable[[str, float], bool | None]
"""Told what is being built and how much of it is done, in [0, 1]; at the end 1, also if it failed.
False stops the build, and what it raises comes through."""

Graph = Callable[[dict[str, Any]], dict[str, Any]]
"""Runs an ONNX graph: arrays by the names of its inputs -> arrays by those of its outputs.

It takes host arrays, and what another graph of the same engine gave, which may lie on a device.
What it returns may be its own memory, which its next run overwrites.
"""


class LoadedGraph(Protocol):
    """An ONNX graph on a backend, with its weights."""

    def runner(self) -> Graph:
        """What runs it, in memory of its own: several may run at once."""
        ...


class Engine(Protocol):
    """Runs one bundle on one backend.

    Attributes:
        name: the backend, e.g. 'openvino'.
        precision: what it computes in, one of `PRECISIONS`.
    """

    name: str
    precision: str

    def infer(
        self, image: NDArray[np.float32], segmentation_image: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Run the network: ``engine.infer(*prepare(image, bundle))``.

        Not safe for several threads at once.

        Args:
            image: (1, 3, h, w) input of the depth encoder; h, w multiples of the bundle's patch.
            segmentation_image: (1, 3, hs, ws) input of the segmentation encoder; only with a gate.
                None takes the segmentation of the last frame that had one: it changes slowly.

        Returns:
            (h', w') output, the caller's own; `ModelBundle.output` says what it means.

        Raises:
            EngineError: inputs of shapes that the network does not take, or it does not run.
            ValueError: a segmentation input for a network without a gate, or none yet for one with.
        """
        ...

    def run_graph(self, graph: str, inputs: Arrays) -> Arrays:
        """Run one graph of the bundle on its own, as the self-check does.

        Args:
            graph: its name, e.g. 'gate_decoder'.
            inputs: by the names of the graph's inputs.

        Returns:
            By the names of its outputs; valid until the next run.
        """
        ...

    def sibling(self, progress: Progress | None = None) -> Engine:
        """Another engine of the same loaded model, for another camera.

        They share the weights. The rest is its own, such as the segmentation of the last frame, so
        that each may be used in a thread of its own.

        Args:
            progress: of what the sibling builds, see `open_engine`.
        """
        ...


@runtime_checkable
class ImageEngine(Engine, Protocol):
    """An engine that also does what comes before and after the network, on its device."""

    def infer_image(
        self, image: NDArray[np.uint8], token_budget: int, reuse_segmentation: bool
    ) -> NDArray[np.float32]:
        """Relative depth of an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            token_budget: most patches that the depth encoder may see.
            reuse_segmentation: take the segmentation of the last image of this size.

        Returns:
            (H, W) float32 inverse depth, up to scale and shift, or 1/m of a metric network: what
            `prepare`, `infer`, `to_inverse_depth` and `resize_inverse_depth` give, to rounding.
        """
        ...

    def depth(
        self,
        scale: float,
        shift: float,
        min_range: float,
        max_range: float,
        relative_range: tuple[float, float],
    ) -> NDArray[np.float32]:
        """Metres of the last `infer_image`: see `depth_image.depth_from_inverse`.

        Args:
            scale, shift, min_range, max_range: as there.
            relative_range: least and greatest relative value that these hold for.

        Returns:
            (H, W) float32 metres; NaN unknown, +inf beyond range.
        """
        ...


def check_segmentation(gated: bool, given: bool, remembered: bool) -> None:
    """Refuse what `Engine.infer` cannot run.

    Args:
        gated: the network has a gate.
        given: there is a segmentation input.
        remembered: there is the segmentation of an earlier frame.

    Raises:
        ValueError: a segmentation input for a network without a gate, or none yet for one with.
    """
    if given and not gated:
        raise ValueError('a segmentation input goes with a gate: use prepare(image, bundle)')
    if gated and not (given or remembered):
        raise ValueError('the first frame of a network with a gate needs a segmentation input')


def check_inputs(
    bundle: ModelBundle,
    image: NDArray[np.float32],
    segmentation_image: NDArray[np.float32] | None,
    remembered: bool,
) -> None:
    """Refuse what `Engine.infer` cannot run, or would run on a part of the image.

    Args:
        bundle: the model.
        image, segmentation_image: see `Engine.infer`.
        remembered: there is the segmentation of an earlier frame.

    Raises:
        EngineError: an input of a shape or type that the network does not take.
        ValueError: see `check_segmentation`.
    """
    wanted = bundle.segmentation_input
    check_segmentation(wanted is not None, segmentation_image is not None, remembered)
    height, width = image.shape[2:] if image.ndim == 4 else (0, 0)
    rows, cols = height // bundle.patch, width // bundle.patch
    shapes = {'image': (1, 3, max(rows, 1) * bundle.patch, max(cols, 1) * bundle.patch)}
    if wanted is not None and segmentation_image is not None:
        shapes['segmentation_image'] = (1, 3, *wanted.pixels(cols, rows)[::-1])
    for (name, shape), array in zip(shapes.items(), (image, segmentation_image), strict=False):
        assert array is not None
        if array.shape != shape or array.dtype != np.float32:
            raise EngineError(
                f'{bundle.name} takes no {name} of {array.shape} {array.dtype}, but float32 of '
                f'(1, 3, h, w), multiples of {bundle.patch} for the depth encoder: '
                'use prepare(image, bundle)'
            )


def one_line(error: object) -> str:
    """What a library says, without its line breaks."""
    return ' '.join(str(error).split())


class GraphEngine:
    """An engine over graphs that run one after the other, as all but TensorRT's do.

    Args:
        name, precision: see `Engine`.
        bundle: what it runs.
        loaded: by their names in the bundle.
        to_host: gives an array of the graphs' as a host array.
    """

    def __init__(
        self,
        name: str,
        precision: str,
        bundle: ModelBundle,
        loaded: Mapping[str, LoadedGraph],
        to_host: Callable[[Any], NDArray[np.float32]] = np.asarray,
    ) -> None:
        self.name = name
        self.precision = precision
        self._bundle = bundle
        self._loaded = loaded
        self._graphs = {graph: loaded[graph].runner() for graph in loaded}
        self._to_host = to_host
        self._segmentation: dict[str, Any] = {}

    def infer(
        self, image: NDArray[np.float32], segmentation_image: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """See `Engine.infer`."""
        check_inputs(self._bundle, image, segmentation_image, bool(self._segmentation))
        if segmentation_image is not None:
            self._segmentation = self._run('segmentation_encoder', {'image': segmentation_image})
        features = self._run('depth_encoder', {'image': image})
        (output,) = self._run('gate_decoder', features | self._segmentation).values()
        return np.array(self._to_host(output).reshape(output.shape[-2:]), np.float32)

    def run_graph(self, graph: str, inputs: Arrays) -> Arrays:
        """See `Engine.run_graph`."""
        if graph == 'segmentation_encoder':
            self._segmentation = {}  # it may be that graph's own memory
        outputs = self._run(graph, inputs)
        return {name: self._to_host(array) for name, array in outputs.items()}

    def sibling(self, _progress: Progress | None = None) -> GraphEngine:
        """See `Engine.sibling`."""
        return GraphEngine(self.name, self.precision, self._bundle, self._loaded, self._to_host)

    def _run(self, graph: str, inputs: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._graphs[graph](inputs)
        except EngineError:
            raise
        except Exception as error:  # too little memory, mostly; the libraries share no class of it
            sizes = ', '.join(f'{name} {tuple(array.shape)}' for name, array in inputs.items())
            raise EngineError(
                f'{self.name} ({self.precision}) does not run the {graph} of {self._bundle.name} '
                f'for {sizes}: {one_line(error)}; choose a smaller token_budget, or another backend'
            ) from error


@dataclass(frozen=True)
class Backend:
    """A way to run bundles.

    Attributes:
        module: has ``precisions(bundle, device)``, which says what it can compute this bundle in,
            fastest first, and ``open_engine(bundle, device, precision, threads, progress)``.
        device: of those that the module knows.
        mend: how to get it, if it is missing.
    """

    module: str
    device: str
    mend: str


_INFERENCE = 'briges_ros.inference'
_ONNXRUNTIME = f'{_INFERENCE}.onnxruntime_engine'
_ONNXRUNTIME_GPU = 'pip install onnxruntime-gpu (in place of onnxruntime)'

# Fastest first, as measured by benchmarks/engines.py. 'auto' leaves torch out: see `AUTO`.
BACKENDS = {
    'tensorrt': Backend(
        f'{_INFERENCE}.tensorrt_backend', 'cuda', 'pip install tensorrt cuda-bindings onnx'
    ),
    'onnxruntime-tensorrt': Backend(_ONNXRUNTIME, 'tensorrt', _ONNXRUNTIME_GPU),
    'onnxruntime-cuda': Backend(_ONNXRUNTIME, 'cuda', _ONNXRUNTIME_GPU),
    'openvino': Backend(f'{_INFERENCE}.openvino_engine', 'CPU', 'pip install openvino'),
    'onnxruntime': Backend(_ONNXRUNTIME, 'cpu', 'pip install onnxruntime'),
    'torch-cuda': Backend(f'{_INFERENCE}.torch_engine', 'cuda', 'pip install torch onnx'),
    'torch': Backend(f'{_INFERENCE}.torch_engine', 'cpu', 'pip install torch onnx'),
}
AUTO = tuple(name for name in BACKENDS if not name.startswith('torch'))


def precisions(bundle: ModelBundle, backend: str) -> tuple[str, ...]:
    """What a backend can compute a bundle in on this machine, fastest first.

    Raises:
        EngineError: there is no such backend, or it cannot run here; with the mend.
    """
    module = _module(backend)
    found: tuple[str, ...] = module.precisions(bundle, BACKENDS[backend].device)
    return found


def open_engine(
    bundle: ModelBundle,
    backend: str,
    precision: str = 'auto',
    threads: int = 0,
    progress: Progress | None = None,
) -> Engine:
    """Load a bundle on one backend. What it computes is not checked yet: see `selfcheck`.

    Args:
        bundle: the checked bundle.
        backend: one of `BACKENDS`.
        precision: one of `precisions`; 'auto' is the first of them.
        threads: CPU threads; 0 lets the backend choose.
        progress: told how builds go on that take minutes, now or for the first image of a size.

    Raises:
        EngineError: unknown backend or precision, not installed, or it does not load the bundle.
    """
    possible = precisions(bundle, backend)
    if precision == 'auto':
        precision = possible[0]
    if precision not in possible:
        why = ''
        if precision == 'int8' and not bundle.int8_graphs:
            why = (
                f' ({bundle.name} has no int8 graphs; make them with: '
                f'briges export {bundle.name} --calibrate FOLDER_OF_IMAGES)'
            )
        raise EngineError(
            f'{backend} cannot compute {bundle.name} in {precision} here, only in '
            f'{", ".join(possible)}{why}'
        )
    engine: Engine = _module(backend).open_engine(
        bundle, BACKENDS[backend].device, precision, threads, progress
    )
    return engine


def _module(backend: str) -> ModuleType:
    if backend not in BACKENDS:
        raise EngineError(f'unknown backend {backend!r}; choose auto, {", ".join(BACKENDS)}')
    try:
        return importlib.import_module(BACKENDS[backend].module)
    except ImportError as error:
        raise EngineError(f'{backend}: {error}; {BACKENDS[backend].mend}') from error
