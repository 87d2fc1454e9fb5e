"""Network sizes, normalisation, and the inputs that belong together."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briges_ros import DepthPipeline
from briges_ros.alignment.tracker import ScaleState
from briges_ros.inference.bundle import SegmentationInput
from briges_ros.inference.engine import open_engine
from briges_ros.inference.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    input_size,
    network_input,
    normalise,
    prepare,
)


@pytest.mark.parametrize(
    ('camera', 'expected'),
    [((640, 480), (392, 294)), ((1242, 375), (616, 182)), ((480, 640), (294, 392))],
)
def test_common_cameras_get_the_size_they_should(camera, expected):
    assert input_size(*camera, 588) == expected


@given(st.integers(16, 4000), st.integers(16, 4000), st.integers(16, 3000))
def test_size_is_in_budget_and_keeps_the_aspect_ratio(width, height, budget):
    w, h = input_size(width, height, budget)
    assert w % 14 == 0 and h % 14 == 0 and w > 0 and h > 0
    rows, cols = h // 14, w // 14
    assert rows * cols <= budget
    # Rounding to whole patches changes the aspect ratio by at most one patch on the short side.
    short = min(rows, cols)
    if short > 1:
        ratio = (w / h) / (width / height)
        assert 1 - 1.2 / short < ratio < 1 / (1 - 1.2 / short)


@pytest.mark.parametrize('size', [(0, 480, 588), (640, 0, 588), (640, 480, 0)])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match='cannot fit'):
        input_size(*size)


def test_normalise_is_the_textbook_formula():
    image = np.random.default_rng(0).integers(0, 256, (28, 42, 3), dtype=np.uint8)
    expected = ((image / 255.0 - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)[None]
    result = normalise(image)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_shrinking_averages_instead_of_skipping_pixels():
    # A checkerboard of single pixels is grey from afar; skipping pixels would give moire.
    image = np.zeros((280, 280, 3), np.uint8)
    image[::2, ::2] = image[1::2, 1::2] = 255
    result = network_input(image, 140, 140, (0.0,) * 3, (1.0,) * 3)
    np.testing.assert_allclose(result, 0.5, atol=0.01)


def test_the_right_size_is_not_resampled():
    image = np.random.default_rng(0).integers(0, 256, (28, 42, 3), dtype=np.uint8)
    np.testing.assert_array_equal(network_input(image, 42, 28), normalise(image))
    other = cv2.resize(image, (56, 28), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(network_input(image, 56, 28), normalise(other))


def test_each_side_is_resized_in_its_own_way():
    """A panorama into a square: its width is averaged, though its height grows."""
    image = np.zeros((20, 400, 3), np.uint8)
    image[:, ::2] = 255  # stripes of single pixels: grey from afar
    result = network_input(image, 100, 40, (0.0,) * 3, (1.0,) * 3)
    np.testing.assert_allclose(result, 0.5, atol=0.01)


def test_without_a_gate_there_is_one_input(bundle):
    image = np.random.default_rng(0).integers(0, 256, (375, 1242, 3), dtype=np.uint8)
    (depth,) = prepare(image, bundle)
    np.testing.assert_array_equal(depth, network_input(image, 616, 182))


HALVES = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.25, 0.5)}


@given(st.integers(1, 1500), st.integers(1, 1500), st.integers(1, 1000))
@settings(max_examples=20, deadline=None)
def test_the_segmentation_map_lies_on_the_depth_tokens(bundle, width, height, budget):
    gated = replace(bundle, segmentation_input=SegmentationInput(**HALVES, patch=16))
    image = np.zeros((height, width, 3), np.uint8)
    depth, segmentation = prepare(image, gated, budget)
    for tokens, cells in zip(depth.shape[2:], segmentation.shape[2:], strict=True):
        assert tokens % 14 == 0 and cells % 16 == 0
        assert cells // 16 == max(2, tokens // 14)


def test_the_segmentation_input_comes_from_the_image_itself(bundle):
    """Not from the smaller depth input: details that the depth input lost are there."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    gated = replace(bundle, segmentation_input=SegmentationInput(**HALVES, size=(640, 480)))
    depth, segmentation = prepare(image, gated)
    np.testing.assert_array_equal(depth, prepare(image, bundle)[0])
    np.testing.assert_array_equal(segmentation, normalise(image, (0.5, 0.5, 0.5), (0.5, 0.25, 0.5)))


def test_a_fixed_size_stretches_the_whole_image(bundle):
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 150:] = 255
    gated = replace(bundle, segmentation_input=SegmentationInput(**HALVES, size=(64, 64)))
    _, segmentation = prepare(image, gated)
    assert segmentation.shape == (1, 3, 64, 64)
    assert (segmentation[..., :30] < 0).all() and (segmentation[..., 34:] > 0).all()


def test_a_metric_network_gives_metres_without_anchors(bundle, monkeypatch):
    """The bundle's network is none, but its numbers, made positive, serve as metres."""
    metric = replace(bundle, output='metric_depth')
    engine = open_engine(bundle, 'onnxruntime')
    infer = engine.infer
    monkeypatch.setattr(engine, 'infer', lambda *inputs: 2.0 + np.tanh(infer(*inputs)))
    image = np.random.default_rng(0).integers(0, 256, (294, 392, 3), dtype=np.uint8)
    output = engine.infer(*prepare(image, metric))
    pipeline = DepthPipeline(metric, engine, min_range=0.01)
    frame = pipeline(image)
    assert frame.scale.state is ScaleState.PRIOR
    assert (frame.scale.scale, frame.scale.shift) == (1.0, 0.0)
    finite = np.isfinite(frame.depth)
    assert finite.mean() > 0.9
    np.testing.assert_allclose(1 / frame.depth[finite], frame.relative[finite], rtol=1e-5)
    assert np.median(frame.depth[finite]) == pytest.approx(np.median(output), rel=0.02)
    theirs = DepthPipeline(metric, engine, prior=(2.0, 0.5))(image)
    assert (theirs.scale.scale, theirs.scale.shift) == (2.0, 0.5)
