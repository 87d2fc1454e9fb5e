"""A bundle's float32 graphs in half precision, typed node by node.

A strongly typed engine computes every node in the types that the graph gives it, so what stays in
float32 is decided here, and not by what a builder happens to measure. Only a build imports this
module: nothing else at run time needs ``onnx``.

onnxruntime's own conversion (`onnxruntime.transformers.float16`, as of 1.31) is not used: it casts
twice under one name where two float32 nodes read one tensor, sends what goes from one float32 node
to the next through float16, and importing it puts a folder with modules such as ``metrics`` and
``benchmark`` on `sys.path`.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Sums over hundreds of values, exponentials, and variances whose epsilon (1e-6) is less than the
# smallest normal half.
SENSITIVE = frozenset(
    {
        'GroupNormalization',
        'InstanceNormalization',
        'LayerNormalization',
        'LogSoftmax',
        'ReduceMean',
        'ReduceSum',
        'Softmax',
    }
)
# Their float output has the type that an attribute says or, for Range, the inputs' own.
FIXED = frozenset({'Cast', 'Constant', 'ConstantOfShape', 'Range'})
ALWAYS_FLOAT32 = {'Resize': (1, 2)}  # inputs that have to be float32: region and scales
QUANTISED = frozenset({'QuantizeLinear', 'DequantizeLinear'})
# What the network is fed with and what it gives. All else that goes from one of our graphs to
# another stays on the device.
FLOAT32_TENSORS = frozenset({'image', 'inverse_depth'})
HALF_MAX = float(np.finfo(np.float16).max)


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn a float32 graph into a strongly typed one of float16.

    Weights and activations become float16. Float32 stay the `SENSITIVE` operators, and the last
    convolution before ``inverse_depth`` with everything after it: half has 11 bits, and inverse
    depth spans a thousandfold from a hand to the horizon. `FLOAT32_TENSORS` keep their type; the
    features that go from graph to graph become float16, because what reads them computes in float16
    anyway.

    Args:
        model: float32, nodes in order, with the type of every tensor noted (``torch.onnx`` does
            both). It is taken apart: do not use it afterwards.

    Returns:
        The graph. What is larger than half can hold among its weights is held at 65504.

    Raises:
        ValueError: a tensor's type is not noted, a node has a graph of its own (If, Loop), or the
            graph is quantised, whose scales do not fit into half.
    """
    graph = model.graph
    exact = _last_layers(graph)
    conversion = _Conversion(graph)
    for node in graph.node:
        if any(attribute.HasField('g') for attribute in node.attribute):
            raise ValueError(f'{node.op_type} {node.name} has a graph of its own')
        if node.op_type in QUANTISED:
            raise ValueError(f'it is quantised ({node.op_type} {node.name})')
        in_float32 = (
            node.op_type in SENSITIVE or node.op_type in FIXED or exact.intersection(node.output)
        )
        conversion.add(node, TensorProto.FLOAT if in_float32 else TensorProto.FLOAT16)
    return conversion.finish(model)


def _last_layers(graph: onnx.GraphProto) -> set[str]:
    """The tensors from the last convolution's output to ``inverse_depth``."""
    writers = {name: node for node in graph.node for name in node.output}
    names: set[str] = set()
    tensor = 'inverse_depth'
    while tensor in writers:
        names.add(tensor)
        if writers[tensor].op_type == 'Conv':
            break
        tensor = writers[tensor].input[0]
    return names


class _Conversion:
    """Writes the nodes anew, each with its inputs in the type that it computes in."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._noted: dict[str, int] = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.value_info, *graph.input, *graph.output)
        } | {name: tensor.data_type for name, tensor in self._weights.items()}
        self._types: dict[str, int] = {  # of the float tensors that are there, as they are now
            name: TensorProto.FLOAT
            for name in (*(value.name for value in graph.input), *self._weights)
            if self._noted[name] == TensorProto.FLOAT
        }
        self._nodes: list[onnx.NodeProto] = []
        self._added: dict[str, TensorProto] = {}
        for value in graph.input:
            if self._is_float(value.name) and value.name not in FLOAT32_TENSORS:
                self._types[value.name] = TensorProto.FLOAT16
                value.type.tensor_type.elem_type = TensorProto.FLOAT16

    def add(self, node: onnx.NodeProto, computes_in: int) -> None:
        """Add a node that computes in a type."""
        fixed = ALWAYS_FLOAT32.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if name and self._is_float(name):
                wanted = TensorProto.FLOAT if index in fixed else computes_in
                node.input[index] = self._in_type(name, wanted)
        self._nodes.append(node)
        for name in node.output:
            if name and self._is_float(name):
                self._types[name] = computes_in

    def finish(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Give the outputs their types, drop the weights that nobody reads, and close the graph."""
        graph = self._graph
        for value in graph.output:
            if self._is_float(value.name):
                self._type_output(value)
        read = {name for node in self._nodes for name in node.input}
        weights = [t for n, t in {**self._weights, **self._added}.items() if n in read]
        del graph.initializer[:], graph.value_info[:], graph.node[:]
        graph.initializer.extend(weights)
        graph.node.extend(self._nodes)
        return model

    def _is_float(self, name: str) -> bool:
        if name not in self._noted:
            raise ValueError(f'the type of tensor {name} is not noted')
        return self._noted[name] == TensorProto.FLOAT

    def _in_type(self, name: str, wanted: int) -> str:
        """Name of a tensor in the wanted type; it is cast where it is not there yet."""
        if self._types[name] == wanted:
            return name
        copy = f'{name}/{TensorProto.DataType.Name(wanted).lower()}'
        if copy not in self._noted:
            self._noted[copy] = wanted
            if name in self._weights:
                self._added[copy] = _half(self._weights[name], copy)
            else:
                self._nodes.append(helper.make_node('Cast', [name], [copy], copy, to=wanted))
        return copy

    def _type_output(self, value: onnx.ValueInfoProto) -> None:
        exact = value.name in FLOAT32_TENSORS
        wanted = TensorProto.FLOAT if exact else TensorProto.FLOAT16
        if self._types[value.name] != wanted:
            raw = f'{value.name}/raw'
            for node in self._nodes:
                for names in (node.input, node.output):
                    for index, name in enumerate(names):
                        if name == value.name:
                            names[index] = raw
            self._nodes.append(helper.make_node('Cast', [raw], [value.name], raw, to=wanted))
        value.type.tensor_type.elem_type = wanted


def _half(weights: TensorProto, name: str) -> TensorProto:
    array = numpy_helper.to_array(weights)
    held = np.where(np.isfinite(array), np.clip(array, -HALF_MAX, HALF_MAX), array)
    return numpy_helper.from_array(held.astype(np.float16), name)
