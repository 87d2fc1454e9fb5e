"""Protocols: what of a frame counts, and how a prediction becomes metres."""

import numpy as np
import pytest

from briges_ros.evaluation.metrics import depth_metrics
from briges_ros.evaluation.protocol import CROPS, PROTOCOLS, Protocol


def hill(width, height):
    """Smooth depth between 2 and 6 m."""
    v, u = np.mgrid[0:height, 0:width]
    return (4 + np.sin(u / width * 3) + np.cos(v / height * 2)).astype(np.float32)


def test_crops_are_the_published_ones():
    assert CROPS['none'](480, 357) == (0, 357, 0, 480)
    assert CROPS['eigen'](640, 480) == (45, 471, 41, 601)
    assert CROPS['eigen'](480, 357) == (0, 357, 0, 480)
    assert CROPS['garg'](1242, 375) == (153, 371, 44, 1197)
    assert CROPS['benchmark'](1242, 375) == (23, 375, 13, 1229)
    assert CROPS['benchmark'](1000, 300) == (0, 300, 0, 1000)


def test_ranges_are_the_published_ones():
    assert (PROTOCOLS['nyuv2'].min_depth, PROTOCOLS['nyuv2'].max_depth) == (1e-3, 10.0)
    assert (PROTOCOLS['kitti'].min_depth, PROTOCOLS['kitti'].max_depth) == (1e-5, 80.0)
    assert all(protocol.crop in CROPS for protocol in PROTOCOLS.values())
    assert PROTOCOLS['nyuv2'].metric().alignment == 'none'


def test_truth_outside_range_or_crop_does_not_count():
    truth = np.full((375, 1242), 5.0, np.float32)
    truth[200, 100:105] = [80.0, 0.0, np.nan, np.inf, -1.0]
    scored = PROTOCOLS['kitti'].scored_truth(truth)
    assert np.isnan(scored[:23]).all() and np.isnan(scored[:, :13]).all()
    assert np.isnan(scored[:, 1229:]).all() and np.isnan(scored[200, 100:105]).all()
    assert np.isfinite(scored).sum() == 352 * 1216 - 5


def test_relative_depth_is_fitted_at_the_size_of_the_truth():
    truth = hill(96, 72)
    protocol = Protocol('test', 0.1, 10.0)
    prediction = 3.0 / hill(48, 36) - 7.0  # another scale and shift, half the size
    depth = protocol.aligned_depth(prediction, protocol.scored_truth(truth))
    assert depth.shape == truth.shape and depth.dtype == np.float32
    assert depth_metrics(depth, truth).abs_rel < 0.003


def test_what_lies_outside_the_crop_does_not_move_the_fit():
    protocol = PROTOCOLS['nyuv2']
    truth, prediction = hill(640, 480), 1.0 / hill(640, 480)
    truth[:45] = 9.0  # the white border: nonsense
    depth = protocol.aligned_depth(prediction, protocol.scored_truth(truth))
    np.testing.assert_allclose(depth[45:471, 41:601], truth[45:471, 41:601], rtol=1e-4)


def test_metres_of_a_metric_network_are_taken_as_they_are():
    protocol = Protocol('test', 0.1, 5.0).metric()
    truth = np.full((4, 6), 3.0, np.float32)
    inverse = np.full((4, 6), 1 / 4.0, np.float32)
    inverse[0] = [1 / 2.0, 100.0, 0.0, -1.0, np.nan, 1e-9]
    depth = protocol.aligned_depth(inverse, truth)
    assert depth[1:] == pytest.approx(4.0)
    np.testing.assert_allclose(depth[0], [2.0, 0.1, 5.0, 5.0, np.nan, 5.0], rtol=1e-6)


def test_nothing_to_score_is_an_error():
    protocol = Protocol('test', 0.1, 5.0)
    unknown, known = np.full((4, 4), np.nan, np.float32), np.ones((4, 4), np.float32)
    with pytest.raises(ValueError, match='truth'):
        protocol.aligned_depth(known, unknown)
    with pytest.raises(ValueError, match='prediction'):
        protocol.aligned_depth(unknown, known)
