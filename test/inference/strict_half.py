"""Runs a typed graph node by node, as a GPU with strong types would store it.

onnxruntime's CPU kernels compute float16 nodes in float32 and leave out the rounding between two of
them, which flatters a half graph tenfold. With each node in a session of its own, everything that
one node writes is rounded to the type that the graph gives it.
"""

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper


def run(model, inputs):
    """Outputs of a graph, and the greatest finite magnitude of its float16 tensors."""
    graph = model.graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for value in graph.input:
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        arrays[value.name] = inputs[value.name].astype(dtype)
    greatest = 0.0
    for node in graph.node:
        arrays |= _run_node(node, arrays, model)
        for name in node.output:
            if arrays[name].dtype == np.float16:
                greatest = max(greatest, float(np.abs(arrays[name].astype(np.float32)).max()))
    return {value.name: arrays[value.name] for value in graph.output}, greatest


def _run_node(node, arrays, model):
    names = list(dict.fromkeys(name for name in node.input if name))
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(arrays[name].dtype), arrays[name].shape
        )
        for name in names
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    single = helper.make_model(
        helper.make_graph([node], 'single', inputs, outputs),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        single.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    results = session.run(list(node.output), {name: arrays[name] for name in names})
    return dict(zip(node.output, results, strict=True))
