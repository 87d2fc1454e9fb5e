"""TensorRT-RTX builds plans without a GPU; what can be read of them there is as it should be."""

import importlib
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from plan_contents import described, targets

from briges_ros.inference import tensorrt_build
from briges_ros.inference.bundle import SegmentationInput
from briges_ros.inference.engine import EngineError
from briges_ros.inference.tensorrt_build import (
    BuildOptions,
    TensorInfo,
    build_bundle,
    build_graph,
    import_tensorrt,
    network_shapes,
)

pytest.importorskip('tensorrt_rtx', reason='tensorrt-rtx is not installed')
GPUS = ('8.6', '8.9')  # Ampere (RTX 30, A2000) and Ada (RTX 40, L4)


@pytest.fixture(autouse=True)
def rtx(monkeypatch):
    """Also where TensorRT itself is installed: it builds for the GPU at hand, if there is one."""
    monkeypatch.setattr(tensorrt_build, 'LIBRARIES', ('tensorrt_rtx',))


@pytest.mark.parametrize('precision', ['fp16', 'fp32'])
def test_the_compact_bundle_builds_for_both_gpus(bundle, precision):
    options = BuildOptions(precision, workspace=1 << 30, level=2, compute_capabilities=GPUS)
    shapes = network_shapes(bundle, 640, 480, 48)
    steps = []

    def build(name, path, sizes):
        return build_graph(path, sizes, options, lambda phase, done: steps.append(done))

    built = build_bundle(bundle.graphs, shapes, build)
    features = 'float16' if precision == 'fp16' else 'float32'
    levels = tuple(TensorInfo(f'level{i}', features, (1, 384, 6, 8)) for i in range(4))
    assert built['depth_encoder'].inputs == (TensorInfo('image', 'float32', (1, 3, 84, 112)),)
    assert built['depth_encoder'].outputs == built['gate_decoder'].inputs == levels
    depth = TensorInfo('inverse_depth', 'float32', (1, 1, 48, 64))
    assert built['gate_decoder'].outputs == (depth,)
    for graph in built.values():
        assert described(graph.plan) == {*graph.inputs, *graph.outputs}
        assert targets(graph.plan) == {b'sm86', b'sm89'}
    assert steps[0] == 0 and steps[-1] == 1 and all(0 <= done <= 1 for done in steps)
    # Weights are most of a plan: as many bytes as the graph has, or half of them.
    ratio = len(built['depth_encoder'].plan) / bundle.graphs['depth_encoder'].stat().st_size
    assert (0.5 < ratio < 0.75) if precision == 'fp16' else (1 < ratio < 1.25)


def test_one_gpu_alone(bundle):
    sizes = {f'level{i}': (1, 384, 4, 6) for i in range(4)}
    graph = build_graph(
        bundle.graphs['gate_decoder'], sizes, BuildOptions(compute_capabilities=('8.9',))
    )
    assert targets(graph.plan) == {b'sm89'}


def test_phases_within_a_step_are_parts_of_it():
    told = []
    trt = SimpleNamespace(IProgressMonitor=type('IProgressMonitor', (), {}))
    monitor = tensorrt_build._progress_monitor(trt, lambda *what: told.append(what))
    monitor.phase_start('engine', None, 2)
    monitor.step_complete('engine', 0)
    monitor.phase_start('tactics', 'engine', 5)
    monitor.step_complete('tactics', 0)
    monitor.phase_start('timing', 'tactics', 2)
    monitor.phase_start('beside it', 'tactics', 2)
    monitor.step_complete('timing', 0)
    monitor.step_complete('beside it', 0)
    monitor.phase_start('of nobody', 'unknown', 2)
    monitor.step_complete('of nobody', 0)
    monitor.phase_finish('tactics')
    monitor.phase_finish('engine')
    assert {phase for phase, _ in told} == {'engine'}
    expected = [0, 0.5, 0.5, 0.6, 0.6, 0.6, 0.65, 0.65, 0.65, 0.65, 1]
    assert [done for _, done in told] == pytest.approx(expected)


# Graphs that are quantised


