"""The torch backend: a bundle's graphs, node by node. For machines that have torch and little else.

Never chosen by 'auto': what runs on a robot imports no torch. On a GPU weights and activations are
half (`half_precision`), convolutions run channels last, features stay on the device, and each graph
is captured once for a size and replayed as one CUDA graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import EngineError, Graph, GraphEngine, Progress, one_line
from briges_ros.inference.half_precision import half_precision

NAMES = {'cpu': 'torch', 'cuda': 'torch-cuda'}
SIZES_KEPT = 4  # plans: one for each of some cameras
WARM_UP = 3  # runs before a capture, as torch.cuda.graph asks for

Attributes = Mapping[str, Any]
Operator = Callable[..., Any]
"""(attributes, *inputs) -> output or tuple of outputs; an optional input that is not given is None.
"""


def precisions(_bundle: ModelBundle, device: str) -> tuple[str, ...]:
    """See `engine.precisions`.

    Raises:
        EngineError: this torch has no CUDA.
    """
    if device == 'cpu':
        return ('fp32',)
    if not torch.cuda.is_available():
        raise EngineError(
            'torch-cuda: torch finds no GPU; check nvidia-smi, and that torch is a build for CUDA '
            f'(this is {torch.__version__})'
        )
    return ('fp16', 'fp32')


def open_engine(
    bundle: ModelBundle, device: str, precision: str, threads: int, _progress: Progress | None
) -> GraphEngine:
    """Load the bundle's graphs; ``threads`` 0 lets torch choose.

    Raises:
        EngineError: a graph cannot be read, or holds an operator that is not known here.
    """
    if threads:
        torch.set_num_threads(threads)
    # TF32 has 11 bits of mantissa: that is no float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    loaded = {
        name: _TorchGraph(path, torch.device(device), precision)
        for name, path in bundle.graphs.items()
    }
    return GraphEngine(NAMES[device], precision, bundle, loaded, lambda x: x.float().cpu().numpy())


class _TorchGraph:
    """One ONNX graph. For a size it makes a plan: only the nodes that see the image stay."""

    def __init__(self, path: Path, device: torch.device, precision: str) -> None:
        try:
            model = onnx.load(str(path))
            if precision == 'fp16':
                model = half_precision(model)
        except Exception as error:  # of protobuf and onnx, without a common base class
            raise EngineError(
                f'torch does not load {path}: {one_line(error)}; choose another backend'
            ) from error
        graph = model.graph
        for node in graph.node:
            if node.op_type not in OPERATORS:
                raise EngineError(
                    f'torch does not load {path}: it has no operator {node.op_type} (node '
                    f'{node.name}); choose another backend'
                )
        self._nodes = list(graph.node)
        self._device = device
        self._types = {v.name: _DTYPES[v.type.tensor_type.elem_type] for v in graph.input}
        self._outputs = [value.name for value in graph.output]
        self._weights: dict[str, Tensor | None] = {'': None}
        for initializer in graph.initializer:
            tensor = torch.from_numpy(numpy_helper.to_array(initializer).copy())
            if tensor.ndim == 4:
                tensor = tensor.to(memory_format=torch.channels_last)
            # Whole numbers are sizes and places, which are computed on the host.
            self._weights[initializer.name] = (
                tensor.to(device) if tensor.is_floating_point() else tensor
            )
        self._plans: dict[tuple[torch.Size, ...], _Plan] = {}

    def runner(self) -> Graph:
        """See `engine.LoadedGraph.runner`."""
        other = copy.copy(self)  # the weights are the same
        other._plans = {}
        return other

    @torch.inference_mode()
    def __call__(self, arrays: dict[str, Any]) -> dict[str, Tensor]:
        """Run on host arrays or tensors; see `Graph`."""
        inputs = {
            name: torch.as_tensor(array, dtype=self._types[name], device=self._device)
            for name, array in arrays.items()
        }
        sizes = tuple(tensor.shape for tensor in inputs.values())
        plan = self._plans.pop(sizes, None)
        if plan is None:
            plan = _Plan(self._nodes, self._weights, inputs, self._outputs)
            if len(self._plans) == SIZES_KEPT:
                del self._plans[next(iter(self._plans))]  # not used for the longest time
        self._plans[sizes] = plan
        return plan(inputs)


class _Plan:
    """The nodes of a graph that remain once everything that only sizes decide is computed."""

    def __init__(
        self,
        nodes: list[onnx.NodeProto],
        weights: Mapping[str, Tensor | None],
        inputs: Mapping[str, Tensor],
        outputs: list[str],
    ) -> None:
        self._outputs = outputs
        self._steps: list[tuple[Operator, Attributes, list[str], list[str]]] = []
        values: dict[str, Tensor | None] = {**weights, **inputs}
        seen = set(inputs)  # what depends on the numbers in the inputs
        for node in nodes:
            operator = OPERATORS[node.op_type]
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            names, made = list(node.input), list(node.output)
            _store(values, made, operator(attributes, *(values[name] for name in names)))
            if node.op_type != 'Shape' and seen.intersection(names):
                seen.update(made)
                self._steps.append((operator, attributes, names, made))
        used = {name for _, _, names, _ in self._steps for name in names}
        self._constants = {
            name: value for name, value in values.items() if name in used and name not in seen
        }
        self._graph: torch.cuda.CUDAGraph | None = None
        if any(tensor.is_cuda for tensor in inputs.values()):
            self._capture(inputs)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._graph is None:
            return self._run(inputs)
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor)
        self._graph.replay()
        return self._results

    def _run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values: dict[str, Tensor | None] = {**self._constants, **inputs}
        for operator, attributes, names, made in self._steps:
            _store(values, made, operator(attributes, *(values[name] for name in names)))
        return {name: values[name] for name in self._outputs}  # type: ignore[misc]

    def _capture(self, inputs: Mapping[str, Tensor]) -> None:
        self._inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._run(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the node may use the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode='thread_local'):
            self._results = self._run(self._inputs)
        self._graph = graph


def _store(values: dict[str, Tensor | None], names: list[str], result: Any) -> None:
    values.update(zip(names, result if isinstance(result, tuple) else (result,), strict=False))


# What the operators mean is in the ONNX specification, https://onnx.ai/onnx/operators/ (opset 18).


def _ints(tensor: Tensor) -> list[int]:
    return [int(value) for value in tensor.tolist()]


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _ints(shape)
    if not a.get('allowzero', 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _slice(
    _: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = _ints(starts), _ints(ends)
    along = list(range(len(first))) if axes is None else _ints(axes)
    every = [1] * len(first) if steps is None else _ints(steps)
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(along, first, last, every, strict=True):
        # From and to the end may be written as the least and greatest whole numbers.
        index[axis] = slice(*slice(start, end, step).indices(x.shape[axis]))
    return x[tuple(index)]


def _padding(a: Attributes) -> tuple[int, int]:
    if a.get('auto_pad', b'NOTSET') != b'NOTSET':
        raise EngineError('torch knows only explicit padding')
    top, left, bottom, right = a.get('pads', [0] * 4)
    if (top, left) != (bottom, right):
        raise EngineError('torch knows padding that differs from side to side only in Conv')
    return top, left


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    top, left, bottom, right = a.get('pads', [0] * 4)
    if (top, left) != (bottom, right):  # as TensorFlow's 'same' has it at stride 2
        x, a = F.pad(x, (left, right, top, bottom)), {**a, 'pads': [0] * 4}
    return F.conv2d(
        x,
        weight,
        bias,
        stride=a.get('strides', [1, 1]),
        padding=_padding(a),
        dilation=a.get('dilations', [1, 1]),
        groups=a.get('group', 1),
    )


def _conv_transpose(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv_transpose2d(
        x,
        weight,
        bias,
        stride=a.get('strides', [1, 1]),
        padding=_padding(a),
        output_padding=a.get('output_padding', [0, 0]),
        groups=a.get('group', 1),
        dilation=a.get('dilations', [1, 1]),
    )


def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = a.get('axis', -1) % x.ndim
    return F.layer_norm(x, x.shape[axis:], scale, bias, a.get('epsilon', 1e-5))


def _resize(
    a: Attributes,
    x: Tensor,
    _region: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    if sizes is not None and sizes.numel():
        size = _ints(sizes)[2:]
    else:
        assert scales is not None
        size = [int(n * s) for n, s in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    mode = a.get('mode', b'nearest').decode()
    places = a.get('coordinate_transformation_mode', b'half_pixel').decode()
    if mode == 'nearest':
        return F.interpolate(x, size, mode='nearest')
    if places not in ('half_pixel', 'pytorch_half_pixel', 'align_corners'):
        raise EngineError(f'torch cannot resize with {places}')
    torch_mode = {'linear': 'bilinear', 'cubic': 'bicubic'}[mode]
    return F.interpolate(x, size, mode=torch_mode, align_corners=places == 'align_corners')


def _pad(
    a: Attributes,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    if a.get('mode', b'constant') != b'constant':
        raise EngineError(f'torch cannot pad with {a["mode"].decode()}')
    amounts = _ints(pads)
    along = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in _ints(axes)]
    both = [(0, 0)] * x.ndim
    for i, axis in enumerate(along):
        both[axis] = amounts[i], amounts[i + len(along)]
    flat = [amount for pair in reversed(both) for amount in pair]
    return F.pad(x, flat, value=0.0 if value is None else float(value))


def _gather(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get('axis', 0) % x.ndim
    flat = x.index_select(axis, indices.reshape(-1).long().to(x.device) % x.shape[axis])
    return flat.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _split(a: Attributes, x: Tensor, split: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get('axis', 0)
    if split is not None:
        return torch.split(x, _ints(split), axis)
    return torch.chunk(x, a['num_outputs'], axis)


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    return F.max_pool2d(
        x,
        a['kernel_shape'],
        a.get('strides', [1, 1]),
        _padding(a),
        a.get('dilations', [1, 1]),
        bool(a.get('ceil_mode', 0)),
    )


def _squeeze(_: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_ints(axes)))


def _unsqueeze(_: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(i % rank for i in _ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _mean(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = list(range(x.ndim)) if axes is None else _ints(axes)
    return x.mean(dims, keepdim=bool(a.get('keepdims', 1)))


def _concat(a: Attributes, *tensors: Tensor) -> Tensor:
    return torch.cat(tensors, a['axis'])


def _divide(_: Attributes, x: Tensor, y: Tensor) -> Tensor:
    if x.is_floating_point():
        return x / y
    return torch.div(x, y, rounding_mode='trunc')


def _gelu(a: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=a.get('approximate', b'none').decode())


def _constant(a: Attributes) -> Tensor:
    return torch.from_numpy(numpy_helper.to_array(a['value']).copy())


def _cast(a: Attributes, x: Tensor) -> Tensor:
    return x.to(_DTYPES[a['to']])


def _matmul(_: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x, y)


_DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.BOOL: torch.bool,
}

OPERATORS: dict[str, Operator] = {
    'Add': lambda _, x, y: x + y,
    'Cast': _cast,
    'Clip': lambda _, x, low=None, high=None: torch.clamp(x, low, high),
    'Concat': _concat,
    'Constant': _constant,
    'Conv': _conv,
    'ConvTranspose': _conv_transpose,
    'Div': _divide,
    'Einsum': lambda a, *x: torch.einsum(a['equation'].decode(), *x),
    'Erf': lambda _, x: torch.erf(x),
    'Expand': lambda _, x, shape: x.expand(torch.broadcast_shapes(x.shape, _ints(shape))),
    'Gather': _gather,
    'Gelu': _gelu,
    'Identity': lambda _, x: x,
    'LayerNormalization': _layer_norm,
    'MatMul': _matmul,
    'MaxPool': _max_pool,
    'Mul': lambda _, x, y: x * y,
    'Pad': _pad,
    'Pow': lambda _, x, y: x**y,
    'ReduceMean': _mean,
    'Relu': lambda _, x: F.relu(x),
    'Reshape': _reshape,
    'Resize': _resize,
    'Shape': lambda a, x: torch.tensor(x.shape[a.get('start', 0) : a.get('end')]),
    'Sigmoid': lambda _, x: torch.sigmoid(x),
    'Slice': _slice,
    'Softmax': lambda a, x: torch.softmax(x, a.get('axis', -1)),
    'Split': _split,
    'Sqrt': lambda _, x: torch.sqrt(x),
    'Squeeze': _squeeze,
    'Sub': lambda _, x, y: x - y,
    'Transpose': lambda a, x: x.permute(a['perm']),
    'Unsqueeze': _unsqueeze,
    'Where': lambda _, where, x, y: torch.where(where, x, y),
}
