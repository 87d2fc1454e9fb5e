"""Static int8 graphs: calibrated once on images with NNCF, small enough to ship without weights.

NNCF finds the range of every activation on images, moves what is hard to quantise from activations
into weights (SmoothQuant, arXiv 2211.10438), corrects biases, and writes the graph with
QuantizeLinear and DequantizeLinear around what an engine may compute in int8. Zero points are all
zero and activations signed, which is all that TensorRT takes; the others do not mind.

The int8 weights follow from the float ones, so what ships is a skeleton of each graph without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle, file_sha256
from briges_ros.inference.engine import Arrays, open_engine
from briges_ros.inference.preprocess import prepare

LEVELS = 127  # of int8 on either side of zero
IMAGES = 32  # for a calibration: more move the ranges by less than a level
_SMOOTHING = 'nncf_smooth_quant_scale'  # ends the names of SmoothQuant's factors

FloatArray = NDArray[np.float32]


def calibrate(
    bundle: ModelBundle,
    images: Sequence[NDArray[np.uint8]],
    done: Callable[[], None] = lambda: None,
) -> dict[str, onnx.ModelProto]:
    """Quantise every graph of a bundle.

    Args:
        bundle: with float32 graphs.
        images: (H, W, 3) uint8 RGB each, of the kind that the robot will see; some dozens.
        done: is called after each step: once, and once for each graph.

    Returns:
        The graphs by name.

    Raises:
        ImportError: NNCF is not installed.
        EngineError: onnxruntime does not run the bundle.
    """
    import nncf  # here: it takes seconds to import

    nncf.set_log_level(40)  # errors only; it tells of every step otherwise
    engine = open_engine(bundle, 'onnxruntime', 'fp32')
    samples: dict[str, list[Arrays]] = {name: [] for name in bundle.graphs}
    for image in images:
        inputs = prepare(image, bundle)
        features: Arrays = {}
        for graph, array in zip(('depth_encoder', 'segmentation_encoder'), inputs, strict=False):
            samples[graph].append({'image': array})
            features |= engine.run_graph(graph, {'image': array})
        samples['gate_decoder'].append(features)
    done()
    graphs = {}
    for name, path in bundle.graphs.items():
        graph = nncf.quantize(
            onnx.load(str(path)),
            nncf.Dataset(samples[name]),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(images),
        )
        _make_signed(graph)
        graphs[name] = graph
        done()
    return graphs


def _make_signed(graph: onnx.ModelProto) -> None:
    """Turn uint8, which NNCF takes for what is never negative, into int8 of twice the step."""
    arrays = _initializers(graph)
    for node in graph.graph.node:
        if node.op_type in ('QuantizeLinear', 'DequantizeLinear'):
            scale, zero = node.input[1:3]
            if arrays[zero].dtype == np.uint8:
                arrays[zero] = arrays[zero].astype(np.int8)
                arrays[scale] = arrays[scale] * np.float32(255 / LEVELS)
    for value in graph.graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            value.type.tensor_type.elem_type = TensorProto.INT8
    for tensor in graph.graph.initializer:  # all stored in one way, as `filled_skeleton` wants it
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))


def add_graphs(bundle: ModelBundle, graphs: Mapping[str, onnx.ModelProto]) -> None:
    """Put int8 graphs into a bundle, in place of those that it may have."""
    path = bundle.folder / 'model.json'
    values = json.loads(path.read_text())
    entries = {}
    for name, graph in graphs.items():
        file = bundle.folder / f'{name}.int8.onnx'
        partial = file.with_suffix('.partial')
        onnx.save(graph, str(partial))
        partial.replace(file)
        entries[name] = {'file': file.name, 'sha256': file_sha256(file)}
    partial = path.with_suffix('.json.partial')
    partial.write_text(json.dumps({**values, 'int8_graphs': entries}, indent=2) + '\n')
    partial.replace(path)


def skeleton_file(graph: str) -> str:
    """Name of the file that holds an int8 graph without its weights."""
    return f'{graph}.int8.skeleton.onnx'


def write_skeletons(
    bundle: ModelBundle, graphs: Mapping[str, onnx.ModelProto], folder: Path
) -> None:
    """Write what `filled_skeleton` turns into the int8 graphs again: ranges, factors and biases.

    Args:
        bundle: which the graphs were calibrated for.
        graphs: of `calibrate`; their weights are taken out.
        folder: for the skeletons.
    """
    for name, graph in graphs.items():
        weights = _initializers(onnx.load(str(bundle.graphs[name])))
        recipes = _recipes(graph)
        for initializer in graph.graph.initializer:
            array = numpy_helper.to_array(initializer)
            recipe = recipes.get(initializer.name)
            if recipe is not None and recipe.tensor in weights:
                # NNCF rounds a few of those that lie just between two levels the other way.
                difference = recipe.quantised(weights[recipe.tensor]).astype(np.int16) - array
                same = bool(np.abs(difference).max() <= 1)
            else:
                same = np.array_equal(weights.get(initializer.name, ()), array)
            if same:
                initializer.ClearField('raw_data')
        onnx.save(graph, str(folder / skeleton_file(name)))


def filled_skeleton(skeleton: Path, graph: Path) -> onnx.ModelProto:
    """The int8 graph out of its skeleton and the float graph.

    Raises:
        BrigesError: the float graph has other weights than the skeleton wants.
    """
    filled, weights = onnx.load(str(skeleton)), _initializers(onnx.load(str(graph)))
    recipes = _recipes(filled)
    for initializer in filled.graph.initializer:
        if initializer.raw_data:
            continue
        recipe = recipes.get(initializer.name)
        name = initializer.name if recipe is None else recipe.tensor
        weight = weights.get(name)
        if weight is None or list(weight.shape) != list(initializer.dims):
            raise BrigesError(
                f'{skeleton} wants {name} {list(initializer.dims)} and the weights have '
                f'{"none" if weight is None else list(weight.shape)}; '
                'take both from the same version of the source'
            )
        array = weight if recipe is None else recipe.quantised(weight)
        initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
    return filled


def _initializers(graph: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


@dataclass(frozen=True, eq=False)
class _Recipe:
    """How an int8 weight comes from a float one.

    Attributes:
        tensor: name of the float weight.
        scale: of one level, broadcasting against the weight.
        smoothing: what SmoothQuant multiplies the weight by, broadcasting against it.
    """

    tensor: str
    scale: FloatArray
    smoothing: FloatArray

    def quantised(self, weight: FloatArray) -> NDArray[np.int8]:
        levels = np.rint(weight * self.smoothing / self.scale)
        return np.clip(levels, -LEVELS - 1, LEVELS).astype(np.int8)


def _recipes(graph: onnx.ModelProto) -> dict[str, _Recipe]:
    """By the name of the int8 initialiser, for every weight of a graph of `calibrate`."""
    initializers = {tensor.name: tensor for tensor in graph.graph.initializer}
    writers = {name: node for node in graph.graph.node for name in node.output}
    recipes = {}
    for node in graph.graph.node:
        if len(node.input) < 2 or node.input[1] not in writers:
            continue
        dequantise = writers[node.input[1]]
        name = dequantise.input[0]
        if dequantise.op_type != 'DequantizeLinear' or name not in initializers:
            continue
        scale = numpy_helper.to_array(initializers[dequantise.input[1]])
        rank = len(initializers[name].dims)
        axis = next((a.i for a in dequantise.attribute if a.name == 'axis'), 1) % rank
        # The activation is multiplied by one factor for each input, the weight divided by it.
        factors = _smoothing(node.input[0], writers)
        smoothing: FloatArray = np.ones(1, np.float32)
        if factors is not None:
            smoothing = np.reciprocal(numpy_helper.to_array(initializers[factors])).reshape(-1, 1)
        recipes[name] = _Recipe(
            tensor=name.removeprefix('q_output_').rpartition('_')[0],
            scale=scale.reshape([-1 if a == axis else 1 for a in range(rank)]),
            smoothing=smoothing,
        )
    return recipes


def _smoothing(activation: str, writers: Mapping[str, onnx.NodeProto]) -> str | None:
    """The initialiser with SmoothQuant's factors on the way to a quantised activation, if any."""
    while (node := writers.get(activation)) is not None:
        if node.op_type == 'Mul' and node.input[1].endswith(_SMOOTHING):
            return node.input[1]
        if node.op_type not in ('QuantizeLinear', 'DequantizeLinear'):
            return None
        activation = node.input[0]
    return None
