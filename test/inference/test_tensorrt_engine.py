"""The flow of a frame on a fake GPU that computes; plans from the cache; and, where there is a GPU,
the engine itself.

Without a GPU nothing of TensorRT can run but the builder, so what happens on the device is done by
`fake_device`, with the same graphs in onnxruntime. Tests that need a GPU skip themselves.
"""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from fake_device import FakeDevice, FakeGraph
from onnx import helper, numpy_helper
from pooled_bundle import CAMERA, HALF, picture, pooled_bundle

from briges_ros import Anchors, DepthPipeline
from briges_ros.cli.engines import BuildJob, run_build
from briges_ros.depth_image import depth_from_inverse, resize_inverse_depth
from briges_ros.inference import (
    device_memory,
    image_graphs,
    tensorrt_backend,
    tensorrt_build,
    tensorrt_engine,
)
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.device_memory import open_device
from briges_ros.inference.engine import EngineError, open_engine
from briges_ros.inference.engine_cache import EngineCache
from briges_ros.inference.preprocess import prepare, to_inverse_depth
from briges_ros.inference.selfcheck import WHOLE, check_engine, open_checked_engine
from briges_ros.inference.tensorrt_build import (
    BuildOptions,
    BuiltGraph,
    TensorInfo,
    import_tensorrt,
    network_shapes,
)
from briges_ros.inference.tensorrt_engine import (
    Gpu,
    LoadedPlans,
    StalePlanError,
    TensorRTEngine,
    build_plans,
    load_graphs,
    open_tensorrt,
)


@pytest.fixture(scope='module')
def gated(tmp_path_factory):
    return pooled_bundle(tmp_path_factory.mktemp('gated'))


def fake_graphs(device, bundle, camera=CAMERA, capturable=True, sizes_of=None, **changed):
    """All graphs of a bundle for a camera; ``changed`` replaces models by name."""
    graphs = {}

    def add(name, model, shapes):
        model = changed.get(name, model)
        if isinstance(model, onnx.ModelProto):
            model = model.SerializeToString()
        graphs[name] = FakeGraph(device, name, model, shapes, capturable)
        return graphs[name].outputs

    features, sizes = [], {}
    for name, shapes in (sizes_of or network_shapes(bundle, *CAMERA)).items():
        features += add(name, str(bundle.graphs[name]), shapes)
        sizes[name] = shapes['image'][:1:-1]
    shapes = {info.name: info.shape for info in features}
    (output,) = add('gate_decoder', str(bundle.graphs['gate_decoder']), shapes)
    if camera is not None:
        pixels = {'pixels': (camera[1], camera[0], 3)}
        size = sizes['depth_encoder']
        add('input', image_graphs.input_graph(camera, size, bundle.mean, bundle.std), pixels)
        if bundle.segmentation_input is not None:
            size, wanted = sizes['segmentation_encoder'], bundle.segmentation_input
            model = image_graphs.input_graph(
                camera, size, wanted.mean, wanted.std, 'segmentation_image'
            )
            add('segmentation_input', model, pixels)
        metric = bundle.output == 'metric_depth'
        model = image_graphs.relative_graph(output.shape[:1:-1], camera, metric)
        add('relative', model, {'inverse_depth': output.shape})
        shapes = {'relative': camera[::-1], 'fit': (6,)}
        add('depth', image_graphs.depth_graph(camera), shapes)
    return graphs


def opened(bundle, device=None, camera=CAMERA, **options):
    device = device or FakeDevice()
    return TensorRTEngine(device, fake_graphs(device, bundle, camera, **options), 'fp32')


def on_the_host(bundle, image):
    """What the pipeline computes with onnxruntime."""
    output = open_engine(bundle, 'onnxruntime', 'fp32', 1).infer(*prepare(image, bundle))
    return resize_inverse_depth(to_inverse_depth(output, bundle), *CAMERA)


@pytest.mark.parametrize('early', [False, True])
@pytest.mark.parametrize('captures', [False, True])
def test_a_frame_computes_what_the_host_does_however_the_streams_run(gated, early, captures):
    engine = opened(gated, FakeDevice(early, captures))
    reference = open_engine(gated, 'onnxruntime', 'fp32', 1)
    for seed in range(3):
        image = picture(seed)
        inputs = prepare(image, gated)
        np.testing.assert_array_equal(engine.infer(*inputs), reference.infer(*inputs))
        relative = engine.infer_image(image)
        np.testing.assert_allclose(relative, on_the_host(gated, image), rtol=1e-5)
        fit = 0.5, -0.5 * float(np.median(relative)), 0.1, 100.0
        depth = engine.depth(*fit)
        expected = depth_from_inverse(relative, *fit)
        assert np.isfinite(expected).any() and np.isinf(expected).any()
        np.testing.assert_allclose(depth, expected, rtol=1e-6)
    assert engine.captured == captures


@pytest.mark.parametrize(('early', 'stream'), [(False, 0), (True, 1)])
def test_without_its_waits_a_frame_would_be_wrong(gated, early, stream):
    """So the fake device does see what the events are for: the join, and the fork."""
    engine = opened(gated, FakeDevice(early, ignore_waits=(stream,)))
    image = picture(1)
    assert not np.allclose(engine.infer_image(image), on_the_host(gated, image))


