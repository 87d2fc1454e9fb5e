"""Network sizes and normalisation."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from briges_ros.inference.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    input_size,
    network_input,
    normalise,
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
