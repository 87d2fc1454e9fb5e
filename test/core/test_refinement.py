"""Local refinement: right at anchors, gone far from them, on one surface, and not led astray."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briges_ros.alignment import Anchors, refine, sample
from briges_ros.camera import CameraModel

H, W = 120, 160


def scattered(rng, count, height=H, width=W):
    """Pixels, no two alike."""
    chosen = rng.permutation(height * width)[:count]
    return (chosen % width).astype(np.float32), (chosen // width).astype(np.float32)


def scene():
    """Inverse depth of a slanted plane, and the network's smooth errors of up to 20 %."""
    v, u = np.mgrid[0:H, 0:W].astype(np.float32)
    truth = 0.1 + 0.3 * v / H
    wrong = np.exp(0.2 * np.sin(u / 30) * np.cos(v / 25))
    return truth, (truth * wrong).astype(np.float32)


def refined(relative, u, v, depth, sigma=0.01, model_error=0.15, **options):
    return refine(
        relative, 1.0, 0.0, model_error, u, v, depth, np.full(len(u), sigma, np.float32), **options
    )


def error(inverse, truth):
    return float(np.mean(np.abs(truth / inverse - 1)))


@pytest.mark.parametrize(('count', 'least_gain'), [(20, 1.1), (200, 2.5), (4000, 10)])
def test_it_takes_away_errors_that_are_alike_nearby(count, least_gain):
    truth, relative = scene()
    u, v = scattered(np.random.default_rng(0), count)
    at = v.astype(int), u.astype(int)
    result = refined(relative, u, v, 1 / truth[at])
    assert result.inverse_depth.dtype == result.sigma.dtype == np.float32
    assert result.inverse_depth.shape == result.sigma.shape == (H, W)
    assert error(result.inverse_depth, truth) < error(relative, truth) / least_gain


def test_the_correction_has_no_steps_on_a_surface():
    truth, relative = scene()
    u, v = scattered(np.random.default_rng(0), 100)
    factor = refined(relative, u, v, 1 / truth[v.astype(int), u.astype(int)]).inverse_depth
    step = np.abs(np.diff(np.log(factor / relative), axis=1))
    # Errors of up to 20 % that turn over every 94 pixels: 1.3 % from pixel to pixel.
    assert step.max() < 0.02


def test_a_perfect_fit_stays():
    truth, _ = scene()
    u, v = scattered(np.random.default_rng(0), 300)
    truth = truth.astype(np.float32)
    result = refined(truth, u, v, 1 / truth[v.astype(int), u.astype(int)])
    np.testing.assert_allclose(result.inverse_depth, truth, rtol=1e-3)


def test_scale_and_shift_are_those_of_the_fit():
    truth, relative = scene()
    u, v = scattered(np.random.default_rng(0), 300)
    depth = (1 / truth[v.astype(int), u.astype(int)]).astype(np.float32)
    direct = refined(relative, u, v, depth)
    moved = refine((relative - 0.2) / 5, 5.0, 0.2, 0.15, u, v, depth, np.full(300, 0.01))
    np.testing.assert_allclose(moved.inverse_depth, direct.inverse_depth, rtol=1e-3)


def test_it_shrinks_to_the_fit_away_from_anchors():
    relative = np.full((200, 1600), 0.2, np.float32)
    u, v = np.full(1, 20, np.float32), np.full(1, 100, np.float32)
    result = refined(relative, u, v, np.full(1, 1 / 0.3, np.float32))
    factor = result.inverse_depth[100] / 0.2
    assert factor[20] == pytest.approx(1.5, rel=0.02)
    assert (np.diff(factor[20:]) < 1e-3).all()
    assert factor[-1] == pytest.approx(1, abs=0.01)
    assert (np.diff(result.sigma[100, 20:]) > -1e-3).all()
    assert result.sigma[100, 20] < 0.05 < 0.14 < result.sigma[100, -1] < 0.16