def test_a_network_without_a_gate(gated):
    plain = {name: path for name, path in gated.graphs.items() if name == 'depth_encoder'}
    decoder = onnx.load(str(gated.graphs['gate_decoder']))
    decoder.graph.node[0].input.remove('segmentation')
    decoder.graph.input.remove(decoder.graph.input[-1])
    path = gated.folder / 'plain_decoder.onnx'
    onnx.save(decoder, str(path))
    bundle = replace(
        gated,
        gate='none',
        graphs={**plain, 'gate_decoder': path},
        segmentation_input=None,
        output='metric_depth',
    )
    device = FakeDevice()
    engine = opened(bundle, device)
    image = picture(3)
    np.testing.assert_allclose(engine.infer_image(image), on_the_host(bundle, image), rtol=1e-5)
    engine.check_image_processing(bundle)
    assert not any(call[0] == 'wait' for call in device.calls)
    with pytest.raises(ValueError, match='prepare'):
        engine.infer(*prepare(image, gated))


def test_the_order_of_a_frame(gated):
    device = FakeDevice()
    engine = opened(gated, device)
    del device.calls[:]
    engine._enqueue_frame(True)
    main, side = 0, 1
    assert device.calls == [
        ('upload', main),
        ('record', main),
        ('wait', side),
        ('input', main),
        ('depth_encoder', main),
        ('segmentation_input', side),
        ('segmentation_encoder', side),
        ('record', side),
        ('wait', main),
        ('gate_decoder', main),
        ('relative', main),
        ('download', main),
    ]


def test_a_frame_is_one_launch_and_allocates_nothing(gated):
    device = FakeDevice()
    engine = opened(gated, device)
    setting_up = [call[0] for call in device.calls]
    assert setting_up.count('allocate') == 1 and setting_up.count('stream') == 2
    # The network and the frame, each with the segmentation and without; and the depth.
    assert setting_up.count('capture') == 5
    for run in (
        lambda: engine.infer(*prepare(picture(), gated)),
        lambda: engine.infer_image(picture()),
        lambda: engine.infer_image(picture(), reuse_segmentation=True),
        lambda: engine.depth(1.0, 0.0, 0.1, 10.0),
    ):
        del device.calls[:]
        run()
        run()
        assert device.calls == [('launch',), ('synchronize', 0)] * 2


@pytest.mark.parametrize('reason', ['device', 'library'])
def test_where_graphs_cannot_be_captured_frames_are_queued_and_it_is_said_once(
    gated, caplog, reason
):
    device = FakeDevice(captures=reason != 'device')
    engine = opened(gated, device, capturable=reason != 'library')
    assert not engine.captured
    assert caplog.text.count('not captured as a CUDA graph') == 1
    del device.calls[:]
    image = picture(4)
    np.testing.assert_allclose(engine.infer_image(image), on_the_host(gated, image), rtol=1e-5)
    assert len(device.calls) == 13 and not {'allocate', 'pinned', 'launch'} & {
        call[0] for call in device.calls
    }


def test_segmentation_features_can_be_used_again(gated):
    engine = opened(gated)
    first, second = picture(1), picture(2)
    engine.infer_image(first)
    relative = engine.infer_image(second, reuse_segmentation=True)
    inputs = prepare(second, gated)[0], prepare(first, gated)[1]
    expected = resize_inverse_depth(
        open_engine(gated, 'onnxruntime', 'fp32', 1).infer(*inputs), *CAMERA
    )
    np.testing.assert_allclose(relative, expected, rtol=1e-5)
    assert not np.allclose(engine.infer_image(second), relative)


def test_what_is_returned_is_the_callers_own(gated):
    engine = opened(gated)
    results = [engine.infer(*prepare(picture(), gated)), engine.infer_image(picture())]
    results.append(engine.depth(1.0, 0.0, 0.1, 10.0))
    copies = [result.copy() for result in results]
    engine.infer(*prepare(picture(5), gated))
    engine.infer_image(picture(5))
    engine.depth(2.0, 0.0, 0.1, 10.0)
    for result, copy in zip(results, copies, strict=True):
        np.testing.assert_array_equal(result, copy)
        assert result.dtype == np.float32


# What is wrong is said


def error_of(run, kind=EngineError):
    with pytest.raises(kind) as info:
        run()
    assert '\n' not in str(info.value)
    return str(info.value)


def test_an_image_of_another_size(gated):
    engine = opened(gated)
    message = error_of(lambda: engine.infer_image(picture(size=(32, 24))))
    assert '(48, 64, 3)' in message and '(24, 32, 3)' in message and 'open it for' in message
    image, segmentation = prepare(picture(), gated)
    assert 'image of shape' in error_of(lambda: engine.infer(image[:, :, 1:], segmentation))
    assert 'segmentation_image of' in error_of(
        lambda: engine.infer(image, segmentation[:, :, :, 1:])
    )
    assert 'first frame' in error_of(lambda: engine.infer(image), ValueError)
    with pytest.raises(TypeError):
        engine.infer_image(picture().astype(np.float64))


