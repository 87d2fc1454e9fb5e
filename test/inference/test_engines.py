"""Every engine on the real bundle, against its float32 reference."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import openvino
import pytest

from briges_ros import DepthPipeline
from briges_ros.inference import onnxruntime_engine, openvino_engine
from briges_ros.inference.bundle import file_sha256
from briges_ros.inference.engine import (
    AUTO,
    BACKENDS,
    EngineError,
    GraphEngine,
    open_engine,
    precisions,
)
from briges_ros.inference.selfcheck import (
    TOLERANCE,
    WHOLE,
    check_engine,
    compare,
    open_checked_engine,
)

CPU = [
    ('openvino', 'int8'),
    ('openvino', 'bf16'),
    ('openvino', 'fp32'),
    ('onnxruntime', 'int8'),
    ('onnxruntime', 'fp32'),
    ('torch', 'fp32'),
]
GPU = [
    (backend, precision)
    for backend in ('onnxruntime-tensorrt', 'onnxruntime-cuda', 'torch-cuda')
    for precision in ('fp16', 'fp32')
]
INT8 = 'int8'


def opened(bundle, backend, precision):
    """The engine, or a skip that says what this machine lacks."""
    try:
        possible = precisions(bundle, backend)
    except EngineError as error:
        pytest.skip(str(error))
    if precision not in possible:
        pytest.skip(f'{backend} has no {precision} on this machine')
    return open_engine(bundle, backend, precision)


@pytest.fixture(scope='module', params=CPU, ids='-'.join)
def engine(request, bundle):
    return opened(bundle, *request.param)


def check(engine, bundle):
    result = check_engine(engine, bundle)
    graphs = {c.graph for c in result.comparisons}
    assert graphs == {*bundle.graphs, WHOLE}
    limit = 1e-4 if engine.precision == 'fp32' else TOLERANCE[engine.precision].error
    assert max(c.relative_error for c in result.comparisons) < limit
    assert min(c.correlation for c in result.comparisons) > 0.98


def test_it_computes_what_the_network_computes(engine, bundle):
    check(engine, bundle)


@pytest.mark.parametrize(('backend', 'precision'), GPU)
def test_a_gpu_computes_what_the_network_computes(bundle, backend, precision):
    engine = opened(bundle, backend, precision)
    check(engine, bundle)
    assert (engine.name, engine.precision) == (backend, precision)


@pytest.mark.parametrize('size', [(182, 616), (294, 392), (392, 294), (56, 56)])
def test_any_multiple_of_the_patch_goes_in(engine, size):
    image = np.random.default_rng(0).normal(size=(1, 3, *size)).astype(np.float32)
    result = engine.infer(image)
    assert result.shape == (size[0] // 14 * 8, size[1] // 14 * 8)
    assert result.dtype == np.float32 and np.isfinite(result).all()


def test_more_sizes_than_are_kept_take_turns(engine):
    sizes = [(56, 56), (56, 70), (70, 56), (70, 70), (56, 84)]
    images = [np.random.default_rng(0).normal(size=(1, 3, *s)).astype(np.float32) for s in sizes]
    first = [engine.infer(image) for image in images]
    for image, before in zip(images, first, strict=True):
        np.testing.assert_array_equal(engine.infer(image), before)


def test_a_result_is_not_overwritten_by_the_next(engine):
    rng = np.random.default_rng(0)
    first = engine.infer(rng.normal(size=(1, 3, 56, 56)).astype(np.float32))
    before = first.copy()
    engine.infer(rng.normal(size=(1, 3, 56, 56)).astype(np.float32))
    np.testing.assert_array_equal(first, before)


def test_a_segmentation_input_too_many(engine):
    image = np.zeros((1, 3, 56, 56), np.float32)
    with pytest.raises(ValueError, match='goes with a gate'):
        engine.infer(image, image)


def test_auto_takes_one_that_loads(bundle):
    assert open_checked_engine(bundle, 'auto')[0].name in AUTO


def test_auto_never_asks_for_torch():
    assert set(BACKENDS) - set(AUTO) == {'torch', 'torch-cuda'}


def test_auto_goes_on_when_the_fastest_is_missing(bundle, monkeypatch):
    missing = replace(BACKENDS['openvino'], module='briges_ros.inference.not_installed')
    monkeypatch.setitem(BACKENDS, 'openvino', missing)
    assert open_checked_engine(bundle, 'auto')[0].name == 'onnxruntime'


def test_an_unknown_backend_lists_those_there_are(bundle):
    with pytest.raises(EngineError, match='openvino, onnxruntime'):
        open_engine(bundle, 'tpu')


def test_a_missing_backend_says_how_to_get_it(bundle, monkeypatch):
    missing = replace(BACKENDS['openvino'], module='briges_ros.inference.not_installed')
    monkeypatch.setitem(BACKENDS, 'openvino', missing)
    with pytest.raises(EngineError, match='pip install openvino'):
        open_engine(bundle, 'openvino')


def test_a_precision_that_a_backend_has_not_lists_those_it_has(bundle):
    with pytest.raises(EngineError, match='onnxruntime cannot compute compact in fp16 here, only'):
        open_engine(bundle, 'onnxruntime', 'fp16')


def test_int8_without_int8_graphs_says_how_to_make_them(bundle):
    with pytest.raises(EngineError, match='briges export compact --calibrate'):
        open_engine(replace(bundle, int8_graphs={}), 'onnxruntime', 'int8')


def refused(run):
    """What an engine says in one line."""
    with pytest.raises(EngineError) as info:
        run()
    assert '\n' not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize('backend', ['openvino', 'onnxruntime', 'torch'])
def test_a_graph_that_is_not_onnx(bundle, tmp_path, backend):
    path = tmp_path / 'depth_encoder.onnx'
    path.write_bytes(b'not a graph')
    wrong = replace(bundle, graphs={**bundle.graphs, 'depth_encoder': path})
    message = refused(lambda: open_engine(wrong, backend, 'fp32'))
    assert f'{backend} does not load {path}' in message and 'another backend' in message


@pytest.mark.parametrize('backend', ['openvino', 'onnxruntime', 'torch'])
def test_an_operator_that_a_backend_has_not_is_named(bundle, tmp_path, backend):
    model = onnx.load(str(bundle.graphs['gate_decoder']))
    node = model.graph.node[3]
    node.op_type = 'Frobnicate'
    path = tmp_path / 'gate_decoder.onnx'
    onnx.save(model, str(path))
    wrong = replace(bundle, graphs={**bundle.graphs, 'gate_decoder': path})
    message = refused(lambda: open_engine(wrong, backend, 'fp32'))
    assert 'Frobnicate' in message and 'another backend' in message
    if backend != 'openvino':  # it names the operator only
        assert node.name in message


@pytest.mark.parametrize(
    'shape',
    [(1, 3, 50, 56), (1, 3, 56, 57), (1, 3, 0, 56), (1, 4, 56, 56), (2, 3, 56, 56), (3, 56)],
)
def test_an_input_of_a_wrong_size_is_refused(engine, shape):
    """Left to themselves, backends run the part of it that is made of whole patches."""
    message = refused(lambda: engine.infer(np.zeros(shape, np.float32)))
    assert f'no image of {shape} float32' in message and 'multiples of 14' in message
    assert 'prepare(image, bundle)' in message
    refused(lambda: engine.infer(np.zeros((1, 3, 56, 56), np.float64)))


def test_what_fails_while_it_runs_names_the_graph_and_its_sizes(engine):
    wrong = {f'level{i}': np.zeros((1, 384, 4, 5 - i % 2), np.float32) for i in range(4)}
    message = refused(lambda: engine.run_graph('gate_decoder', wrong))
    assert f'{engine.name} ({engine.precision}) does not run the gate_decoder of' in message
    assert 'level1 (1, 384, 4, 4)' in message and 'another backend' in message


def test_plans_that_others_could_have_written_are_not_left_to_onnxruntime(
    bundle, tmp_path, monkeypatch
):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    folder = tmp_path / 'briges_ros' / 'engines' / 'onnxruntime'
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    message = refused(lambda: onnxruntime_engine.open_engine(bundle, 'tensorrt', 'fp32', 0, None))
    assert 'can be written by others' in message


def test_auto_goes_on_when_one_has_too_little_memory(bundle, monkeypatch, caplog):
    def full(*_):
        def run(inputs):
            raise MemoryError('Tried to allocate\n2 GiB')

        graph = SimpleNamespace(runner=lambda: run)
        return GraphEngine('openvino', 'fp32', bundle, dict.fromkeys(bundle.graphs, graph))

    monkeypatch.setattr(openvino_engine, 'open_engine', full)
    assert open_checked_engine(bundle, 'auto')[0].name == 'onnxruntime'
    assert 'Tried to allocate 2 GiB; choose a smaller token_budget' in caplog.text


def noisy(path, folder, share):
    """A copy of a graph whose weights are off by a share of themselves."""
    model = onnx.load(str(path))
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim == 4 and values.dtype == np.float32:  # the convolutions
            wrong = values * (1 + share * rng.normal(size=values.shape))
            tensor.CopyFrom(onnx.numpy_helper.from_array(wrong.astype(np.float32), tensor.name))
    corrupt = folder / path.name
    onnx.save(model, str(corrupt))
    assert file_sha256(corrupt) != file_sha256(path)
    return corrupt


def test_slightly_wrong_weights_are_caught(bundle, tmp_path):
    """An engine that runs and is wrong by some per cent is the bug that nobody sees."""
    path = noisy(bundle.graphs['gate_decoder'], tmp_path, 0.01)
    corrupt = replace(bundle, graphs={**bundle.graphs, 'gate_decoder': path}, int8_graphs={})
    with pytest.raises(EngineError, match=r'onnxruntime .* fails the self-check') as info:
        open_checked_engine(corrupt, 'auto')
    assert 'openvino' in str(info.value)  # it was tried too


def test_the_graph_that_is_wrong_is_named(bundle, tmp_path):
    path = noisy(bundle.graphs['depth_encoder'], tmp_path, 0.05)  # its patches
    corrupt = replace(bundle, graphs={**bundle.graphs, 'depth_encoder': path})
    with pytest.raises(EngineError, match='self-check of compact, depth_encoder, level0'):
        open_checked_engine(corrupt, 'onnxruntime', 'fp32')


def test_a_factor_that_crept_in_is_caught_in_int8(bundle):
    """Correlation does not see a factor, and the error of int8 might hide a small one."""
    engine = opened(bundle, 'onnxruntime', 'int8')
    check_engine(engine, bundle)
    run = engine.run_graph

    def scaled(graph, inputs):
        return {name: 1.1 * array for name, array in run(graph, inputs).items()}

    engine.run_graph = scaled
    whole = compare(engine, bundle)[-1]
    assert whole.within(TOLERANCE[INT8])
    with pytest.raises(EngineError, match=r'scale 1\.\d+ \(1 \+- 0\.05\)'):
        check_engine(engine, bundle)


@pytest.fixture
def wrong_int8(monkeypatch):
    """OpenVINO's int8 engine mixes in a mirrored picture."""
    right = openvino_engine.open_engine

    def wrong(bundle, device, precision, *others):
        engine = right(bundle, device, precision, *others)
        if precision == INT8:
            infer = engine.infer
            engine.infer = lambda image: infer(image) + 0.5 * infer(image[..., ::-1].copy())
        return engine

    monkeypatch.setattr(openvino_engine, 'open_engine', wrong)


