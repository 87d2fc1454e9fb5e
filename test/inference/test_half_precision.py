"""Half graphs are valid, typed as they should be, and compute what the float32 ones compute."""

import cv2
import numpy as np
import onnx
import pytest
import strict_half
from onnx import TensorProto, helper, numpy_helper

from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import open_engine
from briges_ros.inference.half_precision import half_precision
from briges_ros.inference.preprocess import prepare
from briges_ros.inference.selfcheck import check_engine

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


@pytest.fixture(scope='module')
def halves(bundle):
    graphs = {name: half_precision(onnx.load(str(p))) for name, p in bundle.graphs.items()}
    for graph in graphs.values():
        onnx.checker.check_model(graph)
    return graphs


def difference(array, reference):
    array, reference = array.astype(np.float64), reference.astype(np.float64)
    error = np.sqrt(np.mean((array - reference) ** 2)) / reference.std()
    return error, np.corrcoef(array.ravel(), reference.ravel())[0, 1]


def test_the_compact_network_computes_the_same_in_half(bundle: ModelBundle, halves, data):
    """On a real frame, every tensor rounded to the type that it has in the graph."""
    pixels = cv2.imread(str(data / 'frames' / 'd01_nyu00000_rgb.jpg'))[:, :, ::-1]
    (image,) = prepare(np.ascontiguousarray(pixels), bundle, 140)
    reference = open_engine(bundle, 'onnxruntime', 'fp32', 1).infer(image)
    levels, largest = strict_half.run(halves['depth_encoder'], {'image': image})
    assert {array.dtype for array in levels.values()} == {np.dtype(np.float16)}
    output, largest_decoder = strict_half.run(halves['gate_decoder'], levels)
    output = output['inverse_depth']
    assert output.dtype == np.float32
    error, correlation = difference(output[0, 0], reference)
    assert 1e-5 < error < 0.01  # the lower limit: that it was half at all
    assert correlation > 0.9999
    assert max(largest, largest_decoder) < 65504 / 8  # far from an overflow


def test_what_is_sensitive_stays_float32(halves):
    for graph in halves.values():
        types = tensor_types(graph)
        for node in graph.graph.node:
            if node.op_type in ('LayerNormalization', 'Softmax'):
                assert {types[name] for name in (*node.input, *node.output)} == {FLOAT}
            if node.op_type in ('MatMul', 'Erf'):
                assert {types[name] for name in (*node.input, *node.output)} == {HALF}
    decoder = halves['gate_decoder']
    types = tensor_types(decoder)
    convolutions = [node for node in decoder.graph.node if node.op_type == 'Conv']
    assert [types[node.output[0]] for node in convolutions] == [HALF] * 28 + [FLOAT]
    # Only the last one's weights are still float32: nothing is there twice.
    weights = [tensor.data_type for tensor in decoder.graph.initializer]
    assert weights.count(FLOAT) <= 3 and weights.count(HALF) > 50


def tensor_types(model):
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in inferred.initializer
    }


def small_graph(nodes, weights, outputs, noted=()):
    """A graph that reads ``image`` (1, 4, 6, 6)."""
    shape = [1, 4, 'height', 'width']
    typed = [helper.make_tensor_value_info(name, FLOAT, shape) for name in (*outputs, *noted)]
    graph = helper.make_graph(
        nodes,
        'small',
        [helper.make_tensor_value_info('image', FLOAT, (1, 4, 6, 6))],
        typed[: len(outputs)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
        value_info=typed[len(outputs) :],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)


def test_two_float32_nodes_in_a_row_are_not_joined_through_half():
    """Also where they share their weights."""
    tiny = np.full(6, 1e-5, np.float32)  # a half has few digits left here
    nodes = [
        helper.make_node('LayerNormalization', ['image', 'gain'], ['a']),
        helper.make_node('LayerNormalization', ['a', 'gain'], ['b']),
        helper.make_node('Mul', ['b', 'gain'], ['features']),
    ]
    model = half_precision(small_graph(nodes, {'gain': tiny}, ['features'], ['a', 'b']))
    onnx.checker.check_model(model)
    types = tensor_types(model)
    assert (types['a'], types['b'], types['features']) == (FLOAT, FLOAT, HALF)
    assert [node.op_type for node in model.graph.node].count('Cast') == 1


def test_features_of_a_sensitive_last_node_leave_as_half():
    nodes = [
        helper.make_node('Softmax', ['image'], ['features']),
        helper.make_node('Relu', ['features'], ['more']),
    ]
    model = half_precision(small_graph(nodes, {}, ['features', 'more']))
    onnx.checker.check_model(model)
    image = np.random.default_rng(0).normal(size=(1, 4, 6, 6)).astype(np.float32)
    results, _ = strict_half.run(model, {'image': image})
    assert results['features'].dtype == results['more'].dtype == np.float16
    np.testing.assert_array_equal(results['features'], results['more'])
    np.testing.assert_allclose(results['features'].sum(axis=-1), 1, atol=2e-3)


def test_weights_beyond_half_are_held_and_infinities_kept():
    weights = np.array([1e6, -1e6, np.inf, 1, 2, 3], np.float32)
    nodes = [helper.make_node('Min', ['image', 'limit'], ['features'])]
    model = half_precision(small_graph(nodes, {'limit': weights}, ['features']))
    (tensor,) = model.graph.initializer
    expected = np.array([65504, -65504, np.inf, 1, 2, 3], np.float16)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected)


def test_scales_of_a_resize_stay_float32():
    nodes = [helper.make_node('Resize', ['image', '', 'scales'], ['features'], mode='linear')]
    scales = np.array([1, 1, 2, 2], np.float32)
    model = half_precision(small_graph(nodes, {'scales': scales}, ['features']))
    onnx.checker.check_model(model, full_check=True)
    results, _ = strict_half.run(model, {'image': np.ones((1, 4, 6, 6), np.float32)})
    assert results['features'].shape == (1, 4, 12, 12)


def test_a_constant_in_a_node_is_cast():
    value = numpy_helper.from_array(np.float32(2.0), 'value')
    nodes = [
        helper.make_node('Constant', [], ['two'], value=value),
        helper.make_node('Mul', ['image', 'two'], ['features']),
    ]
    model = half_precision(small_graph(nodes, {}, ['features'], ['two']))
    results, _ = strict_half.run(model, {'image': np.ones((1, 4, 6, 6), np.float32)})
    assert results['features'].dtype == np.float16 and (results['features'] == 2).all()


def test_a_quantised_graph_is_refused_by_the_name_of_a_node():
    nodes = [
        helper.make_node('QuantizeLinear', ['image', 'scale'], ['bytes'], 'the_node'),
        helper.make_node('DequantizeLinear', ['bytes', 'scale'], ['features']),
    ]
    with pytest.raises(ValueError, match=r'quantised .*the_node'):
        half_precision(small_graph(nodes, {'scale': np.float32(0.1)}, ['features']))


def test_a_tensor_without_a_type_is_named():
    nodes = [
        helper.make_node('Relu', ['image'], ['hidden']),
        helper.make_node('Relu', ['hidden'], ['features']),
    ]
    with pytest.raises(ValueError, match='hidden is not noted'):
        half_precision(small_graph(nodes, {}, ['features']))


def test_the_original_passes_its_own_selfcheck(bundle):
    """So the reference that the half graphs are compared with is the network's."""
    assert check_engine(open_engine(bundle, 'onnxruntime', 'fp32', 1), bundle).relative_error < 1e-4