def test_without_a_camera_it_runs_the_network_alone(gated):
    engine = opened(gated, camera=None)
    inputs = prepare(picture(), gated)
    expected = open_engine(gated, 'onnxruntime', 'fp32', 1).infer(*inputs)
    np.testing.assert_array_equal(engine.infer(*inputs), expected)
    assert engine.camera is None
    assert list(engine.input_shapes.values()) == [array.shape for array in inputs]
    for run in (lambda: engine.infer_image(picture()), lambda: engine.depth(1.0, 0.0, 0.1, 1.0)):
        assert 'without a camera' in error_of(run)


def test_impossible_fits(gated):
    engine = opened(gated)
    for fit in [(0.0, 0.0, 0.1, 1.0), (-1.0, 0.0, 0.1, 1.0), (1.0, 0.0, 2.0, 1.0)]:
        error_of(lambda fit=fit: engine.depth(*fit), ValueError)
    assert np.isnan(engine.depth(math.nan, 0.0, 0.1, 1.0)).all()


def test_graphs_that_do_not_fit_each_other(gated):
    device = FakeDevice()
    graphs = fake_graphs(device, gated)
    encoder = graphs['depth_encoder']
    encoder.outputs = tuple(replace(info, dtype='float16') for info in encoder.outputs)
    message = error_of(lambda: TensorRTEngine(device, graphs, 'fp16'))
    assert 'level0' in message and 'float16' in message
    assert device.closed and all(graph.closed for graph in graphs.values())


@pytest.mark.parametrize('early', [False, True])
def test_image_processing_that_is_right_passes(gated, early):
    opened(gated, FakeDevice(early)).check_image_processing(gated)


@pytest.mark.parametrize(
    ('name', 'changed', 'words'),
    [
        ('input', lambda m: m.graph.node[-2].ClearField('op_type'), 'image'),
        ('segmentation_input', lambda m: swap(m, 'Add', 'Sub'), 'segmentation_image'),
        ('relative', lambda m: swap(m, 'Resize', mode='nearest'), 'relative'),
        ('depth', lambda m: swap(m, 'Less', 'Greater'), 'depth'),
        ('depth', lambda m: swap(m, 'And', 'Or'), 'depth'),
    ],
)
def test_image_processing_that_is_wrong_is_found(gated, name, changed, words):
    models = {
        'input': image_graphs.input_graph(CAMERA, (56, 42), (0.4, 0.5, 0.7), gated.std),
        'segmentation_input': image_graphs.input_graph(
            CAMERA, (64, 48), HALF, HALF, 'segmentation_image'
        ),
        'relative': image_graphs.relative_graph((32, 24), CAMERA, False),
        'depth': image_graphs.depth_graph(CAMERA),
    }
    if name != 'input':  # that one has another mean
        changed(models[name])
    engine = opened(gated, **{name: models[name]})
    message = error_of(lambda: engine.check_image_processing(gated))
    assert f'computes {words} wrongly' in message


def swap(model, old, new=None, **attributes):
    for node in model.graph.node:
        if node.op_type == old:
            node.op_type = new or old
            for name, value in attributes.items():
                kept = [a for a in node.attribute if a.name != name]
                del node.attribute[:]
                node.attribute.extend([*kept, helper.make_attribute(name, value)])


# Nothing is left behind


def test_closing_frees_everything_once(gated):
    device = FakeDevice()
    graphs = fake_graphs(device, gated)
    engine = TensorRTEngine(device, graphs, 'fp32')
    engine.close()
    engine.close()
    assert device.closed == 1 and all(graph.closed for graph in graphs.values())
    assert 'was closed' in error_of(lambda: engine.infer_image(picture()))


def test_an_engine_that_nobody_uses_any_more_is_closed(gated):
    import gc

    device = FakeDevice()
    engine = opened(gated, device)
    engine.infer_image(picture())
    del engine
    gc.collect()
    assert device.closed == 1


def test_too_little_memory(gated):
    device = FakeDevice(size=10_000)
    graphs = fake_graphs(device, gated)
    assert 'too little GPU memory' in error_of(lambda: TensorRTEngine(device, graphs, 'fp32'))
    assert device.closed and all(graph.closed for graph in graphs.values())


# Plans


BUILT = {}  # what was built in this run, whatever it was built for


@pytest.fixture
def rtx(monkeypatch):
    """TensorRT-RTX, which takes a second for a graph: so each is really built once."""
    pytest.importorskip('tensorrt_rtx', reason='tensorrt-rtx is not installed')
    monkeypatch.setattr(tensorrt_build, 'LIBRARIES', ('tensorrt_rtx',))

    def build(source, shapes, options, *others):
        name = source.graph.name if isinstance(source, onnx.ModelProto) else source.name
        key = name, str(shapes), options.precision
        if key not in BUILT:
            BUILT[key] = tensorrt_build.build_graph(source, shapes, options, *others)
        return BUILT[key]

    monkeypatch.setattr(tensorrt_engine, 'build_graph', build)


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / 'engines')


A2000, ADA = Gpu('NVIDIA RTX A2000', '8.6'), Gpu('NVIDIA L4', '8.9')


