"""The device's pre- and post-processing computes what the host's does, and builds for both GPUs."""

import math

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briges_ros.depth_image import depth_from_inverse, resize_inverse_depth
from briges_ros.inference import tensorrt_build
from briges_ros.inference.image_graphs import depth_graph, input_graph, relative_graph
from briges_ros.inference.preprocess import IMAGENET_MEAN, IMAGENET_STD, NEAREST_M, network_input

FEW = settings(max_examples=12, deadline=None)
GREY = [1 / (255 * std) for std in IMAGENET_STD]  # one grey level in the network's input


def run(graph, **inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    (output,) = session.run(None, inputs)
    return output


def picture(width, height, seed=0):
    """Noise above, smooth below: both what rounds often and what is like a photograph."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[height // 2 :] = cv2.GaussianBlur(image, (0, 0), 3)[height // 2 :]
    return image


def grey_levels_off(camera, network, image=None):
    """Of each value of the input, how many grey levels it is off."""
    image = picture(*camera) if image is None else image
    expected = network_input(image, *network)
    values = run(input_graph(camera, network, IMAGENET_MEAN, IMAGENET_STD), pixels=image)
    assert values.shape == expected.shape and values.dtype == np.float32
    return np.abs(values - expected) / np.array(GREY).reshape(1, 3, 1, 1)


@pytest.mark.parametrize(
    ('camera', 'network'),
    [
        ((640, 480), (640, 480)),  # as it is
        ((640, 480), (320, 240)),  # halved: OpenCV rounds half up here
        ((640, 480), (160, 120)),  # halves to even
        ((640, 480), (640, 240)),
        ((160, 120), (320, 240)),  # cubic
    ],
)
def test_where_sums_are_exact_the_input_is_the_same_to_the_last_bit(camera, network):
    assert grey_levels_off(camera, network).max() == 0


@pytest.mark.parametrize(
    ('camera', 'network'),
    [
        ((640, 480), (392, 294)),  # the compact model
        ((1280, 720), (518, 294)),
        ((320, 240), (518, 392)),  # cubic both ways
        ((320, 240), (252, 336)),  # area one way, cubic the other
        ((160, 240), (336, 196)),
        ((640, 480), (1024, 1024)),  # SAM
    ],
)
def test_elsewhere_one_value_in_some_hundred_is_one_grey_level_off(camera, network):
    off = grey_levels_off(camera, network)
    assert off.max() < 1.01
    if int(cv2.__version__.split('.')[0]) >= 5 or min(network) < min(camera):
        assert (off > 0.01).mean() < 2e-3
    assert off[off < 0.5].max() < 1e-3


@FEW
@given(
    camera=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    network=st.tuples(st.integers(8, 90), st.integers(8, 90)),
)
def test_any_size(camera, network):
    # Area and cubic steps each round: what is one level off after the first may be two in the end.
    assert grey_levels_off(camera, network).max() < 2.01


def test_the_segmentation_has_its_own_size_and_normalisation():
    image = picture(64, 48)
    half = (0.5, 0.5, 0.5)
    graph = input_graph((64, 48), (80, 64), half, half, 'segmentation_image')
    assert [value.name for value in graph.graph.output] == ['segmentation_image']
    expected = network_input(image, 80, 64, half, half)
    assert np.abs(run(graph, pixels=image) - expected).max() < 1.01 / 127.5


# After the network


def scene(width, height, seed=0):
    """Inverse depth of planes, steep and flat, one before the other, and of a rough patch."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    values = 0.2 + 0.01 * y + 0.002 * x
    values[height // 3 : height // 2, width // 4 : width // 2] = 3.0 - 0.02 * y[0, 0]
    values[2 * height // 3 :, width // 2 :] += 1.5
    values[: height // 5, : width // 5] += rng.normal(0, 0.2, (height // 5, width // 5))
    return values.astype(np.float32)


def compare(values, camera, metric=False):
    """Part of the pixels that are not what the host makes of them."""
    h, w = values.shape
    output = run(relative_graph((w, h), camera, metric), inverse_depth=values[None, None])
    if metric:
        values = np.reciprocal(np.maximum(values, np.float32(NEAREST_M)))
    expected = resize_inverse_depth(values, *camera)
    assert output.shape == expected.shape and output.dtype == np.float32
    same = np.isclose(output, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    return 1 - same.mean()


@pytest.mark.parametrize('camera', [(640, 480), (392, 294), (320, 240), (301, 500), (196, 147)])
def test_relative_depth_is_resized_as_on_the_host(camera):
    assert compare(scene(196, 147), camera) == 0


@FEW
@given(
    network=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    camera=st.tuples(st.integers(2, 90), st.integers(2, 90)),
    seed=st.integers(0, 9),
)
def test_any_size_of_output(network, camera, seed):
    # One row of edge cells is decided by the last bit at most.
    assert compare(scene(*network, seed), camera) <= 0.02


def test_edges_are_kept_sharp():
    values = scene(40, 30)
    output = run(relative_graph((40, 30), (160, 120), False), inverse_depth=values[None, None])
    blurred = cv2.resize(values, (160, 120))
    assert np.abs(output - blurred).max() > 0.5


def test_what_is_not_finite_does_not_spread():
    values = scene(60, 50)
    values[20, 30], values[21, 40], values[0, 0] = np.nan, np.inf, -np.inf
    assert compare(values, (240, 200)) == 0
    assert compare(np.full((50, 60), np.nan, np.float32), (240, 200)) == 0


def test_metres_become_their_inverse():
    metres = 1 / scene(60, 50)
    metres[5:9, 5:9] = 0  # nearer than a metric network can mean
    assert compare(metres, (240, 200), metric=True) == 0
    assert compare(metres, (60, 50), metric=True) == 0


def test_outputs_that_it_cannot_resize_are_refused():
    with pytest.raises(ValueError, match='too small'):
        relative_graph((1, 40), (64, 48), False)
    with pytest.raises(ValueError, match='too many pixels'):
        relative_graph((2000, 2000), (64, 48), False)


ENDS = (-math.inf, math.inf)


def depths(relative, scale, shift, low=ENDS[0], high=ENDS[1], nearest=0.1, farthest=100.0):
    fit = np.array([scale, shift, low, high, nearest, 1 / farthest], np.float32)
    height, width = relative.shape
    return run(depth_graph((width, height)), relative=relative, fit=fit)


@pytest.mark.parametrize('farthest', [100.0, 2.0, math.inf])
def test_depth_is_what_the_host_makes_of_it(farthest):
    relative = scene(64, 48)
    relative[3, :6] = [np.nan, np.inf, 0.0, -1.0, 1e-30, 100.0]
    for scale, shift in [(1.0, 0.0), (0.5, 0.1), (2.0, -0.7), (30.0, 0.0)]:
        expected = depth_from_inverse(relative, scale, shift, 0.1, farthest)
        assert np.isnan(expected).any() and np.isfinite(expected).any()
        output = depths(relative, scale, shift, farthest=farthest)
        np.testing.assert_allclose(output, expected, rtol=1e-6)  # NaN and inf in their places


def test_outside_of_what_was_fitted_it_is_unknown():
    relative = scene(64, 48)
    output = depths(relative, 1.0, 0.0, 0.3, 1.0)
    outside = (relative < np.float32(0.3)) | (relative > 1)
    assert outside.any() and not outside.all()
    np.testing.assert_array_equal(np.isnan(output), outside)


@pytest.mark.parametrize(('scale', 'shift'), [(math.nan, 0.0), (1.0, math.nan)])
def test_without_a_scale_there_are_no_metres(scale, shift):
    assert np.isnan(depths(scene(64, 48), scale, shift)).all()


# Engines of them


@pytest.mark.parametrize(
    ('graph', 'shapes', 'inputs', 'outputs'),
    [
        (
            lambda: input_graph((640, 480), (392, 294), IMAGENET_MEAN, IMAGENET_STD),
            {'pixels': (480, 640, 3)},
            [('pixels', 'uint8', (480, 640, 3))],
            [('image', 'float32', (1, 3, 294, 392))],
        ),
        (
            lambda: input_graph((320, 240), (336, 140), IMAGENET_MEAN, IMAGENET_STD),
            {'pixels': (240, 320, 3)},
            [('pixels', 'uint8', (240, 320, 3))],
            [('image', 'float32', (1, 3, 140, 336))],
        ),
        (
            lambda: relative_graph((224, 168), (640, 480), True),
            {'inverse_depth': (1, 1, 168, 224)},
            [('inverse_depth', 'float32', (1, 1, 168, 224))],
            [('relative', 'float32', (480, 640))],
        ),
        (
            lambda: depth_graph((640, 480)),
            {'relative': (480, 640), 'fit': (6,)},
            [('relative', 'float32', (480, 640)), ('fit', 'float32', (6,))],
            [('depth', 'float32', (480, 640))],
        ),
    ],
)
def test_it_builds_for_both_gpus(monkeypatch, graph, shapes, inputs, outputs):
    pytest.importorskip('tensorrt_rtx', reason='tensorrt-rtx is not installed')
    monkeypatch.setattr(tensorrt_build, 'LIBRARIES', ('tensorrt_rtx',))
    options = tensorrt_build.BuildOptions('fp32', compute_capabilities=('8.6', '8.9'))
    built = tensorrt_build.build_graph(graph(), shapes, options)
    assert built.inputs == tuple(tensorrt_build.TensorInfo(*info) for info in inputs)
    assert built.outputs == tuple(tensorrt_build.TensorInfo(*info) for info in outputs)
    assert built.plan


def test_everything_is_computed_in_float32():
    for graph in (
        input_graph((320, 240), (336, 140), IMAGENET_MEAN, IMAGENET_STD),
        relative_graph((224, 168), (640, 480), True),
        depth_graph((640, 480)),
    ):
        inferred = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True)
        types = {value.type.tensor_type.elem_type for value in inferred.graph.value_info}
        floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL, onnx.TensorProto.INT64}
        assert types <= floats