def test_a_fast_precision_that_is_wrong_falls_back_and_says_so(bundle, wrong_int8, caplog):
    opened(bundle, 'openvino', INT8)
    engine, _ = open_checked_engine(bundle, 'openvino')
    assert engine.name == 'openvino' and engine.precision != INT8
    (message,) = [r.message for r in caplog.records if r.levelname == 'WARNING']
    assert 'openvino (int8) fails the self-check' in message and 'relative error' in message


def test_a_wrong_precision_that_was_asked_for_is_refused(bundle, wrong_int8):
    opened(bundle, 'openvino', INT8)
    with pytest.raises(EngineError, match=r'openvino \(int8\) fails the self-check of compact'):
        open_checked_engine(bundle, 'openvino', INT8)


def test_auto_goes_on_to_the_next_backend_when_one_is_wrong_altogether(bundle, monkeypatch):
    right = openvino_engine.open_engine

    def wrong(*arguments):
        engine = right(*arguments)
        infer = engine.infer
        engine.infer = lambda image: infer(image) + 0.5 * infer(image[..., ::-1].copy())
        return engine

    monkeypatch.setattr(openvino_engine, 'open_engine', wrong)
    assert open_checked_engine(bundle, 'auto')[0].name == 'onnxruntime'


# Sizes that are known beforehand