def test_plans_are_built_once_for_each_gpu_camera_and_precision(rtx, gated, cache):
    plans = build_plans(gated, CAMERA, A2000, BuildOptions(), cache=cache)
    half = (1, 3, 3, 4)
    assert plans['depth_encoder'].graph.outputs == tuple(
        TensorInfo(f'level{i}', 'float16', half) for i in range(4)
    )
    assert plans['input'].graph.inputs == (TensorInfo('pixels', 'uint8', (48, 64, 3)),)
    assert plans['segmentation_input'].graph.outputs == (
        TensorInfo('segmentation_image', 'float32', (1, 3, 48, 64)),
    )
    assert plans['depth'].graph.outputs == (TensorInfo('depth', 'float32', (48, 64)),)
    assert set(plans) == {*gated.graphs, 'input', 'segmentation_input', 'relative', 'depth'}
    assert {plan.key.precision for plan in plans.values()} == {'fp16', 'fp32'}
    assert all(plan.built for plan in plans.values())
    again = build_plans(gated, CAMERA, A2000, BuildOptions(), cache=cache)
    assert not any(plan.built for plan in again.values())
    assert {name: plan.graph for name, plan in again.items()} == {
        name: plan.graph for name, plan in plans.items()
    }
    # With TensorRT-RTX another GPU of the same capability takes the same plans.
    same = build_plans(gated, CAMERA, Gpu('another', '8.6'), BuildOptions(), cache=cache)
    assert not any(plan.built for plan in same.values())
    for gpu, options in [(ADA, BuildOptions()), (A2000, BuildOptions(level=1))]:
        other = build_plans(gated, CAMERA, gpu, options, cache=cache)
        assert all(plan.built for plan in other.values())
    exact = build_plans(gated, CAMERA, A2000, BuildOptions('fp32'), cache=cache)
    # The image processing is float32 anyway.
    assert {name for name, plan in exact.items() if plan.built} == set(gated.graphs)
    wider = build_plans(gated, (96, 48), A2000, BuildOptions(), cache=cache)
    assert all(plan.built for plan in wider.values())


def test_the_selfcheck_has_plans_of_its_own_size(rtx, gated, cache):
    plans = build_plans(gated, None, A2000, BuildOptions(), cache=cache)
    assert set(plans) == set(gated.graphs)
    image = np.load(gated.selfcheck)['image']
    assert plans['depth_encoder'].graph.inputs[0].shape == image.shape


def test_an_output_that_cannot_be_resized_is_said_in_one_line(rtx, gated, cache, monkeypatch):
    monkeypatch.setattr(image_graphs, 'LARGEST_TOPK', 1)
    message = error_of(lambda: build_plans(gated, CAMERA, A2000, BuildOptions(), cache=cache))
    assert '32x24 has too many pixels' in message and 'token_budget' in message


def test_a_bundle_that_is_not_quantised_does_not_run_in_int8(rtx, gated, cache, tmp_path):
    message = error_of(lambda: build_plans(gated, None, A2000, BuildOptions('int8'), cache=cache))
    assert 'pooled has no int8 graphs' in message and not cache.folder.exists()
    # One graph of it is enough. What is not quantised gives and takes the same types.
    model = onnx.load(str(gated.graphs['depth_encoder']))
    nodes = [
        helper.make_node('QuantizeLinear', ['image', 's', 'z'], ['bytes']),
        helper.make_node('DequantizeLinear', ['bytes', 's', 'z'], ['coarse']),
    ]
    pool = model.graph.node[0]
    pool.input[0] = 'coarse'
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    for name, value in [('s', np.float32(0.02)), ('z', np.int8(0))]:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    path = tmp_path / 'quantised_encoder.onnx'
    onnx.save(model, str(path))
    mixed = replace(gated, int8_graphs={**gated.graphs, 'depth_encoder': path})
    plans = build_plans(mixed, None, A2000, BuildOptions('int8'), cache=cache)
    infos = [i for plan in plans.values() for i in (*plan.graph.inputs, *plan.graph.outputs)]
    assert {info.dtype for info in infos} == {'float32'}
    assert {plan.key.precision for plan in plans.values()} == {'int8'}


def test_the_progress_of_each_graph_is_told_by_its_name_and_logged(
    gated, cache, monkeypatch, caplog
):
    library = SimpleNamespace(__name__='tensorrt', __version__='10.3.0')
    told = []

    def build(source, shapes, options, progress, timing):
        assert progress('Building engine', 0.25) is None
        if 'levels' in str(shapes) or 'image' not in shapes:
            raise EngineError('too little memory')
        return BuiltGraph(
            b'plan',
            tuple(TensorInfo(n, 'float32', s) for n, s in shapes.items()),
            (TensorInfo('level0', 'float32', (1, 3, 3, 4)),),
        )

    monkeypatch.setattr(tensorrt_engine, 'import_tensorrt', lambda: library)
    monkeypatch.setattr(tensorrt_engine, 'build_graph', build)
    monkeypatch.setattr(tensorrt_engine, 'LOG_EVERY_S', 0)
    caplog.set_level('INFO')
    message = error_of(
        lambda: build_plans(
            gated, None, A2000, BuildOptions(), None, cache, lambda *what: told.append(what)
        )
    )
    assert message == 'too little memory'
    names = ('depth_encoder', 'segmentation_encoder', 'gate_decoder')
    # The last is over, too: nothing is being built any more.
    assert told == [(name, done) for name in names for done in (0.25, 1.0)]
    logged = [r.message for r in caplog.records if 'is built to' in r.message]
    assert logged == [f'tensorrt: {name} is built to 25 %' for name in names]


