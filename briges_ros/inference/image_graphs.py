"""Pre- and post-processing as ONNX graphs: what a GPU runs before and after the network.

They compute what `preprocess.network_input`, `depth_image.resize_inverse_depth` and
`depth_image.depth_from_inverse` compute, so that it does not matter on which side of the bus it is
done; the tests hold them against those functions. All is float32: an engine of them is built with
precision 'fp32'. Only a build imports this module: nothing else at run time needs ``onnx``.

A frame takes three of them. The fit needs the camera-sized relative map on the host, and gives the
scale only then, so the depth is a graph of its own:

    pixels -> image, pixels -> segmentation_image       before the encoders
    inverse_depth -> relative                            after the decoder
    relative, fit -> depth                               after the fit
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from briges_ros.depth_image import EDGE_FLOOR, EDGE_RATIO
from briges_ros.inference.preprocess import NEAREST_M

OPSET, IR_VERSION = 18, 10
FIT = 6  # values
LARGEST_TOPK = 3840  # of TensorRT
SAMPLE_STEP, TAIL = 4, 0.02  # as in `depth_image`: every fourth pixel, 2nd to 98th percentile

Size = tuple[int, int]
"""(width, height), pixels."""


def input_graph(
    camera: Size,
    network: Size,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    output: str = 'image',
) -> onnx.ModelProto:
    """``pixels`` (H, W, 3) uint8 RGB -> ``output`` (1, 3, h, w) float32: `network_input`.

    Resizing is linear in the pixels and goes along one side after the other, so it is two products
    with constant matrices. They are what OpenCV makes of unit vectors. As there, grey values are
    rounded after each resizing. Where a sum lies just between two of them its last bit decides, and
    so the order of summing: about one value in a thousand comes out one grey level off, one in 150
    where both sides shrink to a sixth. (OpenCV 4 resizes cubically with weights of 11 bits; there
    it is one in thirty.)

    Args:
        camera: size of the image.
        network: size of the network's input.
        mean, std: normalisation of RGB in [0, 1].
        output: name of the output.
    """
    graph = _Graph()
    (width, height), (w, h) = camera, network
    values = graph.add('Cast', graph.input('pixels', (height, width, 3), np.uint8), to=_FLOAT)
    values = graph.add('Transpose', values, perm=[2, 0, 1])
    smaller = min(width, w), min(height, h)
    if smaller != camera:
        values = _resized(graph, values, camera, smaller, cv2.INTER_AREA)
        if camera == (2 * smaller[0], 2 * smaller[1]):  # OpenCV has its own for this: half up
            values = graph.add('Floor', graph.add('Add', values, graph.constant(0.5)))
        else:
            values = graph.add('Round', values)
    if smaller != network:
        values = _resized(graph, values, smaller, network, cv2.INTER_CUBIC)
        values = graph.add('Round', values)
        values = graph.add('Clip', values, graph.constant(0.0), graph.constant(255.0))
    gain = np.array([1.0 / (255.0 * s) for s in std]).reshape(3, 1, 1)
    offset = np.array([-m / s for m, s in zip(mean, std, strict=True)]).reshape(3, 1, 1)
    values = graph.add('Mul', values, graph.constant(gain))
    values = graph.add('Add', values, graph.constant(offset))
    graph.output(graph.reshaped(values, (1, 3, h, w)), output, (1, 3, h, w))
    return graph.model(f'{output}_of_pixels')


def relative_graph(network: Size, camera: Size, metric: bool) -> onnx.ModelProto:
    """``inverse_depth`` (1, 1, h, w), the network's output -> ``relative`` (H, W), both float32.

    What `to_inverse_depth` and `resize_inverse_depth` do, edges and values that are not finite
    included. Pixels whose cell is an edge by less than float32 can tell may come out otherwise.

    Args:
        network: size of the network's output, at least 2 x 2.
        camera: size of the image.
        metric: the output is metres, whose reciprocal is taken.

    Raises:
        ValueError: an output too small to interpolate in, or larger than a percentile can be
            taken of.
    """
    (w, h), (width, height) = network, camera
    if min(w, h) < 2:
        raise ValueError(f'a network output of {w}x{h} is too small to interpolate in')
    graph = _Graph()
    values = graph.input('inverse_depth', (1, 1, h, w))
    if metric:
        values = graph.add('Reciprocal', graph.add('Max', values, graph.constant(NEAREST_M)))
    if network == camera:
        graph.output(graph.reshaped(values, (height, width)), 'relative', (height, width))
        return graph.model('relative')
    finite = _finite(graph, values)
    source = graph.add('Where', finite, values, graph.constant(0.0))
    unknown = graph.add('Where', finite, graph.constant(0.0), graph.constant(1.0))
    touched = graph.add('Greater', _greatest(graph, unknown, 2), graph.constant(0.5))
    edges = graph.add('Or', _edges(graph, source, network), touched)
    smooth = graph.add(
        'Resize',
        source,
        '',
        '',
        graph.constant(np.array([1, 1, height, width]), np.int64),
        mode='linear',
        coordinate_transformation_mode='half_pixel',
    )
    x = np.clip((np.arange(width) + 0.5) * (w / width) - 0.5, 0, w - 1)
    y = np.clip((np.arange(height) + 0.5) * (h / height) - 0.5, 0, h - 1)
    mask = graph.add('Where', edges, graph.constant(1.0), graph.constant(0.0))
    cells = _picked(graph, mask, np.minimum(y.astype(int), h - 2), np.minimum(x.astype(int), w - 2))
    nearest = _picked(graph, values, (y + 0.5).astype(int), (x + 0.5).astype(int))
    at_edge = graph.add('Greater', cells, graph.constant(0.5))
    resized = graph.add('Where', at_edge, nearest, smooth)
    graph.output(graph.reshaped(resized, (height, width)), 'relative', (height, width))
    return graph.model('relative')


def depth_graph(camera: Size) -> onnx.ModelProto:
    """``relative`` (H, W) and ``fit`` (6,) float32 -> ``depth`` (H, W) float32 metres.

    What `depth_from_inverse` does, and NaN where `relative` is beyond what was fitted.

    Args:
        camera: size of the image.

    ``fit`` holds the scale (1/m), the shift (1/m), the least and the greatest of `relative` that
    the fit holds for, the nearest depth (m), and the inverse of the farthest (1/m).
    """
    width, height = camera
    graph = _Graph()
    relative = graph.input('relative', (height, width))
    fit = graph.input('fit', (FIT,))
    scale, shift, least, greatest, nearest, farthest_inverse = (
        graph.add('Gather', fit, graph.constant(np.array([index]), np.int64), axis=0)
        for index in range(FIT)
    )
    inverse = graph.add('Add', graph.add('Mul', relative, scale), shift)
    # Comparisons are false for NaN, so that each asks for what is certain.
    within = graph.add('Greater', inverse, farthest_inverse)
    depth = graph.add('Where', within, graph.add('Reciprocal', inverse), graph.constant(math.inf))
    known = _finite(graph, inverse)
    for unknown in (
        graph.add('Less', depth, nearest),
        graph.add('Less', relative, least),
        graph.add('Greater', relative, greatest),
    ):
        known = graph.add('And', known, graph.add('Not', unknown))
    depth = graph.add('Where', known, depth, graph.constant(math.nan))
    graph.output(depth, 'depth', (height, width))
    return graph.model('depth')


_FLOAT = TensorProto.FLOAT


def _resized(graph: _Graph, values: str, old: Size, new: Size, interpolation: int) -> str:
    """(3, H, W) -> (3, h, w): the side first that leaves less to do."""
    (width, height), (w, h) = old, new
    sides = [(True, height, h), (False, width, w)]
    if h * width * (height + w) > height * w * (width + h):
        sides.reverse()
    for rows, size, wanted in sides:
        if size == wanted:
            continue
        weights = cv2.resize(
            np.eye(size, dtype=np.float32), (wanted, size), interpolation=interpolation
        )  # (size, wanted): what each old pixel gives to each new one
        if rows:
            values = graph.add('MatMul', graph.constant(weights.T[None]), values)
        else:
            values = graph.add('MatMul', values, graph.constant(weights[None]))
    return values


def _finite(graph: _Graph, values: str) -> str:
    return graph.add('Less', graph.add('Abs', values), graph.constant(math.inf))


def _greatest(graph: _Graph, values: str, side: int, border: int = 0) -> str:
    """Over windows of side x side, those at the border within the image."""
    return graph.add('MaxPool', values, kernel_shape=[side, side], pads=[border] * 4)


def _least(graph: _Graph, values: str, side: int, border: int = 0) -> str:
    return graph.add('Neg', _greatest(graph, graph.add('Neg', values), side, border))


def _edges(graph: _Graph, values: str, size: Size) -> str:
    """`depth_image._edge_cells`: (1, 1, h, w) -> (1, 1, h - 1, w - 1) bool."""
    contrast = graph.add('Sub', _greatest(graph, values, 2), _least(graph, values, 2))
    flattest = _least(graph, contrast, 3, border=1)
    low, high = _percentiles(graph, values, size)
    floor = graph.add('Mul', graph.add('Sub', high, low), graph.constant(EDGE_FLOOR))
    limit = graph.add('Add', graph.add('Mul', flattest, graph.constant(EDGE_RATIO)), floor)
    return graph.add('Greater', contrast, limit)


def _percentiles(graph: _Graph, values: str, size: Size) -> tuple[str, str]:
    """The 2nd and the 98th of every fourth pixel, as `np.percentile` interpolates: (1,) each."""
    width, height = size
    ends = graph.constant(np.array([height, width]), np.int64)
    starts, axes = graph.constant(np.array([0, 0]), np.int64), graph.constant([2, 3], np.int64)
    steps = graph.constant(np.array([SAMPLE_STEP] * 2), np.int64)
    sample = graph.add('Slice', values, starts, ends, axes, steps)
    count = math.ceil(height / SAMPLE_STEP) * math.ceil(width / SAMPLE_STEP)
    place = TAIL * (count - 1)
    first, part = int(place), place - int(place)
    wanted = min(first + 2, count)
    if wanted > LARGEST_TOPK:
        raise ValueError(f'a network output of {width}x{height} has too many pixels to rank')
    sample = graph.reshaped(sample, (1, count))
    found = []
    for largest in (0, 1):
        k = graph.constant(np.array([wanted]), np.int64)
        ranked = graph.add('TopK', sample, k, outputs=2, largest=largest, axis=1)
        blend = np.zeros((wanted, 1))
        blend[first] += 1 - part
        blend[wanted - 1] += part
        found.append(graph.reshaped(graph.add('MatMul', ranked, graph.constant(blend)), (1,)))
    return found[0], found[1]


def _picked(graph: _Graph, values: str, rows: NDArray[Any], columns: NDArray[Any]) -> str:
    """(1, 1, h, w) -> (1, 1, len(rows), len(columns))."""
    values = graph.add('Gather', values, graph.constant(rows, np.int64), axis=2)
    return graph.add('Gather', values, graph.constant(columns, np.int64), axis=3)


class _Graph:
    """Collects the nodes of a graph."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, shape: tuple[int, ...]) -> None:
        self._nodes.append(helper.make_node('Identity', [value], [name], name))
        self._outputs.append(helper.make_tensor_value_info(name, _FLOAT, shape))

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f'constant{len(self._weights)}'
        self._weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def reshaped(self, value: str, shape: tuple[int, ...]) -> str:
        return self.add('Reshape', value, self.constant(np.array(shape), np.int64))

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; returns the name of its first output."""
        names = [f'{operator}{len(self._nodes)}.{index}' for index in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, names[0], **attributes))
        return names[0]

    def model(self, name: str) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._weights)
        opset = [helper.make_opsetid('', OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model
