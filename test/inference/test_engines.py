"""Every CPU engine on the real bundle, against its float32 reference."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from briges_ros.inference.bundle import file_sha256
from briges_ros.inference.engine import BACKENDS, EngineError, open_engine
from briges_ros.inference.selfcheck import check_engine, open_checked_engine


@pytest.fixture(scope='module', params=sorted(BACKENDS))
def engine(request, bundle):
    pytest.importorskip(request.param, reason=f'{request.param} is not installed')
    return open_engine(bundle, request.param)


def test_it_computes_what_the_network_computes(engine, bundle):
    result = check_engine(engine, bundle)
    limit = 1e-4 if engine.precision == 'fp32' else 0.1
    assert result.relative_error < limit
    assert result.correlation > 0.99


@pytest.mark.parametrize('size', [(182, 616), (294, 392), (392, 294), (56, 56)])
def test_any_multiple_of_the_patch_goes_in(engine, size):
    image = np.random.default_rng(0).normal(size=(1, 3, *size)).astype(np.float32)
    result = engine.infer(image)
    assert result.shape == (size[0] // 14 * 8, size[1] // 14 * 8)
    assert result.dtype == np.float32 and np.isfinite(result).all()


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
    assert open_checked_engine(bundle, 'auto')[0].name in BACKENDS


def test_auto_goes_on_when_the_fastest_is_missing(bundle, monkeypatch):
    monkeypatch.setitem(BACKENDS, 'openvino', 'briges_ros.inference.not_installed')
    assert open_checked_engine(bundle, 'auto')[0].name == 'onnxruntime'


def test_an_unknown_backend_lists_those_there_are(bundle):
    with pytest.raises(EngineError, match='openvino, onnxruntime'):
        open_engine(bundle, 'tpu')


@pytest.mark.parametrize('backend', sorted(BACKENDS))
def test_a_graph_that_is_not_onnx(bundle, tmp_path, backend):
    path = tmp_path / 'depth_encoder.onnx'
    path.write_bytes(b'not a graph')
    graphs = {**bundle.graphs, 'depth_encoder': path}
    with pytest.raises(EngineError, match='does not load'):
        open_engine(replace(bundle, graphs=graphs), backend)


def test_slightly_wrong_weights_are_caught(bundle, tmp_path):
    """An engine that runs and is wrong by some per cent is the bug that nobody sees."""
    model = onnx.load(str(bundle.graphs['gate_decoder']))
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim == 4:  # the convolutions
            wrong = values * (1 + 0.05 * rng.normal(size=values.shape))
            tensor.CopyFrom(onnx.numpy_helper.from_array(wrong.astype(np.float32), tensor.name))
    path = tmp_path / 'gate_decoder.onnx'
    onnx.save(model, str(path))
    assert file_sha256(path) != file_sha256(bundle.graphs['gate_decoder'])
    corrupt = replace(bundle, graphs={**bundle.graphs, 'gate_decoder': path})
    with pytest.raises(EngineError, match=r'onnxruntime .* fails the self-check') as info:
        open_checked_engine(corrupt, 'auto')
    assert 'openvino' in str(info.value)  # it was tried too


def test_auto_goes_on_when_the_fastest_is_wrong(bundle, monkeypatch):
    openvino_engine = pytest.importorskip(BACKENDS['openvino'], reason='openvino is not installed')
    right = openvino_engine.open_engine

    def wrong(*arguments):
        engine = right(*arguments)
        infer = engine.infer
        engine.infer = lambda image: infer(image) + 0.1 * infer(image[..., ::-1].copy())
        return engine

    monkeypatch.setattr(openvino_engine, 'open_engine', wrong)
    assert open_checked_engine(bundle, 'auto')[0].name == 'onnxruntime'