def test_what_was_measured_is_kept_for_the_next_build(gated, cache, monkeypatch):
    library = SimpleNamespace(__name__='tensorrt', __version__='10.3.0')
    given = []

    def build(source, shapes, options, progress, timing):
        given.append(timing)
        assert options.compute_capabilities == ()
        return BuiltGraph(
            b'plan',
            tuple(TensorInfo(n, 'float32', s) for n, s in shapes.items()),
            (TensorInfo('inverse_depth', 'float32', (1, 1, 24, 32)),),
            timing + b'.',
        )

    monkeypatch.setattr(tensorrt_engine, 'import_tensorrt', lambda: library)
    monkeypatch.setattr(tensorrt_engine, 'build_graph', build)
    build_plans(gated, CAMERA, A2000, BuildOptions(), cache=cache)
    assert given == [b'.' * i for i in range(7)]
    orin = Gpu('Orin (nvgpu)', '8.6')
    build_plans(gated, CAMERA, orin, BuildOptions(), cache=cache)
    assert given[7] == b''  # measured on another GPU
    build_plans(replace(gated, sha256='2' * 64), CAMERA, A2000, BuildOptions(), cache=cache)
    assert given[14] == b'.' * 7


class FakeLibrary:
    """As much of TensorRT as loading and running a plan needs, in the manner of 10.3."""

    __name__, __version__ = 'tensorrt', '10.3.0'

    def __init__(self, **broken):
        self.broken = broken
        self.bound, self.ran = {}, []
        self.deserialised = 0
        self.ILogger = type('ILogger', (), {'ERROR': 1, 'INTERNAL_ERROR': 0, 'WARNING': 2})

    def Runtime(self, logger):
        if 'runtime' in self.broken:
            raise TypeError('pybind11::init(): factory function returned nullptr')
        return SimpleNamespace(deserialize_cuda_engine=self._engine)

    def _engine(self, plan):
        assert plan == b'plan'
        self.deserialised += 1
        if 'engine' in self.broken:
            return None
        if 'memory' in self.broken:
            log = tensorrt_build.tensorrt_logger(self).log
            log(1, 'Error Code 1: Cuda Runtime (out of memory)')
            log(0, 'Error Code 2: OutOfMemory (Requested size was 2000000000 bytes.)')
            return None
        tensors = {'image': (1, 3, 42, 56), 'features': (1, 8)}
        return SimpleNamespace(
            num_io_tensors=2,
            get_tensor_name=list(tensors).__getitem__,
            get_tensor_shape=tensors.__getitem__,
            device_memory_size=123_000_000,
            create_execution_context=self._context,
        )

    def _context(self):
        if 'context' in self.broken:
            return None

        def bind(name, address):
            self.bound[name] = address
            return 'address' not in self.broken

        def run(stream):
            self.ran.append(stream)
            return 'run' not in self.broken

        return SimpleNamespace(set_tensor_address=bind, execute_async_v3=run)


def planned(shape=(1, 8)):
    graph = BuiltGraph(
        b'plan',
        (TensorInfo('image', 'float32', (1, 3, 42, 56)),),
        (TensorInfo('features', 'float16', shape),),
    )
    return {'depth_encoder': SimpleNamespace(graph=graph, key='the key')}


def test_a_plan_is_bound_by_name_and_run_on_a_stream():
    library = FakeLibrary()
    graph = load_graphs(library, planned())['depth_encoder']
    graph.bind('image', 4096)
    graph.bind('features', 8192)
    graph.enqueue(17)
    assert (library.bound, library.ran) == ({'image': 4096, 'features': 8192}, [17])
    assert graph.capturable(17)
    graph._context.is_stream_capturable = lambda stream: False  # TensorRT-RTX has this
    assert not graph.capturable(17)


def test_engines_share_a_plan_as_long_as_one_uses_it():
    library, loaded = FakeLibrary(), LoadedPlans()
    first, second = (load_graphs(library, planned(), loaded)['depth_encoder'] for _ in range(2))
    assert library.deserialised == 1
    first.bind('image', 1)
    first.close()
    second.enqueue(5)  # has a context of its own, and the plan is still there
    assert library.ran == [5]
    second.close()
    load_graphs(library, planned(), loaded)
    assert library.deserialised == 2


@pytest.mark.parametrize(
    ('broken', 'kind', 'words'),
    [
        ('runtime', EngineError, 'driver'),
        ('engine', StalePlanError, 'does not load the plan of depth_encoder'),
        ('memory', EngineError, 'the plan of depth_encoder needs 2000 MB to load'),
        ('context', EngineError, 'needs 123 MB'),
        ('address', EngineError, 'does not take image'),
        ('run', EngineError, 'does not run'),
    ],
)
def test_what_the_library_refuses_is_said(broken, kind, words):
    def run():
        graph = load_graphs(FakeLibrary(**{broken: True}), planned())['depth_encoder']
        graph.bind('image', 1)
        graph.enqueue(0)

    assert words in error_of(run, kind)