@pytest.mark.parametrize('count', [30, 3000])
def test_it_does_not_cross_strong_edges(count):
    relative = np.full((H, W), 0.1, np.float32)
    relative[:, W // 2 :] = 0.5  # a near object on the right
    u, v = scattered(np.random.default_rng(0), count, width=W // 2 - 2)
    result = refined(relative, u, v, np.full(count, 1 / 0.13, np.float32))  # on the background
    left, right = result.inverse_depth[:, : W // 2], result.inverse_depth[:, W // 2 + 8 :]
    np.testing.assert_allclose(np.median(left), 0.13, rtol=0.05)
    assert np.abs(right / 0.5 - 1).max() < 0.3 * 0.25


def test_both_sides_of_an_edge_have_their_own():
    relative = np.full((H, W), 0.1, np.float32)
    relative[:, W // 2 :] = 0.5
    truth = np.where(relative < 0.3, 0.12, 0.42)
    u, v = scattered(np.random.default_rng(0), 300)
    result = refined(relative, u, v, 1 / truth[v.astype(int), u.astype(int)])
    off = np.abs(result.inverse_depth / truth - 1)
    assert off[:, [W // 2 - 5, W // 2 + 5]].mean() < 0.03


@given(seed=st.integers(0, 1000), count=st.integers(0, 400))
@settings(deadline=None, max_examples=25)
def test_whatever_the_anchors_say_it_is_bounded(seed, count):
    rng = np.random.default_rng(seed)
    _, relative = scene()
    relative -= np.float32(rng.choice([0, 0.15]))  # partly beyond all
    u, v = rng.uniform(-20, W + 20, count), rng.uniform(-20, H + 20, count)
    depth = np.exp(rng.normal(1, 2, count))
    depth[rng.random(count) < 0.1] = rng.choice([np.nan, np.inf, 0, -1])
    result = refined(relative, u, v, depth, sigma=rng.choice([0.0, 0.01, 10]))
    assert np.isfinite(result.inverse_depth).all()
    positive = relative > 0.05
    factor = result.inverse_depth[positive] / relative[positive]
    inside = (u > -0.5) & (u < W - 0.5) & (v > -0.5) & (v < H - 0.5)
    usable = np.isfinite(depth) & (depth > 0) & inside
    floor = 1 / (2 * np.quantile(depth[usable], 0.99)) if usable.any() else 0
    raised = np.maximum(relative[positive], floor) / relative[positive]
    assert (factor > 0.249).all() and (factor < 4.01 * raised).all()
    assert (result.sigma > 0).all()


def test_without_usable_anchors_it_is_the_fit():
    _, relative = scene()
    for count, depth in ((0, 1.0), (5, np.nan), (5, 1e6)):
        u, v = scattered(np.random.default_rng(0), count)
        result = refined(relative, u, v, np.full(count, depth, np.float32))
        np.testing.assert_allclose(result.inverse_depth, relative, rtol=1e-6)
        assert (result.sigma == np.float32(0.15)).all()


@pytest.mark.parametrize('count', [300, 4000])
def test_few_contradicting_anchors_do_little_harm(count):
    truth, relative = scene()
    rng = np.random.default_rng(0)
    u, v = scattered(rng, count)
    depth = 1 / truth[v.astype(int), u.astype(int)]
    wrong = rng.random(count) < 0.3
    depth[wrong] *= np.exp(rng.choice([-1, 1], int(wrong.sum())) * rng.uniform(0.4, 1.2))
    dirty = error(refined(relative, u, v, depth).inverse_depth, truth)
    assert dirty < 0.8 * error(relative, truth)


def test_many_anchors_far_off_are_wrong_and_some_are_not():
    """A third of them on an object that is not there; and a tenth where the network is wrong."""
    truth, relative = scene()
    u, v = scattered(np.random.default_rng(0), 3000)
    at = v.astype(int), u.astype(int)
    depth = 1 / truth[at]
    depth[u < 0.35 * W] = 1.5
    third = refined(relative, u, v, depth, model_error=0.1)
    assert error(third.inverse_depth, truth) < 1.1 * error(relative, truth)
    odd = relative.copy()
    odd[:, : W // 10] *= 2  # the network is wrong there
    tenth = refined(odd, u, v, 1 / truth[at], model_error=0.1)
    assert error(tenth.inverse_depth[:, : W // 10 - 2], truth[:, : W // 10 - 2]) < 0.05


def test_many_anchors_off_by_one_factor_are_wrong():
    truth, relative = scene()
    u, v = scattered(np.random.default_rng(0), 3000)
    depth = 1 / truth[v.astype(int), u.astype(int)]
    depth[u < 0.35 * W] *= 2
    result = refined(relative, u, v, depth, model_error=0.1)
    assert error(result.inverse_depth, truth) < 1.1 * error(relative, truth)


def test_a_network_that_is_wrong_in_a_third_of_the_image_is_put_right():
    truth, relative = scene()
    u, v = scattered(np.random.default_rng(0), 3000)
    odd = relative * np.exp(np.clip(1 - np.arange(W) / (0.7 * W), 0, 1)).astype(np.float32)
    result = refined(odd, u, v, 1 / truth[v.astype(int), u.astype(int)], model_error=0.1)
    assert error(result.inverse_depth, truth) < 0.1 * error(odd, truth)


def test_anchors_of_no_weight_do_not_count():
    truth, relative = scene()
    u, v = scattered(np.random.default_rng(0), 200)
    depth = 1 / truth[v.astype(int), u.astype(int)]
    odd = np.arange(200) % 2 == 1
    depth[odd] *= 1.5
    weight = np.where(odd, 1e-9, 1.0)
    result = refined(relative, u, v, depth, weight=weight)
    assert error(result.inverse_depth, truth) < 0.5 * error(relative, truth)
    both = refined(relative, u, v, depth)
    assert error(result.inverse_depth, truth) < 0.5 * error(both.inverse_depth, truth)


def test_pixels_beyond_all_come_back_beside_anchors_only():
    relative = np.full((200, 1600), 0.2, np.float32)
    relative[:, :100] = -0.01  # a wall that the network takes for the sky
    relative[:, 1500:] = -0.01  # the sky
    u, v = scattered(np.random.default_rng(0), 1500, height=200, width=1400)
    result = refined(relative, u, v, np.where(u < 100, 8.0, 5.0))
    np.testing.assert_allclose(np.median(1 / result.inverse_depth[:, :100]), 8.0, rtol=0.1)
    assert (result.inverse_depth[:, 1500:] <= 0.001).all()


@pytest.mark.parametrize('shape', [(1, 1), (7, 300), (8, 8), (9, 31), (33, 65)])
def test_images_of_any_size(shape):
    relative = np.full(shape, 0.2, np.float32)
    here = np.zeros(3, np.float32)
    result = refined(relative, here, here, np.full(3, 4.0))
    assert result.inverse_depth.shape == result.sigma.shape == shape
    assert np.isfinite(result.inverse_depth).all()
    assert 0.2 <= result.inverse_depth[0, 0] <= 0.2501


def test_unknown_pixels_stay_unknown_and_do_not_spread():
    truth, relative = scene()
    relative[40:60, 40:60] = np.nan
    u, v = scattered(np.random.default_rng(0), 300)
    result = refined(relative, u, v, 1 / truth[v.astype(int), u.astype(int)])
    np.testing.assert_array_equal(np.isnan(result.inverse_depth), np.isnan(relative))


def test_on_real_lidar_sweeps(data):
    """Nine tenths of the points refine, the last tenth scores; the network's errors are made up."""
    drive = data / 'kitti_drive'
    calibration = json.loads((drive / 'calibration.json').read_text())
    size = calibration['width'], calibration['height']
    camera = CameraModel(*size, calibration['K'], calibration['D'])
    rng = np.random.default_rng(0)
    xyz = np.load(drive / 'lidar/000030.npy')[:, :3]
    anchors = Anchors.from_points(xyz, camera, np.array(calibration['T_camera_lidar']))
    # A road and a wall: a network that knows of nothing else.
    rows = np.arange(size[1], dtype=np.float32)[:, None] - 172
    relative = np.maximum(rows / 1200, 0.03) * np.ones((1, size[0]), np.float32)
    kept = rng.random(len(anchors)) < 0.9
    parts = [getattr(anchors, name)[kept] for name in ('u', 'v', 'depth', 'sigma')]
    result = refine(relative, 1.0, 0.0, 0.5, *parts)
    u, v, z = (getattr(anchors, name)[~kept] for name in ('u', 'v', 'depth'))
    before = error(sample(relative, u, v), 1 / z)
    assert error(sample(result.inverse_depth, u, v), 1 / z) < 0.5 * before