@pytest.fixture
def compiled(monkeypatch):
    """Everything that OpenVINO compiles."""
    real, models = openvino.Core.compile_model, []

    def compile_model(core, model, *arguments):
        models.append(model)
        return real(core, model, *arguments)

    monkeypatch.setattr(openvino.Core, 'compile_model', compile_model)
    return models


@pytest.mark.parametrize('size', [None, (64, 48)])
def test_what_is_compiled_for_a_size_is_there_before_the_first_image(bundle, compiled, size):
    pipeline = DepthPipeline.load(
        bundle.folder, 'openvino', precision='fp32', token_budget=20, image_size=size
    )
    del compiled[:]
    pipeline(np.zeros((48, 64, 3), np.uint8))
    assert len(compiled) == (1 if size is None else 0)


def test_an_image_of_another_size_than_was_said_works_and_is_told_once(bundle, caplog):
    pipeline = DepthPipeline.load(
        bundle.folder, 'onnxruntime', token_budget=20, image_size=(64, 48)
    )
    plain = DepthPipeline.load(bundle.folder, 'onnxruntime', token_budget=20)
    rng = np.random.default_rng(0)

    def warnings():
        return [r.message for r in caplog.records if r.levelname == 'WARNING']

    for index, shape in enumerate([(48, 64, 3), (64, 48, 3), (64, 48, 3), (48, 64, 3)]):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        np.testing.assert_array_equal(pipeline(image).relative, plain(image).relative)
        assert len(warnings()) == (index > 0)
    assert 'images are 48x64, not 64x48' in warnings()[0]


@pytest.mark.parametrize('size', [(0, 48), (64, -1)])
def test_a_size_that_is_none_is_refused(bundle, size):
    with pytest.raises(ValueError, match='image_size must be'):
        DepthPipeline.load(bundle.folder, image_size=size)