def test_a_plan_with_other_tensors_is_stale():
    assert 'other tensors' in error_of(
        lambda: load_graphs(FakeLibrary(), planned((1, 9))), StalePlanError
    )


def test_plans_that_do_not_load_are_built_again_once(rtx, gated, cache, monkeypatch):
    devices, stale, built = [], [], []

    def device():
        devices.append(FakeDevice())
        return devices[-1]

    def load(trt, plans, loaded):
        built.append({plan.built for plan in plans.values()})
        if stale.pop(0):
            raise StalePlanError('of another driver')
        return fake_graphs(devices[-1], gated)

    def tried(*outcomes):
        del built[:]
        stale[:] = outcomes
        return open_tensorrt(gated, CAMERA, cache=cache)

    monkeypatch.setattr(tensorrt_engine, 'open_device', device)
    monkeypatch.setattr(tensorrt_engine, 'load_graphs', load)
    tried(False).close()
    assert built == [{True}]
    engine = tried(True, False)
    assert built == [{False}, {True}]
    relative = engine.infer_image(picture(7))
    np.testing.assert_allclose(relative, on_the_host(gated, picture(7)), rtol=1e-5)
    engine.close()
    assert 'another driver' in error_of(lambda: tried(True, True))
    for path in cache.folder.iterdir():
        path.unlink()
    error_of(lambda: tried(True))
    assert built == [{True}]  # what was just built is not built again
    assert len(devices) == 4 and all(device.closed for device in devices)


# Behind the interface of all backends


@pytest.fixture
def opens(gated, monkeypatch):
    """Lets the backend open engines on fake devices; returns the sizes that it opened."""
    sizes, broken = [], []

    def fake(
        bundle,
        camera=None,
        shapes=None,
        options=None,
        token_budget=None,
        progress=None,
        loaded=None,
    ):
        if progress is not None:
            progress('depth_encoder', 0.5)
        device = FakeDevice()
        shapes = shapes or network_shapes(bundle, *camera, token_budget)
        sizes.append(shapes['depth_encoder']['image'][:1:-1])
        changed = {}
        if sizes[-1] in broken or (sizes[-1], options.precision) in broken:
            changed['gate_decoder'] = onnx.load(str(bundle.graphs['gate_decoder']))
            node = next(n for n in changed['gate_decoder'].graph.node if n.op_type == 'Abs')
            node.op_type = 'Neg'
        graphs = fake_graphs(device, bundle, camera, sizes_of=shapes, **changed)
        return TensorRTEngine(device, graphs, options.precision)

    monkeypatch.setattr(tensorrt_backend, 'open_tensorrt', fake)
    return SimpleNamespace(sizes=sizes, broken=broken)


def test_the_backend_passes_the_selfcheck_graph_by_graph(gated, opens):
    engine = tensorrt_backend.open_engine(gated, 'cuda', 'fp32', 0, None)
    result = check_engine(engine, gated)
    assert {c.graph for c in result.comparisons} == {*gated.graphs, WHOLE}
    assert max(c.relative_error for c in result.comparisons) < 1e-6
    assert len(opens.sizes) == 1


def test_each_size_is_opened_once_and_compared_with_float32(gated, opens, caplog):
    engine = tensorrt_backend.open_engine(gated, 'cuda', 'fp32', 0, None)
    reference = open_engine(gated, 'onnxruntime', 'fp32', 1)
    caplog.set_level('INFO')
    for size in [(64, 48), (96, 48), (64, 48), (96, 48), (48, 64)]:
        inputs = prepare(picture(3, size), gated)
        np.testing.assert_allclose(engine.infer(*inputs), reference.infer(*inputs), rtol=1e-5)
    assert len(opens.sizes) == 3  # that of the self-check is the camera's here
    proofs = [r.message for r in caplog.records if 'on the first frame' in r.message]
    assert len(proofs) == 2


def test_a_size_that_comes_out_wrong_is_refused_every_time(gated, opens):
    wide = prepare(picture(3, (96, 48)), gated)
    opens.broken.append(wide[0].shape[:1:-1])
    engine = tensorrt_backend.open_engine(gated, 'cuda', 'fp32', 0, None)
    for _ in range(2):
        assert 'fails the self-check of pooled' in error_of(lambda: engine.infer(*wide))
    assert len(opens.sizes) == 2
    assert len(engine._engines) == 1  # it holds no memory
    engine.infer(*prepare(picture(), gated))  # the other size is as good as before


def test_a_size_that_cannot_be_built_is_tried_once(gated, opens, monkeypatch):
    engine = tensorrt_backend.open_engine(gated, 'cuda', 'fp32', 0, None)
    tried = []

    def full(*_, **__):
        tried.append(True)
        raise EngineError('too little GPU memory')

    monkeypatch.setattr(tensorrt_backend, 'open_tensorrt', full)
    image = picture(3, (96, 48))
    for _ in range(3):
        message = error_of(lambda: engine.infer_image(image, gated.token_budget, False))
        assert message == 'too little GPU memory'
    assert len(tried) == 1


