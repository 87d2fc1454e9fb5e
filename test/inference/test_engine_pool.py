"""Several cameras on one loaded model: the same results, little more memory, nothing mixed up."""

import gc
import threading
import weakref

import numpy as np
import pytest
from pooled_bundle import picture, pooled_bundle

from briges_ros import DepthPipeline
from briges_ros.inference import engine_pool
from briges_ros.inference.engine import EngineError, open_engine, precisions
from briges_ros.inference.engine_pool import EnginePool
from briges_ros.inference.preprocess import prepare

CPU = ('openvino', 'onnxruntime')  # torch has not the operators of this bundle: see test/network


@pytest.fixture(scope='module')
def gated(tmp_path_factory):
    return pooled_bundle(tmp_path_factory.mktemp('gated'))


@pytest.fixture(params=CPU)
def backend(request, gated):
    try:
        precisions(gated, request.param)
    except EngineError as error:
        pytest.skip(str(error))
    return request.param


def test_each_camera_keeps_its_own_segmentation(gated, backend):
    pool = EnginePool()
    first, second = (pool.open(gated, backend, 'fp32')[0] for _ in range(2))
    assert first is not second
    one, two = (prepare(picture(seed), gated) for seed in (1, 2))
    alone = first.infer(*one)
    other = second.infer(*two)
    assert not np.allclose(alone, other)
    # The last segmentation that was computed at all is that of the second.
    np.testing.assert_array_equal(first.infer(one[0]), alone)
    np.testing.assert_array_equal(second.infer(two[0]), other)


def test_a_new_camera_has_no_segmentation_yet(gated, backend):
    pool = EnginePool()
    first, _ = pool.open(gated, backend, 'fp32')
    image, segmentation = prepare(picture(1), gated)
    first.infer(image, segmentation)
    second = first.sibling()
    with pytest.raises(ValueError, match='first frame'):
        second.infer(image)


def test_cameras_of_several_sizes_run_at_once(gated, backend):
    pool = EnginePool()
    images = [picture(seed, size) for seed, size in enumerate([(64, 48), (64, 48), (96, 64)])]
    pipelines = [DepthPipeline(gated, pool.open(gated, backend, 'fp32')[0]) for _ in images]
    expected = [
        DepthPipeline(gated, open_engine(gated, backend, 'fp32'))(image).relative
        for image in images
    ]
    wrong = []

    def run(pipeline, image, alone):
        for _ in range(20):
            if not np.array_equal(pipeline(image).relative, alone):
                wrong.append(image.shape)

    threads = [
        threading.Thread(target=run, args=each)
        for each in zip(pipelines, images, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_model_is_loaded_once_for_each_setting(gated, monkeypatch):
    opened = []
    load = engine_pool.open_checked_engine
    monkeypatch.setattr(
        engine_pool, 'open_checked_engine', lambda *a: (opened.append(a[1:4]), load(*a))[1]
    )
    pool = EnginePool()
    kept = [pool.open(gated, 'onnxruntime', 'fp32', threads)[0] for threads in (1, 1, 2, 1)]
    assert opened == [('onnxruntime', 'fp32', 1), ('onnxruntime', 'fp32', 2)]
    assert len({id(engine) for engine in kept}) == 4


def test_the_weights_go_with_the_last_camera(gated):
    pool = EnginePool()
    first, second = (pool.open(gated, 'onnxruntime', 'fp32')[0] for _ in range(2))
    sessions = [weakref.ref(graph) for graph in first._loaded.values()]
    del first
    gc.collect()
    image = prepare(picture(1), gated)
    assert second.infer(*image).shape
    assert all(session() is not None for session in sessions)
    del second
    gc.collect()
    assert all(session() is None for session in sessions)


def test_an_engine_that_broke_is_not_shared(gated, caplog):
    """E.g. the GPU is gone, and one camera configures again while the others still hold theirs."""
    pool = EnginePool()
    broken, _ = pool.open(gated, 'onnxruntime', 'fp32')

    class Gone:
        def runner(self):
            def run(_):
                raise RuntimeError('CUDA error: device lost')

            return run

    broken._loaded = dict.fromkeys(broken._loaded, Gone())
    engine, check = pool.open(gated, 'onnxruntime', 'fp32')
    assert check.relative_error < 1e-4
    assert engine.infer(*prepare(picture(1), gated)).shape
    assert 'device lost' in caplog.text


def test_an_engine_is_ready_for_its_images_when_it_is_opened(gated, monkeypatch):
    ready = []
    monkeypatch.setattr(
        engine_pool, 'make_ready', lambda _e, _b, size, budget: ready.append((size, budget))
    )
    pool = EnginePool()
    kept = [pool.open(gated, 'onnxruntime', 'fp32', 0, (64, 48), 20)[0] for _ in range(2)]
    assert len(kept) == 2
    assert ready == [((64, 48), 20)]  # the first in open_checked_engine