class Levels(CalibrationDataReader):
    def __init__(self):
        rng = np.random.default_rng(0)
        batches = [
            {name: rng.normal(size=size).astype(np.float32) for name, size in LEVELS.items()}
            for _ in range(2)
        ]
        self._batches = iter(batches)

    def get_next(self):
        return next(self._batches, None)


@pytest.fixture(scope='module')
def quantised(bundle, tmp_path_factory):
    """The compact decoder with static 8-bit convolutions, as TensorRT wants it."""
    path = tmp_path_factory.mktemp('quantised') / 'decoder.onnx'
    quantize_static(
        str(bundle.graphs['gate_decoder']),
        str(path),
        Levels(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=['Conv'],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            'ActivationSymmetric': True,
            'WeightSymmetric': True,
            'QuantizeBias': False,
        },
    )
    return path


LEVELS = {f'level{i}': (1, 384, 4, 6) for i in range(4)}


def test_a_quantised_graph_builds_in_int8(bundle, quantised):
    nodes = [node.op_type for node in onnx.load(str(quantised)).graph.node]
    assert nodes.count('QuantizeLinear') > 20
    built = build_graph(quantised, LEVELS, BuildOptions('int8', compute_capabilities=GPUS))
    assert {info.dtype for info in (*built.inputs, *built.outputs)} == {'float32'}
    assert described(built.plan) == {*built.inputs, *built.outputs}
    assert targets(built.plan) == {b'sm86', b'sm89'}
    # Weights are most of a plan: those of the convolutions are bytes now.
    assert len(built.plan) < 0.75 * bundle.graphs['gate_decoder'].stat().st_size


@pytest.mark.parametrize('precision', ['fp16', 'fp32'])
def test_what_is_quantised_is_not_built_as_something_else(quantised, precision):
    message = failure(quantised, LEVELS, BuildOptions(precision))
    assert 'is quantised; choose int8' in message and 'decoder.onnx' in message


# Graphs that are wrong