def test_an_input_of_a_wrong_size_is_refused_before_anything_is_built(gated, opens):
    engine = tensorrt_backend.open_engine(gated, 'cuda', 'fp32', 0, None)
    image, segmentation = prepare(picture(), gated)
    for wrong in [(image[..., 1:], segmentation), (image, segmentation[..., 1:])]:
        assert 'use prepare(image, bundle)' in error_of(lambda wrong=wrong: engine.infer(*wrong))
    assert len(opens.sizes) == 1


def test_the_backend_takes_the_segmentation_of_a_key_frame(gated, opens):
    engine = tensorrt_backend.open_engine(gated, 'cuda', 'fp32', 0, None)
    reference = open_engine(gated, 'onnxruntime', 'fp32', 1)
    first, second = prepare(picture(1), gated), prepare(picture(2), gated)
    assert 'first frame' in error_of(lambda: engine.infer(first[0]), ValueError)
    engine.infer(*first)
    expected = reference.infer(second[0], first[1])
    np.testing.assert_allclose(engine.infer(second[0]), expected, rtol=1e-5)
    check_engine(engine, gated)
    other = prepare(picture(1, (96, 48)), gated)
    assert 'first frame' in error_of(lambda: engine.infer(other[0]), ValueError)


def test_sizes_that_are_not_used_any_more_are_closed(gated, opens):
    engine = tensorrt_backend.open_engine(gated, 'cuda', 'fp32', 0, None)
    for width in (96, 128, 160, 192):
        engine.infer(*prepare(picture(3, (width, 48)), gated))
    assert len(engine._engines) == tensorrt_backend.SIZES_KEPT + 1


def test_a_pipeline_leaves_the_whole_frame_to_the_device(gated, opens):
    ours = DepthPipeline(gated, tensorrt_backend.open_engine(gated, 'cuda', 'fp32', 0, None))
    host = DepthPipeline(gated, open_engine(gated, 'onnxruntime', 'fp32', 1))
    for pipeline in (ours, host):
        pipeline.segmentation_every_n_frames = 2
    plain = DepthPipeline(gated, open_engine(gated, 'onnxruntime', 'fp32', 1))
    rng = np.random.default_rng(0)
    u, v = rng.integers(0, 64, 300), rng.integers(0, 48, 300)
    for stamp in range(5):
        image = picture(stamp)
        seen = plain(image).relative
        anchors = Anchors(u, v, 1 / seen[v, u], np.full(300, 0.01))
        frames = [pipeline(image, None, anchors, float(stamp)) for pipeline in (ours, host)]
        assert frames[0].scale.state is frames[1].scale.state
        assert frames[0].timing.keys() == frames[1].timing.keys()
        for name in ('relative', 'depth'):
            values = [getattr(frame, name) for frame in frames]
            np.testing.assert_allclose(*values, rtol=1e-4)
        assert np.isfinite(frames[0].depth).any()
    assert len(opens.sizes) == 2  # the self-check's, and the camera's


def test_a_camera_whose_network_comes_out_wrong_is_refused(gated, opens):
    engine = tensorrt_backend.open_engine(gated, 'cuda', 'fp32', 0, None)
    image = picture(0, (96, 48))
    opens.broken.append(prepare(image, gated)[0].shape[:1:-1])
    for _ in range(2):
        assert 'fails the self-check of pooled' in error_of(
            lambda: engine.infer_image(image, gated.token_budget, False)
        )
    assert len(opens.sizes) == 2


def test_the_cameras_plans_are_there_before_its_first_image(gated, opens, monkeypatch, caplog):
    monkeypatch.setattr(tensorrt_backend, 'precisions', lambda *_: ('fp16', 'fp32'))
    monkeypatch.setattr(ModelBundle, 'load', lambda _: gated)
    caplog.set_level('INFO')
    load = partial(DepthPipeline.load, 'pooled', 'tensorrt', segmentation_every_n_frames=2)
    pipeline = load(image_size=(96, 48))
    assert pipeline.engine.precision == 'fp16' and len(opens.sizes) == 2
    # It was compared with float32 on the picture of the self-check.
    assert 'on the first frame of 96x48' in caplog.text
    plain = DepthPipeline(gated, open_engine(gated, 'onnxruntime', 'fp32', 1))
    for stamp in range(2):  # and the first frame is a key frame all the same
        image = picture(stamp, (96, 48))
        relative = pipeline(image, stamp=float(stamp)).relative
        if stamp == 0:
            np.testing.assert_allclose(relative, plain(image).relative, rtol=1e-3)
    assert len(opens.sizes) == 2


def test_what_was_built_beforehand_is_checked_at_every_size(gated, opens, monkeypatch, capsys):
    built, library = [], SimpleNamespace(__name__='tensorrt')

    def build(bundle, size, *_):
        built.append(size)
        return {}

    monkeypatch.setattr(ModelBundle, 'load', lambda _: gated)
    monkeypatch.setattr(device_memory, 'open_device', FakeDevice)
    monkeypatch.setattr(tensorrt_build, 'import_tensorrt', lambda: library)
    monkeypatch.setattr(tensorrt_engine, 'build_plans', build)
    monkeypatch.setattr(tensorrt_backend, 'precisions', lambda *_: ('fp16', 'fp32'))
    job = BuildJob('pooled', ['96x48', '64x48'], token_budget=10)
    run_build(job)
    assert built == [None, (96, 48), (64, 48)]
    assert len(opens.sizes) == 3
    assert 'passed, at its own size, 96x48, 64x48' in capsys.readouterr().out
    opens.broken.append(prepare(picture(0, (64, 48)), gated, 10)[0].shape[:1:-1])
    assert 'fails the self-check of pooled, whole network' in error_of(lambda: run_build(job))
    run_build(replace(job, sizes=['96x48']))


def test_builds_are_told_on_load_and_with_the_first_image(gated, opens, monkeypatch):
    monkeypatch.setattr(tensorrt_backend, 'precisions', lambda *_: ('fp16', 'fp32'))
    monkeypatch.setattr(ModelBundle, 'load', lambda _: gated)
    told = []
    pipeline = DepthPipeline.load('pooled', 'tensorrt', progress=lambda *what: told.append(what))
    assert told == [('depth_encoder', 0.5)]
    pipeline(picture(0, (96, 48)))
    assert told == [('depth_encoder', 0.5)] * 2


def test_a_precision_that_is_wrong_at_the_cameras_size_is_passed_over(gated, opens, monkeypatch):
    monkeypatch.setattr(tensorrt_backend, 'precisions', lambda *_: ('fp16', 'fp32'))
    size = prepare(picture(0, (96, 48)), gated)[0].shape[:1:-1]
    opens.broken.append((size, 'fp16'))
    open_for = partial(open_checked_engine, gated, 'tensorrt')
    assert open_for()[0].precision == 'fp16'  # only the first image would tell
    assert open_for(image_size=(96, 48))[0].precision == 'fp32'
    message = error_of(lambda: open_for('fp16', image_size=(96, 48)))
    assert 'fails the self-check of pooled, whole network' in message


def test_without_a_gpu_the_backend_says_what_is_missing(gated):
    try:
        import_tensorrt()
        open_device().close()
    except EngineError:
        message = error_of(lambda: open_engine(gated, 'tensorrt'))
        assert 'no NVIDIA driver' in message or 'is installed' in message
        assert open_checked_engine(gated, 'auto')[0].name != 'tensorrt'
    else:
        pytest.skip('there is a GPU')


# The real thing


@pytest.fixture(scope='module')
def gpu():
    """TensorRT and a GPU."""
    try:
        tensorrt_build.import_tensorrt()
        open_device().close()
    except EngineError as error:
        pytest.skip(f'no GPU: {error}')


@pytest.mark.parametrize(('precision', 'tolerance'), [('fp32', 1e-3), ('fp16', 0.03)])
def test_on_a_gpu_the_compact_network_computes_its_reference(
    gpu, bundle, tmp_path, precision, tolerance
):
    cache = EngineCache(tmp_path)
    engine = open_tensorrt(bundle, options=BuildOptions(precision), cache=cache)
    assert engine.captured
    reference = np.load(bundle.selfcheck)
    for _ in range(2):
        output = engine.infer(reference['image'])
        error = output - reference['inverse_depth']
        assert np.sqrt((error**2).mean()) < tolerance * reference['inverse_depth'].std()
    engine.close()
    open_tensorrt(bundle, options=BuildOptions(precision), cache=cache).close()  # from the cache


def test_on_a_gpu_a_frame_computes_what_the_host_does(gpu, gated, tmp_path):
    engine = open_tensorrt(gated, CAMERA, options=BuildOptions('fp32'), cache=EngineCache(tmp_path))
    for seed in range(3):
        relative = engine.infer_image(picture(seed))
        expected = on_the_host(gated, picture(seed))
        assert np.isclose(relative, expected, rtol=1e-3).mean() > 0.99
        fit = 0.5, -0.5 * float(np.median(relative)), 0.1, 100.0
        depth, expected = engine.depth(*fit), depth_from_inverse(relative, *fit)
        assert np.isclose(depth, expected, rtol=1e-3, equal_nan=True).mean() > 0.99
    engine.close()


def test_without_a_gpu_it_says_so_before_it_builds(gated, cache):
    pytest.importorskip('tensorrt_rtx', reason='tensorrt-rtx is not installed')
    try:
        open_device().close()
    except EngineError:
        message = error_of(lambda: open_tensorrt(gated, CAMERA, cache=cache))
        assert 'no NVIDIA driver' in message or 'is installed' in message
        assert not cache.folder.exists()
    else:
        pytest.skip('there is a GPU')


def test_a_real_plan_does_not_load_without_a_driver(rtx, gated, cache):
    try:
        open_device().close()
    except EngineError:
        trt = tensorrt_build.import_tensorrt()
        plans = build_plans(gated, None, A2000, BuildOptions(), cache=cache)
        message = error_of(lambda: load_graphs(trt, plans))
        assert 'driver is older than tensorrt_rtx 1.' in message
    else:
        pytest.skip('there is a GPU')