@pytest.fixture
def graph_file(tmp_path):
    def write(operator, domain=''):
        graph = helper.make_graph(
            [helper.make_node(operator, ['image'], ['features'], 'the_node', domain=domain)],
            'one_node',
            [helper.make_tensor_value_info('image', TensorProto.FLOAT, (1, 3, 'h', 'w'))],
            [helper.make_tensor_value_info('features', TensorProto.FLOAT, (1, 3, 'h', 'w'))],
        )
        opsets = [helper.make_opsetid('', 18), helper.make_opsetid('other', 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        path = tmp_path / 'graph.onnx'
        onnx.save(model, str(path))
        return path

    return write


SIZES = {'image': (1, 3, 8, 8)}


def failure(path, sizes=SIZES, options=BuildOptions(), progress=None):  # noqa: B008
    with pytest.raises(EngineError) as info:
        build_graph(path, sizes, options, progress)
    assert '\n' not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize('precision', ['fp16', 'fp32'])
def test_a_node_that_it_does_not_know_is_named(graph_file, precision):
    message = failure(graph_file('Frobnicate', 'other'), options=BuildOptions(precision))
    assert 'Frobnicate' in message and 'graph.onnx' in message and 'TensorRT-RTX 1.' in message


def test_weights_in_a_file_of_their_own(graph_file, tmp_path):
    path = graph_file('Relu')
    model = onnx.load(str(path))
    model.graph.node[0].CopyFrom(helper.make_node('Mul', ['image', 'w'], ['features']))
    weights = np.full((1, 3, 8, 8), 2, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, 'w'))
    onnx.save(model, str(path), save_as_external_data=True, location='w.data', size_threshold=0)
    for precision in ('fp16', 'fp32'):
        assert build_graph(path, SIZES, BuildOptions(precision)).plan
    (tmp_path / 'w.data').unlink()
    for precision in ('fp16', 'fp32'):
        assert re.search('w.data|initializer: w', failure(path, options=BuildOptions(precision)))


@pytest.mark.parametrize(
    'sizes', [{'image': (1, 4, 8, 8)}, {'image': (1, 3, 8)}, {'picture': (1, 3, 8, 8)}, {}]
)
def test_a_size_that_the_graph_cannot_have(graph_file, sizes):
    assert re.search('cannot have the size|sizes are given of', failure(graph_file('Relu'), sizes))


def test_a_file_that_is_no_graph(tmp_path):
    path = tmp_path / 'graph.onnx'
    path.write_bytes(b'not a graph')
    assert 'is not an ONNX graph' in failure(path)


def test_a_gpu_that_it_does_not_know(graph_file):
    message = failure(graph_file('Relu'), options=BuildOptions(compute_capabilities=('3.5',)))
    assert "'3.5'" in message and '8.6' in message


def test_too_little_memory_for_a_build_says_how_much_was_asked_for(bundle):
    logger = tensorrt_build.tensorrt_logger(import_tensorrt())

    def as_on_a_full_gpu(phase, done):
        for line in (
            'Tactic Device request: 2304MB Available: 1536MB. Device memory is insufficient',
            'Requested amount of GPU memory (8589934592 bytes) could not be allocated.',
            'Skipping tactic 3 due to insufficient memory on requested size of 2304 detected',
        ):
            logger.log(logger.WARNING, line)

    options = BuildOptions(workspace=1000, compute_capabilities=('8.6',))
    for progress, words in [(as_on_a_full_gpu, '(it asked for 8590 MB in vain)'), (None, '')]:
        message = failure(bundle.graphs['gate_decoder'], LEVELS, options, progress)
        assert 'gate_decoder.onnx' in message and 'workspace limit' in message
        assert ('in vain' in message) == bool(words) and words in message
        assert message.endswith('choose a smaller token_budget or a larger workspace')


def test_a_builder_that_does_not_start_asks_for_the_driver(graph_file, monkeypatch):
    trt = import_tensorrt()

    def none(logger):
        logger.log(trt.ILogger.ERROR, 'CUDA initialization failure\nwith error: 35')
        raise TypeError('pybind11::init(): factory function returned nullptr')

    monkeypatch.setattr(trt, 'Builder', none)
    message = failure(graph_file('Relu'))
    assert 'does not start (CUDA initialization failure with error: 35)' in message
    assert 'NVIDIA GPU' in message and 'driver' in message


def test_a_precision_that_there_is_not():
    with pytest.raises(EngineError, match='choose fp16, fp32, int8'):
        BuildOptions('fp8')


def test_a_build_can_be_stopped(graph_file):
    assert 'was stopped' in failure(graph_file('Relu'), progress=lambda phase, done: False)


def test_what_the_progress_raises_comes_through(graph_file):
    def interrupt(phase, done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_graph(graph_file('Relu'), SIZES, BuildOptions(), interrupt)


def test_without_tensorrt_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tensorrt_build, 'LIBRARIES', ('tensorrt_none', 'tensorrt_neither'))
    with pytest.raises(EngineError, match=r'JetPack.*pip install tensorrt-rtx') as info:
        import_tensorrt()
    assert 'tensorrt_none' in str(info.value) and '\n' not in str(info.value)


def test_a_library_that_cannot_be_loaded_is_passed_over(monkeypatch):
    """TensorRT is there and what it links to is not: the import raises OSError."""
    real = importlib.import_module

    def broken(name):
        if name == 'tensorrt':
            raise OSError('libnvinfer.so.10: cannot open shared object file')
        return real(name)

    monkeypatch.setattr(tensorrt_build, 'LIBRARIES', ('tensorrt', 'tensorrt_rtx'))
    monkeypatch.setattr(importlib, 'import_module', broken)
    assert import_tensorrt().__name__ == 'tensorrt_rtx'


def test_the_sizes_that_a_camera_asks_for(bundle):
    assert network_shapes(bundle, 1242, 375, 100) == {'depth_encoder': {'image': (1, 3, 70, 252)}}
    assert network_shapes(bundle, 640, 480) == {'depth_encoder': {'image': (1, 3, 294, 392)}}
    wanted = SegmentationInput((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), patch=16)
    gated = replace(bundle, segmentation_input=wanted)
    assert network_shapes(gated, 640, 480)['segmentation_encoder'] == {'image': (1, 3, 336, 448)}
